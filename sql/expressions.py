"""SQL expressions over documents: what they refer to, their quantiles, and their value on an Arrow table.

DuckDB parses, binds and evaluates; nothing here reads SQL itself. `quantile(x, q)` in an expression stands for the
discrete quantile of x over all documents. It is found by a pass before and put in as a literal.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
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
        tree = json.loads(_one("SELECT json_serialize_sql(?)", f"SELECT ({self.text}) FROM documents"))
        if tree.get("error"):
            raise ExpressionError(f"{self.text!r} is not an SQL expression: {tree.get('error_message', 'cannot be parsed')}")
        selected = tree["statements"][0]["node"].get("select_list", [])
        if len(tree["statements"]) != 1 or len(selected) != 1:
            raise ExpressionError(f"{self.text!r} must be one SQL expression")
        return tree

    @cached_property
    def names(self) -> frozenset[str]:
        """First part of every column it refers to: `preselect` for `preselect.score`."""
        parts = [n["column_names"] for n in _walk(self._statement) if n.get("class") == "COLUMN_REF"]
        return frozenset(p[1] if len(p) > 1 and p[0] == "documents" else p[0] for p in parts)

    @cached_property
    def quantiles(self) -> tuple[Quantile, ...]:
        """The quantiles it asks for, each once, in order of appearance."""
        return tuple(dict.fromkeys(_quantile(self.text, node) for node in _walk(self._statement) if _is_quantile(node)))

    def resolved(self, values: Mapping[Quantile, float | None]) -> str:
        """The expression with every quantile replaced by its value (NULL where no document has one)."""
        tree = json.loads(json.dumps(self._statement))
        for node in list(_walk(tree)):
            if _is_quantile(node):
                value = values[_quantile(self.text, node)]
                literal = json.loads(_one("SELECT json_serialize_sql(?)", f"SELECT CAST({_literal(value)} AS DOUBLE)"))
                node.clear()
                node.update(literal["statements"][0]["node"]["select_list"][0])
        return _select_text(tree)

    def check(self, columns: pa.Schema) -> pa.DataType:
        """The type of its value on documents with these columns.

        Raises:
            ExpressionError: it names a column, field or function that does not exist, or compares what cannot be compared.
        """
        return evaluate({"value": self.resolved(dict.fromkeys(self.quantiles, 0.0))}, columns.empty_table()).schema.field(0).type


def evaluate(expressions: Mapping[str, str], documents: pa.Table) -> pa.Table:
    """The value of each named expression for every document, in the table's order.

    Raises:
        ExpressionError: DuckDB refuses an expression; the message is its own, with its candidates.
    """
    projection = ", ".join(f'({text}) AS "{name}"' for name, text in expressions.items())
    connection = _connection()
    connection.register("documents", documents)
    try:
        return connection.sql(f"SELECT {projection} FROM documents").to_arrow_table()
    except duckdb.Error as error:
        raise ExpressionError(f"{'; '.join(expressions.values())}: {error}") from error
    finally:
        connection.unregister("documents")


def _connection() -> duckdb.DuckDBPyConnection:
    """One connection per thread, itself single-threaded: the engine's workers are the parallelism."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
    return _local.connection


def _one(query: str, *parameters: str) -> str:
    return _connection().execute(query, list(parameters)).fetchall()[0][0]


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
    arguments = [argument.get("expression", argument) for argument in node["arguments"]]
    share = arguments[1].get("literal", {}).get("text") if len(arguments) == 2 else None
    try:
        number = float(share)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise ExpressionError(f"{text!r}: quantile takes an expression and a number from 0 to 1, as in quantile(quality.score, 0.9)")
    return Quantile(_expression_text(arguments[0]), number)


def _expression_text(node: dict[str, Any]) -> str:
    tree = json.loads(_one("SELECT json_serialize_sql(?)", "SELECT 1"))
    tree["statements"][0]["node"]["select_list"] = [node]
    return _select_text(tree, table=False)


def _select_text(tree: dict[str, Any], table: bool = True) -> str:
    sql = _one("SELECT json_deserialize_sql(?)", json.dumps(tree))
    return sql.removeprefix("SELECT ").removesuffix(" FROM documents" if table else "")


def _literal(value: float | None) -> str:
    return "NULL" if value is None else f"'{value!r}'"
