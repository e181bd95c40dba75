"""From a recipe to columns: which scorers there are, which wait for a fit, and whether every expression makes sense.

All that can be checked without reading documents is checked here: parameters, models, packages, SQL.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

import scorers
from pipelines import store, trainable
from pipelines.clean import Lines, Substring, cut_type
from pipelines.clean_local import C4Lines, MaskPII
from pipelines.clean_prox import Prox
from pipelines.dedupe import FLAGS, Exact
from pipelines.near import Near
from pipelines.recipe import (
    CLEANING,
    MODELS,
    Recipe,
    RecipeError,
    explain,
    fits_in,
    is_fit,
    models_in,
    nearest,
    with_models,
)
from pipelines.rewrite import new_columns, pieces_type
from pipelines.score import Column
from pipelines.select import SELECTION
from pipelines.semantic import Semantic
from pipelines.shards import Shard, plain_type, type_of, type_text
from pipelines.shares import Mixture
from pipelines.tables import Holdout, Struct, Tables
from sql.expressions import Expression, ExpressionError, is_number
from trainers import fits
from trainers.fits import Fit
from trainers.tasks import Tasks
from trainers.weighed import Weighed
from transforms import rewriters
from transforms.conversations import is_conversation
from transforms.generation.ask import engine_named
from transforms.generation.engine import Engine
from transforms.rewriters import Rewriter

if TYPE_CHECKING:
    from trainers.config import TrainConfig

METHODS: dict[str, Any] = {"exact": Exact, "minhash": Near, "semantic": Semantic}
CLEAN: dict[str, Any] = {"lines": Lines, "substring": Substring, "c4": C4Lines, "pii": MaskPII, "prox": Prox}
EXTRAS = {
    "fasttext": "fasttext",
    "httpx": "generation",
    "lightgbm": "refiner",
    "phonenumbers": "pii",
    "publicsuffixlist": "url",
    "py3langid": "language",
    "tokenizers": "tokenizer",
    "torch": "trainer",
    "transformers": "generation",
    "tree_sitter": "code",
    "vllm": "vllm",
}


class Plan:
    """A recipe with its parts made and checked, for one run folder.

    Raises:
        RecipeError: a parameter is wrong, or a package is missing.
    """

    def __init__(self, recipe: Recipe, run: str) -> None:
        self.recipe, self.run = recipe, run
        given = dict(recipe.score)
        if recipe.tokenizer:
            given["tokens"] = {"tokenizer": recipe.tokenizer}
        self.given = given
        self.fitted = {name for name, parameters in given.items() if _fits(parameters)}
        self.methods = {name: _made(f"dedupe.{name}", METHODS[name], given) for name, given in recipe.dedupe.items()}
        self.cleaning = {name: self._cleaning(name) for name in CLEANING if name in recipe.clean}
        if self.cleaning and recipe.tokenizer:
            self.fitted.add("tokens")  # counted when the text is what mixtures will hold
        self.mixtures = {name: _made(f"mix.{name}", Mixture, parameters) for name, parameters in recipe.mix.items()}
        self.columns = {name: self._column(name) for name in given if name not in self.fitted}
        for name in self.fitted:
            self._check_fitted(name)
            if not _fits(given[name]):
                self._column(name)
        self.fits = {name: self._fit(name, parameters) for name, parameters in recipe.fit.items()}
        self.rewriters = {name: self._rewriter(name) for name in recipe.rewrite}
        self.training: TrainConfig | None = None
        if recipe.train:
            _check_sources("train.target", recipe.train.target or (), recipe.sources)
            _require("train", "torch")
            _made("train", Tasks, {"tasks": recipe.train.tasks})
            if recipe.tokenizer and not is_fit(recipe.tokenizer):
                _check_tokenizer(recipe.tokenizer)
            if recipe.train.config:  # importing torch takes seconds
                from trainers.config import TrainConfig

                self.training = _made("train.config", TrainConfig, recipe.train.config)
                trainable.check_files(self.training, recipe.train.seeds)

    def _column(self, name: str) -> Column:
        kind, parameters = self._parameters(name)
        field = "" if name == "tokens" and self.recipe.tokenizer else f"score.{name}."
        _require(field.rstrip(".") or "tokenizer", scorers.find(kind).package)
        return Column(name, f"scores/{name}", self._ready(field.rstrip("."), scorers.find(kind), parameters))

    def _parameters(self, name: str) -> tuple[str, dict[str, Any]]:
        parameters = {key: value for key, value in self.given[name].items() if key != "scorer"}
        return self.given[name].get("scorer", name), parameters

    def _ready(self, field: str, kind: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
        """A scorer, a method or a rewriter, with the models that fits have made by now, and the run's answers."""
        given = with_models(parameters, self.run)
        if "cache" in kind.model_fields and not store.is_remote(self.run):
            given = {"cache": f"{self.run}/answers.sqlite", **given}
        _require_engines(field, kind, given)
        return _made(field, kind, given)

    def _waiting(self, field: str, kind: type[BaseModel], given: Mapping[str, Any]) -> Any:
        """The same where a model is still to be fitted: only the names of its parameters are checked."""
        _check_keys(field, given, kind)
        _require_engines(field, kind, given)
        return kind.model_construct(**given)

    def _fit(self, name: str, parameters: dict[str, Any]) -> Fit:
        kind = fits.find(parameters["method"])
        _require(f"fit.{name}", kind.package)
        given = {key: value for key, value in parameters.items() if key != "method"}
        made: Fit = self._ready(f"fit.{name}", kind, given)
        return made

    def _check_fitted(self, name: str) -> None:
        kind, parameters = self._parameters(name)
        _require(f"score.{name}", scorers.find(kind).package)
        self._waiting(f"score.{name}", scorers.find(kind), parameters)

    def _cleaning(self, name: str) -> Any:
        """A method of clean; one that waits for a fit is not checked yet."""
        _require(f"clean.{name}", getattr(CLEAN[name], "package", None))
        made = self._waiting if self.fits_before(name) else self._ready
        return made(f"clean.{name}", CLEAN[name], self.recipe.clean[name])

    def fits_before(self, cleaning: str) -> list[str]:
        """The fits whose models a method of clean reads."""
        return _fits(self.recipe.clean[cleaning])

    def cleaning_method(self, name: str) -> Any:
        """A method of clean whose models have been made by now."""
        if not self.fits_before(name):
            return self.cleaning[name]
        return self._ready(f"clean.{name}", CLEAN[name], self.recipe.clean[name])

    def _rewriter(self, name: str) -> Rewriter:
        """A rewriter; one that waits for a fit is not checked yet."""
        given = self.recipe.rewrite[name]
        kind = rewriters.find(given.get("rewriter", name))
        _require(f"rewrite.{name}", kind.package)
        made = self._waiting if _fits(given) else self._ready
        return made(f"rewrite.{name}", kind, {key: value for key, value in given.items() if key != "rewriter"})

    def rewriter(self, name: str) -> Rewriter:
        """A rewriter whose models have been made by now."""
        given = self.recipe.rewrite[name]
        if not _fits(given):
            return self.rewriters[name]
        parameters = {key: value for key, value in given.items() if key != "rewriter"}
        made: Rewriter = self._ready(f"rewrite.{name}", rewriters.find(given.get("rewriter", name)), parameters)
        return made

    def fitted_columns(self) -> dict[str, Column]:
        """The columns whose models the fit steps have made by now."""
        return {name: self._column(name) for name in sorted(self.fitted)}

    def tokenizer(self) -> str:
        """Path of the tokenizer that mixtures are weighed with."""
        return str(with_models(self.recipe.tokenizer, self.run))

    def tables(self, shards: list[Shard], raw: Mapping[str, str]) -> Tables:
        holdout = Holdout(self.recipe.holdout.share, self.recipe.holdout.clusters) if self.recipe.holdout else None
        return Tables(self.run, self.recipe.text, self.recipe.admission, self.recipe.seed, dict(raw), {}, holdout)

    def check(self, shards: list[Shard]) -> None:
        """Evaluate every expression on no documents, with the columns it will find.

        Reads one shard's footer per source, and all footers before it says that a column is missing.

        Raises:
            RecipeError: naming field, expression and what DuckDB proposes instead.
        """
        try:
            self._check(shards, _footers(shards, all_of_them=False))
        except RecipeError:
            self._check(shards, _footers(shards, all_of_them=True))

    def _check(self, shards: list[Shard], raw: Mapping[str, str]) -> None:
        known = {name: Struct("", column.scorer.fields(), "") for name, column in self.columns.items()}
        for name, held in self.columns.items():
            _check_needs(f"score.{name}", held.scorer.needs, raw)
        first = self._with(shards, raw, known)
        first = first.remove(first.get_field_index("holdout"))  # clusters decide who is held out
        for name, method in self.methods.items():
            _check(f"dedupe.{name}.prefer", method.prefer, first, is_number, "a number")
        known |= {name: Struct("", FLAGS, "") for name in self.methods}
        middle = self._with(shards, raw, known)
        if self.cleaning and self._of_conversations(raw):
            raise RecipeError(
                f"clean: cuts spans out of texts, but column {self.recipe.text!r} holds conversations, which mixtures "
                "carry as they are; give prompts and completions as columns of text, or leave out `clean`"
            )
        for name, method in self.cleaning.items():
            if method.where:
                _check(f"clean.{name}.where", method.where, middle)
            for fit in self.fits_before(name):
                self._check_fit(fit, middle)
            known |= {name: Struct("", cut_type(method), "")}
            middle = self._with(shards, raw, known)
        for name in self.fits:
            self._check_fit(name, middle)
        for name in self.fitted:
            kind, parameters = self._parameters(name)
            scorer = scorers.find(kind).model_construct(**parameters)
            _check_needs(f"score.{name}", scorer.needs, raw)
            known[name] = Struct("", scorer.fields(), "")
        late = self._with(shards, raw, known)
        for name, rewriter in self.rewriters.items():
            if rewriter.where:
                _check(f"rewrite.{name}.where", rewriter.where, late)
            _check_needs(f"rewrite.{name}", rewriter.needs, raw, rewriter.check_column)
        if self.rewriters:
            self._check_rewritable(raw)
            raw = {**raw, **self._written(raw)}
            known |= {name: Struct("", pieces_type(rewriter), "") for name, rewriter in self.rewriters.items()}
            late = self._with(shards, raw, known)
        for name, text in self.recipe.select.items():
            _check(f"select.{name}", text, late, operators=True)
        if self.recipe.holdout:
            _check("holdout.where", self.recipe.holdout.where, late)
        last = self._with(shards, raw, known | {"selection": Struct("", SELECTION, "")})
        for name, mixture in self.mixtures.items():
            for part in mixture.parts(name):
                _check(f"{part.field}.where", part.where, last)
                if isinstance(part.weights, dict):
                    _check_sources(f"{part.field}.weights", part.weights, {**self.recipe.sources, **self.rewriters})
        if self.training:
            trainable.check_columns(self.training, self.recipe.text, raw)

    def _of_conversations(self, raw: Mapping[str, str]) -> bool:
        return self.recipe.text in raw and is_conversation(type_of(raw[self.recipe.text]))

    def _check_rewritable(self, raw: Mapping[str, str]) -> None:
        if self._of_conversations(raw):
            raise RecipeError(
                f"rewrite: makes new texts, but column {self.recipe.text!r} holds conversations; give a column of text"
            )

    def _written(self, raw: Mapping[str, str]) -> dict[str, str]:
        """Columns that only new documents have. Raises RecipeError: one of them would stand for two things."""
        made: dict[str, tuple[pa.DataType, str]] = {}  # type, and the rewriter that came first
        for name, rewriter in self.rewriters.items():
            try:
                mine = new_columns(rewriter, raw)
            except ValueError as error:
                raise RecipeError(f"rewrite.{name}: {error}") from error
            for column, kind in mine.items():
                other, first = made.setdefault(column, (kind, name))
                if other != kind:
                    raise RecipeError(
                        f"rewrite.{name}: writes a column {column!r} ({kind}), which {first} writes too ({other}); "
                        "make one of them in another run"
                    )
        return {column: type_text(kind) for column, (kind, _) in made.items()}

    def _check_fit(self, name: str, schema: pa.Schema) -> None:
        made = self.fits[name]
        if isinstance(made, Weighed):
            for field, sources in (("sources", made.sources), ("target", made.measured())):
                _check_sources(f"fit.{name}.{field}", sources, self.recipe.sources)
        for sample, wanted in made.samples().items():
            _check(f"fit.{name}.{_field(made, sample)}", wanted.where, schema)
            for column, text in wanted.columns.items():
                _check(f"fit.{name}.{column}", text, schema, lambda kind: True)

    def _with(self, shards: list[Shard], raw: Mapping[str, str], structs: dict[str, Struct]) -> pa.Schema:
        return replace(self.tables(shards, raw), structs=structs).schema()


def _fits(parameters: Mapping[str, Any]) -> list[str]:
    """The fits whose models the parameters name."""
    return [value.removeprefix(MODELS) for _, value in fits_in(parameters, "")]


def _made(field: str, kind: type[BaseModel], parameters: dict[str, Any]) -> Any:
    try:
        return kind(**parameters)
    except ValidationError as error:
        lines = explain(error, kind, parameters, f"{field}." if field else "")
        raise RecipeError("\n".join(line.replace(".: ", ": ", 1) for line in lines)) from error


def _check_keys(field: str, given: Iterable[str], kind: type[BaseModel]) -> None:
    """Raises RecipeError: a key is no parameter of what will be made once its model is there."""
    for key in given:
        if key not in kind.model_fields:
            raise RecipeError(f"{field}.{key}: no such key{nearest(key, kind.model_fields)}")


def _field(fit: Fit, sample: str) -> str:
    """The field of a fit that holds the condition of a sample: of its name, or `where`."""
    return sample if sample in type(fit).model_fields else "where"


def _require(field: str, package: str | None) -> None:
    """Raises RecipeError: the package that a scorer, a fit or the trainer needs is not installed."""
    if package and importlib.util.find_spec(package) is None:
        extra = EXTRAS[package]
        raise RecipeError(f"{field}: needs the package {package}; pip install 'corpusmill[{extra}]'")


def _require_engines(field: str, kind: type[BaseModel], given: Mapping[str, Any]) -> None:
    """Raises RecipeError: an engine that some parameter of the class `kind` asks for is not installed."""
    for key, value in given.items():
        inner = models_in(kind.model_fields[key].annotation) if key in kind.model_fields else ()
        for model in inner if isinstance(value, Mapping) else ():
            if not issubclass(model, Engine):
                _require_engines(f"{field}.{key}", model, value)
            elif engine_named(value) == model.model_fields["engine"].default:
                _require(f"{field}.{key}", model.package)


def _check_tokenizer(path: str) -> None:
    from trainers.tokenise import load_tokenizer

    try:
        load_tokenizer(Path(path))
    except Exception as error:  # the tokenizers library raises nothing narrower for a file that is none
        raise RecipeError(f"tokenizer: {path} cannot be trained with: {error}") from error


def _check(
    field: str,
    text: str,
    schema: pa.Schema,
    kind: Callable[[pa.DataType], bool] = pa.types.is_boolean,
    expected: str = "true or false",
    operators: bool = False,
) -> None:
    try:
        expression = Expression(text)
        found = expression.check(schema)
    except ExpressionError as error:
        raise RecipeError(f"{field}: {error}") from error
    if expression.operators and not operators:
        name = expression.operators[0].function
        raise RecipeError(f"{field}: {text!r} asks for a {name}, which only conditions under `select` can")
    if not kind(found):
        raise RecipeError(f"{field}: {text!r} is {found}, expected {expected}")


def _check_plain(name: str, kind: pa.DataType) -> None:
    try:
        pa.nulls(0, kind).cast(pa.large_string())
    except pa.ArrowException:
        raise TypeError(f"column {name!r} is {kind}; it reads text, numbers or dates") from None


def _check_needs(
    field: str,
    needs: Iterable[str],
    raw: Mapping[str, str],
    check: Callable[[str, pa.DataType], None] = _check_plain,
) -> None:
    """Raises RecipeError: no shard has a column that a scorer or rewriter reads, or it holds what that cannot read."""
    for name in needs:
        if name not in raw:
            raise RecipeError(f"{field}: reads the column {name!r}, which no shard has{nearest(name, raw)}")
        try:
            check(name, plain_type(type_of(raw[name])))
        except TypeError as error:
            raise RecipeError(f"{field}: {error}") from None


def _check_sources(field: str, named: Iterable[str], sources: Mapping[str, Any]) -> None:
    for source in named:
        if source not in sources:
            raise RecipeError(f"{field}: no source {source!r}{nearest(source, sources)}")


def _footers(shards: Iterable[Shard], all_of_them: bool) -> dict[str, str]:
    """Columns of the shards that can be opened: of all, or of the first of each source."""
    columns: dict[str, str] = {}
    done: set[str] = set()
    for shard in shards:
        if shard.source in done:
            continue
        try:
            with store.open_read(shard.path) as file:
                found = {f.name: type_text(f.type) for f in pq.read_schema(file)}
        except (OSError, ValueError, pa.ArrowException):
            continue  # the scan will name it
        columns |= {name: kind for name, kind in found.items() if kind != "null" or name not in columns}
        if not all_of_them:
            done.add(shard.source)
    return columns


def model_folder(run: str, name: str) -> Path:
    """Where a fit step of a run puts its model."""
    return Path(run) / "models" / name
