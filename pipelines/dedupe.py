"""Duplicates: which documents are the same, and which of them to keep. Flags in a sidecar; `select` removes.

A method has two halves. Its signature is a column of the scoring pass, so text is read once. Its clusters come from a
shuffle of Arrow blocks that hold, for each split and hash, one candidate and a count: a page that occurs a million
times costs the shuffle one row per split, so no partition grows with the size of a cluster. A candidate takes about 100
bytes; a worker holds one partition (PARTITION_DOCUMENTS, 20 MB), or the keys and flags of one split. About 1 µs per
document.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

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
from transforms.draws import ranges

PARTITION_DOCUMENTS = 200_000  # one partition of the shuffle, about 20 MB in the worker that decides it
BLOCK = tuple[int, pa.RecordBatch]  # what the shuffles carry, under the Arrow coder
BEST_FIRST = [
    ("high", "ascending"), ("low", "ascending"), ("priority", "descending"),
    ("id", "ascending"), ("split", "ascending"), ("row", "ascending"),
]  # fmt: skip
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


def exact(
    context: Context, tables: Tables, splits: Sequence[Split], method: Exact, documents: int
) -> tuple[Struct, list[Record]]:
    """Flag the exact duplicates of all splits; returns the new column and the step's records."""
    splits = sorted(splits, key=lambda s: (s.source, s.shard, s.first_group))
    struct = Struct("dedupe/exact", FLAGS, base(tables, method, splits))
    if (held := context.held("dedupe:exact", splits, struct.folder, struct.base)) is not None:
        return struct, held
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
    return struct, context.settle(splits, records, ["dedupe:exact"])


class KeyBlocks(beam.DoFn):
    """(number, split) -> (partition of the hash, candidates: the best document of each hash, and how many have it)."""

    def __init__(self, tables: Tables, prefer: str, partitions: int) -> None:
        self.tables, self.prefer, self.partitions = tables, prefer, partitions

    def process(self, element: tuple[int, Split]) -> Iterator[tuple[int, pa.RecordBatch]]:
        number, split = element
        table = self.tables.load(split, {"signatures/exact", *Expression(self.prefer).names})
        if not table.num_rows:  # it still has to write its empty sidecar
            yield 0, pa.RecordBatch.from_pylist([], pa.schema([], metadata={"split": str(number)}))
            return
        signature = table.column("signatures/exact").combine_chunks()
        priority = evaluate({"priority": f"CAST({self.prefer} AS DOUBLE)"}, table).column("priority")
        columns = {
            "high": signature.field("high"),
            "low": signature.field("low"),
            "priority": pc.fill_null(priority, -np.inf),
        }
        columns |= {
            "id": table.column("id"),
            "split": pa.array(np.full(table.num_rows, number, np.int32)),
            "row": table.column("row"),
        }
        best, start = _best_first(pa.table(columns))
        candidates = best.take(pa.array(start)).append_column("count", pa.array(np.diff(start, append=table.num_rows)))
        high = candidates.column("high").to_numpy()
        partition = ranges(high, self.partitions)
        edges = np.flatnonzero(np.diff(partition, prepend=-1, append=-1))  # candidates are in order of high
        for first, end in pairwise(edges):
            yield int(partition[first]), candidates.slice(first, end - first).combine_chunks().to_batches()[0]


def _best_first(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Documents in order of hash, the survivor first of each hash, and where in it each hash begins."""
    table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST)).combine_chunks()
    return table, starts(table.column("high").to_numpy(), table.column("low").to_numpy())


def starts(*keys: np.ndarray) -> np.ndarray:
    """int64 [different keys]: where each begins in keys, of one or more columns, that are in order."""
    differs = np.ones(len(keys[0]), bool)
    differs[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(differs)


class Decide(beam.DoFn):
    """Candidates of one partition -> (number of the split, block of its hashes: survivor here, size of the cluster)."""

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        blocks = []
        for block in element[1]:
            if block.num_columns:
                blocks.append(block)
            else:
                yield (
                    int(block.schema.metadata[b"split"]),
                    _answer(*(np.empty(0, t) for t in (np.uint64, np.uint64, np.int64, np.int64))),
                )
        if not blocks:
            return
        best, start = _best_first(pa.Table.from_batches(blocks))
        high, low, split, row, count = (best.column(n).to_numpy() for n in ("high", "low", "split", "row", "count"))
        size = np.repeat(np.add.reduceat(count, start), np.diff(start, append=len(high)))
        survivor = np.full(len(high), -1)
        survivor[start] = row[start]
        by_split = np.argsort(split, kind="stable")
        for chosen in np.split(by_split, np.flatnonzero(np.diff(split[by_split])) + 1):
            yield int(split[chosen[0]]), _answer(high[chosen], low[chosen], survivor[chosen], size[chosen])


def _answer(high: np.ndarray, low: np.ndarray, survivor: np.ndarray, size: np.ndarray) -> pa.RecordBatch:
    """`survivor`: row of the document to keep, -1 if it is in another split."""
    return pa.record_batch({"high": high, "low": low, "survivor": survivor, "size": size})


class WriteFlags(beam.DoFn):
    """(number of a split, all answers to it) -> ledger record; the sidecar is committed.

    Raises:
        MisalignedError: answers are missing or doubled: the engine lost elements. Nothing is written then.
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
        name = self.struct.folder.split("/")[1]
        signatures = store.read_table(split.sidecar(f"{self.run}/signatures/{name}")).combine_chunks()
        struct = self._flags(split, signatures, pa.Table.from_batches(list(blocks)))
        table = pa.table([signatures.column("row"), signatures.column("id"), struct], names=["row", "id", name])
        made = Record.of(
            self.step, split, table.num_rows, table.num_rows, key=key, seconds=time.perf_counter() - started
        )
        store.write_sidecar(path, key, table, made.json())
        progress.report(self.run, self.step, split, table.num_rows, 0)
        yield made.json()

    def _flags(self, split: Split, signatures: pa.Table, answers: pa.Table) -> pa.StructArray:
        hashes = signatures.column(2).combine_chunks()
        high, low = hashes.field("high").to_numpy(), hashes.field("low").to_numpy()
        order = np.lexsort((low, high))
        start = starts(high[order], low[order])
        answers = answers.take(pc.sort_indices(answers, sort_keys=BEST_FIRST[:2]))
        asked, answered = (
            (high[order[start]], low[order[start]]),
            (answers.column("high").to_numpy(), answers.column("low").to_numpy()),
        )
        if not all(map(np.array_equal, asked, answered)):
            raise MisalignedError(
                f"{split.source}/{split.name}: {answers.num_rows} answers came back for {len(start)} hashes; "
                "the engine lost or doubled some, run again"
            )
        cluster = np.empty(len(high), np.int64)  # place of each document's hash among the answers
        cluster[order] = np.repeat(np.arange(len(start)), np.diff(start, append=len(high)))
        size, survivor = answers.column("size").to_numpy()[cluster], answers.column("survivor").to_numpy()[cluster]
        keep = survivor == signatures.column("row").to_numpy()
        return pa.StructArray.from_arrays([pa.array(high), pa.array(size), pa.array(keep)], fields=list(FLAGS))
