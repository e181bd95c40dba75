"""Recipes: one YAML file that says what a corpus is made of. Everything in it is checked before any work starts."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import scorers
from pipelines.reading import Admission
from trainers import fits
from transforms import rewriters

MODELS = "fit:"  # `fit:name` as a path means the model that the recipe's fit step of that name makes
METHODS = ("exact", "minhash", "semantic")  # of dedupe
CLEANING = ("lines", "substring", "c4", "pii", "prox")  # methods of clean, in their order
MIX, REWRITE = "mix", "rewrite"  # among the readers of a fit: mixtures, which take its weights, and rewriters
HELDOUT = "heldout"  # the mixture of the documents held out
FORMS = {  # of the parts of a recipe that are mappings
    "sources": "{NAME: GLOB}",
    "select": "{NAME: CONDITION}",
    "fit": "{NAME: {method: METHOD}}",
    "dedupe": "{METHOD: {KEY: VALUE}}",
    "clean": "{METHOD: {KEY: VALUE}}",
    "score": "{NAME: {KEY: VALUE}}",
    "rewrite": "{NAME: {rewriter: KIND}}",
    "mix": "{NAME: {KEY: VALUE}}",
}
SET = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::([-?])([^{}]*))?\}")  # ${NAME}, ${NAME:-default}, ${NAME:?what it is}
MAPPINGS = ("dict_type", "model_type", "model_attributes_type")  # pydantic's names for "this is no mapping"
OWN = ("source", "shard", "row", "id", "bytes", "characters", "draw", "holdout", "selection")  # of every document


class RecipeError(ValueError):
    """A mistake in a recipe: names the field, what was given and, where there is one, the nearest valid name."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HoldoutSpec(_Strict):
    """Documents that no fit and no mixture sees: `share` of a dedupe method's clusters. Loss is measured `where`."""

    share: float = Field(gt=0, lt=1)
    clusters: str = "exact"
    where: str = "true"


class Training(_Strict):
    """One model per mixture and seed, all with one `config` (see trainers.train), measured on held-out documents.

    `tasks` are further measures, from files of items (see trainers.tasks).
    """

    mixtures: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0, 1, 2], min_length=1)
    target: list[str] | None = None
    processes: int = Field(1, ge=1, description="that train one model together, by torchrun")
    config: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = {}


class Recipe(_Strict):
    """A whole recipe. `sources`: name -> glob or globs of Parquet shards. Each part is described by its own class."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(0, ge=0, lt=2**63)
    sources: dict[str, str | list[str]] = Field(min_length=1)
    text: str = "text"
    admission: Admission = Admission()
    quarantine: float = Field(0.0, ge=0, le=1, description="share of shards that may be unreadable; above it, exit 3")
    score: dict[str, dict[str, Any]] = {}
    dedupe: dict[str, dict[str, Any]] = {}
    clean: dict[str, dict[str, Any]] = {}
    holdout: HoldoutSpec | None = None
    fit: dict[str, dict[str, Any]] = {}
    rewrite: dict[str, dict[str, Any]] = {}
    select: dict[str, str] = {}
    tokenizer: str | None = None
    mix: dict[str, dict[str, Any]] = {}
    train: Training | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_parts(cls, value: Any) -> Any:
        """`fineweb:` with nothing after it means its defaults."""
        if isinstance(value, dict):
            for part in ("score", "dedupe", "clean", "rewrite", "mix"):
                if isinstance(value.get(part), dict):
                    value = {**value, part: {name: given or {} for name, given in value[part].items()}}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        mistakes = [*self._names(), *self._references(), *self._models()]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _names(self) -> Iterator[str]:
        """Names become folders, and those of scorers SQL columns, where upper and lower case are the same."""
        if not self.name.strip("."):
            yield f"name: {self.name!r} cannot name a folder; use a letter or a digit"
        for part in ("sources", "score", "fit", "rewrite", "mix"):
            for name in getattr(self, part):
                if not re.fullmatch(r"[^/.\x00-\x1f][^/\x00-\x1f]*", name):
                    yield f"{part}: {name!r} cannot name a folder; use no '/' and no '.' at its start"
        for name in self.mix:
            if " - " in name:
                yield f"mix: {name!r} holds ' - ', which parts two mixtures in differences; choose another name"
        if self.text.lower() in OWN:
            yield f"text: {self.text!r} is a column that corpusmill adds itself; documents cannot stand there"
        taken = {*OWN, self.text.lower(), *self.dedupe, *self.clean, *(["tokens"] if self.tokenizer else [])}
        taken |= {REWRITE} if self.rewrite else set()  # the provenance of new documents
        for name in self.score:
            if name.lower() in taken:
                yield f"score: {name!r} is the name of another column; choose one and give `scorer`"
            taken.add(name.lower())
        for name in self.rewrite:
            if name.lower() in taken:
                yield f"rewrite: {name!r} is the name of another column; choose one and give `rewriter`"
            if name.lower() in map(str.lower, self.sources):
                yield f"rewrite: {name!r} is a source; new documents are one of their own: choose another name"
            taken.add(name.lower())
        for part, name in (("mix", HELDOUT), ("select", "holdout")):
            if name in getattr(self, part):
                yield f"{part}: {name!r} means the documents held out; choose another name"

    def _references(self) -> Iterator[str]:
        for name, given in self.score.items():
            kind = given.get("scorer", name)
            if kind not in scorers.names():
                yield f"score.{name}: no scorer {kind!r}{nearest(kind, scorers.names())}"
        for name in self.dedupe:
            if name not in METHODS:
                yield f"dedupe.{name}: no such method{nearest(name, METHODS)}"
        for name, given in self.rewrite.items():
            kind = given.get("rewriter", name)
            if kind not in rewriters.names():
                yield f"rewrite.{name}: no rewriter {kind!r}{nearest(kind, rewriters.names())}"
        for name, given in self.fit.items():
            method = given.get("method")
            if method not in fits.names():
                what = f"no method {method!r}" if method else "`method` must be given"
                yield f"fit.{name}: {what}{nearest(method, fits.names())}"
        for name in self.clean:
            if name not in CLEANING:
                yield f"clean.{name}: no such method{nearest(name, CLEANING)}"
        if self.holdout and self.holdout.clusters not in self.dedupe:
            clusters = self.holdout.clusters
            yield f"holdout.clusters: {clusters!r} is not under dedupe{nearest(clusters, self.dedupe)}"
        if self.mix and self.tokenizer is None:
            yield "tokenizer: mixtures are weighed in tokens; give a tokenizer.json, a folder with one, or fit:NAME"
        for name in self.train.mixtures if self.train else ():
            if name not in self.mix:
                yield f"train.mixtures: {name!r} is not under mix{nearest(name, self.mix)}"
        for field in ("mixtures", "seeds") if self.train else ():
            given = getattr(self.train, field)
            if twice := sorted({one for one in given if given.count(one) > 1}):
                yield f"train.{field}: {twice[0]!r} stands twice; two models would lie in one folder"
        if self.train and "seed" in self.train.config:
            yield "train.config.seed: each model has one of train.seeds; give those"

    def _models(self) -> Iterator[str]:
        """Every `fit:NAME` names a fit whose model the scorer reads, or whose weights a mixture does."""
        named: list[tuple[str, str, str]] = []
        if is_fit(self.tokenizer):
            named.append(("tokenizer", self.tokenizer or "", "tokens"))
        for part, key in (("score", "scorer"), ("rewrite", "rewriter"), ("clean", "")):
            for name, given in getattr(self, part).items():
                reader = REWRITE if part == "rewrite" else given.get(key, name)
                named += [(field, value, reader) for field, value in fits_in(given, f"{part}.{name}")]
        for name, given in self.mix.items():
            phases = given["phases"] if isinstance(given.get("phases"), list) else []
            for field, part in {name: given, **{f"{name}.phases.{k}": phase for k, phase in enumerate(phases)}}.items():
                if isinstance(part, dict) and is_fit(part.get("weights")):
                    named.append((f"mix.{field}.weights", part["weights"], MIX))
        for field, value, scorer in named:
            fit = value.removeprefix(MODELS)
            if fit not in self.fit:
                yield f"{field}: {value!r} is not under fit{nearest(fit, self.fit)}"
                continue
            method = self.fit[fit].get("method", "")
            readable = scorer in (MIX, REWRITE) or scorer in CLEANING or scorer in scorers.names()
            known = method in fits.names() and readable
            if known and scorer not in (readers := fits.find(method).readers):
                yield f"{field}: {value!r} makes a model for {' or '.join(readers)}, not for {scorer}"


def is_fit(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(MODELS)


def fits_in(given: Any, field: str) -> Iterator[tuple[str, str]]:
    """(field, `fit:NAME`) of every parameter that names a fit's model, however deep."""
    if is_fit(given):
        yield field, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from fits_in(value, f"{field}.{key}")
    elif isinstance(given, list | tuple):
        for k, value in enumerate(given):
            yield from fits_in(value, f"{field}.{k}")


def with_models(given: Any, run: str) -> Any:
    """Parameters with the folder of each model that they name by `fit:NAME`."""
    if is_fit(given):
        return f"{run}/models/{given.removeprefix(MODELS)}"
    if isinstance(given, Mapping):
        return {key: with_models(value, run) for key, value in given.items()}
    return [with_models(value, run) for value in given] if isinstance(given, list | tuple) else given


def nearest(name: Any, known: Any) -> str:
    """`; did you mean 'x'?`, or what there is to choose from."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"


class _Loader(yaml.SafeLoader):
    """YAML whose keys may not stand twice: of two conditions of one name, one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
        if file.is_dir():
            inside = (file / "recipe.yaml").is_file()
            meant = f"is a run folder; a recipe is wanted, as its own: {file}/recipe.yaml"
            raise RecipeError(f"{path} {meant if inside else 'is a folder; a recipe is wanted, which is a YAML file'}")
        there = sorted(p.stem for p in bundled.parent.glob("*.yaml"))
        raise RecipeError(f"no recipe at {path}; bundled: {', '.join(there)}{_meant(path, there)}")
    try:
        given = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{file}: a recipe is a mapping with name, sources, …; found {type(given).__name__}")
    return parse(_filled_in(given, f"{file}: "), str(file))


def _filled_in(value: Any, field: str) -> Any:
    """A recipe with `${NAME}` in its values replaced by environment variables, as shells do; empty ones are null.

    Raises:
        RecipeError: one is not set and has no default; the message is what the recipe says after `:?`.
    """
    if isinstance(value, dict):
        dot = "" if field.endswith(": ") else "."
        return {key: _filled_in(held, f"{field}{dot}{key}") for key, held in value.items()}
    if isinstance(value, list):
        return [_filled_in(held, field) for held in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, mark, rest = match.groups()
        if mark == "-" or os.environ.get(name):
            return os.environ.get(name) or rest
        what = f" to {rest}" if rest else ""
        raise RecipeError(f"{field}: set the environment variable {name}{what}, as in `{name}=… corpusmill run …`")

    return (SET.sub(found, value) or None) if SET.search(value) else value


def _meant(name: str, known: list[str]) -> str:
    return nearest(name, known) if difflib.get_close_matches(name, known, 1) else ""


def parse(given: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe that is already a mapping; raises RecipeError."""
    try:
        return Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in explain(error, Recipe, given))) from error


def explain(error: ValidationError, model: type[BaseModel], given: Any, prefix: str = "") -> list[str]:
    """One line per mistake: field, what is wrong, what was given, nearest valid name.

    Args:
        given: what was checked against the model; tells the keys in pydantic's locations from its own additions.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors():
        field = prefix + ".".join(_keys(item, given))
        for text in _complaint(item, model, field).splitlines():
            found.setdefault(field, []).append(text) if field else found.setdefault(text, [])
    return [f"{field}: {' or '.join(dict.fromkeys(texts))}" if texts else field for field, texts in found.items()]


def _complaint(item: Any, model: type[BaseModel], field: str) -> str:
    context = item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        return f"no such key{nearest(item['loc'][-1], _fields(model, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return "must be given"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return text
    shown = repr(item["input"])
    near = ""
    if item["type"] in MAPPINGS:
        text = f"expected `{field.rpartition('.')[2] or 'key'}: {FORMS.get(field, '{KEY: VALUE}')}`"
    if item["type"] in ("literal_error", "union_tag_invalid"):
        known = re.findall(r"'([^']*)'", context.get("expected") or context.get("expected_tags", ""))
        shown = repr(context.get("tag", item["input"]))
        near = _meant(str(context.get("tag", item["input"])), known)
        text = f"expected {' or '.join(map(repr, known))}"
    return f"{text} (given: {shown if len(shown) < 100 else shown[:97] + '...'}){near}"


def _keys(item: Any, given: Any) -> Iterator[str]:
    """The part of an error's location that is in what was given; between, pydantic names branches of unions."""
    for i, part in enumerate(item["loc"]):
        if (isinstance(given, Mapping) and part in given) or (isinstance(given, list) and isinstance(part, int)):
            given = given[part]
        elif not (item["type"] == "missing" and i == len(item["loc"]) - 1):
            continue
        yield str(part)


def _fields(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields that a model has at a place within it."""
    models = [model]
    for part in location:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        inner = [m for field in fields for m in models_in(field.annotation)]
        models = inner or [m for m in models if part in _tags(m)] or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """What a model's `method` or `kind` may be, by which the branches of a union are told apart."""
    fields = [model.model_fields[name] for name in ("method", "kind") if name in model.model_fields]
    return tuple(tag for field in fields for tag in get_args(field.annotation))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
