"""Merging model folders: averages of models, and sums of task vectors on a base.

    theta = base + Σ λ_i (theta_i - base)          task arithmetic (arXiv 2212.04089)

An average ("model soup", arXiv 2203.05482) is the same with one of the models as base. TIES (arXiv 2306.01708) and
DARE (arXiv 2311.03099) change the task vectors first. Tensors go through one by one, from safetensors to safetensors,
computed in float32 (float64 where the base has it) and kept in the base's type.

Cost: memory for one tensor of each model and its change; each model is read once, once for its digest, and twice for
the thresholds of TIES.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import safe_open

from trainers import checkpoint
from trainers.mixture import file_digest
from transforms.model_folder import CAUSAL, ModelFolder, check_model_folder

INDEX = "model.safetensors.index.json"
BESIDE = {  # files of the base that go with its weights
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "*.model", "chat_template*"),
}
NOT_COMPARED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"} | {
    f"{kind}_token_id" for kind in ("bos", "eos", "pad")
}

Vector = Callable[[str], torch.Tensor]  # tensors by name


@dataclass(frozen=True)
class Merge:
    """What is added to the base: λ_i of each model, and what is done to the task vectors before."""

    base: Path
    models: tuple[tuple[Path, float], ...]  # folder and λ
    density: float | None = None  # TIES: share of the entries of each task vector that is kept, the largest
    drop: float | None = None  # DARE: share of the entries set to 0, at random; the others grow to make up for it
    seed: int = 0  # of what DARE drops

    def __post_init__(self) -> None:
        for path, factor in self.models:
            if not math.isfinite(factor):
                raise ValueError(f"{path}: factor {factor}; give a finite number")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density {self.density}: give a share above 0, up to 1")
        if self.drop is not None and not 0 <= self.drop < 1:
            raise ValueError(f"drop {self.drop}: give a share from 0 to below 1")
        if self.density is not None and self.drop is not None:
            raise ValueError("density (TIES) and drop (DARE) exclude each other; give one of them")


def average(models: Sequence[Path], weights: Sequence[float] | None = None) -> Merge:
    """The weighted average of models; weights are divided by their sum. One model is its own average, bit for bit."""
    weights = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(weights) != len(models):
        raise ValueError(f"{len(models)} models and {len(weights)} weights; give one weight per model")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights):
        raise ValueError(f"weights {weights}: give finite numbers from 0, not all of them 0")
    shares = [w / sum(weights) for w in weights]
    return Merge(models[0], tuple(zip(models[1:], shares[1:], strict=True)))


def merge(asked: Merge, out: Path) -> dict[str, Any]:
    """Write the merged model folder, with config and tokenizer of the base, and merge.json; returns what that holds.

    Raises:
        ValueError: a folder is no whole model, or the models differ in architecture, tensors or tokenizer; the message
            names the first difference.
        FileExistsError: `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another folder for the merged model")
    base = check_model_folder(asked.base, CAUSAL)
    models = [check_model_folder(path, CAUSAL) for path, _ in asked.models]
    for model in models:
        _check_alike(base, model)
    told = _provenance(asked)
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        with ExitStack() as stack:
            readers = [_Reader(path, stack) for path in (asked.base, *(path for path, _ in asked.models))]
            combine = _combiner(asked, readers)
            for name, tensors in readers[0].files.items():
                _write(folder / name, {n: base.shapes[n] for n in tensors}, readers[0], combine)
            beside = BESIDE | ({INDEX} if readers[0].sharded else set())
        for path in {path for pattern in beside for path in asked.base.glob(pattern) if path.is_file()}:
            shutil.copyfile(path, folder / path.name)
        (folder / "merge.json").write_text(json.dumps(told, indent=1))

    checkpoint.publish(out, write)
    return told


class _Reader:
    """Tensors of a model folder by name, mapped from disk."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.sharded = not (path / "model.safetensors").is_file()
        weights = json.loads((path / INDEX).read_bytes())["weight_map"].values() if self.sharded else ()
        opened = {
            name: stack.enter_context(safe_open(path / name, framework="pt"))
            for name in sorted(set(weights)) or ["model.safetensors"]
        }
        self.files = {name: list(file.keys()) for name, file in opened.items()}
        self._owner = {tensor: opened[name] for name, tensors in self.files.items() for tensor in tensors}

    def __call__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._owner[name].get_tensor(name)
        return tensor

    def dtype(self, name: str) -> str:
        """As safetensors calls it: F32, BF16, I64, F8_E4M3, BOOL."""
        return str(self._owner[name].get_slice(name).get_dtype())

    def averaged(self) -> list[str]:
        """Names of the tensors of floating-point numbers."""
        return [name for name in self._owner if self.dtype(name).startswith(("F", "BF"))]


def _combiner(asked: Merge, readers: list[_Reader]) -> Vector:
    """The function that makes a tensor of the merged model, by its name."""
    base, *others = readers
    factors = [factor for _, factor in asked.models]
    vectors = [_task_vector(base, model) for model in others]
    if asked.drop:
        vectors = [_dropped(vector, asked.drop, f"{asked.seed} {n}") for n, vector in enumerate(vectors)]
    if asked.density:
        names = base.averaged()
        vectors = [_trimmed(vector, _limit(names, vector, asked.density)) for vector in vectors]

    def combine(name: str) -> torch.Tensor:
        start = base(name)
        if not start.is_floating_point():
            return _same(name, start, [model(name) for model in others])
        changes = [factor * vector(name) for factor, vector in zip(factors, vectors, strict=True)]
        if asked.density:
            changes = [_elected(changes)]
        return sum(changes, start=start.to(_wide(start))).to(start.dtype)

    return combine


def _task_vector(base: _Reader, model: _Reader) -> Vector:
    def vector(name: str) -> torch.Tensor:
        start = base(name)
        return model(name).to(_wide(start)) - start.to(_wide(start))

    return vector


def _dropped(vector: Vector, rate: float, seed: str) -> Vector:
    """A task vector of which a share is set to 0; which entries follows from the seed and the tensor's name."""

    def dropped(name: str) -> torch.Tensor:
        change = vector(name)
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed} {name}".encode()) % 2**63)
        return torch.where(torch.rand(change.shape, generator=generator) < rate, 0, change / (1 - rate))

    return dropped


def _trimmed(vector: Vector, limit: float) -> Vector:
    def trimmed(name: str) -> torch.Tensor:
        change = vector(name)
        return torch.where(change.float().abs() >= limit, change, 0)

    return trimmed


def _limit(names: list[str], vector: Vector, density: float) -> float:
    """The magnitude from which an entry is among the largest share `density` of a whole task vector; exact.

    Magnitudes of float32 are ordered as their bits are: two counts, of the upper and then the lower 16 bits, find it.
    """

    def at_least(count: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """int64 [65536]: how many entries have this half of their bits or a larger one."""
        found = np.zeros(1 << 16, np.int64)
        for name in names:
            bits = vector(name).float().abs().contiguous().reshape(-1).numpy().view(np.uint32)
            found += np.bincount(count(bits), minlength=1 << 16)
        return found[::-1].cumsum()[::-1]

    upper = at_least(lambda bits: bits >> 16)
    wanted = max(1, round(density * int(upper[0])))
    high = int(np.flatnonzero(upper >= wanted)[-1])
    wanted -= int(upper[high + 1]) if high + 1 < len(upper) else 0
    lower = at_least(lambda bits: bits[bits >> 16 == high] & 0xFFFF)
    low = int(np.flatnonzero(lower >= wanted)[-1])
    return float(np.array(high << 16 | low, np.uint32).view(np.float32))


def _elected(changes: list[torch.Tensor]) -> torch.Tensor:
    """The mean of the changes that are not 0 and have the sign of their sum, entry by entry (TIES)."""
    stacked = torch.stack(changes)
    agree = stacked.sign() == stacked.sum(dim=0).sign()
    agree &= stacked != 0
    return torch.where(agree, stacked, 0).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def _same(name: str, start: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    if not all(torch.equal(start, other) for other in others):
        raise ValueError(f"{name} is of {start.dtype}, which cannot be averaged, and the models differ in it")
    return start


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_alike(base: ModelFolder, model: ModelFolder) -> None:
    """ValueError naming the first difference of two models that are to be merged."""

    def differ(what: str, here: Any, there: Any) -> ValueError:
        return ValueError(f"{what}: {here} in {base.path}, {there} in {model.path}; only models of one base merge")

    for field in sorted((base.config.keys() | model.config.keys()) - NOT_COMPARED):
        if base.config.get(field) != model.config.get(field):
            raise differ(f"config.json: {field}", base.config.get(field), model.config.get(field))
    for name in sorted(base.shapes.keys() | model.shapes.keys()):
        if base.shapes.get(name) != model.shapes.get(name):
            raise differ(f"tensor {name}", base.shapes.get(name, "absent"), model.shapes.get(name, "absent"))
    here, there = (_tokenizer_digest(folder.path) for folder in (base, model))
    if here != there:
        raise differ("tokenizer.json: digest of tokens and merges", here, there)


def _tokenizer_digest(folder: Path) -> str:
    """Of what turns text into ids: not of how many tokens a text is cut to."""
    told = json.loads((folder / "tokenizer.json").read_bytes())
    kept = {name: value for name, value in told.items() if name not in ("truncation", "padding", "version")}
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True).encode())


def _provenance(asked: Merge) -> dict[str, Any]:
    def folder(path: Path) -> dict[str, Any]:
        files = sorted(path.glob("*.safetensors"))
        return {"path": str(path.resolve()), "files": {file.name: file_digest(file) for file in files}}

    method = "ties" if asked.density else "dare" if asked.drop else "task arithmetic"
    models = [{**folder(path), "factor": factor} for path, factor in asked.models]
    settings = {name: getattr(asked, name) for name in ("density", "drop", "seed") if method != "task arithmetic"}
    return {"method": method, **settings, "base": folder(asked.base), "models": models} | {
        "formula": "base + sum of factor * (model - base)",
        "packages": checkpoint.packages(),
    }


def _write(file: Path, shapes: dict[str, tuple[int, ...]], base: _Reader, make: Vector) -> None:
    """A safetensors file (8 bytes of length, JSON, data), one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        dtype = base.dtype(name)
        size = math.prod(shape) * _bytes(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            target.write(make(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _bytes(dtype: str) -> int:
    """Bytes of an element, from the name that safetensors has for its type."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1
