"""Selection: named SQL conditions over documents and their scores. All must hold; the first that fails is the reason.

Documents are not copied: the result is a sidecar `selection: struct<keep, reason, holdout, draw>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Struct, Tables
from pipelines.thresholds import Found, Statistic, find
from sql.expressions import Expression, Quantile, evaluate

SELECTION = pa.struct(
    [
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), metadata={"meaning": "first condition that failed; null where kept"}),
        pa.field("holdout", pa.bool_(), nullable=False),
        pa.field("draw", pa.uint64(), nullable=False, metadata={"meaning": "hash of seed and id"}),
    ]
)


def quantiles(
    context: Context, tables: Tables, splits: Sequence[Split], conditions: Mapping[str, str], documents: int
) -> dict[Quantile, float | None]:
    """The value of every quantile that the conditions ask for, over all documents; kept by what it depends on."""
    asked = list(dict.fromkeys(q for text in conditions.values() for q in Expression(text).quantiles))
    statistics = [Statistic(f"{q.value} @ {q.share}", q.value, share=q.share) for q in asked]
    found = remembered(context, tables, splits, statistics, documents)
    return {q: found[s.name].value for q, s in zip(asked, statistics, strict=True)}


def remembered(
    context: Context, tables: Tables, splits: Sequence[Split], statistics: Sequence[Statistic], documents: int
) -> dict[str, Found]:
    """`thresholds.find`, kept under a digest of what it depends on, so that a rerun does not read the scores again."""
    if not statistics:
        return {}
    asked = [repr(s) for s in statistics]
    base = tables.base(set().union(*(s.names() for s in statistics)))
    key = store.digest(asked, base, sorted(s.identity() for s in splits), code_digest("pipelines.thresholds"))
    path = f"{context.run}/thresholds/{key}.json"
    held = store.read_json(path)
    if held is None:
        found = find(context, tables, splits, statistics, documents)
        held = {name: vars(f) for name, f in found.items()}
        store.write_json(path, held)
    return {name: Found(**f) for name, f in held.items()}


@dataclass(frozen=True)
class Select:
    """One split's selection. `conditions` are resolved: quantiles have become numbers."""

    tables: Tables
    conditions: Mapping[str, str]

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        used = set().union(*(Expression(text).names for text in self.conditions.values()))
        table = self.tables.load(split, {"draw", "holdout", *used})
        n = table.num_rows
        held = table.column("holdout").to_numpy()
        names = [*self.conditions, "holdout"]
        failed = np.full(n, len(names), np.int16)  # place in `names` of what refused a document; beyond them, nothing
        if self.conditions:
            passed = evaluate({name: f"coalesce({text}, false)" for name, text in self.conditions.items()}, table)
            for i, column in reversed(list(enumerate(passed.columns))):
                failed[~column.to_numpy()] = i
        failed[held] = len(names) - 1
        kept = failed == len(names)
        places = pa.array(np.where(kept, 0, failed), mask=kept)
        reasons = pa.DictionaryArray.from_arrays(places, pa.array(names)).cast(pa.string())
        parts = [pa.array(kept), reasons, pa.array(held), table.column("draw").combine_chunks()]
        struct = pa.StructArray.from_arrays(parts, fields=list(SELECTION))
        counts = np.bincount(failed, minlength=len(names))
        dropped = {name: int(count) for name, count in zip(names, counts[: len(names)], strict=True) if count}
        size = pc.sum(table.column("bytes")).as_py() or 0
        record = Record.of("select", split, n, int(kept.sum()), dropped=dropped, bytes=size)
        return pa.table([table.column("row"), table.column("id"), struct], names=["row", "id", "selection"]), record


def select(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    conditions: Mapping[str, str],
    values: Mapping[Quantile, float | None],
) -> tuple[Struct, list[Record]]:
    """Write the selection of all splits; returns the new column and the step's records."""
    resolved = {name: Expression(text).resolved(values) for name, text in conditions.items()}
    names = {"draw", "holdout"}.union(*(Expression(text).names for text in conditions.values()))
    struct = Struct("selection", SELECTION, store.digest(resolved, tables.base(names), code_digest(__name__)))
    step = MapSplit(context.run, "select", f"{context.run}/selection", struct.base, Select(tables, resolved))
    return struct, context.run_splits("select", splits, beam.ParDo(step), text=tables.text in names)
