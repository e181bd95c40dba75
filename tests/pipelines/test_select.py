"""Selection: the first condition that fails is the reason, NULL has failed, quantiles are those of all documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import shards, store
from pipelines.reading import Admission
from pipelines.score import Pass, ScoreSplit
from pipelines.select import Select, cuts, select
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Holdout, MisalignedError, Struct, Tables
from sql.expressions import Expression

ROWS = [
    {"id": "a", "text": "one two", "n": 5, "good": True},
    {"id": "b", "text": "three", "n": None, "good": True},
    {"id": "c", "text": " ", "n": 1, "good": True},  # no document
    {"id": "d", "text": "four five six", "n": 1, "good": False},
    {"id": "e", "text": "seven", "n": 9, "good": None},
    {"id": "f", "text": "eight nine", "n": 7, "good": False},
]


def indexed(run: str, folder: Path, **holdout: Any) -> tuple[Context, Tables, list[Split]]:
    """Index of all shards of a folder, as one source."""
    found = [shards.scan(s, "text") for s in shards.expand({"s": f"{folder}/*.parquet"})]
    splits = shards.splits(found)
    step = ScoreSplit(Pass.plan(run, "text", Admission(), []))
    assert all(list(step.process(split)) for split in splits)
    raw = {name: kind for name, (kind, _) in shards.schema_of(found).items()}
    return Context(run), Tables(run, "text", Admission(), 0, raw, **holdout), splits


@pytest.fixture
def small(tmp_path: Path) -> tuple[Context, Tables, list[Split]]:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    return indexed(f"{tmp_path}/run", tmp_path)


def reasons(tables: Tables, splits: list[Split], **conditions: str) -> list[tuple[str, str | None]]:
    out, record = Select(tables, conditions)(splits[0])
    kept = [(row["id"], row["selection"]["reason"]) for row in out.to_pylist()]
    assert [row["selection"]["keep"] for row in out.to_pylist()] == [reason is None for _, reason in kept]
    assert record.balances and record.rows_out == sum(reason is None for _, reason in kept)
    assert record.dropped == {r: n for r in conditions if (n := sum(reason == r for _, reason in kept))}
    assert record.bytes == sum(len(row["text"]) for row in ROWS if row["id"] != "c")
    return kept


def test_the_first_condition_that_fails_is_the_reason(small: Any) -> None:
    _, tables, splits = small
    assert reasons(tables, splits, large="n > 3", good="good") == [
        ("a", None),
        ("b", "large"),
        ("d", "large"),
        ("e", "good"),
        ("f", "good"),
    ]
    assert reasons(tables, splits, good="good", large="n > 3") == [
        ("a", None),
        ("b", "large"),
        ("d", "good"),
        ("e", "good"),
        ("f", "good"),
    ]
    assert [reason for _, reason in reasons(tables, splits)] == [None] * 5
    assert {reason for _, reason in reasons(tables, splits, never="false")} == {"never"}


def test_names_of_conditions_may_be_anything(small: Any) -> None:
    _, tables, splits = small
    odd = {'say "n"': "n > 3", "N": "good", "n": "true", "größer; --": "N IS NOT NULL"}
    assert [r for _, r in reasons(tables, splits, **odd)] == [None, 'say "n"', 'say "n"', "N", "N"]


def test_columns_are_found_in_any_case(small: Any) -> None:
    """SQL knows no upper and lower case, so what is read for an expression must not either."""
    _, tables, splits = small
    assert reasons(tables, splits, x="N > 3 AND GOOD") == reasons(tables, splits, x="n > 3 AND good")
    assert reasons(tables, splits, x="length(TEXT) > 5 AND Draw > 0") == [
        ("a", None),
        ("b", "x"),
        ("d", None),
        ("e", "x"),
        ("f", None),
    ]
    assert tables.base({"N"}) == tables.base({"n"})


def test_held_out_documents_are_dropped_as_such(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"text {i}"} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    context, tables, splits = indexed(f"{tmp_path}/run", tmp_path, holdout=Holdout(0.3, "exact"))
    flags = pa.struct([("cluster", pa.uint64())])
    clusters = pa.array([{"cluster": i // 2} for i in range(200)], flags)  # pairs of duplicates
    index = store.read_table(splits[0].sidecar(f"{context.run}/index"))
    store.write_sidecar(
        splits[0].sidecar(f"{context.run}/dedupe/exact"),
        store.digest("b", splits[0].identity()),
        pa.table([index["row"], index["id"], clusters], ["row", "id", "exact"]),
        {},
    )
    tables = Tables(
        tables.run,
        "text",
        tables.admission,
        0,
        tables.raw,
        {"exact": Struct("dedupe/exact", flags, "b")},
        tables.holdout,
    )
    out, record = Select(tables, {"long": "length(text) > 6"})(splits[0])
    held = [row["selection"]["holdout"] for row in out.to_pylist()]
    assert held[::2] == held[1::2], "duplicates fall on one side"
    assert 30 < sum(held) < 90 and record.dropped["holdout"] == sum(held)
    assert {row["selection"]["reason"] for row, h in zip(out.to_pylist(), held, strict=True) if h} == {"holdout"}


def test_a_quantile_is_that_of_all_documents_of_all_shards(tmp_path: Path, toy: Any) -> None:
    """Equal to DuckDB's own over the whole table; rows that are no documents do not count."""
    for i, count in enumerate((40, 7, 0)):
        rows = {
            "text": pa.array([f"t{k}" if k % 5 else None for k in range(count)], pa.string()),
            "x": [float((k * 7919 + i) % 23) for k in range(count)],
        }
        pq.write_table(pa.table({**rows, "x": pa.array(rows["x"], pa.float64())}), tmp_path / f"{i}.parquet")
    context, tables, splits = indexed(f"{tmp_path}/run", tmp_path)
    conditions = {"high": "x >= quantile(x, 0.7)", "not highest": "x < quantile(x, 1)"}
    found = cuts(context, tables, splits, conditions, 37)
    struct, records = select(context, tables, splits, conditions, found)
    query = "SELECT quantile_disc(x, 0.7), quantile_disc(x, 1.0) FROM read_parquet(?) WHERE text IS NOT NULL"
    low, high = duckdb.execute(query, [f"{tmp_path}/*.parquet"]).fetchall()[0]
    assert [groups[None].value for groups in found.values()] == [low, high]
    kept = sum(r.rows_out for r in records)
    count = "SELECT count(*) FROM read_parquet(?) WHERE text IS NOT NULL AND x >= ? AND x < ?"
    assert kept == duckdb.execute(count, [f"{tmp_path}/*.parquet", low, high]).fetchall()[0][0] > 0
    again = select(context, tables, splits, conditions, found)
    assert again[0] == struct and all(r.reused for r in again[1])
    others = {o: {None: replace(groups[None], value=-1.0)} for o, groups in found.items()}
    _, moved = select(context, tables, splits, conditions, others)
    assert not any(r.reused for r in moved), "another threshold is another selection"


def test_a_sidecar_of_other_rows_is_refused(small: Any) -> None:
    context, tables, splits = small
    kind = pa.struct([("s", pa.float64())])
    bad = pa.table(
        {
            "row": [0, 1, 3, 4, 5],
            "id": pa.array(["a", "b", "d", "f", "e"], pa.large_string()),
            "x": pa.array([{"s": 1.0}] * 5, kind),
        }
    )
    key = store.digest("b", splits[0].identity())
    store.write_sidecar(splits[0].sidecar(f"{context.run}/scores/x"), key, bad, {})
    tables = Tables(tables.run, "text", tables.admission, 0, tables.raw, {"x": Struct("scores/x", kind, "b")})
    with pytest.raises(MisalignedError, match=r"scores/x/s/a\.parquet holds 5 rows that are not the 5 documents"):
        Select(tables, {"c": "x.s > 0"})(splits[0])
    assert Expression("x.s > 0").check(tables.schema())
