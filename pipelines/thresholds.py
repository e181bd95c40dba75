"""Exact order statistics over all documents: quantiles of a score, and the draw up to which a token budget is spent.

Values become 64-bit integers of the same order; each split counts weight per value, counts are merged by addition, so
the result is exact and does not depend on the order of splits. Up to EXACT_DOCUMENTS one round counts whole values.
Beyond, rounds of 16 bits narrow the value down, and no process holds more than 2^16 bins (1.5 MB) per statistic.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables
from sql.expressions import Expression, evaluate

EXACT_DOCUMENTS = 1_000_000
ROUND_BITS = 16


@dataclass(frozen=True)
class Statistic:
    """The least value v for which the documents with value <= v hold `share` of all weight, or `total` of it.

    `value`, `where` and `weight` are SQL over the documents; weights are whole numbers >= 0. Documents whose value is
    null or NaN do not count. With weight 1, `share` gives the discrete quantile (SQL's PERCENTILE_DISC).
    """

    name: str
    value: str
    share: float | None = None
    total: int | None = None
    where: str = "true"
    weight: str = "1"
    source: str | None = None  # only documents of this source

    def names(self) -> set[str]:
        return {n for text in (self.value, self.where, self.weight) for n in Expression(text).names}


@dataclass(frozen=True)
class Found:
    """A statistic's value (None where no document counts), the documents and weight that count, the weight up to it."""

    value: float | int | None
    documents: int
    weight: int
    reached: int


@dataclass(frozen=True)
class _Search:
    statistic: Statistic
    known: int = 0  # leading bits already known, and their value
    prefix: int = 0
    below: int = 0
    weight: int = -1
    documents: int = 0

    def width(self, bits: int) -> int:
        return min(bits, 64 - self.known)


Counted = tuple[np.ndarray, np.ndarray, np.ndarray, bool]  # bin, weight, documents; whether values are integers
Bins = dict[str, Counted]  # by name of the statistic
NOTHING: Counted = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64), False)


def find(
    context: Context, tables: Tables, splits: Sequence[Split], statistics: Iterable[Statistic], documents: int
) -> dict[str, Found]:
    """The value of each statistic over the documents of all splits, in one pass (in four if there are very many)."""
    bits = 64 if documents <= EXACT_DOCUMENTS else ROUND_BITS
    searches = [_Search(s) for s in statistics]
    found: dict[str, Found] = {}
    while searches:
        counted = _count(context, tables, splits, searches, bits)
        going = []
        for search in searches:
            result = _narrow(search, counted.get(search.statistic.name, NOTHING), bits)
            if isinstance(result, Found):
                found[search.statistic.name] = result
            else:
                going.append(result)
        searches = going
    return found


def _count(context: Context, tables: Tables, splits: Sequence[Split], searches: list[_Search], bits: int) -> Bins:
    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        counts = pipeline | "Splits" >> context.deal(splits) | beam.ParDo(CountSplit(tables, searches, bits))
        return counts | beam.CombineGlobally(MergeBins()) | beam.Map(_encode)

    text = any(tables.text in s.statistic.names() for s in searches)
    rows = None if text else sum(s.rows for s in splits)
    return _decode(context.graph("thresholds", build, len(splits), rows)[0])


class CountSplit(beam.DoFn):
    """Split -> weight and documents per bin, for each statistic."""

    def __init__(self, tables: Tables, searches: list[_Search], bits: int) -> None:
        self.tables, self.searches, self.bits = tables, searches, bits

    def process(self, split: Split) -> Iterator[Bins]:
        mine = [s for s in self.searches if s.statistic.source in (None, split.source)]
        if mine:
            table = self.tables.load(split, set().union(*(s.statistic.names() for s in mine)))
            yield {s.statistic.name: self._bins(s, table) for s in mine}

    def _bins(self, search: _Search, table: pa.Table) -> Counted:
        s = search.statistic
        whole = pa.types.is_uint64(evaluate({"value": s.value}, table.slice(0, 0)).schema.field(0).type)
        value = s.value if whole else f"CAST({s.value} AS DOUBLE)"  # as DuckDB does it when it compares
        wanted = {"value": value, "weight": f"CAST({s.weight} AS BIGINT)", "where": f"coalesce({s.where}, false)"}
        columns = evaluate(wanted, table)
        chosen = columns.filter(columns.column("where")).drop_columns(["where"]).drop_null().combine_chunks()
        keys, valid, integer = ordered(chosen.column("value"))
        weight = chosen.column("weight").to_numpy()
        if search.known:
            valid &= (keys >> np.uint64(64 - search.known)) == np.uint64(search.prefix)
        keys, weight = keys[valid], weight[valid]
        width = search.width(self.bits)
        bins = (keys << np.uint64(search.known)) >> np.uint64(64 - width)
        unique, inverse, documents = np.unique(bins, return_inverse=True, return_counts=True)
        summed = np.zeros(len(unique), np.int64)
        np.add.at(summed, inverse, weight)
        return unique, summed, documents.astype(np.int64), integer


def ordered(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, bool]:
    """uint64 keys in the order of a uint64 or float64 column without nulls; which of them count (all but NaN); whether
    the keys are the values themselves.
    """
    if pa.types.is_uint64(column.type):
        return column.to_numpy(), np.ones(len(column), bool), True
    number = column.to_numpy() + 0.0  # makes -0.0 equal to 0.0
    bits = number.view(np.uint64)
    sign = np.uint64(1) << np.uint64(63)
    return np.where(bits & sign, ~bits, bits | sign), ~np.isnan(number), False


def _value(key: int, integer: bool) -> float | int:
    if integer:
        return key
    sign = 1 << 63
    bits = key & ~sign if key & sign else ~key & (2**64 - 1)
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


class MergeBins(beam.CombineFn):
    """Adds the bins of splits; exact, so in any order the same."""

    def create_accumulator(self) -> Bins:
        return {}

    def add_input(self, accumulator: Bins, element: Bins) -> Bins:
        return self.merge_accumulators([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Bins]) -> Bins:
        held = [a for a in accumulators if a]
        return {name: _add([a[name] for a in held if name in a]) for name in set().union(*held)}

    def extract_output(self, accumulator: Bins) -> Bins:
        return accumulator


def _add(parts: Sequence[Counted]) -> Counted:
    bins, inverse = np.unique(np.concatenate([p[0] for p in parts]), return_inverse=True)
    sums = []
    for part in (1, 2):
        total = np.zeros(len(bins), np.int64)
        np.add.at(total, inverse, np.concatenate([p[part] for p in parts]))
        sums.append(total)
    return bins, sums[0], sums[1], any(p[3] for p in parts)


def _narrow(search: _Search, counted: Counted, bits: int) -> _Search | Found:
    """The next round's search within the bin that holds the value, or the value itself."""
    bins, weights, documents, integer = counted
    if search.weight < 0:
        search = replace(search, weight=int(weights.sum()), documents=int(documents.sum()))
    if not len(bins):
        return Found(None, search.documents, max(search.weight, 0), 0)
    target = _target(search.statistic, search.weight)
    cumulated = search.below + np.cumsum(weights)
    at = min(int(np.searchsorted(cumulated, target)), len(bins) - 1)
    known, width = search.known + search.width(bits), search.width(bits)
    prefix = (search.prefix << width) | int(bins[at])
    if known == 64:
        return Found(_value(prefix, integer), search.documents, search.weight, int(cumulated[at]))
    return replace(search, known=known, prefix=prefix, below=int(cumulated[at] - weights[at]))


def _target(statistic: Statistic, weight: int) -> int:
    if statistic.total is not None:
        return max(statistic.total, 1)
    assert statistic.share is not None
    return max(1, math.ceil(Fraction(repr(statistic.share)) * weight))  # the decimal as written, as DuckDB reads it


def _encode(bins: Bins) -> dict[str, list]:
    return {n: [*(base64.b85encode(a.tobytes()).decode() for a in part[:3]), part[3]] for n, part in bins.items()}


def _decode(encoded: Mapping[str, list]) -> Bins:
    def array(text: str, kind: type) -> np.ndarray:
        return np.frombuffer(base64.b85decode(text), dtype=kind)

    return {n: (array(p[0], np.uint64), array(p[1], np.int64), array(p[2], np.int64), p[3]) for n, p in encoded.items()}
