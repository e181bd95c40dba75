"""True Jaccard similarity of candidate pairs. Pairs are star edges: a few per document, however large its bucket.

Text is read again only where a split holds documents of candidate pairs. Shingle sets of the centres of stars go to
files; each split then holds the sets of its own documents (8 bytes per shingle, about 1.5 times its text) and reads the
centres it needs, one row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import engine, ledger, store
from pipelines.clusters import (
    ByPart,
    File,
    Part,
    Scratch,
    Steps,
    as_is,
    by_part,
    distinct,
    read_edges,
    shuffle,
    to_second,
)
from pipelines.reading import read
from pipelines.steps import Context
from pipelines.tables import Tables
from transforms.batch import Batch
from transforms.minhash import MinHash, Sets, jaccard


def similar(
    context: Context,
    tables: Tables,
    parts: Sequence[Part],
    sketch: MinHash,
    least: float,
    files: Sequence[File],
    scratch: Scratch,
) -> list[File]:
    """Of the edges in the files those whose ends have a Jaccard similarity of `least` or more."""
    place = by_part(parts)
    pairs = shuffle(context, "verify minhash", files, Steps(as_is, 1, place, distinct), scratch, "pairs")
    centres = shuffle(context, "verify minhash", pairs, Steps(to_second, 1, place, distinct), scratch, "centres")
    shingles = _each(context, parts, centres, WriteShingles(tables, sketch, scratch))
    paths = {f["partition"]: f["path"] for f in shingles}
    return _each(context, parts, pairs, Compare(tables, sketch, scratch, least, place, paths))


def _each(context: Context, parts: Sequence[Part], files: Sequence[File], work: beam.DoFn) -> list[File]:
    """Run `work` on each (part, path of its file).

    Raises:
        LedgerError: not one record for each came back.
    """
    elements = [(parts[f["partition"]], f["path"]) for f in files]

    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline | engine.deal(elements, [p.documents + 1 for p, _ in elements], context.workers) | beam.ParDo(work)
        )

    made: list[File] = context.graph("verify minhash", build, len(elements)) if elements else []
    if sorted(f["partition"] for f in made) != sorted(f["partition"] for f in files):
        raise ledger.LedgerError(f"verify minhash: {len(files)} parts were sent and {len(made)} came back; run again")
    return sorted(made, key=lambda f: f["partition"])


def _shingles(tables: Tables, part: Part, nodes: np.ndarray, sketch: MinHash) -> Iterator[tuple[np.ndarray, Sets]]:
    """Shingle sets of some nodes of a part (ascending, distinct), batch by batch; others are not hashed."""
    assert part.split is not None
    place, first = part.first, 0
    for batch in read(part.split, tables.text, tables.admission, columns=[]):
        count = batch.documents.num_rows
        end = int(np.searchsorted(nodes, place + count))
        if end > first:
            chosen = batch.documents.take(pa.array(nodes[first:end] - place))
            yield nodes[first:end], sketch.shingles(Batch(chosen, text=tables.text))
        place, first = place + count, end


class WriteShingles(beam.DoFn):
    """(part, path of the centres in it) -> record of the file with their shingle sets."""

    def __init__(self, tables: Tables, sketch: MinHash, scratch: Scratch) -> None:
        self.tables, self.sketch, self.scratch = tables, sketch, scratch

    def process(self, element: tuple[Part, str]) -> Iterator[File]:
        part, path = element
        nodes = read_edges(path)[0]
        schema = pa.schema([("node", pa.int64()), ("hashes", pa.large_list(pa.uint64()))])
        target = f"{self.scratch.folder}/shingles/{part.number}.parquet"
        sidecar = store.Sidecar(target, schema, self.scratch.folder)
        try:
            for some, (hashes, offsets) in _shingles(self.tables, part, nodes, self.sketch):
                sets = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(hashes))
                sidecar.write(pa.record_batch([pa.array(some), sets], schema=schema))
        except BaseException as error:
            sidecar.abandon(error)
            raise
        sidecar.close({})
        if sidecar.rows != len(nodes):
            raise ledger.LedgerError(
                f"{part.signatures}: {sidecar.rows} of {len(nodes)} documents could be read again; the shard changed"
            )
        yield {"path": target, "partition": part.number, "rows": sidecar.rows}


class Compare(beam.DoFn):
    """(part, path of the pairs whose first end is in it) -> record of the file with those that are alike."""

    def __init__(
        self, tables: Tables, sketch: MinHash, scratch: Scratch, least: float, place: ByPart, centres: Mapping[int, str]
    ) -> None:
        self.tables, self.sketch, self.scratch, self.least = tables, sketch, scratch, least
        self.place, self.centres = place, dict(centres)

    def process(self, element: tuple[Part, str]) -> Iterator[File]:
        part, path = element
        u, v = read_edges(path)
        order = np.argsort(v, kind="stable")
        u, v = u[order], v[order]
        nodes, mine = np.unique(u, return_inverse=True)
        own = _joined([sets for _, sets in _shingles(self.tables, part, nodes, self.sketch)])
        alike = np.full(len(u), np.nan)
        for centre in np.unique(self.place(v)):
            for some, sets in _groups(self.centres[int(centre)], v):
                first, end = np.searchsorted(v, some[0]), np.searchsorted(v, some[-1], side="right")
                alike[first:end] = jaccard(own, mine[first:end], np.searchsorted(some, v[first:end]), sets)
        if np.isnan(alike).any():
            raise ledger.LedgerError(
                f"{part.signatures}: {np.isnan(alike).sum()} of {len(u)} pairs were not compared; run again"
            )
        keep = alike >= self.least
        yield self.scratch.write(f"similar/{part.number}", u[keep], v[keep], partition=part.number)


def _joined(sets: list[Sets]) -> Sets:
    lengths = np.concatenate([np.diff(offsets) for _, offsets in sets])
    return np.concatenate([hashes for hashes, _ in sets]), np.concatenate([[0], np.cumsum(lengths)])


def _groups(path: str, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, Sets]]:
    """Nodes and shingle sets of the row groups of a file that hold any of the wanted nodes (ascending)."""
    with store.open_read(path) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            nodes = file.read_row_group(group, ["node"]).column("node").to_numpy()
            first = int(np.searchsorted(wanted, nodes[0]))
            if first < len(wanted) and wanted[first] <= nodes[-1]:
                sets = file.read_row_group(group, ["hashes"]).column("hashes").combine_chunks()
                yield nodes, (sets.values.to_numpy(), sets.offsets.to_numpy())
