"""Quantiles and budgets are exact: DuckDB's own over the whole table, in one round or many, in any order of splits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import search

from pipelines import shards, store, thresholds
from pipelines.reading import Admission
from pipelines.score import Pass, ScoreSplit
from pipelines.select import cuts, remembered
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables
from pipelines.thresholds import Found, Statistic

CONNECTION = duckdb.connect(config={"threads": 1})


def find(*given: Any, **named: Any) -> dict[str, Found]:
    """`search` for statistics without groups."""
    return {name: groups[None] for name, groups in search(*given, **named).items()}


def truth(table: pa.Table, value: str, share: float) -> float | None:
    """DuckDB's discrete quantile over the whole table, NaN left out."""
    CONNECTION.register("documents", table)
    query = f"SELECT quantile_disc(v, {share!r}) FROM (SELECT ({value})::DOUBLE AS v FROM documents) WHERE NOT isnan(v)"
    return CONNECTION.sql(query).fetchall()[0][0]


special = st.sampled_from(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 1.7976931348623157e308, 1.0, 1.0 + 2**-52]
)
floats = st.none() | special | st.floats(width=64) | st.integers(-3, 3).map(float)
shares = st.sampled_from([0.0, 0.5, 1.0, 0.1, 0.3, 0.55, 0.7, 0.9, 0.999]) | st.integers(0, 1000).map(
    lambda n: n / 1000
)


@settings(max_examples=80)
@given(st.lists(st.lists(floats, max_size=12), min_size=1, max_size=5), shares, st.booleans(), st.randoms())
def test_a_quantile_equals_that_of_the_whole_table(
    parts: list[list[float | None]], share: float, exact: bool, random: Any
) -> None:
    tables = [pa.table({"v": pa.array(part, pa.float64())}) for part in parts]
    order = random.sample(range(len(parts)), len(parts))
    found = find(tables, [Statistic("q", "v", share=share)], exact, order, rounds=1 if exact else 4)["q"]
    expected = truth(pa.concat_tables(tables), "v", share)
    values = [v for part in parts for v in part if v is not None and not math.isnan(v)]
    assert found.value == expected
    assert (found.documents, found.weight) == (len(values), len(values))
    assert found.reached == sum(v <= expected for v in values) if values else found == Found(None, 0, 0, 0)


@settings(max_examples=40)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-4, 4), min_size=1, max_size=30),
    shares,
    st.booleans(),
)
def test_quantiles_of_integers_decimals_and_truth_values(values: list[int], share: float, exact: bool) -> None:
    small = [v % 7 for v in values]
    table = pa.table({"n": pa.array(values, pa.int64()), "s": pa.array(small, pa.int8()), "b": [v > 3 for v in small]})
    wanted = [Statistic(v, v, share=share) for v in ("n", "s", "b", "s * 0.1", "n / 3", "CAST(n AS HUGEINT) * 2")]
    found = find([table], wanted, exact, [0])
    for statistic in wanted:
        assert found[statistic.name].value == truth(table, statistic.value, share), statistic.value


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 5), st.integers(0, 20), st.none() | st.booleans()),
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 200),
    st.booleans(),
)
def test_a_budget_is_reached_within_one_value(
    parts: list[list[tuple[int, int, bool | None]]], total: int, exact: bool
) -> None:
    """The least draw up to which the weight is at least `total`; 64-bit draws are told apart to the last bit."""
    schema = pa.schema({"draw": pa.uint64(), "w": pa.int64(), "ok": pa.bool_()})
    tables = [
        pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in part], schema) for part in parts
    ]
    found = find(tables, [Statistic("b", "draw", total=total, where="ok", weight="w")], exact, range(len(parts)))["b"]
    rows = sorted((d, w) for part in parts for d, w, ok in part if ok)
    if not rows:
        assert found == Found(None, 0, 0, 0)
        return
    draws = sorted({d for d, _ in rows})
    upto = {d: sum(w for e, w in rows if e <= d) for d in draws}
    expected = next((d for d in draws if upto[d] >= max(total, 1)), draws[-1])
    assert found == Found(expected, len(rows), sum(w for _, w in rows), upto[expected])


@given(st.lists(st.floats(allow_nan=False)))
def test_keys_order_as_the_numbers_do(values: list[float]) -> None:
    keys, valid = thresholds.ordered(pa.chunked_array([pa.array(values, pa.float64())]))
    assert valid.all()
    for (a, x), (b, y) in itertools.combinations(zip(values, keys.tolist(), strict=True), 2):
        assert (a < b, a == b) == (x < y, x == y)
    assert [thresholds.value_of(k, False) for k in keys.tolist()] == values


def test_statistics_of_one_source_and_of_all_go_side_by_side() -> None:
    tables = [pa.table({"v": [1.0, 2.0]}), pa.table({"v": [10.0]}), pa.table({"v": pa.array([], pa.float64())})]
    wanted = [
        Statistic("all", "v", share=1.0),
        Statistic("a", "v", share=1.0, source="a"),
        Statistic("c", "v", share=0.5, source="c"),
    ]
    for exact, order in itertools.product((False, True), itertools.permutations(range(3))):
        found = find(tables, wanted, exact, order, sources="abc")
        assert {n: f.value for n, f in found.items()} == {"all": 10.0, "a": 2.0, "c": None}


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Context, Tables, list[Split], pa.Table]:
    """A run folder with an index over three shards, whose column `v` has ties, nulls and NaN."""
    draw = np.random.default_rng(0)
    for name, rows in (("a", 200), ("b", 0), ("c", 77)):
        values = draw.choice([*draw.normal(size=20), math.nan, -0.0, 0.0], rows)
        table = pa.table(
            {
                "text": pa.array([f"text {i}" for i in range(rows)], pa.string()),
                "v": pa.array(values, pa.float64(), mask=draw.random(rows) < 0.1),
            }
        )
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=50)
    run = f"{tmp_path}/run"
    found = [shards.scan(s, "text") for s in shards.expand({"s": f"{tmp_path}/*.parquet"})]
    splits = shards.splits(found)
    step = ScoreSplit(Pass.plan(run, "text", Admission(), []))
    assert all(list(step.process(split)) for split in splits)
    raw = {name: kind for name, (kind, _) in shards.schema_of(found).items()}
    tables = Tables(run, "text", Admission(), 0, raw)
    return Context(run), tables, splits, pa.concat_tables([pq.read_table(s.path) for s in found])


@pytest.mark.parametrize("most", [1_000_000, 10])
def test_through_the_engine(scored: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    context, tables, splits, whole = scored
    monkeypatch.setattr(thresholds, "EXACT_DOCUMENTS", most)
    asked = {"x": "v >= quantile(v, 0.9)", "y": "v < quantile(v + 1, 0.25) OR v > quantile(v, 0.9)"}
    found = cuts(context, tables, splits, asked, 277)
    assert {str(o): groups[None].value for o, groups in found.items()} == {
        "quantile(v, 0.9)": truth(whole, "v", 0.9),
        "quantile((v + 1), 0.25)": truth(whole, "v + 1", 0.25),
    }
    monkeypatch.setattr(thresholds, "_count", None)
    assert cuts(context, tables, list(reversed(splits)), asked, 277) == found, "remembered, in any order of splits"


def test_what_is_remembered_depends_on_what_it_was_found_from(scored: Any) -> None:
    context, tables, splits, _ = scored
    budget = [Statistic("b", "draw", total=50)]
    first = remembered(context, tables, splits, budget, 277)
    assert first == remembered(context, tables, splits, budget, 277)
    value = first["b"].value
    assert isinstance(value, int) and first["b"].reached == 50
    held = list(Path(context.run, "thresholds").glob("*.json"))
    assert len(held) == 1 and store.read_json(str(held[0]))["b"][0][1] == value, "64 bits survive JSON"
    seeded = Tables(tables.run, "text", Admission(), 1, tables.raw)
    assert remembered(context, seeded, splits, budget, 277)["b"].value != value
    assert remembered(context, tables, splits[:1], budget, 200)["b"].documents == 200
    assert remembered(context, tables, splits, [], 277) == {}
    named: Mapping[str, Found] = remembered(context, tables, splits, [Statistic("b", "draw", total=51)], 277)
    assert named["b"].reached == 51
