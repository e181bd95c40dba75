"""Is a folder a model that can be loaded here safely? Found out before any work, without torch and without weights.

Read are config.json, the tokenizer's files and the headers of the safetensors files: about 10 ms, and 0.2 s for a
vocabulary of 250,000. Nothing of the folder is executed: no remote code, nothing pickled.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how architectures are called that predict the next token
CLASSIFIER = ("ForSequenceClassification",)
ENCODER = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")  # what has an encoder in it
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class ModelFolder:
    """What the headers of a model folder tell."""

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # of each tensor
    vocabulary: int  # rows of the embedding
    begin: int | None  # id of the token that begins a text, None where the model has none


def check_model_folder(path: Path, kinds: Sequence[str]) -> ModelFolder:
    """Check that `path` holds config.json, whole safetensors weights and a tokenizer that fits them.

    Args:
        kinds: endings of the architectures that will do, as `CAUSAL` or `CLASSIFIER`.

    Raises:
        ValueError: it does not; the message names the file, what was found and what was expected.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"no model folder at {path}; give a folder with config.json, tokenizer.json and *.safetensors")
    config = _json(path / "config.json")
    if "auto_map" in config:
        raise ValueError(
            f"{path}/config.json names code of its own (auto_map), and none is run from a model folder; "
            "give a model whose architecture transformers has"
        )
    found = config.get("architectures") or []
    if not any(str(name).endswith(tuple(kinds)) for name in found):
        wanted = " or ".join(f"…{kind}" for kind in kinds)
        raise ValueError(f"{path}/config.json is of the architecture {', '.join(found) or 'none'}, expected {wanted}")
    shapes = {name: shape for file in _weights(path) for name, shape in _header(file).items()}
    vocabulary = _vocabulary(path, config, shapes)
    return ModelFolder(path, config, shapes, vocabulary, _begin(path, config, _token_ids(path, vocabulary)))


def check_window(folder: ModelFolder, window: int) -> None:
    """Raises ValueError: the model was made for fewer than `window` tokens."""
    config = folder.config
    limits = {k: config.get(k) for k in ("max_position_embeddings", "n_positions", "n_ctx")}
    if config.get("use_sliding_window", True):
        limits["sliding_window"] = config.get("sliding_window")
    for name, limit in limits.items():
        if isinstance(limit, int) and limit < window:
            raise ValueError(f"a window of {window} tokens; {folder.path}/config.json allows {limit} ({name})")


def check_same_tokens(one: ModelFolder, other: ModelFolder) -> None:
    """Raises ValueError: the models would cut a text into different tokens, or have embeddings of different sizes."""
    names = ("model", "added_tokens", "normalizer", "pre_tokenizer")  # what cuts texts; the rest is not used here
    first, second = (_json(folder.path / "tokenizer.json") for folder in (one, other))
    different = [f"{name} of tokenizer.json" for name in names if first.get(name) != second.get(name)]
    for what in ("vocabulary", "begin"):
        if getattr(one, what) != getattr(other, what):
            different.append(f"{what} ({getattr(one, what)} and {getattr(other, what)})")
    if different:
        raise ValueError(
            f"{one.path} and {other.path} differ in {', '.join(different)}; predictions can be compared over one "
            "vocabulary alone: give a model and what was made from it"
        )


def read_card(folder: Path) -> dict[str, Any]:
    """What `card.json` of a model folder holds; empty if there is none. Raises ValueError: it holds no JSON object."""
    card = folder / "card.json"
    return _json(card) if card.is_file() else {}


def check_device(device: str) -> str:
    """The name of a device of torch, as `cpu` or `cuda:1`. Raises ValueError: it is no such name, or not here."""
    if device == "cpu" or importlib.util.find_spec("torch") is None:
        return device
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    names = [f"{here.type}:{k}" for k in range(torch.accelerator.device_count())] if here else []
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device of torch; there are {', '.join(['cpu', *names])}") from error
    if asked.type != "cpu" and f"{asked.type}:{asked.index or 0}" not in names:
        raise ValueError(f"no device {device!r} here; there are {', '.join(['cpu', *names])}")
    return device


def files_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, time of change and size of all in a folder: what was loaded from it is current while that is the same."""
    found = ((str(p), p.stat()) for p in sorted(folder.resolve().iterdir()))
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in found)


def load_model(auto: str, folder: Path, new_head: bool = False, **settings: Any) -> tuple[Any, list[str]]:
    """The model of a checked folder by transformers' class `auto`, and the tensors that were drawn at random.

    Safetensors only, no remote code, float32 where `settings` (of `from_pretrained`) do not say otherwise.

    Args:
        new_head: what lies outside of the base model, and poolers, may be missing or of another shape; else nothing.

    Raises:
        ValueError: the weights cannot be read, or tensors are missing or misshapen.
    """
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    shown = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which the report then names
    try:
        model, report = getattr(transformers, auto).from_pretrained(
            folder, **{"dtype": torch.float32, **settings, **safe, **shown}
        )
    except (OSError, RuntimeError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from error
    new = sorted([*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])])
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    lacking = [name for name in new if not new_head or (name.startswith(base) and "pooler" not in name.split("."))]
    if lacking:
        listed = ", ".join(lacking[:5])
        raise ValueError(f"{folder}: {len(lacking)} tensors of the model are missing or misshapen: {listed}")
    return model, new


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _weights(path: Path) -> list[Path]:
    """The files of weights: model.safetensors, or those that its index names."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        pickled = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")]
        other = f"; {pickled[0].name} is pickled and not opened, save it as safetensors" if pickled else ""
        raise ValueError(f"{path} holds no model.safetensors and no {index.name}{other}")
    names = sorted(set(map(str, _json(index).get("weight_map", {}).values())))
    missing = [name for name in names if Path(name).name != name or not (path / name).is_file()]
    if missing or not names:
        raise ValueError(
            f"{index} names {', '.join(missing) or 'no file'}, expected files of this folder; copy it anew"
        )
    return [path / name for name in names]


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file (8 bytes of length, JSON, data) that is as long as they say."""
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{file} of {size} bytes is no whole safetensors file; copy it anew")
        try:
            header = json.loads(source.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items()}
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{file} is no safetensors file: its header cannot be read ({error})") from error
    if size != 8 + length + end:
        raise ValueError(f"{file} is {size} bytes, its header promises {8 + length + end}; copy it anew")
    return shapes


def _vocabulary(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int:
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS)), config.get("vocab_size"))
    if not isinstance(rows, int):
        raise ValueError(f"{path}: neither config.json nor the weights tell the size of the vocabulary")
    if config.get("vocab_size", rows) != rows:
        raise ValueError(f"{path}: the embedding has {rows} rows, config.json says vocab_size {config['vocab_size']}")
    return rows


def _token_ids(path: Path, vocabulary: int) -> dict[str, int]:
    """Ids of the tokenizer's tokens; none may lie beyond the embedding."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path} holds no tokenizer.json; save the model's fast tokenizer there")
    tokenizer = _json(file)
    try:
        own = tokenizer["model"]["vocab"]  # token -> id; of unigram models a list of (token, score) in order of ids
        ids = {str(token): i for i, (token, _) in enumerate(own)} if isinstance(own, list) else dict(own)
        ids |= {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens") or []}
        largest = max(ids.values(), default=-1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no tokenizer of the tokenizers library ({error!r})") from error
    if not 0 <= largest < vocabulary:
        raise ValueError(
            f"{file} has token ids up to {largest}, the model's embedding has {vocabulary} rows; "
            "they belong to different models"
        )
    return ids


def _begin(path: Path, config: dict[str, Any], ids: dict[str, int]) -> int | None:
    """`bos_token` of tokenizer_config.json; where that says nothing about it, `bos_token_id` of config.json."""
    file = path / "tokenizer_config.json"
    settings = _json(file) if file.is_file() else {}
    if "bos_token" not in settings:
        begin = config.get("bos_token_id")
        return begin if isinstance(begin, int) and begin in ids.values() else None
    named = settings["bos_token"]
    token = named.get("content") if isinstance(named, dict) else named
    if token is not None and token not in ids:
        raise ValueError(f"{file} names {token!r} as bos_token, which {path}/tokenizer.json does not have")
    return None if token is None else ids[token]
