"""Every way of training that a config can ask for: it learns, and a killed run ends with the same bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_mixture, make_tokenizer, toy_text
from safetensors.torch import load_file, save_file

from trainers import checkpoint
from trainers.config import TrainConfig
from trainers.model import ModelConfig
from trainers.run import Run
from trainers.train import train

TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
CONFIG = {"tokens": 12_000, "row_length": 64, "batch_tokens": 512, "part_tokens": 256, "lr": 5e-3}
FAST = {"lr": 3e-2}  # for few weights and few steps
CONFIG |= {"checkpoint_every": 5, "threads": 1, "precision": "fp32", "tensorboard": False}
LORA = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4}
WAYS = {
    "dft": {"objective": {"kind": "dft"}},
    "asft": {"objective": {"kind": "asft", "weight": 0.1}},
    "rollout": {"objective": {"kind": "one_token_rollout", "mode": "sampled", "samples": 8}},
    "distill": {"objective": {"kind": "distill", "teacher": "START", "until": 0.5, "transition": "linear"}},
    "heads": {"future_heads": {"heads": 2, "weight": 0.3}},
    "dynamic": {"reweigh": {"method": "dynamic", "warmup": 0.2}},
    "q_tuning": {"reweigh": {"method": "q_tuning", "samples": 0.25}, "window": 2},
    "sstoken": {"reweigh": {"method": "sstoken", "history": "START"}},
    "masked": {"masked_thought": {"probability": 0.4}},
    "lora": {"adapter": {"method": "lora", "options": LORA | {"lora_dropout": 0.1}}} | FAST,
    "adalora": {
        "adapter": {
            "method": "adalora",
            "options": {"target_modules": LORA["target_modules"], "init_r": 4, "target_r": 2, "total_step": 24}
            | {"tinit": 2, "tfinal": 4, "deltaT": 2},
        }
    }
    | FAST,
    "half": {"half": {"seed": 1}},
    "average": {"average": {"decay": 0.9}},
    "lora of everything": {
        "adapter": {"method": "lora", "options": LORA},
        "reweigh": {"method": "q_tuning", "samples": 0.5},
        "masked_thought": {"probability": 0.2},
        "future_heads": {"heads": 1},
    }
    | FAST,
}


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def start(toy, tmp_path_factory) -> Path:
    """A model to go on from."""
    out = tmp_path_factory.mktemp("start") / "seed0"
    train(TrainConfig(model=TINY, **CONFIG | {"tokens": 6000}), toy / "mixture", out)
    return out / "model"


@pytest.fixture(scope="module")
def data(toy, tmp_path_factory) -> Path:
    """Another mixture of the same tokenizer, with prompts, and one held out."""
    generator = np.random.default_rng(5)
    for name, documents in (("sft", 150), ("sft_heldout", 30)):
        folder = make_mixture(toy / name, {"asked": toy_text(generator, documents)}, toy / "tokenizer")
        path = folder / "asked" / "00000.parquet"
        table = pq.read_table(path)
        prompts = [f"the {text.split()[0]} river wants" for text in table["text"].to_pylist()]
        pq.write_table(table.append_column("prompt", [prompts]), path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sources"]["asked"]["files"][0]["digest"] = digest(path)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return toy


def digest(path: Path) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def config(way: str, start: Path, changed: dict | None = None) -> TrainConfig:
    text = json.dumps(WAYS[way]).replace("START", str(start))
    given = CONFIG | {"start": start, "format": {"kind": "prompt_completion"}} | json.loads(text) | (changed or {})
    return TrainConfig.model_validate(given)


def lines(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_s", "data_wait", "flop_s")} for line in found]


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_and_a_killed_run_ends_with_the_same_bits(way, start, data, tmp_path, monkeypatch):
    asked = config(way, start)
    straight, killed = tmp_path / "straight" / "seed0", tmp_path / "killed" / "seed0"
    result = train(asked, data / "sft", straight, data / "sft_heldout")
    before = Run(config("dft", start), *opened(data, tmp_path))
    least = 0.0 if asked.adapter else 0.01  # a few small matrices of a model that has hardly begun move little
    assert result.evaluation["overall"]["nats_per_token"] < loss_of(before, data, tmp_path) - least
    step = Run._step

    def limited(run):
        if run.step == 8:
            raise KilledError
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", limited)
        with pytest.raises(KilledError):
            train(asked, data / "sft", killed, data / "sft_heldout")
    torch.manual_seed(7)
    train(asked, data / "sft", killed, data / "sft_heldout")
    assert lines(killed) == lines(straight)
    tensors = [load_file(out / "model" / "model.safetensors") for out in (straight, killed)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert (killed / "evaluation.json").read_bytes() == (straight / "evaluation.json").read_bytes()
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["objective"]) for line in lines(straight))


def opened(data: Path, folder: Path):
    from trainers.formats import Format
    from trainers.mixture import open_mixture

    return open_mixture(data / "sft", folder, Format(kind="prompt_completion")), folder, {}


def loss_of(run: Run, data: Path, folder: Path) -> float:
    from trainers.evaluate import evaluate
    from trainers.mixture import open_mixture

    held = open_mixture(data / "sft_heldout", folder, run.config.heldout_format)
    return evaluate(run.model, held, 64)[0]["overall"]["nats_per_token"]


def test_what_stands_still_stands_still(start, data, tmp_path):
    before = load_file(start / "model.safetensors")
    train(config("half", start), data / "sft", tmp_path / "half" / "seed0")
    after = load_file(tmp_path / "half" / "seed0" / "model" / "model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name[:14] for name in same if "attn" in name} == {"model.layers.0", "model.layers.1"}
    assert sum("_proj" in name for name in same) == 2 * 2 + 3
    path, _ = checkpoint.newest(tmp_path / "half" / "seed0" / "checkpoints")
    assert not same & {name.removeprefix("model.") for name in load_file(path / "model.safetensors")}
    train(config("lora", start), data / "sft", tmp_path / "lora" / "seed0")
    assert (tmp_path / "lora" / "seed0" / "adapter" / "adapter_model.safetensors").is_file()
    merged = load_file(tmp_path / "lora" / "seed0" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {name for name in before if any(part in name for part in LORA["target_modules"])}


def test_the_average_is_measured_beside_the_model(start, data, tmp_path):
    out = tmp_path / "run" / "seed0"
    result = train(config("average", start), data / "sft", out, data / "sft_heldout")
    average, model = (load_file(out / name / "model.safetensors") for name in ("average", "model"))
    assert any(not torch.equal(average[name], model[name]) for name in model)
    losses = [e["overall"]["nats_per_token"] for e in (result.average_evaluation, result.evaluation)]
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.1
    assert json.loads((out / "average_evaluation.json").read_text()) == result.average_evaluation


def test_q_tuning_learns_from_the_share_of_samples_asked_for(start, data, tmp_path):
    train(config("q_tuning", start), data / "sft", tmp_path / "run" / "seed0")
    for line in lines(tmp_path / "run" / "seed0")[:-1]:
        answers = line["tokens"] / line["step"] * 0.7  # about that share is answers
        assert 0.05 * answers < line["targets"] < 0.45 * answers


@pytest.mark.parametrize("rest", [1, 5, 63, 64])
def test_the_rest_of_a_budget_is_no_step_without_anything_to_learn(start, data, tmp_path, rest):
    asked = config("dft", start, {"objective": {"kind": "cross_entropy"}, "tokens": 3000})
    train(asked, data / "sft", tmp_path / "straight" / "seed0")
    budget = lines(tmp_path / "straight" / "seed0")[3]["tokens"] + rest
    result = train(asked.model_copy(update={"tokens": budget}), data / "sft", tmp_path / "run" / "seed0")
    assert result.tokens == budget and result.steps == (5 if rest >= asked.row_length else 4)
    told = json.loads((tmp_path / "run" / "seed0" / "data.json").read_text())["realised"][0]["sources"]["asked"]
    assert told["tokens"] == budget == result.tokens_by_source["asked"]


@pytest.mark.parametrize("way", ["dynamic", "q_tuning", "sstoken"])
def test_losses_that_are_no_numbers_name_documents_and_the_last_checkpoint(way, start, data, tmp_path, monkeypatch):
    step = Run._step

    def poisoned(run):
        if run.step == 7:
            run.model.get_input_embeddings().weight.data[:, 0] = float("nan")
        return step(run)

    monkeypatch.setattr(Run, "_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 8.*step-000000005.*asked/00000 row \d+ \(asked-\d+\)"):
        train(config(way, start), data / "sft", tmp_path / "seed0")


def spoiled(start: Path, folder: Path, how: str) -> Path:
    """A copy of a model folder: shortened, without one of its tensors, or with another tokenizer."""
    shutil.copytree(start, folder)
    if how == "other tokens":
        rows = [text[::-1] for text in toy_text(np.random.default_rng(1), 99)]
        make_tokenizer(folder, rows)
        return folder
    tensors = load_file(folder / "model.safetensors")
    if how == "without a tensor":
        tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if how == "truncated":
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(file.seek(0, 2) - 100)
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "header promises"),
        ("without a tensor", "missing or misshapen: model.layers.1.mlp.up_proj.weight"),
        ("other tokens", "has other ids than the mixture's tokenizer"),
    ],
)
@pytest.mark.parametrize("what", ["start", "history"])
def test_models_that_are_not_whole_or_read_other_tokens_are_refused(what, how, message, start, data, tmp_path):
    folder = spoiled(start, tmp_path / "model", how)
    changed = {"start": folder} if what == "start" else {"reweigh": {"method": "sstoken", "history": folder}}
    with pytest.raises(ValueError, match=message):
        train(config("dft", start, changed), data / "sft", tmp_path / "out" / "seed0")


def test_a_run_does_not_go_on_with_other_models_than_it_began_with(start, data, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(start, folder)
    asked, step = config("lora", folder), Run._step

    def limited(run):
        if run.step == 6:
            raise KilledError
        return step(run)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Run, "_step", limited)
        train(asked, data / "sft", tmp_path / "out" / "seed0")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="models: there"):
        train(asked, data / "sft", tmp_path / "out" / "seed0")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"adapter": {"method": "lorra"}}, "lora"),
        ({"adapter": {"method": "lora", "options": {"rank": 3}}}, "no option 'rank'"),
        ({"adapter": {"method": "lora"}, "half": {}}, "exclude each other"),
        ({"sharded": True, "reweigh": {"method": "q_tuning"}}, "leave `sharded` out"),
        ({"start": None, "half": {}}, "give it as `start`"),
    ],
)
def test_mistakes_are_named_before_any_work(start, changed, message):
    with pytest.raises(ValueError, match=message):
        config("dft", start, changed)


def test_a_model_of_conversations_is_saved_with_its_template_and_stops_where_answers_end(toy, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    turns = [{"role": "user", "content": "who sees the cat?"}, {"role": "assistant", "content": "the dog."}]
    texts = [f"number {i}" for i in range(40)]
    make_mixture(toy / "chats", {"chat": texts}, toy / "tokenizer", columns={"chat": {"messages": [turns] * 40}})
    asked = CONFIG | {"model": TINY, "format": {"kind": "messages"}, "tokens": 20_000, "lr": 2e-2}
    train(TrainConfig.model_validate(asked), toy / "chats", tmp_path / "seed0")
    folder = tmp_path / "seed0" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt.pop("token_type_ids", None)
    made = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(made) == "the dog.<|endoftext|>"
