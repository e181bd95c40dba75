"""The command `corpusmill merge`: its texts become a merge of model folders, and what was done is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from pipelines.recipe import RecipeError


def run(
    out: str,
    models: list[str],
    average: bool,
    weights: str | None,
    base: str | None,
    add: bool,
    density: float | None,
    drop: float | None,
    seed: int,
) -> dict[str, Any]:
    """Merge folders as the options say; returns what stands in OUT/merge.json.

    Raises:
        RecipeError: options that contradict each other, folders that are no models or do not fit together.
    """
    from trainers import merge

    try:
        if average == add:
            raise ValueError("give one of --average MODEL … and --base BASE --add MODEL:LAMBDA …")
        if average and (base, density, drop) != (None, None, None):
            raise ValueError("--base, --density and --drop go with --add, not with --average")
        if add and (base is None or weights is not None):
            raise ValueError("--add wants --base BASE, and factors as MODEL:LAMBDA instead of --weights")
        if average:
            numbers = None if weights is None else [_number(text, "--weights") for text in weights.split(",")]
            asked = merge.average([Path(model) for model in models], numbers)
        else:
            asked = merge.Merge(Path(str(base)), tuple(map(_factored, models)), density, drop, seed)
        told = merge.merge(asked, Path(out))
    except ValueError as error:
        raise RecipeError(str(error)) from error
    first, others = told["base"]["path"], told["models"]
    if average:
        typer.echo(f"{1 - sum(model['factor'] for model in others):.4g} of {first}")
    for model in others:
        typer.echo(f"{model['factor']:{'.4g' if average else '+.4g'}} of {model['path']}")
    typer.echo(f"{out}: average" if average else f"{out}: {told['method']} on {first}")
    return {"model": out, "merge": told}


def _factored(text: str) -> tuple[Path, float]:
    path, colon, factor = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text}: give MODEL:LAMBDA, as {text}:0.5")
    return Path(path), _number(factor, text)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no number") from None
