"""Checkpoints that are whole or not there: weights, optimiser, random state and step, as safetensors and JSON.

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainers.mixture import file_digest

log = logging.getLogger(__name__)

_RANDOM = "random_state"


def save(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write checkpoint `state["step"]` below `folder` and remove all but the newest `keep`."""
    target = folder / f"step-{state['step']:09d}"

    def write(work: Path) -> None:
        save_file(_unique(model), work / "model.safetensors")
        save_file(_flat(model, optimiser), work / "optimiser.safetensors")
        digests = {path.name: file_digest(path) for path in sorted(work.iterdir())}
        (work / "state.json").write_text(json.dumps(state | {"files": digests, "packages": packages()}, indent=1))

    publish(target, write)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
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


def load(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put the weights, the optimiser's moments and the random state of a checkpoint back, bit for bit."""
    model.load_state_dict(_with_shared(model, load_file(path / "model.safetensors")))
    tensors = load_file(path / "optimiser.safetensors")
    torch.set_rng_state(tensors.pop(_RANDOM))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(":")
        moments.setdefault(parameter, {})[kind] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = moments[names[parameter]]
            optimiser.state[parameter] = {
                kind: tensor if kind == "step" else tensor.to(parameter.device) for kind, tensor in state.items()
            }


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


def _unique(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters by name; tied ones once, under the name `named_parameters` gives them."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _with_shared(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with the second names of tied parameters added, as load_state_dict wants them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: tensors[first[id(parameter)]] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _flat(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `<kind>:<parameter>`, and the random state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{kind}:{names[parameter]}": tensor.contiguous()
        for parameter, state in optimiser.state.items()
        for kind, tensor in state.items()
    }
    return moments | {_RANDOM: torch.get_rng_state()}
