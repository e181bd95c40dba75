"""Runs with an adapter, half of the weights, or a moving average: resumed bit for bit, exported whole."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trainers.adapters import Adapter
from trainers.average import Averaging
from trainers.config import TrainConfig
from trainers.half import HalfFineTuning
from trainers.model import ModelConfig
from trainers.run import Run
from trainers.train import train

TINY = ModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
CONFIG = TrainConfig(
    model=TINY,
    tokens=10_000,
    lr=5e-3,
    row_length=64,
    batch_tokens=1024,
    threads=1,
    precision="fp32",
    checkpoint_every=4,
)
ADALORA = Adapter(method="adalora", options={"total_step": 10, "tinit": 1, "tfinal": 3, "init_r": 4, "target_r": 2})
LORA = Adapter(method="lora", options={"target_modules": "all-linear", "lora_dropout": 0.1})
WAYS = {
    "lora": {"adapter": LORA},
    "adalora": {"adapter": ADALORA, "average": Averaging(half_life=3000)},
    "half": {"half": HalfFineTuning(seed=2)},
    "average": {"average": Averaging(decay=0.8)},
}


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def base(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "seed0"
    train(CONFIG, toy / "mixture", out)
    return out / "model"


def lines(out: Path) -> list[dict]:
    read = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "tokens", "loss", "lr", "grad_norm")} for line in read]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_bit_for_bit(toy, base, tmp_path, monkeypatch, way):
    config = CONFIG.model_copy(update={"start": base, **WAYS[way]})
    result = train(config, toy / "mixture", tmp_path / "straight" / "seed0", toy / "heldout")
    step = Run._step

    def killed(run: Run) -> dict:
        if run.step == 6:
            raise KilledError
        return step(run)

    out = tmp_path / "killed" / "seed0"
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Run, "_step", killed)
        train(config, toy / "mixture", out, toy / "heldout")
    again = train(config, toy / "mixture", out, toy / "heldout")
    straight = tmp_path / "straight" / "seed0"
    assert lines(out) == lines(straight) and again.evaluation == result.evaluation
    assert again.average_evaluation == result.average_evaluation
    assert (result.average_evaluation is not None) == ("average" in WAYS[way])
    found, wanted = weights(out / "model"), weights(straight / "model")
    assert found.keys() == weights(base).keys() and all(torch.equal(found[n], t) for n, t in wanted.items())
    assert result.loss < 7 and lines(out)[-1]["loss"] < lines(out)[0]["loss"] + 0.1


def test_an_adapter_is_exported_alone_and_merged(toy, base, tmp_path):
    out = tmp_path / "seed0"
    train(CONFIG.model_copy(update={"start": base, "adapter": LORA}), toy / "mixture", out)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out / "model")(tokens).logits
        start = AutoModelForCausalLM.from_pretrained(base)
        before = start(tokens).logits.clone()
        alone = PeftModel.from_pretrained(start, out / "adapter")(tokens).logits
    assert torch.allclose(merged, alone, atol=1e-4) and not torch.allclose(merged, before, atol=1e-2)
    assert all(".lora_" in name for name in weights(sorted((out / "checkpoints").iterdir())[-1]))


def test_half_of_the_weights_stays_as_it_was(toy, base, tmp_path):
    half = HalfFineTuning(seed=2)
    out = tmp_path / "seed0"
    train(CONFIG.model_copy(update={"start": base, "half": half}), toy / "mixture", out)
    before, after = weights(base), weights(out / "model")
    chosen = half.chosen(list(before))
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == chosen
    kept = sorted((out / "checkpoints").iterdir())[-1]
    assert set(weights(kept)) == {f"model.{name}" for name in chosen}


def test_the_average_is_written_beside_the_model(toy, base, tmp_path):
    out = tmp_path / "seed0"
    config = CONFIG.model_copy(update={"start": base, "average": Averaging(decay=0.8)})
    result = train(config, toy / "mixture", out, toy / "heldout")
    last, average = weights(out / "model"), weights(out / "average")
    assert last.keys() == average.keys() and not all(torch.equal(average[n], t) for n, t in last.items())
    losses = [e["overall"]["nats_per_token"] for e in (result.average_evaluation, result.evaluation)]
    assert losses[0] == pytest.approx(losses[1], abs=0.2) and losses[0] != losses[1]


def test_ways_that_need_a_start_or_exclude_each_other():
    with pytest.raises(ValueError, match="start"):
        TrainConfig(adapter=LORA)
    with pytest.raises(ValueError, match="exclude each other"):
        TrainConfig(start=Path("model"), adapter=LORA, half=HalfFineTuning())
