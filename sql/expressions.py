"""SQL expressions over documents: what they refer to, what they ask of the corpus, their value on an Arrow table.

DuckDB parses, binds and evaluates; nothing here reads SQL itself. The operators of `sql/operators.py` stand in an
expression for thresholds over all documents. These are found by a pass before and put in as literals.
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

from sql.operators import ARGUMENTS, Cut, Operator

_local = threading.local()


class ExpressionError(ValueError):
    """An expression that DuckDB cannot parse, or that names a column or function there is not."""


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
    def operators(self) -> tuple[Operator, ...]:
        """The operators it asks for, each once, in order of appearance."""
        return tuple(dict.fromkeys(_operator(self.text, node) for node in _walk(self._statement) if _is_operator(node)))

    def resolved(self, cuts: Mapping[Operator, Cut]) -> str:
        """The expression with every operator replaced by a comparison with its cut.

        Operators that `cuts` does not hold look theirs up in a column of their name, struct<value, draw>.
        """
        tree = json.loads(json.dumps(self._statement))
        for node in list(_walk(tree)):
            if _is_operator(node):
                operator = _operator(self.text, node)
                made = _parsed(f"SELECT {operator.resolved(cuts.get(operator))}")
                node.clear()
                node.update(made["statements"][0]["node"]["select_list"][0])
        return _select_text(tree)

    def check(self, columns: pa.Schema) -> pa.DataType:
        """The type of its value on documents with these columns.

        Raises:
            ExpressionError: it names a column, field or function that does not exist, compares what cannot be compared,
                or has a value that is no function of one document: aggregates, windows, subqueries, chance, the clock.
        """
        for operator in self.operators:
            self._check_operator(operator, columns)
        self._check_pure(columns)
        resolved = Expression(self.resolved(dict.fromkeys(self.operators, Cut(0.0))))
        kind = evaluate({"value": resolved.text}, columns.empty_table()).schema.field(0).type
        names = {name.lower() for name in resolved.names}
        used = {f.name: pa.nulls(1, f.type) for f in columns if f.name.lower() in names}  # as workers will load them
        evaluate({"value": resolved.text}, pa.table(used or {"_": pa.nulls(1)}))
        return kind

    def _check_operator(self, operator: Operator, columns: pa.Schema) -> None:
        name = operator.function
        for part, text in (("", operator.value), ("weight", operator.weight), ("by", operator.by)):
            if text is None:
                continue
            inner = Expression(text)
            if inner.operators:
                raise ExpressionError(f"{self.text!r}: a {name} of a {inner.operators[0].function} cannot be found")
            kind = inner.check(columns)
            if part != "by" and not is_number(kind):
                what = f"the {part} of {name}" if part else name
                raise ExpressionError(f"{self.text!r}: {what} needs a number, and {text} is {kind}")

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


def _is_operator(node: dict[str, Any]) -> bool:
    return node.get("class") == "FUNCTION" and node.get("function_name") in ARGUMENTS


def _operator(text: str, node: dict[str, Any]) -> Operator:
    given = node["arguments"] if "arguments" in node else node["children"]  # before DuckDB 2
    parts = [argument.get("expression", argument) for argument in given]  # a named argument has its name as alias
    function = node["function_name"]
    try:
        if node.get("filter") or node.get("distinct") or (node.get("order_bys") or {}).get("orders"):
            return Operator.called(function, [])
        return Operator.called(function, [(p["alias"], _expression_text({**p, "alias": ""})) for p in parts])
    except ValueError as error:
        raise ExpressionError(f"{text!r}: {error}") from error


def _expression_text(node: dict[str, Any]) -> str:
    tree = _parsed("SELECT 1")
    tree["statements"][0]["node"]["select_list"] = [node]
    return _select_text(tree, table=False)


def _select_text(tree: dict[str, Any], table: bool = True) -> str:
    sql = _one("SELECT json_deserialize_sql(?)", json.dumps(tree))
    return sql.removeprefix("SELECT ").removesuffix(" FROM documents" if table else "")
