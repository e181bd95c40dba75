"""Two processes of torchrun on one machine, against one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainers.config import Job, TrainConfig
from trainers.data import Batches
from trainers.mixture import open_mixture
from trainers.model import ModelConfig
from trainers.train import train

ROOT = Path(__file__).parents[2]
TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
CONFIG = TrainConfig(
    model=TINY, tokens=20_000, row_length=64, batch_tokens=1024, checkpoint_every=5, threads=1, precision="fp32"
)


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "seed0"
    train(CONFIG, toy / "mixture", out, toy / "heldout")
    return out


def command(folder: Path, toy: Path, processes: int, **changed) -> tuple[list[str], Path]:
    out = folder / "seed0"
    config = CONFIG.model_copy(update=changed)
    job = Job(config=config, mixture=toy / "mixture", out=out, heldout=toy / "heldout")
    (folder / "job.json").write_text(job.model_dump_json())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launch, "-m", "trainers.train", str(folder / "job.json")], out


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def assert_alike(out: Path, other: Path) -> None:
    """The same but for the order of additions; twenty steps of Adam make a little more of that."""
    np.testing.assert_allclose(losses(out), losses(other), atol=2e-4)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, weights(other)[name], atol=2e-3, rtol=0)
    first, second = (json.loads((o / "result.json").read_text()) for o in (out, other))
    assert first["tokens_by_source"] == second["tokens_by_source"]
    loss = [r["evaluation"]["overall"]["nats_per_token"] for r in (first, second)]
    assert loss[0] == pytest.approx(loss[1], abs=1e-3)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_learn_what_one_learns(toy, tmp_path, alone, sharded):
    launched, out = command(tmp_path, toy, 2, sharded=sharded)
    run(launched)
    assert_alike(out, alone)


LORA = {"method": "lora", "options": {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4}}
WAYS = {
    "whole": {"adapter": LORA, "reweigh": {"method": "q_tuning", "samples": 0.5}, "future_heads": {"heads": 1}}
    | {"masked_thought": {"probability": 0.2}, "objective": {"kind": "asft"}, "average": {"decay": 0.9}},
    "sharded": {"half": {"seed": 1}, "objective": {"kind": "asft"}, "future_heads": {"heads": 2}, "sharded": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_learns_in_other_ways(toy, tmp_path, alone, way):
    given = CONFIG.model_dump() | {"start": alone, "tokens": 5000} | WAYS[way]
    config = TrainConfig.model_validate(given)
    one = tmp_path / "one" / "seed0"
    train(config, toy / "mixture", one, toy / "heldout")
    launched, two = command(tmp_path, toy, 2, **dict(config))
    run(launched)
    assert_alike(two, one)
    told = [
        [json.loads(line).get("targets") for line in (o / "log.jsonl").read_text().splitlines()] for o in (one, two)
    ]
    assert told[0] == told[1]


def test_a_run_killed_with_two_processes_goes_on_with_two_to_the_same_bits_and_with_one_alike(toy, tmp_path, alone):
    for name in ("straight", "killed", "changed"):
        (tmp_path / name).mkdir()
    launched, straight = command(tmp_path / "straight", toy, 2)
    run(launched)
    for name in ("killed", "changed"):
        launched, out = command(tmp_path / name, toy, 2)
        process = subprocess.Popen(
            launched, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "checkpoints" / "step-000000005").exists():
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(timeout=60)
        assert not (out / "result.json").exists()
        run(
            launched
            if name == "killed"
            else [sys.executable, "-m", "trainers.train", str(tmp_path / name / "job.json")]
        )
    assert losses(tmp_path / "killed" / "seed0") == losses(straight)
    assert all(torch.equal(t, weights(straight)[n]) for n, t in weights(tmp_path / "killed" / "seed0").items())
    assert_alike(tmp_path / "changed" / "seed0", alone)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_of_processes_are_the_batch(toy, tmp_path, ranks):
    corpus = open_mixture(toy / "mixture", tmp_path)
    batch = Batches(corpus, 64, 8, seed=3).batch(2)
    shares = [batch.share(rank, ranks) for rank in range(ranks)]
    assert sum(len(s.targets) for s in shares) == len(batch.targets)
    assert sorted(np.concatenate([s.documents for s in shares])) == sorted(batch.documents)
    tokens = [len(s.targets) for s in shares]
    assert max(tokens) - min(tokens) <= batch.lengths.max()
