"""Selected documents as Parquet shards again, for tools that know nothing of run folders. One file per split, map-only.

A shard's columns are kept as they are, the text as admitted (repaired where it had to be). Memory: one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import ledger, store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Tables
from sql.expressions import Expression, evaluate


@dataclass(frozen=True)
class Export:
    """One split's documents where `selection.keep` holds and cuts have left something."""

    tables: Tables

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        wanted = f"selection.keep AND NOT {self.tables.emptied()}"
        table = self.tables.load(split, Expression(wanted).names)
        chosen = evaluate({"chosen": wanted}, table).column("chosen").combine_chunks()
        kept, first, size = [], 0, 0
        for batch in self.tables.read(split):
            documents = batch.documents
            kept.append(documents.filter(chosen.slice(first, documents.num_rows)).drop_columns(["row"]))
            first += documents.num_rows
            size += pc.sum(pc.binary_length(kept[-1].column(self.tables.text))).as_py() or 0
        names = [n for n in ("id", self.tables.text) if not kept]
        table = pa.Table.from_batches(kept) if kept else pa.table({n: pa.array([], pa.large_string()) for n in names})
        dropped = {"not selected": first - table.num_rows} if first > table.num_rows else {}
        return table, Record.of("export", split, first, table.num_rows, dropped=dropped, bytes=size)


def export(context: Context, tables: Tables, splits: Sequence[Split], folder: str) -> list[Record]:
    """Write `folder/<source>/<split>.parquet` of a run whose selection is made; returns the step's records.

    Raises:
        LedgerError: splits were lost.
    """
    target = folder if store.is_remote(folder) else str(Path(folder).resolve())
    base = store.digest(tables.base({"selection", tables.text}), code_digest(__name__))
    write = beam.ParDo(MapSplit(context.run, "export", target, base, Export(tables)))
    records = context.run_splits("export", splits, write, copies=True)
    ledger.check("export", splits, records)
    return records
