"""`corpusmill prune`: loss weights of a mixture's tokens, decided beforehand (trainers/prune.py) and kept beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from pipelines.recipe import RecipeError, explain, nearest
from pipelines.steps_alone import assignments

M = TypeVar("M", bound=BaseModel)


def prune(mixture: Path, method: str, settings: Sequence[str], name: str, device: str) -> dict[str, Any]:
    """Write `mixture`/weights/`name`; returns its weights.json and, as `weights`, its folder.

    settings: KEY=VALUE for the method's parameters, and for the format in which the mixture is to be trained.

    Raises:
        RecipeError: no such method or mixture, or parameters, models or data that do not serve.
    """
    from trainers.formats import Format
    from trainers.mixture import open_mixture
    from trainers.prune import METHODS
    from trainers.prune import prune as decide

    if method not in METHODS:
        raise RecipeError(f"prune: no method {method!r}{nearest(method, METHODS)}")
    if not name or name.startswith(".") or "/" in name:
        raise RecipeError(f"--name {name!r}: give the name of a folder")
    given = assignments(settings, METHODS[method])
    written = given.pop("format", {})
    if "weights" in written:
        raise RecipeError("format.weights: weights are decided from what the mixture itself says; give none")
    format, spec = _checked(Format, written, "format."), _checked(METHODS[method], given)
    beside = mixture if mixture.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".tokens-", dir=beside) as cache:
        try:
            card = decide(open_mixture(mixture, Path(cache), format), mixture, name, spec, device)
        except ValueError as error:
            raise RecipeError(f"prune: {error}") from error
    return {**card, "weights": str(mixture / "weights" / name)}


def show(card: dict[str, Any]) -> None:
    """What was decided, and how to train with it."""
    counts = f"{card['kept']:.1%} of {card['trained']:,} trained tokens in {card['documents']:,} documents"
    typer.echo(f"kept: {counts}, mean weight {card['mean_weight']:.3f}{' (as it was)' if card['reused'] else ''}")
    typer.echo(f"to train with it: train.config.format.weights: {card['weights']}")


def _checked(model: type[M], given: Any, prefix: str = "") -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RecipeError("\n".join(f"--set {line}" for line in explain(error, model, given, prefix))) from error
