"""Exact order statistics over all documents: quantiles of a score, the best of it by number or weight, token budgets.

Values become 64-bit integers of the same order; each split counts weight per value, counts are merged by addition, so
the result is exact and does not depend on the order of splits. Up to EXACT_DOCUMENTS one round counts whole values.
Beyond, rounds of at most 16 bits narrow the value down, into at most 2^16 bins for a statistic without groups and 2^22
for one with groups. Where documents share the value that is found, rounds over their draws follow, if the statistic
splits ties. A bin takes 45 B; a process that adds up bins holds twice those of all statistics, and at least 2^20.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine import JobFailed
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables
from sql.expressions import Expression, evaluate
from sql.operators import LAST_DRAW, group_key

EXACT_DOCUMENTS = 1_000_000
ROUND_BITS, GROUPED_BITS, BIN_BITS = 16, 5, 22  # of a round; of the first by groups; of all bins of one by groups
MAX_GROUPS = 100_000
FRACTIONS = 65_536  # weights that are not whole numbers are counted in 1/65,536
MOST = 2**53  # of weight in one split, in the unit that it is counted in


class ThresholdError(ValueError):
    """Weights that are none, or too many groups."""

    exit_code = 2


@dataclass(frozen=True)
class Statistic:
    """The least value v for which the documents with value <= v hold `share` of all weight, or `total` of it.

    `value`, `where`, `weight` and `by` are SQL over the documents; weights are numbers >= 0. Documents whose value or
    weight is null or NaN do not count. With weight 1, `share` gives the discrete quantile (SQL's PERCENTILE_DISC).
    `by`: one value for each group. `ties`: of the documents that have the value, only those up to a draw are needed
    (and none at all where `share` or `total` is 0).
    """

    name: str
    value: str
    share: float | None = None
    total: float | None = None
    where: str = "true"
    weight: str = "1"
    source: str | None = None  # only documents of this source
    by: str | None = None
    ties: bool = False

    def names(self) -> set[str]:
        given = (self.value, self.where, self.weight, self.by or "true", "draw" if self.ties else "true")
        return {n for text in given for n in Expression(text).names}


@dataclass(frozen=True)
class Found:
    """A statistic's value (None where nothing is asked for or no document counts), the documents and weight that count,
    the weight up to it (both in 1/unit), and the draw up to which documents of just this value are in.
    """

    value: float | int | None
    documents: int
    weight: int
    reached: int
    draw: int = LAST_DRAW
    unit: int = 1


Groups = dict[str | None, Found]  # by the text of `by`; None: its value is null, or there are no groups


@dataclass(frozen=True)
class _Search:
    statistic: Statistic
    whole: bool  # values are uint64, else float64
    unit: int  # weights are counted in 1/unit
    known: int = 0  # leading bits already known, of the value or of the draw
    drawing: bool = False  # the value is known
    # group, prefix: those bits; key: the value; below: weight before it; target; weight, documents: in all
    groups: pl.DataFrame | None = None

    def width(self, exact: bool) -> int:
        """Bits of the next round."""
        if exact or self.statistic.by is None:
            return min(64 if exact else ROUND_BITS, 64 - self.known)
        if self.groups is None:
            return GROUPED_BITS
        return min(ROUND_BITS, max(1, BIN_BITS - self.groups.height.bit_length()), 64 - self.known)


def find(
    context: Context, tables: Tables, splits: Sequence[Split], statistics: Sequence[Statistic], documents: int
) -> dict[str, Groups]:
    """The value of each statistic over the documents of all splits: in one pass, or two where ties are split; in four
    or eight if there are very many documents, in more with thousands of groups.

    Raises:
        ThresholdError: a weight is negative or too large, or there are more than MAX_GROUPS groups.
    """
    exact = documents <= EXACT_DOCUMENTS
    searches = [searched(s, tables.schema()) for s in statistics]
    nothing: Groups = {None: Found(None, 0, 0, 0)}
    found = {s.name: {} if s.by else nothing for s in statistics}
    while searches:
        bins = _count(context, tables, splits, searches, exact)
        going = []
        for i, search in enumerate(searches):
            done, left = narrow(search, bins.filter(pl.col("search") == i), search.width(exact))
            found[search.statistic.name] = found[search.statistic.name] | done
            going += left
        searches = going
    return found


def searched(statistic: Statistic, columns: pa.Schema) -> _Search:
    """The search for a statistic of documents with these columns."""
    kinds = evaluate({"value": statistic.value, "weight": statistic.weight}, columns.empty_table()).schema.types
    count = pa.types.is_integer(kinds[1]) or pa.types.is_boolean(kinds[1])
    return _Search(statistic, pa.types.is_uint64(kinds[0]), 1 if count else FRACTIONS)


def _count(
    context: Context, tables: Tables, splits: Sequence[Split], searches: list[_Search], exact: bool
) -> pl.DataFrame:
    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        counts = pipeline | "Splits" >> context.deal(splits) | beam.ParDo(CountSplit(tables, searches, exact))
        return counts | beam.CombineGlobally(MergeBins()) | beam.Map(encode)

    text = any(tables.text in s.statistic.names() for s in searches)
    rows = None if text else sum(s.rows for s in splits)
    try:
        return decode(context.graph("thresholds", build, len(splits), rows)[0])
    except JobFailed as failed:
        if failed.kind == ThresholdError.__name__:
            raise ThresholdError(failed.message) from failed
        raise


BINS = pl.Schema({"search": pl.UInt32, "group": pl.String, "bin": pl.UInt64, "weight": pl.Int64, "documents": pl.Int64})


class CountSplit(beam.DoFn):
    """Split -> bins: weight and documents per group and bin of the values, for each search."""

    def __init__(self, tables: Tables, searches: list[_Search], exact: bool) -> None:
        self.tables, self.searches, self.exact = tables, searches, exact

    def process(self, split: Split) -> Iterator[pl.DataFrame]:
        mine = [(i, s) for i, s in enumerate(self.searches) if s.statistic.source in (None, split.source)]
        if mine:
            table = self.tables.load(split, set().union(*(s.statistic.names() for _, s in mine)))
            yield pl.concat(self._bins(i, s, table) for i, s in mine)

    def _bins(self, place: int, search: _Search, table: pa.Table) -> pl.DataFrame:
        s = search.statistic
        wanted = {"value": f"CAST({s.value} AS {'UBIGINT' if search.whole else 'DOUBLE'})"}  # as DuckDB compares
        wanted |= {"weight": f"CAST({s.weight} AS {'BIGINT' if search.unit == 1 else 'DOUBLE'})"}
        wanted |= {"group": group_key(s.by), "where": f"coalesce({s.where}, false)"}
        wanted |= {"draw": "draw"} if search.drawing else {}
        columns = evaluate(wanted, table)
        chosen = columns.filter(columns.column("where")).drop_columns(["where"]).drop_null().combine_chunks()
        keys, valid = ordered(chosen.column("value"))
        weight, known = _weights(s, search.unit, chosen.column("weight"))
        valid &= known
        width, group = search.width(self.exact), chosen.column("group")
        if search.groups is not None:
            inside, keys = _inside(search, chosen, keys)
            valid &= inside
        bins = (keys << np.uint64(search.known)) >> np.uint64(64 - width)
        parts = pl.DataFrame({"group": pl.from_arrow(group), "bin": bins, "weight": weight}).filter(valid)
        counted = parts.group_by("group", "bin").agg(pl.col("weight").sum(), documents=pl.len())
        return counted.with_columns(search=pl.lit(place)).select(*BINS).cast(BINS)


def _inside(search: _Search, chosen: pa.Table, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [n]: which documents begin with the bits that are known in their group; uint64 [n]: the bits that follow."""
    assert search.groups is not None
    place = pc.index_in(chosen.column("group"), value_set=search.groups["group"].to_arrow().cast(pa.string()))
    at, inside = place.fill_null(0).to_numpy(), place.is_valid().to_numpy()
    if not search.groups.height:
        return inside, keys
    if search.drawing:
        inside = inside & (keys == search.groups["key"].to_numpy()[at])
        keys = chosen.column("draw").to_numpy()
    if search.known:
        inside = inside & (keys >> np.uint64(64 - search.known) == search.groups["prefix"].to_numpy()[at])
    return inside, keys


def _weights(s: Statistic, unit: int, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n]: weights in 1/unit, 0 for NaN; bool [n]: those that are numbers. Negative and huge ones are refused."""
    weight = column.to_numpy()
    known = ~np.isnan(weight)
    weight = np.where(known, weight, 0)
    if (weight < 0).any():
        raise ThresholdError(f"{s.name}: the weight {s.weight} is negative ({weight.min()}); weights are numbers >= 0")
    if unit * weight.sum(dtype=np.float64) > MOST:
        raise ThresholdError(
            f"{s.name}: the weight {s.weight} adds up to {weight.sum(dtype=np.float64):.3g} in one split, and at most "
            f"{MOST / unit:.3g} can be counted; divide it by a constant"
        )
    return (np.floor(weight * unit + 0.5) if unit > 1 else weight).astype(np.int64), known


def ordered(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 keys in the order of a uint64 or float64 column without nulls; which of them count (all but NaN)."""
    if pa.types.is_uint64(column.type):
        return column.to_numpy(), np.ones(len(column), bool)
    number = column.to_numpy() + 0.0  # makes -0.0 equal to 0.0
    bits = number.view(np.uint64)
    sign = np.uint64(1) << np.uint64(63)
    return np.where(bits & sign, ~bits, bits | sign), ~np.isnan(number)


def value_of(key: int, whole: bool) -> float | int:
    """The value that `ordered` gave this key."""
    if whole:
        return key
    sign = 1 << 63
    bits = key & ~sign if key & sign else ~key & (2**64 - 1)
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


class MergeBins(beam.CombineFn):
    """Adds the bins of splits; exact, so in any order the same."""

    def create_accumulator(self) -> list[pl.DataFrame]:
        return []

    def add_input(self, accumulator: list[pl.DataFrame], element: pl.DataFrame) -> list[pl.DataFrame]:
        return self.merge_accumulators([accumulator, [element]])

    def merge_accumulators(self, accumulators: Iterable[list[pl.DataFrame]]) -> list[pl.DataFrame]:
        """The parts, added up once there are many or those beside the largest hold more than it."""
        parts = sorted((part for held in accumulators for part in held), key=lambda part: -part.height)
        heights = [part.height for part in parts]
        return [_added(parts)] if len(parts) > 64 or sum(heights[1:]) > max([2**20, *heights[:1]]) else parts

    def extract_output(self, accumulator: list[pl.DataFrame]) -> pl.DataFrame:
        return _added(accumulator)


def _added(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    whole = pl.concat([pl.DataFrame(schema=BINS), *parts])
    summed = whole.group_by("search", "group", "bin").agg(pl.col("weight").sum(), pl.col("documents").sum())
    most = summed.group_by("search").agg(pl.col("group").n_unique())["group"].max()
    if isinstance(most, int) and most > MAX_GROUPS:
        raise ThresholdError(f"`by` gives more than {MAX_GROUPS:,} groups; group by something with fewer values")
    return summed


def narrow(search: _Search, bins: pl.DataFrame, width: int) -> tuple[Groups, list[_Search]]:
    """What is found in this round, by group; and the next round's search in the bins that hold the rest, if any."""
    done: Groups = {}
    groups = search.groups
    if groups is None:
        groups = _totals(search, bins)
        none = groups.filter(pl.col("target") == 0)
        done = _found(search, none.with_columns(upto=pl.lit(0)), None)
        groups = groups.filter(pl.col("target") > 0)
    at = _reached(groups, bins, width, search.known)
    known = search.known + width
    if known < 64:
        left = at.with_columns(below=pl.col("start")).select(groups.columns)
        return done, [replace(search, known=known, groups=left)] if left.height else []
    if search.drawing:
        return done | _found(search, at, at["prefix"].to_list()), []
    at = at.with_columns(key=pl.col("prefix"))
    tied = (pl.col("many") > 1) & (pl.col("upto") >= pl.col("target")) & search.statistic.ties
    one = at.filter(~tied)
    left = at.filter(tied).with_columns(prefix=pl.lit(0, pl.UInt64), below=pl.col("start")).select(groups.columns)
    going = [replace(search, known=0, drawing=True, groups=left)] if left.height else []
    return done | _found(search, one, [LAST_DRAW] * one.height), going


def _reached(groups: pl.DataFrame, bins: pl.DataFrame, width: int, known: int) -> pl.DataFrame:
    """The groups, each with the first bin that reaches its target (else the last one): weight before it and up to it,
    documents in it, and the prefix made longer by its bits.
    """
    here = bins.select("group", "bin", here=pl.col("weight"), many=pl.col("documents"))
    rows = here.join(groups, on="group").sort("bin")
    rows = rows.with_columns(upto=pl.col("here").cum_sum().over("group") + pl.col("below"))
    short = (pl.col("upto") < pl.col("target")).sum()
    at = rows.group_by("group", maintain_order=True).agg(pl.all().get(pl.min_horizontal(short, pl.len() - 1)))
    prefix = pl.col("prefix") * pl.lit(2**width, pl.UInt64) + pl.col("bin") if known else pl.col("bin")
    return at.with_columns(prefix=prefix, start=pl.col("upto") - pl.col("here"))


def _totals(search: _Search, bins: pl.DataFrame) -> pl.DataFrame:
    """The groups of a search after its first round, with what is asked of each."""
    totals = bins.group_by("group").agg(pl.col("weight").sum(), pl.col("documents").sum())
    if bins["weight"].cast(pl.Float64).sum() > 2**62:
        raise ThresholdError(f"{search.statistic.name}: the weights add up to more than can be counted; divide them")
    targets = _targets(search, totals["weight"].to_list())
    zero = pl.lit(0, pl.UInt64)
    return totals.select(
        "group",
        "weight",
        "documents",
        target=pl.Series(targets, dtype=pl.Int64),
        prefix=zero,
        key=zero,
        below=pl.lit(0, pl.Int64),
    )


def _targets(search: _Search, weights: Sequence[int]) -> list[int]:
    """The weight to be reached in each group; shares and budgets are the decimals that were written, as in DuckDB."""
    s = search.statistic
    least = 0 if s.ties else 1
    if s.total is not None:
        return [min(max(math.ceil(Fraction(repr(s.total)) * search.unit), least), 2**62)] * len(weights)
    share = Fraction(repr(s.share))
    return [max(-(-share.numerator * weight // share.denominator), least) for weight in weights]


def _found(search: _Search, at: pl.DataFrame, draws: list[int] | None) -> Groups:
    """What was found in each group; nothing is taken where there are no draws."""

    def value(key: int) -> float | int | None:
        return None if draws is None else value_of(key, search.whole)

    rows = at.select("group", "key", "documents", "weight", "upto").iter_rows()
    return {
        group[1:] if group else None: Found(value(key), documents, weight, upto, draw, search.unit)
        for (group, key, documents, weight, upto), draw in zip(rows, draws or [LAST_DRAW] * at.height, strict=True)
    }


def encode(bins: pl.DataFrame) -> str:
    """Bins as text, for the file in which a graph leaves its result."""
    sink = io.BytesIO()
    bins.write_ipc(sink, compression="zstd")
    return base64.b64encode(sink.getvalue()).decode()


def decode(text: str) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(base64.b64decode(text)))
