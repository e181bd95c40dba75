"""A seeded sample of documents with their text, for what is fitted on a bounded part of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.select import remembered
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Tables
from pipelines.thresholds import Statistic
from sql.expressions import Expression, evaluate


class SampleError(ValueError):
    """A sample that the documents cannot give."""

    exit_code = 2


@dataclass(frozen=True)
class Sample:
    """The documents to draw: those where `where` holds, none held out, by draw until `total` of `weight` is reached."""

    name: str
    where: str = "true"
    weight: str = "1"  # SQL: 1 counts documents, `bytes` counts bytes of text
    total: int = 10_000
    columns: tuple[tuple[str, str], ...] = ()  # name -> SQL value that comes along

    def condition(self) -> str:
        return f"({self.where}) AND NOT holdout"

    def names(self) -> set[str]:
        """The columns that its expressions name."""
        return {name for text in (self.where, *dict(self.columns).values()) for name in Expression(text).names}


@dataclass(frozen=True)
class Draw:
    """One split's part of a sample: documents whose draw is at most `cut`."""

    tables: Tables
    sample: Sample
    cut: int

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        text = self.tables.text
        table = self.tables.load(split, {"draw", "holdout", text, *self.sample.names()})
        chosen = evaluate({"chosen": f"coalesce({self.sample.condition()}, false)"}, table).column("chosen")
        chosen = pc.and_(chosen, pc.less_equal(table.column("draw"), pa.scalar(self.cut, pa.uint64())))
        rows = table.filter(chosen)
        kept = rows.select(["row", "id", "draw", text]).rename_columns(["row", "id", "draw", "text"])
        if self.sample.columns:
            values = evaluate(dict(self.sample.columns), rows)
            kept = pa.table({**_by_name(kept), **_by_name(values)})
        dropped = {"not drawn": table.num_rows - kept.num_rows} if table.num_rows > kept.num_rows else {}
        return kept, Record.of("", split, table.num_rows, kept.num_rows, dropped=dropped)


def _by_name(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def draw(context: Context, tables: Tables, splits: Sequence[Split], sample: Sample, documents: int) -> pa.Table:
    """The sample as one table (row, id, draw, text and its columns) in order of draw, id and text.

    It is held in memory, so bound `total`.

    Raises:
        SampleError: no document satisfies `where`.
    """
    asked, sample = sample.where, replace(sample, where=f"({sample.where}) AND NOT {tables.emptied()}")
    statistic = Statistic(sample.name, "draw", total=sample.total, where=sample.condition(), weight=sample.weight)
    cut = remembered(context, tables, splits, [statistic], documents)[sample.name].value
    if cut is None:
        raise SampleError(f"sample {sample.name!r}: no document satisfies {asked!r} and is not held out")
    folder = f"{context.run}/samples/{sample.name}"
    names = {"draw", "holdout", tables.text, *sample.names()}
    base = store.digest(repr(sample), cut, tables.base(names), code_digest(__name__))
    step = MapSplit(context.run, f"sample:{sample.name}", folder, base, Draw(tables, sample, int(cut)))
    context.run_splits(f"sample {sample.name}", splits, beam.ParDo(step), copies=True)
    parts = pa.concat_tables([store.read_table(s.sidecar(folder)) for s in splits])
    order = [("draw", "ascending"), ("id", "ascending"), ("text", "ascending")]  # one id may have two texts
    return parts.take(pc.sort_indices(parts, sort_keys=order)).combine_chunks()
