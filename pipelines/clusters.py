"""Clusters from edges: connected components over edge files of the run folder, in one process or by the engine.

Edges join nodes, the dense numbers of documents. Up to IN_PROCESS nodes one process holds a parent (8 bytes) and a mark
(1 byte) per node and reads the files one after the other. Beyond, rounds of large star and small star (see
`transforms.components`) go over the engine's shuffle in partitions of about EDGE_ROWS edges, until a round changes
nothing. Both give every node the smallest of its component. A partition takes 16 bytes per edge, five times that while
it is sorted; all edges of a node meet in one partition.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import engine, ledger, store
from pipelines.shards import Split
from pipelines.steps import Context
from transforms.components import Edges, clustered, edges_digest, flatten, large_star, mirror, orient, small_star, union
from transforms.draws import mix64, ranges

IN_PROCESS = 100_000_000  # nodes: 0.9 GB
EDGE_ROWS = 4_000_000  # edges to a partition of the shuffle: 64 MB
ROUNDS = 64  # a path of 2^32 nodes takes about 40
BLOCK = tuple[int, pa.RecordBatch]
File = dict[str, Any]  # path, rows, ends, partition, received, hash


@dataclass(frozen=True)
class Part:
    """The documents of one sidecar of signatures: nodes `first` to `first + documents - 1`."""

    number: int
    first: int
    documents: int
    signatures: str  # path
    split: Split | None  # None: of an older run

    def band_hashes(self) -> np.ndarray:
        """uint64 [documents, bands]."""
        packed = self._field("bands")
        width = packed.type.byte_width // 8
        values = np.frombuffer(packed.buffers()[1] or b"", "<u8")
        return values[packed.offset * width : (packed.offset + len(packed)) * width].reshape(len(packed), width)

    def contents(self) -> np.ndarray:
        """uint64 [documents]: the hash of all shingles of each."""
        return self._field("content").to_numpy()

    def _field(self, name: str) -> pa.Array:
        """One field of the signatures, read alone.

        Raises:
            LedgerError: the file holds another number of documents than the ledger says.
        """
        with store.open_read(self.signatures) as source:
            table = pq.ParquetFile(source).read(columns=[f"minhash.{name}"])
        if table.num_rows != self.documents:
            raise ledger.LedgerError(
                f"{self.signatures}: {table.num_rows} documents, {self.documents} in the ledger; remove it, run again"
            )
        return table.column("minhash").combine_chunks().field(name)


@dataclass(frozen=True)
class Scratch:
    """A folder for edges between the graphs of a step. Files are found by what wrote them, never by listing."""

    folder: str

    def write(self, name: str, u: np.ndarray, v: np.ndarray, **record: Any) -> File:
        path = f"{self.folder}/{name}.parquet"
        table = pa.table({"u": pa.array(u.astype(np.int64, copy=False)), "v": pa.array(v.astype(np.int64, copy=False))})
        made: File = {"path": path, "rows": len(u), "ends": len(np.unique(v)), **record}
        store.write_sidecar(path, self.folder, table, made)
        return made

    def written(self, name: str) -> File:
        """What `write` returned, perhaps in another process.

        Raises:
            LedgerError: no such file.
        """
        made = store.committed(f"{self.folder}/{name}.parquet", self.folder)
        if made is None:
            raise ledger.LedgerError(
                f"{self.folder}/{name}.parquet was not written; the engine lost an element, run again"
            )
        return made

    def discard(self) -> None:
        if store.is_remote(self.folder):
            from apache_beam.io.filesystems import FileSystems

            if FileSystems.exists(self.folder):
                FileSystems.delete([self.folder])
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def read_edges(path: str) -> Edges:
    table = store.read_table(path)
    return table.column("u").to_numpy(), table.column("v").to_numpy()


def as_is(u: np.ndarray, v: np.ndarray) -> Edges:
    return u, v


def to_second(u: np.ndarray, v: np.ndarray) -> Edges:
    """Each edge's second end, keyed by itself."""
    return v, v


def with_ends(u: np.ndarray, v: np.ndarray) -> Edges:
    """Each edge, and its second end keyed by itself."""
    return np.concatenate([u, v]), np.concatenate([v, v])


def distinct(u: np.ndarray, v: np.ndarray) -> Edges:
    """Edges in order, repeats left out."""
    order = np.lexsort((v, u))
    u, v = u[order], v[order]
    new = np.ones(len(u), bool)
    new[1:] = (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    return u[new], v[new]


@dataclass(frozen=True)
class ByHash:
    """Partition of a key: a range of its hash."""

    partitions: int

    def __call__(self, key: np.ndarray) -> np.ndarray:
        return ranges(mix64(key), self.partitions)


@dataclass(frozen=True)
class ByPart:
    """Partition of a key: the part whose node it is."""

    firsts: tuple[int, ...]  # ascending

    def __call__(self, key: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.array(self.firsts), key, side="right") - 1


def by_part(parts: Sequence[Part]) -> ByPart:
    """Parts are numbered in order of their nodes. An empty part starts where the next one does, and is never found."""
    return ByPart(tuple(p.first for p in parts))


def blocks(partition: np.ndarray, columns: dict[str, np.ndarray | pa.Array]) -> Iterator[BLOCK]:
    """Rows as one block for each partition they belong to."""
    if not len(partition):
        return
    order = np.argsort(partition, kind="stable")
    table = pa.table(columns).take(pa.array(order)).combine_chunks()
    edges = np.flatnonzero(np.diff(partition[order], prepend=-1, append=-1))
    for first, end in pairwise(edges):
        yield int(partition[order[first]]), table.slice(first, end - first).to_batches()[0]


def shuffle(
    context: Context, label: str, files: Sequence[File], steps: Steps, scratch: Scratch, name: str
) -> list[File]:
    """Edges of files -> `arrange` to (key, other) -> all of a partition of keys -> `reduce` -> a file per partition.

    Raises:
        LedgerError: another number of rows arrived than was sent.
    """
    sent = sum(f["rows"] for f in files) * steps.times

    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Files" >> engine.deal([f["path"] for f in files], [f["rows"] + 1 for f in files], context.workers)
            | "Key" >> beam.ParDo(KeyEdges(steps)).with_output_types(BLOCK)
            | "ByKey" >> beam.GroupByKey()
            | "Reduce" >> beam.ParDo(WriteEdges(steps, scratch, name))
        )

    made = context.graph(label, build, len(files), sent) if files else []
    received = sum(f["received"] for f in made)
    if received != sent:
        raise ledger.LedgerError(
            f"{label}: {sent} rows were sent and {received} arrived; the engine lost or doubled some, run again"
        )
    return sorted(made, key=lambda f: f["partition"])


@dataclass(frozen=True)
class Steps:
    """One shuffle's functions. `times`: rows that `arrange` makes of an edge."""

    arrange: Callable[[np.ndarray, np.ndarray], Edges]
    times: int
    place: Callable[[np.ndarray], np.ndarray]
    reduce: Callable[[np.ndarray, np.ndarray], Edges]


class KeyEdges(beam.DoFn):
    """Path of an edge file -> (partition, block of key and other)."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def process(self, path: str) -> Iterator[BLOCK]:
        key, other = self.steps.arrange(*read_edges(path))
        if len(key):
            yield from blocks(self.steps.place(key), {"key": key, "other": other})


class WriteEdges(beam.DoFn):
    """(partition, all its blocks) -> record of the file that holds the reduced edges."""

    def __init__(self, steps: Steps, scratch: Scratch, name: str) -> None:
        self.steps, self.scratch, self.name = steps, scratch, name

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[File]:
        partition, rows = element[0], pa.Table.from_batches(list(element[1]))
        key, other = rows.column("key").to_numpy(), rows.column("other").to_numpy()
        u, v = self.steps.reduce(key, other)
        yield self.scratch.write(
            f"{self.name}/{partition}", u, v, partition=partition, received=len(key), hash=edges_digest(u, v)[1]
        )


def components(context: Context, parts: Sequence[Part], files: Sequence[File], scratch: Scratch) -> dict[int, File]:
    """Part number -> file of (node, smallest node of its component), for the nodes that are not alone.

    Parts in which every node is alone have no file.
    """
    nodes = sum(p.documents for p in parts)
    made = (
        _in_process(parts, files, nodes, scratch) if nodes <= IN_PROCESS else _by_rounds(context, parts, files, scratch)
    )
    return {f["partition"]: f for f in made}


def _in_process(parts: Sequence[Part], files: Sequence[File], nodes: int, scratch: Scratch) -> Iterator[File]:
    parent = np.arange(nodes, dtype=np.int64)
    for file in files:
        if file["rows"]:
            union(parent, *read_edges(file["path"]))
    labels = flatten(parent)
    together = clustered(labels)
    for part in parts:
        mine = np.flatnonzero(together[part.first : part.first + part.documents]) + part.first
        if len(mine):
            yield scratch.write(f"labels/{part.number}", mine, labels[mine], partition=part.number)


def _by_rounds(context: Context, parts: Sequence[Part], files: Sequence[File], scratch: Scratch) -> list[File]:
    """Raises RuntimeError if ROUNDS rounds are not enough."""
    by_key = ByHash(max(1, -(-2 * sum(f["rows"] for f in files) // EDGE_ROWS)))
    small, large = Steps(orient, 1, by_key, small_star), Steps(mirror, 2, by_key, large_star)
    files = shuffle(context, "components", files, small, scratch, "small-0")
    for number in range(1, ROUNDS + 1):
        before = _digest(files)
        files = shuffle(context, "components", files, large, scratch, f"large-{number}")
        files = shuffle(context, "components", files, small, scratch, f"small-{number}")
        if _digest(files) == before:
            return shuffle(
                context, "components", files, Steps(with_ends, 2, by_part(parts), distinct), scratch, "labels"
            )
    raise RuntimeError(
        f"components still change after {ROUNDS} rounds ({sum(f['rows'] for f in files)} edges): raise clusters.ROUNDS"
    )


def _digest(files: Sequence[File]) -> tuple[int, int]:
    """Digest of the set of edges in the files, whatever their order."""
    return sum(f["rows"] for f in files), sum(f["hash"] for f in files) % 2**64
