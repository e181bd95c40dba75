"""What a report shows, as numbers: counts and histograms over a run's views, and the texts of a few samples.

No query reads the text of the corpus; samples are read afterwards, one row group each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import scorers
from pipelines import store
from pipelines.recipe import Recipe, parse
from sql.expressions import Expression
from sql.operators import LAST_DRAW, Cut
from sql.views import connect
from transforms.conversations import contents, is_conversation

BINS = 60
SAMPLES = 3  # on each side of a threshold
SNIPPET = 600  # characters
COMPARED = {
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Threshold:
    """`column operator value` holds for what passes. `rule`: the clause of `select`, or the scorer, that applies it."""

    rule: str
    column: str
    operator: str
    value: float

    @property
    def sides(self) -> tuple[str, str]:
        """The two SQL operators that part the documents: those of smaller values, those of larger ones."""
        return ("<", ">=") if self.operator in ("<", ">=") else ("<=", ">")


@dataclass(frozen=True)
class Histogram:
    """Documents per bin, in two groups: kept by the selection and not. Outer bins hold what lies beyond the edges."""

    column: str
    unit: str
    edges: list[float]
    kept: list[int]
    refused: list[int]
    logarithmic: bool  # edges are powers of ten, evenly spaced in the exponent
    missing: int  # documents without a value


@dataclass(frozen=True)
class Sample:
    """One document: where it stands, a value, and the beginning of its text."""

    source: str
    shard: str
    row: int
    id: str
    value: float
    text: str = ""


@dataclass
class Facts:
    """A run folder, opened for a report. Every member works on whatever the run has made so far."""

    run: str
    recipe: Recipe = field(init=False)
    summary: dict[str, Any] = field(init=False)
    connection: duckdb.DuckDBPyConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = connect(self.run)
        self.recipe = parse(yaml.safe_load(Path(self.run, "recipe.yaml").read_text()), f"{self.run}/recipe.yaml")
        self.summary = store.read_json(f"{self.run}/summary.json") or {}

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a query as mappings; for results of a page's size."""
        cursor = self.connection.execute(query, list(parameters))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @cached_property
    def views(self) -> frozenset[str]:
        return frozenset(row["name"] for row in self.rows("SELECT table_name AS name FROM information_schema.tables"))

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of `documents`; none before the run has made any."""
        if "documents" not in self.views:
            return pa.schema([])
        return self.connection.sql("FROM documents LIMIT 0").to_arrow_table().schema

    @cached_property
    def weight(self) -> tuple[str, str]:
        """What documents are weighed in: (SQL, unit). Tokens where they have been counted, else characters."""
        return ("tokens.count", "tokens") if "tokens" in self.schema.names else ("characters", "characters")

    @cached_property
    def selected(self) -> bool:
        return "selection" in self.schema.names

    def structs(self) -> list[str]:
        """Scorers whose column is there, in the recipe's order."""
        return [name for name in [*self.recipe.score, "tokens"] if name in self.schema.names]

    def rule_sets(self) -> list[str]:
        """Scorers that judge: those with `passed` and `reason`."""
        return [name for name in self.structs() if {"passed", "reason"} <= set(_fields(self.schema, name))]

    def numbers(self) -> dict[str, str]:
        """Numeric columns worth a histogram: name -> unit."""
        found = {"characters": "characters"} if "characters" in self.schema.names else {}
        for name in self.structs():
            units = self._units(name)
            for child, kind in _fields(self.schema, name).items():
                if pa.types.is_integer(kind) or pa.types.is_floating(kind):
                    found[f"{name}.{child}"] = units.get(child, "")
        return found

    def _units(self, scorer: str) -> dict[str, str]:
        file = next(Path(self.run, "scores", scorer).rglob("*.parquet"), None)
        kind = pq.read_schema(file).field(scorer).type if file else pa.struct([])
        return {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in kind}

    def thresholds(self) -> list[Threshold]:
        """Those of the recipe's `select`, then those that rule scorers apply, for columns that are there."""
        known = self.numbers()
        found = [*self._selecting(), *(t for name in self.rule_sets() for t in self._published(name))]
        return [t for t in dict.fromkeys(found) if t.column in known]

    def _selecting(self) -> Iterator[Threshold]:
        held = self.summary.get("thresholds", {})
        for name, text in self.recipe.select.items() if self.selected else ():
            expression = Expression(text)
            known = {o: held.get(str(o), {}) for o in expression.operators if o.by is None}
            cuts = {o: Cut(found.get("value"), found.get("draw", LAST_DRAW)) for o, found in known.items()}
            yield from (Threshold(name, *found) for found in comparisons(self.connection, expression.resolved(cuts)))

    def _published(self, name: str) -> Iterator[Threshold]:
        """Parameters `min_x` and `max_x` of a scorer bound its field x; `max_top_gram: {2: …}` bounds top_2_gram."""
        given = self.recipe.score[name]
        scorer = scorers.find(given.get("scorer", name)).model_construct(**given)
        for key, value in scorer:
            bound, _, stem = key.partition("_")
            if bound in ("min", "max") and isinstance(value, (int, float)):
                yield Threshold(name, f"{name}.{stem}", ">=" if bound == "min" else "<=", float(value))
            elif bound in ("min", "max") and isinstance(value, dict):
                first, _, last = stem.rpartition("_")
                for n, limit in value.items():
                    yield Threshold(name, f"{name}.{first}_{n}_{last}", ">=" if bound == "min" else "<=", float(limit))


def _fields(schema: pa.Schema, name: str) -> dict[str, pa.DataType]:
    kind = schema.field(name).type
    return {f.name: f.type for f in kind} if pa.types.is_struct(kind) else {}


def comparisons(connection: duckdb.DuckDBPyConnection, condition: str) -> Iterator[tuple[str, str, float]]:
    """(column, operator, number) of every comparison of a column with a number in a condition, as DuckDB parses it."""
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {condition}"]).fetchall()[0][0])
    for node in _walk(tree):
        if node.get("class") == "COMPARISON" and node["type"] in COMPARED:
            yield from _comparison(node["left"], COMPARED[node["type"]], node["right"])
        elif node.get("class") == "BETWEEN":
            yield from _comparison(node["input"], ">=", node["lower"])
            yield from _comparison(node["input"], "<=", node["upper"])


def _comparison(left: dict[str, Any], operator: str, right: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    if right.get("class") == "COLUMN_REF":
        left, operator, right = right, MIRRORED[operator], left
    left, right = _uncast(left), _uncast(right)
    if left.get("class") == "COLUMN_REF" and "literal" in right:
        with suppress(TypeError, ValueError):
            yield ".".join(left["column_names"]), operator, float(right["literal"]["text"])


def _uncast(node: dict[str, Any]) -> dict[str, Any]:
    while node.get("class") == "CAST":
        node = node["child"]
    return node


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(child)


def histograms(facts: Facts, thresholds: Iterable[Threshold]) -> list[Histogram]:
    """One histogram for each numeric column; thresholds widen the range that is shown."""
    units = facts.numbers()
    parts = [
        f"min({c}), quantile_cont({c}, [0.002, 0.5, 0.998]), max({c}), count(*) - count({c})"
        for c in map(quoted, units)
    ]
    if not parts:
        return []
    found = list(facts.connection.execute(f"SELECT {', '.join(parts)} FROM documents").fetchall()[0])
    result = []
    for column, unit in units.items():
        low, cuts, high, missing = (found.pop(0) for _ in range(4))
        if low is None:
            continue
        marks = [t.value for t in thresholds if t.column == column and low <= t.value <= high]
        logarithmic = low >= 0 and high > 100 and high > 30 * cuts[1]
        edges = _edges(min([float(cuts[0]), *marks]), max([float(cuts[2]), *marks]), logarithmic)
        counts = _counts(facts, column, edges, logarithmic)
        result.append(Histogram(column, unit, edges, counts[True], counts[False], logarithmic, missing))
    return result


def _edges(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        low, high = math.log10(max(low, 1)), math.log10(high)
    if low == high:
        low, high = low - 0.5, high + 0.5
    steps = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    return [10**x for x in steps] if logarithmic else steps


def _counts(facts: Facts, column: str, edges: Sequence[float], logarithmic: bool) -> dict[bool, list[int]]:
    value, low, high = f"CAST({quoted(column)} AS DOUBLE)", edges[0], edges[-1]
    if logarithmic:
        value, low, high = f"log10(greatest({value}, 1))", math.log10(low), math.log10(high)
    kept = "coalesce(selection.keep, false)" if facts.selected else "true"
    query = f"""
        SELECT CAST(least(greatest(floor(({value} - ?) / ?), 0), {BINS - 1}) AS INTEGER) AS bin,
               {kept} AS kept, count(*) AS documents
        FROM documents WHERE {quoted(column)} IS NOT NULL AND NOT isnan({value}) GROUP BY ALL"""
    counts = {True: [0] * BINS, False: [0] * BINS}
    for row in facts.rows(query, [low, (high - low) / BINS]):
        counts[row["kept"]][row["bin"]] = row["documents"]
    return counts


def around(facts: Facts, threshold: Threshold) -> tuple[list[Sample], list[Sample]]:
    """The documents nearest to a threshold: those of smaller values, nearest first, and those of larger ones."""
    column, (below, above) = quoted(threshold.column), threshold.sides
    columns = f"source, shard, row, id, CAST({column} AS DOUBLE) AS value"

    def side(operator: str, order: str) -> list[Sample]:
        query = f"""
            SELECT {columns} FROM documents WHERE {column} {operator} ?
            ORDER BY value {order}, id, source, shard, row LIMIT {SAMPLES}"""
        return [Sample(**row) for row in facts.rows(query, [threshold.value])]

    return side(below, "DESC"), side(above, "ASC")


def largest_clusters(facts: Facts, method: str, limit: int = 8) -> list[Sample]:
    """The kept document of each of the largest clusters of duplicates; `value` is the size."""
    m = quoted(method)
    query = f"""
        SELECT source, shard, row, id, {m}.size AS value FROM documents
        WHERE {m}.keep AND {m}.size > 1 ORDER BY {m}.size DESC, id LIMIT {limit}"""
    return [Sample(**row) for row in facts.rows(query)]


def with_texts(facts: Facts, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the beginnings of their texts, one row group at a time; what cannot be read stays empty."""
    wanted: dict[tuple[str, int], set[int]] = {}
    shards = {(s["source"], s["name"]): s for s in store.read_json(f"{facts.run}/shards.json")}
    places = {}
    for sample in samples:
        shard = shards[sample.source, sample.shard]
        group, row = _row_group(shard, sample.row)
        places[sample] = (shard["path"], group, row)
        wanted.setdefault((shard["path"], group), set()).add(row)
    texts = {
        (*at, row): text
        for at, rows in wanted.items()
        for row, text in _read_texts(*at, rows, facts.recipe.text).items()
    }
    return [replace(sample, text=texts.get(places[sample], "")) for sample in samples]


def _row_group(shard: Mapping[str, Any], row: int) -> tuple[int, int]:
    """Row group of a row of a shard, and the row's place in it."""
    for group, (rows, _) in enumerate(shard["groups"]):
        if row < rows:
            return group, row
        row -= rows
    raise ValueError(f"{shard['path']} has no row {row}; it has changed since the run")


def _read_texts(path: str, group: int, rows: Iterable[int], text: str) -> dict[int, str]:
    try:
        with store.open_read(path) as file:
            column = pq.ParquetFile(file).read_row_group(group, columns=[text]).column(text)
    except (OSError, pa.ArrowException):
        return {}
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_conversation(column.type):
        column = pa.chunked_array([contents(chunk) for chunk in column.chunks], pa.large_binary())
    column = column.cast(pa.large_binary())
    # bytes first: a cut of 4 bytes per character holds SNIPPET characters and costs no more for a document of 100 MB
    raw = {row: column.slice(row, 1).combine_chunks()[0].as_buffer() for row in rows}
    return {
        row: bytes(memoryview(value)[: 4 * SNIPPET]).decode("utf-8", "replace")[:SNIPPET]
        for row, value in raw.items()
        if value
    }


def quoted(column: str) -> str:
    """A column or a field of a struct, as SQL."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in column.split("."))
