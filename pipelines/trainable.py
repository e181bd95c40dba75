"""What a recipe asks of the trainer, checked before any work: config, model to go on from, columns of the format.

A mistake found by the trainer itself is found after scoring and mixing, and after the model that lay there is gone.
Importing the trainer takes seconds, so only recipes with a `train.config` come here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe import RecipeError, nearest
from pipelines.shards import type_of
from transforms.conversations import is_conversation

if TYPE_CHECKING:
    from trainers.config import TrainConfig

FIELD = "train.config"
MIXED = ("id", "text", "source", "shard", "row", "tokens", "draw")  # columns of every mixture


def check_files(config: TrainConfig, seeds: Iterable[int]) -> None:
    """Raises RecipeError: no model to go on from, one that cannot read rows of that length, or no token weights."""
    from trainers import token_weights

    for start in dict.fromkeys(start_of(config.start, seed) for seed in seeds) if config.start else ():
        _check_start(start, config.row_length)
    if config.format.weights:
        try:
            token_weights.files(config.format.weights)
        except ValueError as error:
            raise RecipeError(f"{FIELD}.format.weights: {error}; make them with `corpusmill prune`") from error


def start_of(given: Path, seed: int) -> Path:
    """What training goes on from: of RUN/training/MIXTURE the run of the same seed."""
    own = given / f"seed{seed}"
    return own if own.is_dir() else given


def _check_start(start: Path, row_length: int) -> None:
    from trainers.checkpoint import model_of

    folder = model_of(start)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        what = "give a model folder, or RUN/training/MIXTURE of a finished run"
        raise RecipeError(f"{FIELD}.start: no model at {folder}; {what}") from error
    longest = config.get("max_position_embeddings") or row_length
    if longest < row_length:
        raise RecipeError(f"{FIELD}.row_length: {row_length}, but {folder} reads {longest} tokens at once")


def check_columns(config: TrainConfig, text: str, raw: Mapping[str, str]) -> None:
    """Raises RecipeError: a column that the format reads will not be in the mixtures.

    Args:
        text: name of the column of texts, which mixtures hold as `text`.
        raw: types of the columns of the shards, as text.
    """
    there = {*MIXED, *(name for name in raw if name != text)}
    if text in raw and (text == "messages" or is_conversation(type_of(raw[text]))):
        there.add("messages")
    for field, name in (("kind", config.format.column), ("document_weight", config.format.document_weight)):
        if name and name not in there:
            where = "which mixtures hold as `text`" if name == text else "which no shard has"
            near = nearest(name, sorted(there))
            raise RecipeError(f"{FIELD}.format.{field}: reads the column {name!r}, {where}{near}")
