"""Scores equal those of each document alone, with the same bits in any company; bad folders are told before work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_classifier import WINDOW, make_classifier
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from transforms import sequence_classifier
from transforms.chunks import Chunks
from transforms.sequence_classifier import SequenceClassifier, check_classifier, load, one_thread, shapes

ARCHITECTURES = ["Bert", "Roberta", "ModernBert", "DistilBert", "DebertaV2", "Electra", "Llama", "Bart"]
SIZES: dict[str, dict[str, Any]] = {
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "Bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "ModernBert": {"cls_token_id": 401, "sep_token_id": 402},
}


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Log-normal lengths, some beyond the window."""
    draw = np.random.default_rng(seed)
    words = ["the boat", "seven lamps", "a", "日本", "rain,", "without a word", "9999", "🎉"]
    return [" ".join(draw.choice(words, int(n) + 1)) for n in draw.lognormal(2, 1, count)]


def chunked(model: SequenceClassifier, texts: list[str]) -> Chunks:
    return model.chunker.cut(pa.array(texts, pa.large_string()), "whole", 64)


@pytest.fixture(scope="module")
def made(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(architecture: str = "Bert", labels: int = 2, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        given = {**SIZES.get(architecture, {}), **config}
        return make_classifier(folder, toy_tokenizer, architecture, labels, **given)

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_transformers_one_at_a_time(architecture: str, made: Callable[..., Path]) -> None:
    folder = made(architecture, 3)
    model = load(check_classifier(folder))
    texts = [t for t in texts_of(60) if len(chunked(model, [t])) == 1]
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.inference_mode():
        logits = [reference(input_ids=tokenizer(t, return_tensors="pt")["input_ids"]).logits[0] for t in texts]
    assert len(texts) > 30
    found = model.logits(chunked(model, texts))
    assert np.abs(found - torch.stack(logits).numpy()).max() <= 1e-5 * max(1, np.abs(found).max())
    for output in range(3):
        wanted = torch.softmax(torch.stack(logits).double(), 1)[:, output]
        assert np.abs(model.scores(chunked(model, texts), output) - wanted.numpy()).max() < 1e-5
    assert np.ptp(found, axis=0).min() > 0.05, "the texts' scores differ, so equality says something"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_company_changes_no_bit(architecture: str, made: Callable[..., Path]) -> None:
    model = load(check_classifier(made(architecture, 3)))
    texts = texts_of(80)
    chunks = chunked(model, texts)
    whole = model.logits(chunks)
    alone = [model.logits(chunks.of(np.array([d]))) for d in range(len(texts))]
    assert np.array_equal(np.concatenate(alone), whole)
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = model.logits(chunked(model, [texts[k] for k in order] + texts_of(50, 9)))
    turned = np.concatenate([alone[k] for k in order])
    assert np.array_equal(shuffled[: len(turned)], turned)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert np.array_equal(model.logits(chunks), whole), "nor do threads"
        assert torch.get_num_threads() == before + 1, "and the caller's number of threads is kept"
    finally:
        torch.set_num_threads(before)


def test_most_architectures_are_run_in_rows(made: Callable[..., Path]) -> None:
    for architecture in ("Bert", "Roberta", "ModernBert", "DistilBert", "Llama"):
        model = load(check_classifier(made(architecture)))
        model.logits(chunked(model, texts_of(60)))
        assert model._exact and all(model._exact.values())


def test_a_model_whose_rows_depend_on_each_other_is_run_alone(made: Callable[..., Path]) -> None:
    """Batch normalisation over the rows, say; here a model that adds the mean of all logits."""
    model = load(check_classifier(made(initializer_range=0.21)))
    chunks = chunked(model, texts_of(40))
    with one_thread(), torch.inference_mode():
        plain = np.concatenate([model._forward([chunks.ids[a:b]], 1, 0) for a, b in _spans(chunks)])

    class Leaking(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **given: torch.Tensor) -> Any:
            out = inner(**given)
            out.logits = out.logits + (out.logits.mean(0, keepdim=True) if len(out.logits) > 1 else 0)
            return out

    inner, leaking = model.model, SequenceClassifier(model.checked, Leaking())
    assert np.array_equal(leaking.logits(chunks), plain) and not any(leaking._exact.values())


def _spans(chunks: Chunks) -> list[tuple[int, int]]:
    return list(zip(chunks.offsets[:-1].tolist(), chunks.offsets[1:].tolist(), strict=True))


def test_padding_is_little(made: Callable[..., Path]) -> None:
    model = load(check_classifier(made(initializer_range=0.22)))
    model.padding = [0, 0]
    model.logits(chunked(model, texts_of(3000)))
    computed, asked = model.padding
    assert 1 < computed / asked < 1.09


@given(st.lists(st.integers(1, 5000), max_size=50), st.sampled_from([256, 4096, 1 << 14]))
def test_shapes(lengths: list[int], budget: int) -> None:
    rows, width = shapes(np.array(lengths, np.int64), budget)
    for length, r, w in zip(lengths, rows.tolist(), width.tolist(), strict=True):
        if r == 1:
            assert w == length
        else:
            assert length < w <= max(length + 4, length * 1.125 + 1) and r * w <= budget < (r + 1) * w
            assert w % 4 == 0


def test_outputs(made: Callable[..., Path]) -> None:
    regression = check_classifier(made(labels=1))
    assert regression.kind == "value" and regression.output(None) == 0 and regression.window == WINDOW
    model = load(regression)
    chunks = chunked(model, texts_of(9))
    assert np.array_equal(model.scores(chunks, 0), model.logits(chunks)[:, 0].astype(np.float64))
    names = {"id2label": {0: "dull", 1: "good", 2: "odd"}, "label2id": {"dull": 0, "good": 1, "odd": 2}}
    several = check_classifier(made(labels=3, **names))
    assert several.kind == "classes" and several.output("good") == 1 and several.output(2) == several.output("2") == 2
    with pytest.raises(ValueError, match=r"has the labels dull, good, odd; say in `label`"):
        several.output(None)
    with pytest.raises(ValueError, match="has no label 'best'; its labels are dull, good, odd"):
        several.output("best")
    probabilities = [load(several).scores(chunks, k) for k in range(3)]
    assert np.allclose(np.sum(probabilities, axis=0), 1, atol=1e-12)
    numbers = {"id2label": {0: "1", 1: "2"}, "label2id": {"1": 0, "2": 1}}
    assert [check_classifier(made(**numbers)).output(label) for label in (0, 1, "1", 2)] == [0, 0, 0, 1]
    independent = check_classifier(made(labels=3, problem_type="multi_label_classification"))
    found = load(independent).scores(chunks, 1)
    wanted = torch.sigmoid(torch.from_numpy(load(independent).logits(chunks)).double())[:, 1]
    assert independent.kind == "labels" and np.abs(found - wanted.numpy()).max() < 1e-12


def test_one_model_in_a_process(toy_classifier: Path) -> None:
    first = load(check_classifier(toy_classifier))
    assert load(check_classifier(toy_classifier)) is first
    key = [k for k, v in sequence_classifier._loaded.items() if v is first]
    assert len(key) == 1


def test_roberta_counts_positions_from_the_padding(made: Callable[..., Path]) -> None:
    folder = made("Roberta", pad_token_id=1, max_position_embeddings=WINDOW + 2)
    (folder / "tokenizer_config.json").unlink()
    checked = check_classifier(folder)
    assert checked.window == WINDOW
    model = load(checked)
    long = chunked(model, ["the boat " * 300])
    assert np.diff(long.offsets).max() >= WINDOW - 1 and np.isfinite(model.logits(long)).all()


def _edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: shutil.rmtree(f), "no model folder at"),
    "no config": (lambda f: (f / "config.json").unlink(), "no model folder at"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is pickled and not opened"),
    "truncated": (lambda f: _truncate(f / "model.safetensors", -100), "its header promises"),
    "no header": (lambda f: _truncate(f / "model.safetensors", 20), "is no whole safetensors file"),
    "remote code": (lambda f: _edited(f, auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "architecture": (lambda f: _edited(f, architectures=["BertForMaskedLM"]), "BertForMaskedLM, expected"),
    "labels": (lambda f: _edited(f, id2label={str(k): f"L{k}" for k in range(7)}), "has no head: none .* has 7 rows"),
    "vocabulary": (lambda f: _edited(f, vocab_size=9999), "the embedding has 403 rows"),
    "window": (
        lambda f: (_edited(f, max_position_embeddings=None), (f / "tokenizer_config.json").unlink()),
        "tells how many tokens it reads",
    ),
    "card": (lambda f: (f / "card.json").write_text("[1]"), r"card\.json holds no JSON object"),
    "tokenizer": (lambda f: _add_token(f / "tokenizer.json"), "has token ids up to 403, .* 403 rows"),
}


def _truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def _add_token(file: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens(["one more"])
    tokenizer.save(str(file))


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case: str, toy_classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_classifier, folder)
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        check_classifier(folder)


def test_a_head_that_is_not_in_the_weights(toy_classifier: Path, tmp_path: Path) -> None:
    """transformers would draw it at random and go on."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(toy_classifier, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["another.weight"] = weights.pop("classifier.weight")
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors of the model are missing or misshapen: classifier\.weight"):
        load(check_classifier(tmp_path / "m"))


@settings(max_examples=30)
@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text(toy_classifier: Path, texts: list[str]) -> None:
    model = load(check_classifier(toy_classifier))
    chunks = chunked(model, texts)
    scores = model.scores(chunks, 1)
    assert len(scores) == chunks.counts.sum() and ((scores > 0) & (scores < 1)).all()
