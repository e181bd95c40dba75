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


def quantiles(context: Context, tables: Tables, splits: Sequence[Split], conditions: Mapping[str, str], documents: int) -> dict[Quantile, float | None]:
    """The value of every quantile that the conditions ask for, over all documents. Kept in the run folder by what it depends on."""
    asked = list(dict.fromkeys(q for text in conditions.values() for q in Expression(text).quantiles))
    statistics = [Statistic(f"{q.value} @ {q.share}", q.value, share=q.share) for q in asked]
    found = remembered(context, tables, splits, statistics, documents)
    return {q: found[s.name].value for q, s in zip(asked, statistics, strict=True)}


def remembered(context: Context, tables: Tables, splits: Sequence[Split], statistics: Sequence[Statistic], documents: int) -> dict[str, Found]:
    """`thresholds.find`, with results kept under a digest of their inputs, so that a rerun does not read the scores again."""
    if not statistics:
        return {}
    names = set().union(*(s.names() for s in statistics))
    key = store.digest([repr(s) for s in statistics], tables.base(names), sorted(s.identity() for s in splits), code_digest("pipelines.thresholds"))
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
        names = set().union(*(Expression(text).names for text in self.conditions.values()))
        table = self.tables.load(split, {"draw", "holdout", *names})
        n = table.num_rows
        reason = np.full(n, None, dtype=object)
        if self.conditions:
            passed = evaluate({name: f"coalesce({text}, false)" for name, text in self.conditions.items()}, table)
            for name in reversed(list(self.conditions)):
                reason[~passed.column(name).to_numpy()] = name
        held = table.column("holdout").to_numpy()
        reason[held] = "holdout"
        reasons = pa.array(reason, pa.string())
        struct = pa.StructArray.from_arrays([reasons.is_null(), reasons, pa.array(held), table.column("draw").combine_chunks()], fields=list(SELECTION))
        counts = pc.value_counts(reasons.drop_null())
        dropped = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
        record = Record.of("select", split, n, n - sum(dropped.values()), dropped=dropped, bytes=pc.sum(table.column("bytes")).as_py() or 0)
        return pa.table([table.column("row"), table.column("id"), struct], names=["row", "id", "selection"]), record


def select(context: Context, tables: Tables, splits: Sequence[Split], conditions: Mapping[str, str], values: Mapping[Quantile, float | None]) -> tuple[Struct, list[Record]]:
    """Write the selection of all splits; returns the new column and the step's records."""
    resolved = {name: Expression(text).resolved(values) for name, text in conditions.items()}
    names = {"draw", "holdout"}.union(*(Expression(text).names for text in conditions.values()))
    struct = Struct("selection", SELECTION, store.digest(resolved, tables.base(names), code_digest(__name__)))
    step = MapSplit(context.run, "select", f"{context.run}/selection", struct.base, Select(tables, resolved))
    return struct, context.run_splits("select", splits, beam.ParDo(step), text=tables.text in names)
