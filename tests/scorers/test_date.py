"""Dates of every kind of column, the cut-off, and what counts as unknown."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scorers import make
from transforms.batch import Batch

DAY = datetime.date(2013, 5, 18)


def rows(dates: pa.Array, cutoff: str | None = "2013-06-30", **parameters: Any) -> list[dict[str, Any]]:
    batch = Batch(pa.record_batch({"text": pa.array(["x"] * len(dates), pa.large_string()), "date": dates}))
    return make("date", {"cutoff": cutoff, **parameters}).score(batch).to_pylist()


def test_planted_strings() -> None:
    planted = {
        "2013-05-18T05:37:41Z": DAY,
        " 2013-05-18 05:37:41.123+02:00 ": DAY,
        "2013-05-18": DAY,
        "20130518": DAY,
        "2013-05": datetime.date(2013, 5, 31),
        "2012-02": datetime.date(2012, 2, 29),
        "2013": datetime.date(2013, 12, 31),
        "2016-02-29": datetime.date(2016, 2, 29),
    }
    unknown = [
        "2013-02-29",
        "2013-13-01",
        "2013-00-10",
        "2013-01-00",
        "hello",
        "",
        "0000-01-01",
        "2013-05-18Tx",
        "13-05-18",
        None,
    ]
    found = rows(pa.array([*planted, *unknown]))
    assert [r["date"] for r in found] == [*planted.values(), *[None] * len(unknown)]
    assert [r["known"] for r in found] == [True] * len(planted) + [False] * len(unknown)
    assert [r["before"] for r in found] == [d <= datetime.date(2013, 6, 30) for d in planted.values()] + [None] * len(
        unknown
    )
    assert [r["year"] for r in found] == [*(d.year for d in planted.values()), *[None] * len(unknown)]


@given(st.lists(st.one_of(st.none(), st.dates())), st.dates())
def test_every_kind_of_column_gives_the_same(days: list[datetime.date | None], cutoff: datetime.date) -> None:
    times = [None if d is None else datetime.datetime.combine(d, datetime.time(23, 59)) for d in days]
    columns = [
        pa.array([None if d is None else d.isoformat() for d in days], pa.large_string()),
        pa.array([None if d is None else f"{d.isoformat()}T23:59:00Z" for d in days], pa.string()).dictionary_encode(),
        pa.array(days, pa.date32()),
        pa.array(days, pa.date64()),
        pa.array(times, pa.timestamp("us")),
        pa.array(times, pa.timestamp("ms", "UTC")),
    ]
    wanted = [
        {"year": d and d.year, "date": d, "known": d is not None, "before": None if d is None else d <= cutoff}
        for d in days
    ]
    for column in columns:
        assert rows(column, cutoff.isoformat()) == wanted


def test_years_as_numbers() -> None:
    last = datetime.date(2013, 12, 31)
    assert [r["date"] for r in rows(pa.array([2013, 20130518, -5, 0, 10**12, None]))] == [
        last,
        DAY,
        None,
        None,
        None,
        None,
    ]
    assert [r["date"] for r in rows(pa.array([2013.0, 2013.5, float("nan"), float("inf"), None]))] == [last] + [
        None
    ] * 4
    assert [r["before"] for r in rows(pa.array([2012, 2013]))] == [True, False], "the whole of the year must be before"


def test_zones() -> None:
    late = pa.array([datetime.datetime(2013, 7, 1, 3, tzinfo=datetime.UTC)], pa.timestamp("us", "US/Pacific"))
    assert [r["date"] for r in rows(late)] == [datetime.date(2013, 7, 1)], "timestamps count in UTC"
    assert [r["date"] for r in rows(pa.array(["2013-06-30T23:30:00-08:00"]))] == [datetime.date(2013, 6, 30)]


def test_no_date_is_a_group_of_its_own() -> None:
    unknown = {"year": None, "date": None, "known": False, "before": None}
    assert rows(pa.array([True, False])) == [unknown] * 2
    assert rows(pa.array(["2013"]), column="crawled") == [unknown], "the shard lacks the column"
    assert rows(pa.array(["2013"]), None) == [
        {"year": 2013, "date": datetime.date(2013, 12, 31), "known": True, "before": None}
    ]


def test_a_cutoff_is_a_date() -> None:
    with pytest.raises(ValidationError, match="cutoff"):
        make("date", {"cutoff": "2013-02-30"})
