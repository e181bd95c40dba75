"""Recipes: one YAML file that says what a corpus is made of. Everything in it is checked before any work starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import scorers
from pipelines.reading import Admission

MODELS = "fit:"  # `fit:name` as a path means the model that the recipe's fit step of that name makes


class RecipeError(ValueError):
    """A mistake in a recipe: names the field, what was given and, where there is one, the nearest valid name."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FitTokenizer(_Strict):
    """A byte-level BPE tokenizer of `vocabulary` tokens, from `megabytes` of documents where `where` holds."""

    method: Literal["tokenizer"]
    vocabulary: int = Field(8192, ge=257)
    where: str = "true"
    megabytes: float = Field(20, gt=0)


class FitFastText(_Strict):
    """A fastText classifier of documents where `positives` holds against a random draw of those where `negatives` holds."""

    method: Literal["fasttext"]
    positives: str
    negatives: str = "true"
    documents: int = Field(5000, ge=20, description="at most so many on each side")
    parameters: dict[str, Any] = {}


class HoldoutSpec(_Strict):
    """Documents that no fit and no mixture sees: `share` of the clusters of one dedupe method, then those where `where` holds."""

    share: float = Field(gt=0, lt=1)
    clusters: str = "exact"
    where: str = "true"


class Training(_Strict):
    """One model per mixture and seed, all with the same `config` (see trainers.pretrain), measured on the held-out documents."""

    mixtures: list[str] = Field(min_length=1)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    config: dict[str, Any] = {}


class Recipe(_Strict):
    """A whole recipe. `sources`: name -> glob or globs of Parquet shards. The rest is described by each part's own class."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = 0
    sources: dict[str, str | list[str]] = Field(min_length=1)
    text: str = "text"
    admission: Admission = Admission()
    quarantine: float = Field(0.0, ge=0, le=1, description="share of shards that may be unreadable before the run exits 3")
    score: dict[str, dict[str, Any]] = {}
    dedupe: dict[str, dict[str, Any]] = {}
    holdout: HoldoutSpec | None = None
    fit: dict[str, Annotated[FitTokenizer | FitFastText, Field(discriminator="method")]] = {}
    select: dict[str, str] = {}
    tokenizer: str | None = None
    mix: dict[str, dict[str, Any]] = {}
    train: Training | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_parts(cls, value: Any) -> Any:
        """`fineweb:` with nothing after it means its defaults."""
        if isinstance(value, dict):
            for part in ("score", "dedupe", "mix"):
                if isinstance(value.get(part), dict):
                    value = {**value, part: {name: given or {} for name, given in value[part].items()}}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, given in self.score.items():
            kind = given.get("scorer", name)
            if kind not in scorers.names():
                raise ValueError(f"score.{name}: no scorer {kind!r}{nearest(kind, scorers.names())}")
        for name in self.dedupe:
            if name not in ("exact",):
                raise ValueError(f"dedupe.{name}: no such method{nearest(name, ['exact'])}")
        if self.holdout and self.holdout.clusters not in self.dedupe:
            raise ValueError(f"holdout.clusters: {self.holdout.clusters!r} is not under dedupe{nearest(self.holdout.clusters, self.dedupe)}")
        if self.mix and self.tokenizer is None:
            raise ValueError("tokenizer: mixtures are weighed in tokens; give a tokenizer.json, a folder with one, or fit:NAME")
        self._check_models()
        if self.train:
            for name in self.train.mixtures:
                if name not in self.mix:
                    raise ValueError(f"train.mixtures: {name!r} is not under mix{nearest(name, self.mix)}")
        return self

    def _check_models(self) -> None:
        named = [("tokenizer", self.tokenizer)] if self.tokenizer else []
        named += [(f"score.{n}.{key}", value) for n, given in self.score.items() for key, value in given.items()]
        for field, value in named:
            if isinstance(value, str) and value.startswith(MODELS) and value.removeprefix(MODELS) not in self.fit:
                raise ValueError(f"{field}: {value!r} is not under fit{nearest(value.removeprefix(MODELS), self.fit)}")


def nearest(name: str, known: Any) -> str:
    """`; did you mean 'x'?`, or what there is to choose from."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"


def load(path: str) -> Recipe:
    """Read a recipe file, or one that comes with corpusmill by its name.

    Raises:
        RecipeError: the file is missing, is not YAML, or a field is wrong.
    """
    file = Path(path)
    bundled = Path(__file__).parent / "recipes" / f"{file.name}.yaml"
    if not file.is_file() and file.name == path and bundled.is_file():
        file = bundled
    if not file.is_file():
        raise RecipeError(f"no recipe at {path}; bundled ones: {', '.join(sorted(p.stem for p in bundled.parent.glob('*.yaml')))}")
    try:
        given = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{file}: a recipe is a mapping with name, sources, …; found {type(given).__name__}")
    return parse(given, str(file))


def parse(given: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe that is already a mapping; raises RecipeError."""
    try:
        return Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in explain(error, Recipe))) from error


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per mistake: field, what is wrong, what was given, nearest valid name."""
    lines = []
    for item in error.errors():
        field = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _fields(model, item["loc"][:-1])
            lines.append(f"{field}: no such key{nearest(str(item['loc'][-1]), known)}")
        else:
            text = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] in ("value_error", "missing") else f" (given: {item['input']!r})"
            lines.append(f"{field}: {text}{given}" if field else f"{text}{given}")
    return lines


def _fields(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields at a place of a model; what cannot be followed gives those of the model itself."""
    known: Any = model
    for part in location:
        annotation = known.model_fields[part].annotation if isinstance(known, type) and part in getattr(known, "model_fields", {}) else None
        choices = getattr(annotation, "__args__", ()) or (annotation,)
        models = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            known = models[0]
    return list(known.model_fields)
