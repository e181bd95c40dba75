"""When a document was written or crawled, and whether that is on or before a cut-off. Costs about 1 µs per document.

Documents of after the evaluation sets' time, or much older ones, harm or date a model (Longpre et al. 2023, "A
Pretrainer's Guide to Training Data", section 4); documents without a date are a group of their own.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorers import Scorer
from scorers._columns import column, texts

if TYPE_CHECKING:
    from transforms.batch import Batch

_FORM = (  # ISO 8601, with or without hyphens; what is behind the day must be a time
    r"^\s*(?P<year>[0-9]{4})(?:-?(?P<month>[0-9]{2})(?:-?(?P<day>[0-9]{2})"
    r"(?:[T ][0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]+)?)?\s*(?:Z|UTC|GMT|[+-][0-9]{2}:?(?:[0-9]{2})?)?)?)?)?\s*$"
)
FIELDS = [
    pa.field("year", pa.int32(), metadata={"unit": "year, null where unknown"}),
    pa.field("date", pa.date32(), metadata={"unit": "day; of a month or a year alone the last one"}),
    pa.field("known", pa.bool_(), metadata={"unit": "the column holds a date"}),
    pa.field("before", pa.bool_(), metadata={"unit": "on or before the cut-off, null where unknown or none is given"}),
]


class Date(Scorer):
    """The date in `column`: ISO 8601 as of FineWeb, dates, timestamps (in UTC), years. What is none counts as unknown.

    Of a month or a year alone the last day is taken, so that `before` holds only where the whole of it is. A string
    with an offset from UTC gives the day that is written.
    """

    name: ClassVar[str] = "date"
    column: str = "date"
    cutoff: datetime.date | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def fields(self) -> pa.StructType:
        return pa.struct(FIELDS)

    def score(self, batch: Batch) -> pa.StructArray:
        days = _days(batch, self.column)
        cutoff = pa.scalar(self.cutoff, pa.date32())
        columns = [pc.year(days).cast(pa.int32()), days, days.is_valid(), pc.less_equal(days, cutoff)]
        return pa.StructArray.from_arrays(columns, fields=FIELDS)


def _days(batch: Batch, name: str) -> pa.Date32Array:
    """date32, null where unknown."""
    given = column(batch, name)
    if pa.types.is_timestamp(given.type):
        given = pc.floor_temporal(given.cast(pa.timestamp(given.type.unit)), unit="day")
    if pa.types.is_temporal(given.type) and not pa.types.is_time(given.type) and not pa.types.is_duration(given.type):
        days = given.cast(pa.date32())
        return pc.if_else(pc.is_in(pc.year(days), pa.array(range(1, 10_000), pa.int64())), days, None)
    if pa.types.is_floating(given.type):  # years with nulls among them, as pandas writes them
        whole = pc.and_(pc.equal(given, pc.floor(given)), pc.less(pc.abs(given), 1e9))
        return _parsed(pc.if_else(whole, given, None).cast(pa.int64()).cast(pa.large_string()))
    return _parsed(texts(batch, name))


def _parsed(texts: pa.LargeStringArray) -> pa.Date32Array:
    found = pc.extract_regex(texts, _FORM)
    year, month, day = (_number(pc.struct_field(found, part)) for part in ("year", "month", "day"))
    first = ((year - 1970) * 12 + np.where(month < 0, 11, month - 1)).astype("datetime64[M]")
    length = (first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")
    last = length.astype(np.int64)
    wrong = (year < 1) | (month == 0) | (month > 12) | (day == 0) | (day > last)
    days = first.astype("datetime64[D]").astype(np.int64) + np.where(day < 0, last, day) - 1
    return pa.array(np.where(wrong, 0, days).astype(np.int32), pa.int32(), mask=wrong).cast(pa.date32())


def _number(digits: pa.Array) -> np.ndarray:
    """int64, -1 where there are none."""
    given = pc.if_else(pc.equal(digits, ""), None, digits)
    return pc.fill_null(given.cast(pa.int64()), -1).to_numpy()
