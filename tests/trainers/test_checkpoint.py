import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers import checkpoint
from trainers.config import Job, TrainConfig
from trainers.model import ModelConfig
from trainers.run import Run
from trainers.train import train

ROOT = Path(__file__).parents[2]
TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)
CONFIG = TrainConfig(
    model=TINY, tokens=40_000, row_length=64, batch_tokens=1024, part_tokens=512, checkpoint_every=7, threads=1
)


class KilledError(Exception):
    pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def lines(out: Path) -> list[dict]:
    timing = {"tokens_s", "data_wait", "flop_s"}
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timing} for line in found]


def assert_equal_runs(a: Path, b: Path) -> None:
    assert lines(a) == lines(b)
    assert weights(a).keys() == weights(b).keys()
    assert all(torch.equal(tensor, weights(b)[name]) for name, tensor in weights(a).items())
    assert (a / "evaluation.json").read_bytes() == (b / "evaluation.json").read_bytes()


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "seed0"
    result = train(CONFIG, toy / "mixture", out, toy / "heldout")
    assert result.steps > 35
    return out


def stop_after(monkeypatch, steps: int) -> None:
    step = Run._step

    def limited(run):
        if run.step == steps:
            raise KilledError
        return step(run)

    monkeypatch.setattr(Run, "_step", limited)


@pytest.mark.parametrize("steps", [3, 7, 20])
def test_stopped_and_resumed_equals_straight_bit_for_bit(toy, tmp_path, straight, monkeypatch, steps):
    out = tmp_path / "seed0"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KilledError):
            train(CONFIG, toy / "mixture", out, toy / "heldout")
    assert len(lines(out)) == steps and not (out / "result.json").exists()
    torch.manual_seed(99)
    train(CONFIG, toy / "mixture", out, toy / "heldout")
    assert_equal_runs(out, straight)


def test_a_process_killed_at_six_random_steps_ends_with_the_same_bits(toy, tmp_path, straight):
    out = tmp_path / "seed0"
    job = Job(config=CONFIG, mixture=toy / "mixture", out=out, heldout=toy / "heldout")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, "-m", "trainers.train", str(tmp_path / "job.json")]
    killed = 0
    for wait_for in sorted(random.Random(0).sample(range(2, len(lines(straight)) - 2), 6)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = out / "log.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_bytes().splitlines()) >= wait_for:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        killed += process.wait(timeout=60) == -signal.SIGKILL
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert killed >= 5  # a step takes 20 ms: one may be through before it is hit
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == len(lines(straight))
    assert_equal_runs(out, straight)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(toy, tmp_path, straight, monkeypatch):
    out = tmp_path / "seed0"
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        with pytest.raises(KilledError):
            train(CONFIG, toy / "mixture", out, toy / "heldout")
    folder = out / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-000000007", "step-000000014"]
    damaged = folder / "step-000000014" / "optimiser.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\1\2\3")
    path, state = checkpoint.newest(folder)
    assert path.name == "step-000000007" and state["step"] == 7
    train(CONFIG, toy / "mixture", out, toy / "heldout")
    assert_equal_runs(out, straight)


def test_checkpoints_hold_config_data_and_package_versions(straight):
    _, state = checkpoint.newest(straight / "checkpoints")
    assert state["identity"]["lr"] == CONFIG.lr and state["packages"]["torch"] == torch.__version__
    assert set(state["files"]) == {"model.safetensors", "optimiser.safetensors"}


def test_publish_replaces_whole_folders_and_a_failure_leaves_the_old_one(tmp_path):
    target = tmp_path / "folder"
    checkpoint.publish(target, lambda work: (work / "a").write_text("1"))

    def fail(work: Path) -> None:
        (work / "a").write_text("2")
        raise KilledError

    with pytest.raises(KilledError):
        checkpoint.publish(target, fail)
    assert (target / "a").read_text() == "1"
    checkpoint.publish(target, lambda work: (work / "b").write_text("3"))
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_kill_between_the_renames_of_publish_loses_nothing(tmp_path, monkeypatch):
    target = tmp_path / "step-000000001"
    checkpoint.publish(target, lambda work: (work / "a").write_text("1"))
    rename = Path.rename

    def killed(path: Path, to: Path) -> Path:
        if to == target:
            raise KilledError
        return rename(path, to)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, "rename", killed)
        checkpoint.publish(target, lambda work: (work / "b").write_text("2"))
    aside = tmp_path / f".{target.name}.old"
    assert (aside / "a").read_text() == "1" and checkpoint.newest(tmp_path) is None, "left-overs are no checkpoints"

    def fail(work: Path) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        checkpoint.publish(target, fail)
    assert (target / "a").read_text() == "1"
    checkpoint.publish(target, lambda work: (work / "c").write_text("3"))
    assert [path.name for path in tmp_path.iterdir()] == [target.name] and (target / "c").exists()


def test_a_checkpoint_is_kept_though_later_ones_are_damaged(tmp_path):
    """A run that goes on before two damaged checkpoints must not take what it writes for the oldest."""
    tensors = checkpoint.Tensors({"weight": torch.ones(2)}, {"step:weight": torch.ones(())})
    for step in (10, 20):
        path = checkpoint.save(tmp_path, tensors, {"step": step})
        (path / "model.safetensors").write_bytes(b"")
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 6, 7):
        written = checkpoint.save(tmp_path, tensors, {"step": step})
        assert checkpoint.newest(tmp_path)[0] == written
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000006", "step-000000007"]


def test_tensorboard_of_a_killed_run_has_what_came_before_its_checkpoint(toy, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "seed0"
    stop_after(monkeypatch, 9)
    with pytest.raises(KilledError) as killed:
        train(CONFIG, toy / "mixture", out)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")][:7] == list(range(1, 8))
    assert killed.tb is not None  # holds the run and its open files
