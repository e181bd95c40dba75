"""From a recipe to columns: which scorers a run has, which of them wait for a fit, and whether every expression can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

import scorers
from pipelines import store
from pipelines.dedupe import FLAGS, Exact
from pipelines.mix import Mixture
from pipelines.recipe import MODELS, FitFastText, Recipe, RecipeError, explain, nearest
from pipelines.score import Column
from pipelines.select import SELECTION
from pipelines.shards import Shard
from pipelines.tables import Holdout, Struct, Tables
from scorers.tokens import Tokens
from sql.expressions import Expression, ExpressionError
from trainers.fit_fasttext import FastTextParameters


class Plan:
    """A recipe with its parts made and checked, for one run folder.

    Raises:
        RecipeError: a parameter or an expression is wrong; all mistakes that can be found without reading documents are.
    """

    def __init__(self, recipe: Recipe, run: str) -> None:
        self.recipe, self.run = recipe, run
        given = dict(recipe.score)
        if recipe.tokenizer:
            given["tokens"] = {"tokenizer": recipe.tokenizer}
        self.given = given
        self.fitted = {name for name, parameters in given.items() if any(_is_fit(v) for v in parameters.values())}
        self.methods = {name: _made(f"dedupe.{name}", Exact, parameters) for name, parameters in recipe.dedupe.items()}
        self.mixtures = {name: _made(f"mix.{name}", Mixture, parameters) for name, parameters in recipe.mix.items()}
        self.columns = {name: self._column(name) for name in given if name not in self.fitted}
        for name in self.fitted:
            self._check_fitted(name)
        for name, spec in recipe.fit.items():
            if isinstance(spec, FitFastText):
                _made(f"fit.{name}.parameters", FastTextParameters, spec.parameters)

    def _column(self, name: str) -> Column:
        kind, parameters = self._parameters(name)
        try:
            return Column(name, f"scores/{name}", scorers.make(kind, parameters))
        except ValidationError as error:
            raise RecipeError("\n".join(explain(error, scorers.find(kind), f"score.{name}."))) from error

    def _parameters(self, name: str) -> tuple[str, dict[str, Any]]:
        parameters = {k: self._model_path(v) for k, v in self.given[name].items() if k != "scorer"}
        return self.given[name].get("scorer", name), parameters

    def _model_path(self, value: Any) -> Any:
        return f"{self.run}/models/{value.removeprefix(MODELS)}" if _is_fit(value) else value

    def _check_fitted(self, name: str) -> None:
        kind, parameters = self._parameters(name)
        fields = scorers.find(kind).model_fields
        for key in parameters:
            if key not in fields:
                raise RecipeError(f"score.{name}.{key}: no such key{nearest(key, fields)}")

    def fitted_columns(self) -> dict[str, Column]:
        """The columns whose models the fit steps have made by now."""
        return {name: self._column(name) for name in sorted(self.fitted)}

    def tokenizer(self) -> str:
        """Path of the tokenizer that mixtures are weighed with."""
        return str(self._model_path(self.recipe.tokenizer))

    def tables(self, shards: list[Shard], raw: Mapping[str, str]) -> Tables:
        holdout = Holdout(self.recipe.holdout.share, self.recipe.holdout.clusters) if self.recipe.holdout else None
        return Tables(self.run, self.recipe.text, self.recipe.admission, self.recipe.seed, dict(raw), {}, holdout)

    def check(self, shards: list[Shard]) -> None:
        """Evaluate every expression on no documents, with the columns it will find; one shard's footer per source is read.

        Raises:
            RecipeError: naming field, expression and what DuckDB proposes instead.
        """
        raw = _footers(shards)
        known = dict(self.tables(shards, raw).structs)
        known |= {name: Struct("", column.scorer.fields(), "") for name, column in self.columns.items()}
        first = self._with(shards, raw, known)
        for name, method in self.methods.items():
            _check(f"dedupe.{name}.prefer", method.prefer, first)
        known |= {name: Struct("", FLAGS, "") for name in self.methods}
        middle = self._with(shards, raw, known)
        for name, spec in self.recipe.fit.items():
            for field in ("where", "positives", "negatives"):
                if hasattr(spec, field):
                    _check(f"fit.{name}.{field}", getattr(spec, field), middle, boolean=True)
        for name in self.fitted:
            kind, parameters = self._parameters(name)
            known[name] = Struct("", scorers.find(kind).model_construct(**parameters).fields(), "")
        late = self._with(shards, raw, known)
        for name, text in self.recipe.select.items():
            _check(f"select.{name}", text, late, boolean=True)
        if self.recipe.holdout:
            _check("holdout.where", self.recipe.holdout.where, late, boolean=True)
        last = self._with(shards, raw, known | {"selection": Struct("", SELECTION, "")})
        for name, mixture in self.mixtures.items():
            _check(f"mix.{name}.where", mixture.where, last, boolean=True)
            _check_weights(name, mixture, self.recipe.sources)

    def _with(self, shards: list[Shard], raw: Mapping[str, str], structs: dict[str, Struct]) -> pa.Schema:
        tables = self.tables(shards, raw)
        return Tables(tables.run, tables.text, tables.admission, tables.seed, tables.raw, structs, tables.holdout).schema()


def _is_fit(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(MODELS)


def _made(field: str, kind: type, parameters: dict[str, Any]) -> Any:
    try:
        return kind(**parameters)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, kind, f"{field}."))) from error


def _check(field: str, text: str, schema: pa.Schema, boolean: bool = False) -> None:
    try:
        kind = Expression(text).check(schema)
    except ExpressionError as error:
        raise RecipeError(f"{field}: {error}") from error
    if boolean and not pa.types.is_boolean(kind):
        raise RecipeError(f"{field}: {text!r} is {kind}, expected true or false; compare it with something")


def _check_weights(name: str, mixture: Mixture, sources: Mapping[str, Any]) -> None:
    if isinstance(mixture.weights, dict):
        for source in mixture.weights:
            if source not in sources:
                raise RecipeError(f"mix.{name}.weights: no source {source!r}{nearest(source, sources)}")


def _footers(shards: list[Shard]) -> dict[str, str]:
    """Columns of the first shard of each source that can be opened."""
    columns: dict[str, str] = {}
    done: set[str] = set()
    for shard in shards:
        if shard.source in done:
            continue
        try:
            with store.open_read(shard.path) as file:
                columns |= {f.name: str(f.type) for f in pq.read_schema(file)}
            done.add(shard.source)
        except (OSError, pa.ArrowException):
            continue  # the scan will name it
    return columns


def model_folder(run: str, name: str) -> Path:
    """Where a fit step of a run puts its model."""
    return Path(run) / "models" / name
