"""Checkpoints that are whole or not there: what is trained, its optimiser and the step, as safetensors and JSON.

A checkpoint is a folder `step-<n>` that gets its name by one rename after its files are on disk. `state.json` holds the
digests of the other files, so a folder that was damaged later is passed over for the one before. No pickle is read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.distributed import part_of, whole
from trainers.mixture import file_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tensors:
    """What a checkpoint holds, whole and on the CPU or where it was: `<parameter>`, and `<kind>:<parameter>`."""

    parameters: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    more: dict[str, torch.Tensor] = field(default_factory=dict)  # what else a run has to find again


def collect(module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Tensors:
    """The parameters that are trained, tied ones once, and the optimiser's moments. Every process has to ask."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    parameters = {name: whole(p.detach()).contiguous() for p, name in names.items() if p.requires_grad}
    moments = {
        f"{kind}:{names[parameter]}": whole(tensor).contiguous()
        for parameter, state in optimiser.state.items()
        for kind, tensor in state.items()
    }
    return Tensors(parameters, moments)


def save(folder: Path, tensors: Tensors, state: dict[str, Any], keep: int = 2) -> Path:
    """Write checkpoint `state["step"]` below `folder`; remove all but the newest `keep`, and later ones: a run that
    writes this one had found them damaged.
    """
    target = folder / f"step-{state['step']:09d}"

    def write(work: Path) -> None:
        save_file(tensors.parameters, work / "model.safetensors")
        save_file(tensors.moments, work / "optimiser.safetensors")
        if tensors.more:
            save_file(tensors.more, work / "more.safetensors")
        digests = {path.name: file_digest(path) for path in sorted(work.iterdir())}
        (work / "state.json").write_text(json.dumps(state | {"files": digests, "packages": packages()}, indent=1))

    publish(target, write)
    there = sorted(folder.glob("step-*"))
    place = there.index(target) + 1
    for other in [*there[: max(0, place - keep)], *there[place:]]:
        shutil.rmtree(other)
    return target


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint below `folder` whose files are as they were written, and its state; None without one."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((path / "state.json").read_text())
            if all(file_digest(path / name) == digest for name, digest in state["files"].items()):
                return path, state
        except (OSError, ValueError, KeyError):
            pass
        log.warning("%s is damaged; using the checkpoint before it", path)
    return None


def same_parameters(path: Path, module: torch.nn.Module) -> bool:
    """Whether a checkpoint is of the parameters that the module trains, by names and shapes."""
    with safe_open(path / "model.safetensors", "pt") as held:
        there = {name: list(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    return there == {name: list(p.shape) for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def load(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Put the weights and the optimiser's moments of a checkpoint back, bit for bit; returns what else it holds.

    Raises:
        ValueError: it is of other parameters.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not same_parameters(path, module):
        raise ValueError(f"{path} is a checkpoint of other parameters than this model trains; remove it")
    weights = load_file(path / "model.safetensors")
    for name, parameter in parameters.items():
        parameter.copy_(part_of(weights[name], parameter))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(path / "optimiser.safetensors").items():
        kind, _, owner = name.partition(":")
        moments.setdefault(owner, {})[kind] = tensor
    for name, parameter in parameters.items():
        optimiser.state[parameter] = {
            kind: tensor if kind == "step" else part_of(tensor, parameter) for kind, tensor in moments[name].items()
        }
    return load_file(path / "more.safetensors") if (path / "more.safetensors").exists() else {}


def of_run(start: Path | None) -> Path | None:
    """The newest whole checkpoint of a finished run of the trainer; None for a model folder.

    Raises:
        ValueError: there are checkpoints and none is whole.
    """
    if start is None or not (start / "checkpoints").is_dir():
        return None
    found = newest(start / "checkpoints")
    if found is None:
        raise ValueError(f"no checkpoint in {start}/checkpoints is whole; start from {start}/model, without moments")
    return found[0]


def model_of(start: Path) -> Path:
    """The model folder of a finished run of the trainer, or the folder itself."""
    return start / "model" if (start / "checkpoints").is_dir() else start


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that then appears as `target`, replacing an older one; a crash leaves no half of it."""
    work, aside = target.with_name(f".{target.name}"), target.with_name(f".{target.name}.old")
    if aside.exists() and not target.exists():
        aside.rename(target)  # killed between the renames below
    for left in (work, aside):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir(parents=True)
    write(work)
    for path in work.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        target.rename(aside)
    work.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def publish_json(target: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    work = target.with_name(f".{target.name}")
    with work.open("w") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())
    work.replace(target)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Be the only process that trains in `out`; one that outlived its launcher is waited for: its work is good."""
    import fcntl

    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process trains in %s; waiting for it", out)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def packages() -> dict[str, str]:
    """Versions of the libraries that decide the bits of a run."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
