"""SQL expressions over documents: what they refer to, their quantiles, and their value on an Arrow table.

DuckDB parses, binds and evaluates; nothing here reads SQL itself. `quantile(x, q)` in an expression stands for the
discrete quantile of x over all documents. It is found by a pass before and put in as a literal.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import duckdb
import pyarrow as pa

_local = threading.local()


class ExpressionError(ValueError):
    """An expression that DuckDB cannot parse, or that names a column or function there is not."""


@dataclass(frozen=True)
class Quantile:
    """One call `quantile(value, share)` of an expression; `value` as SQL text."""

    value: str
    share: float


@dataclass(frozen=True)
class Expression:
    """One SQL expression over the columns of a document.

    Raises:
        ExpressionError: from any member, if the text is not one SQL expression.
    """

    text: str

    @cached_property
    def _statement(self) -> dict[str, Any]:
        if not self.text.strip():
            raise ExpressionError("an SQL expression is empty; write `true` to mean every document")
        tree = _parsed(f"SELECT ({self.text}) FROM documents")
        if tree.get("error"):
            reason = tree.get("error_message", "cannot be parsed")
            reason += "; no comment may stand at its end" if "--" in self.text else ""
            raise ExpressionError(f"{self.text!r} is not an SQL expression: {reason}")
        if len(tree["statements"]) != 1 or _around(tree) != _around(_parsed("SELECT (1) FROM documents")):
            raise ExpressionError(f"{self.text!r} must be one SQL expression")
        return tree

    @cached_property
    def names(self) -> frozenset[str]:
        """First part of every column it refers to: `preselect` for `preselect.score`."""
        parts = [n["column_names"] for n in _walk(self._statement) if n.get("class") == "COLUMN_REF"]
        return frozenset(p[1] if len(p) > 1 and p[0].lower() == "documents" else p[0] for p in parts)

    @cached_property
    def quantiles(self) -> tuple[Quantile, ...]:
        """The quantiles it asks for, each once, in order of appearance."""
        return tuple(dict.fromkeys(_quantile(self.text, node) for node in _walk(self._statement) if _is_quantile(node)))

    def resolved(self, values: Mapping[Quantile, float | None]) -> str:
        """The expression with every quantile replaced by its value (NULL where no document has one)."""
        tree = json.loads(json.dumps(self._statement))
        for node in list(_walk(tree)):
            if _is_quantile(node):
                literal = _parsed(f"SELECT CAST({_literal(values[_quantile(self.text, node)])} AS DOUBLE)")
                node.clear()
                node.update(literal["statements"][0]["node"]["select_list"][0])
        return _select_text(tree)

    def check(self, columns: pa.Schema) -> pa.DataType:
        """The type of its value on documents with these columns.

        Raises:
            ExpressionError: it names a column, field or function that does not exist, compares what cannot be compared,
                or has a value that is no function of one document: aggregates, windows, subqueries, chance, the clock.
        """
        for quantile in self.quantiles:
            inner = Expression(quantile.value)
            if inner.quantiles:
                raise ExpressionError(f"{self.text!r}: a quantile of a quantile cannot be found")
            if not is_number(kind := inner.check(columns)):
                raise ExpressionError(f"{self.text!r}: quantile needs a number, and {quantile.value} is {kind}")
        self._check_pure(columns)
        resolved = {"value": self.resolved(dict.fromkeys(self.quantiles, 0.0))}
        kind = evaluate(resolved, columns.empty_table()).schema.field(0).type
        names = {name.lower() for name in self.names}
        used = {f.name: pa.nulls(1, f.type) for f in columns if f.name.lower() in names}  # as workers will load them
        evaluate(resolved, pa.table(used or {"_": pa.nulls(1)}))
        return kind

    def _check_pure(self, columns: pa.Schema) -> None:
        known = {name.lower() for name in columns.names}
        for node in _walk(self._statement):
            kind, name = str(node.get("class")), str(node.get("function_name", "")).lower()
            if kind == "COLUMN_REF" and len(node["column_names"]) == 1 and node["column_names"][0].lower() not in known:
                name = node["column_names"][0].lower()  # current_date and its like are written without brackets
            if kind in ("WINDOW", "SUBQUERY", "STAR") or name == "unnest":
                what = name if name == "unnest" else kind.lower()
                raise ExpressionError(f"{self.text!r}: {what} gives no single value from one document; use quantile")
            if name in _impure():
                raise ExpressionError(f"{self.text!r}: {name} changes with each call; `draw` is a hash of seed and id")


def evaluate(expressions: Mapping[str, str], documents: pa.Table) -> pa.Table:
    """The value of each named expression for every document, in the table's order.

    Raises:
        ExpressionError: DuckDB refuses an expression (the message is its own, with its candidates), or it does not give
            one value per document.
    """
    projection = ", ".join(f"({text}) AS value{i}" for i, text in enumerate(expressions.values()))
    connection = _connection()
    connection.register("documents", documents)
    try:
        values = connection.sql(f"SELECT {projection} FROM documents").to_arrow_table()
    except duckdb.Error as error:
        raise ExpressionError(f"{'; '.join(expressions.values())}: {error}") from error
    finally:
        connection.unregister("documents")
    if values.num_rows != documents.num_rows:
        counts = f"{values.num_rows} values for {documents.num_rows} documents"
        raise ExpressionError(f"{'; '.join(expressions.values())}: {counts}; an aggregate sees one split, use quantile")
    return values.rename_columns(list(expressions))


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type have an order as float64."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _connection() -> duckdb.DuckDBPyConnection:
    """One connection per thread, itself single-threaded: the engine's workers are the parallelism."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
    return _local.connection


def _one(query: str, *parameters: str) -> str:
    return _connection().execute(query, list(parameters)).fetchall()[0][0]


def _parsed(sql: str) -> dict[str, Any]:
    return json.loads(_one("SELECT json_serialize_sql(?)", sql))


def _around(tree: dict[str, Any]) -> Any:
    """A statement without its expression and the places in its text: what all expressions have in common."""
    node = dict(tree["statements"][0]["node"])
    table = {k: v for k, v in (node.pop("from_table", None) or {}).items() if not k.startswith("query_location")}
    return len(node.pop("select_list", [])), table, node


@cache
def _impure() -> frozenset[str]:
    """Functions whose value depends on more than their arguments."""
    query = "SELECT function_name FROM duckdb_functions() WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
    return frozenset(name.lower() for (name,) in _connection().execute(query).fetchall())


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _walk(child)


def _is_quantile(node: dict[str, Any]) -> bool:
    return node.get("class") == "FUNCTION" and node.get("function_name") == "quantile"


def _quantile(text: str, node: dict[str, Any]) -> Quantile:
    given = node["arguments"] if "arguments" in node else node["children"]  # before DuckDB 2
    arguments = [argument.get("expression", argument) for argument in given]
    try:
        number = float(_expression_text(arguments[1])) if len(arguments) == 2 else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1 or node.get("filter") or node.get("distinct"):
        example = "as in quantile(quality.score, 0.9)"
        raise ExpressionError(f"{text!r}: quantile takes an expression and a number from 0 to 1, {example}")
    return Quantile(_expression_text(arguments[0]), number)


def _expression_text(node: dict[str, Any]) -> str:
    tree = _parsed("SELECT 1")
    tree["statements"][0]["node"]["select_list"] = [node]
    return _select_text(tree, table=False)


def _select_text(tree: dict[str, Any], table: bool = True) -> str:
    sql = _one("SELECT json_deserialize_sql(?)", json.dumps(tree))
    return sql.removeprefix("SELECT ").removesuffix(" FROM documents" if table else "")


def _literal(value: float | None) -> str:
    return "NULL" if value is None else f"'{value!r}'"
