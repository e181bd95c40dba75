"""The documents of a split as a table: aligned by row, with the columns of all shards, each of its type."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_select import indexed

from pipelines.shards import type_of
from pipelines.tables import Tables
from sql.expressions import Expression, evaluate

SHARDS = {
    "a": pa.table(
        {"text": ["x", None, "y"], "url": ["u1", "u2", "u3"], "tags": [["t"], ["u"], None], "Row": [1, 2, 3]}
    ),
    "b": pa.table({"text": pa.array([b"z", b"\xff"]), "url": pa.nulls(2), "meta": [{"lang": "el"}, None]}),
    "c": pa.table({"text": pa.array([], pa.string()), "url": pa.array(["c"]).dictionary_encode()[:0]}),
}


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, pa.Table]:
    for name, table in SHARDS.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    _, tables, splits = indexed(f"{tmp_path}/run", tmp_path)
    names = {"text", "url", "tags", "meta", "draw", "holdout", "nothing"}
    assert {name: type_of(kind) for name, kind in tables.raw.items()}["url"] == pa.string()
    return {split.shard: tables.load(split, names) for split in splits} | {"only url": tables.load(splits[0], {"url"})}


def test_columns_of_one_shard_are_null_in_the_others(loaded: dict[str, pa.Table]) -> None:
    a, b, c = loaded["a"], loaded["b"], loaded["c"]
    assert a.select(["row", "text", "url", "tags", "meta"]).to_pylist() == [
        {"row": 0, "text": "x", "url": "u1", "tags": ["t"], "meta": None},
        {"row": 2, "text": "y", "url": "u3", "tags": None, "meta": None},
    ]
    assert b.select(["text", "url", "tags"]).to_pylist() == [
        {"text": "z", "url": None, "tags": None},
        {"text": "\ufffd", "url": None, "tags": None},
    ]
    assert c.num_rows == 0 and {"draw", "holdout", "tags", "meta"} <= set(c.column_names)
    assert a.column("source").to_pylist() == ["s", "s"] and a.column("shard").to_pylist() == ["a", "a"]
    assert (
        loaded["only url"].column("url").to_pylist() == ["u1", "u3"] and "text" not in loaded["only url"].column_names
    )


@pytest.mark.parametrize(
    "text",
    ["url LIKE 'u%'", "list_contains(tags, 't')", "meta.lang = 'el'", "length(text) > 0", "NOT holdout AND draw >= 0"],
)
def test_every_expression_can_be_evaluated_on_every_shard(loaded: dict[str, pa.Table], text: str) -> None:
    for shard in "abc":
        found = evaluate({"x": text}, loaded[shard])
        assert found.num_rows == loaded[shard].num_rows and found.schema.field("x").type == pa.bool_()


def test_the_schema_is_that_of_what_is_loaded(tmp_path: Path) -> None:
    for name, table in SHARDS.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    _, tables, splits = indexed(f"{tmp_path}/run", tmp_path)
    schema = tables.schema()
    table = tables.load(splits[0], schema.names)
    for field in schema:
        kind = table.schema.field(field.name).type
        assert kind == field.type or {str(kind), str(field.type)} == {"string", "large_string"}, field.name
    assert Expression("list_contains(tags, 't') AND meta.lang = 'el'").check(schema)
    assert "Row" not in schema.names, "columns of our own hide those of a shard, in any case"


def test_keys_depend_on_what_columns_depend_on() -> None:
    from pipelines.reading import Admission
    from pipelines.tables import Holdout, Struct

    structs = {"x": Struct("scores/x", pa.struct([]), "1"), "exact": Struct("dedupe/exact", pa.struct([]), "2")}
    tables = Tables("run", "text", Admission(), 0, {}, structs, Holdout(0.1, "exact"))
    base = tables.base({"x"})
    assert Tables("elsewhere", "text", Admission(), 0, {}, structs, Holdout(0.9, "exact")).base({"x"}) == base
    assert Tables("run", "text", Admission(), 1, {}, structs, tables.holdout).base({"x"}) != base
    assert Tables("run", "text", Admission(nul="drop"), 0, {}, structs, tables.holdout).base({"x"}) != base
    other = {**structs, "x": Struct("scores/x", pa.struct([]), "3")}
    assert Tables("run", "text", Admission(), 0, {}, other, tables.holdout).base({"x"}) != base
    assert Tables("run", "text", Admission(), 0, {}, other, tables.holdout).base({"id"}) == tables.base({"id"})
    moved = {**structs, "exact": Struct("dedupe/exact", pa.struct([]), "9")}
    held = Tables("run", "text", Admission(), 0, {}, moved, tables.holdout)
    assert held.base({"holdout"}) != tables.base({"holdout"}) and held.base({"x"}) == base
