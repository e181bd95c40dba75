"""Selection: named SQL conditions over documents and their scores. All must hold; the first that fails is the reason.

Documents are not copied: the result is a sidecar `selection: struct<keep, reason, holdout, draw>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

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
from pipelines.thresholds import Found, Groups, Statistic, find
from sql.expressions import Expression, evaluate
from sql.operators import Cut, Operator

SELECTION = pa.struct(
    [
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), metadata={"meaning": "first condition that failed; null where kept"}),
        pa.field("holdout", pa.bool_(), nullable=False),
        pa.field("draw", pa.uint64(), nullable=False, metadata={"meaning": "hash of seed and id"}),
    ]
)
CUT = [pa.field("value", pa.float64()), pa.field("draw", pa.uint64())]
LARGEST = 100  # groups that the summary names


def cuts(
    context: Context, tables: Tables, splits: Sequence[Split], conditions: Mapping[str, str], documents: int
) -> dict[Operator, Groups]:
    """Where each operator of the conditions parts all documents, by group; kept by what it depends on."""
    asked = list(dict.fromkeys(o for text in conditions.values() for o in Expression(text).operators))
    found = remembered_groups(context, tables, splits, [statistic(o) for o in asked], documents)
    return {o: turned(o, found[str(o)]) for o in asked}


def statistic(operator: Operator) -> Statistic:
    """What is to be found for an operator. Statistics count from the least value, so the highest is made the least."""
    value = f"-{operator.score}" if operator.takes else operator.value
    weight = operator.weight or "1"
    return Statistic(
        str(operator), value, operator.share, operator.k, weight=weight, by=operator.by, ties=operator.takes
    )


def turned(operator: Operator, groups: Groups) -> Groups:
    """What was found of `statistic(operator)`, in the operator's own values."""
    if not operator.takes:
        return groups
    return {name: f if f.value is None else replace(f, value=0.0 - f.value) for name, f in groups.items()}


def described(found: Mapping[Operator, Groups]) -> dict[str, dict[str, Any]]:
    """The thresholds for the summary: value, documents and weight up to it; of groups the number and the largest."""

    def shown(f: Found) -> dict[str, Any]:
        weight, reached = (f.weight, f.reached) if f.unit == 1 else (f.weight / f.unit, f.reached / f.unit)
        return {"value": f.value, "draw": f.draw, "documents": f.documents, "weight": weight, "reached": reached}

    thresholds = {}
    for operator, groups in found.items():
        if operator.by is None:
            thresholds[str(operator)] = shown(groups[None])
        else:
            largest = sorted(groups.items(), key=lambda item: (-item[1].weight, item[0] or ""))[:LARGEST]
            parts = {"NULL" if name is None else name: shown(f) for name, f in largest}
            thresholds[str(operator)] = {"groups": len(groups), "largest": parts}
    return thresholds


def remembered(
    context: Context, tables: Tables, splits: Sequence[Split], statistics: Sequence[Statistic], documents: int
) -> dict[str, Found]:
    """What is found of statistics without groups."""
    return {n: g[None] for n, g in remembered_groups(context, tables, splits, statistics, documents).items()}


def remembered_groups(
    context: Context, tables: Tables, splits: Sequence[Split], statistics: Sequence[Statistic], documents: int
) -> dict[str, Groups]:
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
        held = {name: [[group, *astuple(f)] for group, f in groups.items()] for name, groups in found.items()}
        store.write_json(path, held)
    return {name: {group: Found(*f) for group, *f in groups} for name, groups in held.items()}


@dataclass(frozen=True)
class Lookup:
    """The cuts of an operator by group, and how a document finds its own."""

    name: str
    key: str  # SQL: a document's group
    groups: pa.Array  # string [groups], as `key` gives them
    cuts: pa.Array  # struct<value, draw> [groups]

    @classmethod
    def of(cls, operator: Operator, groups: Groups) -> Lookup:
        keyed = {"" if name is None else f"={name}": f for name, f in groups.items()}
        names = pa.array(sorted(keyed), pa.string())
        rows = [{"value": keyed[name].value, "draw": keyed[name].draw} for name in names.to_pylist()]
        return cls(str(operator), operator.key, names, pa.array(rows, pa.struct(CUT)))

    def column(self, table: pa.Table) -> pa.ChunkedArray:
        """The cut of every document's group; null where no document of it counts."""
        keys = evaluate({"key": self.key}, table).column("key")
        return pa.chunked_array([self.cuts.take(pc.index_in(keys, value_set=self.groups).combine_chunks())])


@dataclass(frozen=True)
class Select:
    """One split's selection. `conditions` are resolved: operators have become comparisons."""

    tables: Tables
    conditions: Mapping[str, str]
    lookups: Sequence[Lookup] = ()

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        asked = [*self.conditions.values(), *(lookup.key for lookup in self.lookups)]
        used = set().union(*(Expression(text).names for text in asked))
        table = self.tables.load(split, {"draw", "holdout", *used})
        for lookup in self.lookups:
            table = table.append_column(lookup.name, lookup.column(table))
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


def resolved(conditions: Mapping[str, str], found: Mapping[Operator, Groups]) -> tuple[dict[str, str], list[Lookup]]:
    """The conditions as SQL of one document, and the columns of cuts by group that they name."""
    plain = {o: Cut(groups[None].value, groups[None].draw) for o, groups in found.items() if o.by is None}
    lookups = [Lookup.of(o, groups) for o, groups in found.items() if o.by is not None]
    return {name: Expression(text).resolved(plain) for name, text in conditions.items()}, lookups


def select(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    conditions: Mapping[str, str],
    found: Mapping[Operator, Groups],
) -> tuple[Struct, list[Record]]:
    """Write the selection of all splits; returns the new column and the step's records."""
    texts, lookups = resolved(conditions, found)
    names = {"draw", "holdout"}.union(*(Expression(text).names for text in conditions.values()))
    held = [[look.name, look.groups.to_pylist(), look.cuts.to_pylist()] for look in lookups]
    base = store.digest(texts, held, tables.base(names), code_digest(__name__))
    struct = Struct("selection", SELECTION, base)
    step = MapSplit(context.run, "select", f"{context.run}/selection", struct.base, Select(tables, texts, lookups))
    return struct, context.run_splits("select", splits, beam.ParDo(step), text=tables.text in names)
