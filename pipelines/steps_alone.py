"""One step without a recipe file: parts from the command line make a recipe, or extend that of a run folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pipelines.recipe import Recipe, RecipeError, load, parse
from trainers import fits
from transforms import rewriters


def recipe_for(data: str, parts: dict[str, Any], folder: str | None) -> tuple[Recipe, str]:
    """The recipe to run and its run folder. `data` is a run folder or a glob; `parts` extend what is there.

    Raises:
        RecipeError: the parts do not fit, or a glob comes without a run folder to write to.
    """
    held = Path(data) / "recipe.yaml"
    if held.is_file():
        given = load(str(held)).model_dump(mode="json")
    elif Path(data).is_dir():
        raise RecipeError(
            f"{data} is no run folder (it has no recipe.yaml); for shards give a quoted glob, as '{data}/*.parquet'"
        )
    elif folder is None:
        raise RecipeError("with a glob, --run must name the run folder to write to")
    else:
        before = Path(folder) / "recipe.yaml"
        given = yaml.safe_load(before.read_text()) if before.is_file() else {"name": _name(folder)}
        given["sources"] = {"documents": data}
    for name, fit in parts.get("fit", {}).items():
        held_fit = (given.get("fit") or {}).get(name, fit)
        if held_fit.get("method") != fit["method"]:
            raise RecipeError(f"the run has a {held_fit.get('method')} fit named {name!r}; choose another --name")
    for part, value in parts.items():
        given[part] = _merged(given.get(part), value)
    return parse(given), folder or data.rstrip("/")


def _name(folder: str) -> str:
    """A name that a recipe may have, from that of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(folder).name).strip(".") or "run"


@contextmanager
def recipe_kept(folder: str) -> Iterator[None]:
    """A step that fails leaves the run's recipe as it was, so that the next command does not meet its mistake again."""
    path = Path(folder) / "recipe.yaml"
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    except BaseException:
        if before is not None:
            path.write_bytes(before)
        elif path.is_file():
            path.unlink()
        raise


def _merged(held: Any, value: Any) -> Any:
    """`value` over `held`: names that `value` lacks stay, so do the parameters of a name that it has."""
    if not isinstance(value, dict):
        return value
    before = held if isinstance(held, dict) else {}
    return {**before, **{name: _merged(before.get(name), given) for name, given in value.items()}}


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: those not given are None, and leave what a recipe holds."""
    return {name: value for name, value in options.items() if value is not None}


def parameters(scorers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`quality:scorer=fasttext,model=m.bin` -> {"quality": {"scorer": "fasttext", "model": "m.bin"}}, read as YAML."""
    result: dict[str, dict[str, Any]] = {}
    for text in scorers:
        name, _, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",") if pair]
        if any(not mark for _, mark, _ in pairs):
            raise RecipeError(f"--scorer {text!r}: write NAME:KEY=VALUE,KEY=VALUE")
        result[name] = {key.strip(): _yaml(value, f"--scorer {text!r}") for key, _, value in pairs}
    return result


def conditions(texts: Sequence[str]) -> dict[str, str]:
    """`long=characters > 200` -> {"long": "characters > 200"}."""
    result = {}
    for text in texts:
        name, mark, condition = text.partition("=")
        if not mark or not name.strip().isidentifier():
            raise RecipeError(f"--where {text!r}: write NAME=CONDITION, as 'long=characters > 200'")
        result[name.strip()] = condition.strip()
    return result


def settings(method: str, texts: Sequence[str]) -> dict[str, Any]:
    """`parameters.epoch=3` -> {"method": METHOD, "parameters": {"epoch": 3}}: the parameters of a fit.

    Raises:
        RecipeError: there is no such method, or a text is no KEY=VALUE.
    """
    return {**assignments(texts, _found(fits, method)), "method": method}


def rewriting(kind: str, texts: Sequence[str]) -> dict[str, Any]:
    """The parameters of a rewriter, as `settings` gives those of a fit."""
    return {**assignments(texts, _found(rewriters, kind)), "rewriter": kind}


def _found(package: Any, name: str) -> type[BaseModel]:
    try:
        model: type[BaseModel] = package.find(name)
    except LookupError as error:
        raise RecipeError(str(error)) from error
    return model


def assignments(texts: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """`parameters.epoch=3` -> {"parameters": {"epoch": 3}}: values for the fields of a model, read as YAML.

    What a field wants as text, as SQL, is taken as it stands. Raises RecipeError: a text is no KEY=VALUE.
    """
    fields = model.model_fields
    result: dict[str, Any] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        names = key.strip().split(".")
        if not mark or not all(names):
            raise RecipeError(f"--set {text!r}: write KEY=VALUE, as 'documents=2000' or 'parameters.epoch=3'")
        wanted = fields[names[0]].annotation if names[0] in fields else None
        into = result
        for name in names[:-1]:
            into = into.setdefault(name, {})
            if not isinstance(into, dict):
                raise RecipeError(f"--set {text!r}: {name!r} was given a value before")
        text_wanted = wanted is str or (get_origin(wanted) in (Union, UnionType) and str in get_args(wanted))
        into[names[-1]] = value.strip() if text_wanted else _yaml(value, f"--set {text!r}")
    return result


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{where}: a VALUE cannot be read as YAML ({why})") from error


def check_out(out: str | None) -> None:
    """Raises RecipeError: a folder to copy a model to holds something else than a model."""
    if out is None or not Path(out).exists():
        return
    if not Path(out).is_dir():
        raise RecipeError(f"--out: {out} is a file; give a folder for the model")
    held = sorted(path.name for path in Path(out).iterdir())
    if held and "card.json" not in held:
        raise RecipeError(f"--out: {out} holds {held[0]} and no model; choose another folder")


def copy_model(model: Path, out: str | None) -> Path:
    """Copy a model folder to `out`, over an older version that lies there; returns where the model is.

    Raises:
        RecipeError: `out` holds files that are no part of this model, which would then be a mixture of two.
    """
    if out is None:
        return model
    here = {path.name for path in Path(out).iterdir()} if Path(out).is_dir() else set()
    if others := sorted(here - {path.name for path in model.iterdir()}):
        raise RecipeError(f"--out: {out} holds {others[0]}, no part of this model; copy it from {model} yourself")
    shutil.copytree(model, out, dirs_exist_ok=True)
    return Path(out)
