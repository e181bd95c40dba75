"""The adapter against the harness's own model of transformers and against our tasks, on a dataset made here."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS, toy_text

from trainers.config import TrainConfig
from trainers.harness import HarnessMissingError, adapter, generate, open_tasks, run_harness
from trainers.model import ModelConfig, load_model
from trainers.tasks import Cloze, MultipleChoice, run_tasks
from trainers.train import train

TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def folder(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harness") / "mixture" / "seed0"
    train(
        TrainConfig(model=TINY, tokens=20_000, lr=1e-2, row_length=64, threads=1, precision="fp32"),
        toy / "mixture",
        out,
    )
    return out / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cloze, a multiple choice and running texts as Parquet, each with its YAML for the harness."""
    root, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(3)
    contexts = [" ".join(generator.choice(WORDS, 6)) for _ in range(40)]
    tables: dict[str, dict[str, Any]] = {
        "toy_cloze": {"context": contexts, "continuation": [f" {w}" for w in generator.choice(WORDS, 40)]},
        "toy_choice": {
            "question": contexts,
            "choices": [[" ".join(generator.choice(WORDS, n)) for n in generator.integers(1, 5, 4)] for _ in contexts],
            "answer": generator.integers(0, 4, 40),
        },
        "toy_text": {"text": toy_text(generator, 12, 60)},
        "toy_write": {"context": contexts[:5], "target": ["the"] * 5},
    }
    text, choice = "{{context}}", "{{question}}"
    own = {
        "toy_cloze": {"output_type": "loglikelihood", "doc_to_text": text, "doc_to_target": "{{continuation}}"}
        | {"target_delimiter": "", "metric_list": [{"metric": "acc"}]},
        "toy_choice": {"output_type": "multiple_choice", "doc_to_text": choice, "doc_to_target": "answer"}
        | {
            "doc_to_choice": "choices",
            "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")],
        },
        "toy_text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
        | {"metric_list": [{"metric": "bits_per_byte"}]},
        "toy_write": {"output_type": "generate_until", "doc_to_text": text, "doc_to_target": "{{target}}"}
        | {"generation_kwargs": {"until": ["."], "max_gen_toks": 12}, "metric_list": [{"metric": "exact_match"}]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), root / f"{name}.parquet")
        source = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": str(root / f"{name}.parquet")}}}
        (root / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **source, **own[name]}))
    return root


def yaml(files: Path, *names: str) -> list[str]:
    return [str(files / f"{name}.yaml") for name in names]


@needs_harness
def test_our_tasks_say_what_the_harness_says(folder: Path, files: Path) -> None:
    found = run_harness(load_model(folder), folder, yaml(files, "toy_cloze", "toy_choice"), 64)
    tasks = {
        "toy_cloze": Cloze(path=files / "toy_cloze.parquet"),
        "toy_choice": MultipleChoice(path=files / "toy_choice.parquet", unconditional=True),
    }
    results, tables = run_tasks(load_model(folder), folder, tasks, 64)
    samples = sorted(found["samples"]["toy_cloze"], key=lambda s: s["doc_id"])
    theirs = [sample["filtered_resps"][0] for sample in samples]
    np.testing.assert_allclose(tables["toy_cloze"]["log_probability"], [t[0] for t in theirs], rtol=1e-6)
    assert tables["toy_cloze"]["accuracy"].to_pylist() == [int(t[1]) for t in theirs]
    assert found["results"]["toy_cloze"]["acc"] == results["toy_cloze"]["accuracy"]
    names = {"acc": "accuracy", "acc_norm": "accuracy_per_character", "acc_bytes": "accuracy_per_byte"}
    for theirs_name, ours in {**names, "acc_mutual_info": "accuracy_unconditional"}.items():
        assert found["results"]["toy_choice"][theirs_name] == pytest.approx(results["toy_choice"][ours]), ours
    samples = sorted(found["samples"]["toy_choice"], key=lambda s: s["doc_id"])
    logs = [[r[0] for r in sample["filtered_resps"][:4]] for sample in samples]
    np.testing.assert_allclose(tables["toy_choice"]["log_probabilities"].to_pylist(), logs, rtol=1e-6)


@needs_harness
def test_the_harness_by_its_own_model_says_the_same(folder: Path, files: Path) -> None:
    """Its `hf` model pads batches; told to begin with the token that begins a text, it sees what ours sees."""
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    class Begins(HFLM):
        """`add_bos_token` does nothing for a tokenizer without a template for it, as ours is."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            ids = super().tok_encode(string, add_special_tokens=False, **more)
            return ids if add_special_tokens is False else [self.prefix_token_id, *ids]

    theirs = Begins(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32", max_length=64)
    wanted = yaml(files, "toy_cloze", "toy_choice")
    names = wanted + yaml(files, "toy_write")
    one = simple_evaluate(model=theirs, tasks=names, bootstrap_iters=0)
    two = simple_evaluate(model=adapter(load_model(folder), folder, 64), tasks=names, bootstrap_iters=0)
    for name in ("toy_cloze", "toy_choice", "toy_write"):
        pairs = zip(*(sorted(r["samples"][name], key=lambda s: s["doc_id"]) for r in (one, two)), strict=True)
        for a, b in pairs:
            for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
                assert x == y if isinstance(x, str) else x == (pytest.approx(y[0], rel=1e-4), y[1])
    texts = pq.read_table(files / "toy_text.parquet")["text"].to_pylist()
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    ours = adapter(load_model(folder), folder, 64).loglikelihood_rolling(requests)
    rolled = HFLM(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32", max_length=64)
    np.testing.assert_allclose(ours, rolled.loglikelihood_rolling(requests), rtol=1e-4)
    sizes = [len(text.encode()) for text in texts]
    found = run_harness(load_model(folder), folder, yaml(files, "toy_text"), 64)["results"]["toy_text"]
    assert found["bits_per_byte"] == pytest.approx(-sum(ours) / sum(sizes) / math.log(2))
    assert max(sizes) > 300  # some are longer than a row


@needs_harness
def test_an_unknown_task_is_told_without_a_model() -> None:
    with pytest.raises(ValueError, match="no task 'arc_hard_not'"):
        open_tasks(["arc_hard_not"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_harness_it_says_what_to_install(folder: Path) -> None:
    with pytest.raises(HarnessMissingError, match=r"pip install 'corpusmill\[harness\]'"):
        run_harness(load_model(folder), folder, ["arc_easy"], 64)


def test_generation_is_greedy_and_stops(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = load_model(folder), PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    context = [0, *tokenizer("the old cat")["input_ids"]]
    made = generate(model, tokenizer, context, {"max_gen_toks": 8, "temperature": 0.0}, 64, 0)
    tokens = list(context)
    for _ in range(8):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    ended = tokens[len(context) :]
    ended = ended[: ended.index(0)] if 0 in ended else ended
    assert made == tokenizer.decode(ended) and len(made) > 2
    stop = made[-2:]
    stopped = generate(model, tokenizer, context, {"max_gen_toks": 8, "until": [stop]}, 64, 0)
    assert stopped == made[: made.index(stop)]
    with pytest.raises(ValueError, match="64 new tokens"):
        generate(model, tokenizer, context, {"max_gen_toks": 64}, 64, 0)
