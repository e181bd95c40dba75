"""Duplicates: which documents are the same, and which one of them to keep. Flags in a sidecar; removal is `select`'s affair.

A method has two halves. Its signature is a column of the scoring pass, so text is read once. Its clusters come from a
shuffle of fixed-width keys and ids in Arrow blocks, never of text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from pipelines import progress, store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.score import Column
from pipelines.shards import Split
from pipelines.signatures import ExactSignature
from pipelines.steps import Context
from pipelines.tables import MisalignedError, Struct, Tables
from sql.expressions import Expression, evaluate

PARTITION_DOCUMENTS = 200_000  # one partition of the shuffle, about 20 MB in the worker that decides it
BLOCK = tuple[int, pa.RecordBatch]  # what the shuffles carry, under the Arrow coder
FLAGS = pa.struct(
    [
        pa.field("cluster", pa.uint64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False, metadata={"unit": "documents"}),
        pa.field("keep", pa.bool_(), nullable=False),
    ]
)


class Exact(BaseModel):
    """Same normalised text (128-bit hash). Kept is the document with the highest `prefer`, then the lowest id."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefer: str = "bytes"

    def column(self) -> Column:
        return Column("exact", "signatures/exact", ExactSignature())


def base(tables: Tables, method: Exact, splits: Sequence[Split]) -> str:
    """What the flags of any one split depend on: the signatures of all of them, and the rule of survival."""
    return store.digest(
        method.model_dump(),
        tables.structs["signatures/exact"].base,
        tables.base(Expression(method.prefer).names),
        sorted(s.identity() for s in splits),
        code_digest(__name__),
    )


def exact(context: Context, tables: Tables, splits: Sequence[Split], method: Exact, documents: int) -> tuple[Struct, list[Record]]:
    """Flag the exact duplicates of all splits; returns the new column and the step's records."""
    splits = sorted(splits, key=lambda s: (s.source, s.name))
    struct = Struct("dedupe/exact", FLAGS, base(tables, method, splits))
    folder = f"{context.run}/{struct.folder}"
    held = {s: store.committed(s.sidecar(folder), store.digest(struct.base, s.identity())) for s in splits}
    if all(record is not None for record in held.values()):
        return struct, context.settle(splits, [Record(**{**r, "reused": True}) for r in held.values() if r])
    partitions = max(1, -(-documents // PARTITION_DOCUMENTS))

    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Splits" >> context.deal(splits, list(enumerate(splits)))
            | "Key" >> beam.ParDo(KeyBlocks(tables, method.prefer, partitions)).with_output_types(BLOCK)
            | "ByHash" >> beam.GroupByKey()
            | "Decide" >> beam.ParDo(Decide()).with_output_types(BLOCK)
            | "BySplit" >> beam.GroupByKey()
            | "Flag" >> beam.ParDo(WriteFlags(context.run, struct, "dedupe:exact", splits))
        )

    records = [Record(**item) for item in context.graph("dedupe exact", build, len(splits), documents)]
    return struct, context.settle(splits, records)


class KeyBlocks(beam.DoFn):
    """(number, split) -> (partition of the hash, block of hash, priority, id and place of its documents)."""

    def __init__(self, tables: Tables, prefer: str, partitions: int) -> None:
        self.tables, self.prefer, self.partitions = tables, prefer, partitions

    def process(self, element: tuple[int, Split]) -> Iterator[tuple[int, pa.RecordBatch]]:
        number, split = element
        table = self.tables.load(split, {"signatures/exact", *Expression(self.prefer).names})
        signature = table.column("signatures/exact").combine_chunks()
        priority = evaluate({"priority": f"CAST({self.prefer} AS DOUBLE)"}, table).column("priority")
        n = table.num_rows
        block = pa.table(
            {
                "high": signature.field("high"),
                "low": signature.field("low"),
                "priority": pc.fill_null(priority, -np.inf),
                "id": table.column("id"),
                "split": pa.array(np.full(n, number, np.int32)),
                "row": table.column("row"),
            }
        ).combine_chunks()
        high = block.column("high").to_numpy()
        partition = ((high >> np.uint64(32)) * np.uint64(self.partitions)) >> np.uint64(32)
        if not n:  # a split without documents still has to write its empty sidecar
            yield 0, _empty(block.schema, number)
        for p in np.unique(partition):
            yield int(p), block.filter(pa.array(partition == p)).combine_chunks().to_batches()[0]


def _empty(schema: pa.Schema, number: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema).replace_schema_metadata({"split": str(number)})


class Decide(beam.DoFn):
    """All blocks of one partition -> (number of the split, block of row, cluster, size, keep)."""

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        blocks = list(element[1])
        for block in blocks:
            if not block.num_rows:
                yield int(block.schema.metadata[b"split"]), _flags(*(np.empty(0, t) for t in (np.int64, np.uint64, np.int64, bool)))
        table = pa.Table.from_batches([b.replace_schema_metadata(None) for b in blocks]).combine_chunks()
        if not table.num_rows:
            return
        order = [("high", "ascending"), ("low", "ascending"), ("priority", "descending"), ("id", "ascending")]
        table = table.take(pc.sort_indices(table, sort_keys=[*order, ("split", "ascending"), ("row", "ascending")]))
        high, low = table.column("high").to_numpy(), table.column("low").to_numpy()
        first = np.ones(len(high), bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        group = np.cumsum(first) - 1
        size = np.bincount(group)[group]
        split, row = table.column("split").to_numpy(), table.column("row").to_numpy()
        by_split = np.argsort(split, kind="stable")
        bounds = np.flatnonzero(np.diff(split[by_split], prepend=-1))
        for chosen in np.split(by_split, bounds[1:]):
            yield int(split[chosen[0]]), _flags(row[chosen], high[chosen], size[chosen], first[chosen])


def _flags(row: np.ndarray, cluster: np.ndarray, size: np.ndarray, keep: np.ndarray) -> pa.RecordBatch:
    return pa.record_batch({"row": row, "cluster": cluster, "size": size.astype(np.int64), "keep": keep})


class WriteFlags(beam.DoFn):
    """(number of a split, all its flags) -> ledger record; the sidecar is committed.

    Raises:
        MisalignedError: flags are missing or doubled: the engine lost elements. Nothing is written then.
    """

    def __init__(self, run: str, struct: Struct, step: str, splits: Sequence[Split]) -> None:
        self.run, self.struct, self.step, self.splits = run, struct, step, list(splits)

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[dict]:
        number, blocks = element
        split = self.splits[number]
        started = time.perf_counter()
        key, path = store.digest(self.struct.base, split.identity()), split.sidecar(f"{self.run}/{self.struct.folder}")
        record = store.committed(path, key)
        if record is not None:
            yield {**record, "reused": True}
            return
        flags = pa.Table.from_batches(list(blocks))
        flags = flags.take(pc.sort_indices(flags, sort_keys=[("row", "ascending")]))
        name = self.struct.folder.split("/")[1]
        ids = store.read_table(split.sidecar(f"{self.run}/signatures/{name}"), ["row", "id"])
        if not flags.column("row").equals(ids.column("row")):
            raise MisalignedError(f"{split.source}/{split.name}: {flags.num_rows} flags came back for {ids.num_rows} documents; the engine lost some")
        struct = pa.StructArray.from_arrays([flags.column(f.name).combine_chunks() for f in FLAGS], fields=list(FLAGS))
        table = pa.table([ids.column("row"), ids.column("id"), struct], names=["row", "id", name])
        made = Record.of(self.step, split, ids.num_rows, flags.num_rows, key=key, seconds=time.perf_counter() - started)
        store.write_sidecar(path, key, table, made.json())
        progress.report(self.run, self.step, split, flags.num_rows, 0)
        yield made.json()
