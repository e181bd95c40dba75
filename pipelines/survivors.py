"""Who stays of each cluster, and the flags of every document. Only documents that are not alone cross the shuffle.

A cluster is named by the smallest content hash in it (of an older run's documents, where it has any), so its name depends
on neither shards nor order. Within a split each cluster sends one candidate with a count. About 100 bytes per candidate;
a worker holds one partition (PARTITION_DOCUMENTS), or the flags of one split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import engine, store
from pipelines.clusters import BLOCK, ByHash, File, Part, blocks, read_edges
from pipelines.dedupe import FLAGS, WriteFlags
from pipelines.ledger import Record
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import MisalignedError, Struct, Tables
from sql.expressions import Expression, evaluate

PARTITION_DOCUMENTS = 200_000
BEST_FIRST = [("root", "ascending"), ("priority", "descending"), ("id", "ascending"), ("part", "ascending"), ("place", "ascending")]


def flag(context: Context, tables: Tables, parts: Sequence[Part], labels: Mapping[int, File], prefer: str, struct: Struct) -> list[Record]:
    """Write the flags of every part that has a split. `labels`: files of (node, root) by part, as of `clusters.components`."""
    splits = [p.split for p in parts if p.split]
    partitions = max(1, -(-sum(f["rows"] for f in labels.values()) // PARTITION_DOCUMENTS))
    paths = {number: file["path"] for number, file in labels.items()}
    documents = sum(p.documents for p in parts)

    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Parts" >> engine.deal(list(parts), [p.documents + 1 for p in parts], context.workers)
            | "Candidates" >> beam.ParDo(Candidates(tables, prefer, paths, ByHash(partitions))).with_output_types(BLOCK)
            | "ByRoot" >> beam.GroupByKey()
            | "Decide" >> beam.ParDo(Decide(len(splits))).with_output_types(BLOCK)
            | "BySplit" >> beam.GroupByKey()
            | "Flag" >> beam.ParDo(WriteNear(context.run, struct, splits, parts, paths))
        )

    return [Record(**item) for item in context.graph("dedupe minhash", build, len(splits), documents)]


class Candidates(beam.DoFn):
    """Part -> (partition of the root, block of its clusters: the best document here, how many, the smallest content)."""

    def __init__(self, tables: Tables, prefer: str, labels: Mapping[int, str], place: ByHash) -> None:
        self.tables, self.prefer, self.labels, self.place = tables, prefer, dict(labels), place

    def process(self, part: Part) -> Iterator[BLOCK]:
        if part.number not in self.labels:
            if part.split:  # it still has to write its sidecar
                yield 0, pa.RecordBatch.from_pylist([], pa.schema([], metadata={"part": str(part.number)}))
            return
        node, root = read_edges(self.labels[part.number])
        place = node - part.first
        columns = {"root": root, "priority": self._priority(part).take(pa.array(place)), "place": place}
        columns["id"] = store.read_table(part.signatures, ["id"]).column("id").take(pa.array(place))
        columns["content"] = part.contents()[place]
        columns["part"] = np.full(len(node), part.number, np.int32)
        columns["older"] = np.full(len(node), part.split is None)
        table = pa.table(columns)
        table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST)).combine_chunks()
        start = _starts(table.column("root").to_numpy())
        content = np.minimum.reduceat(table.column("content").to_numpy(), start)
        best = table.take(pa.array(start)).set_column(table.column_names.index("content"), "content", pa.array(content))
        best = best.append_column("count", pa.array(np.diff(start, append=len(node))))
        yield from blocks(self.place(best.column("root").to_numpy()), {n: best.column(n) for n in best.column_names})

    def _priority(self, part: Part) -> pa.ChunkedArray:
        """float64 of every document; those of an older run come before all."""
        if part.split is None:
            return pa.chunked_array([np.full(part.documents, np.inf)])
        table = self.tables.load(part.split, Expression(self.prefer).names)
        priority = evaluate({"priority": f"CAST({self.prefer} AS DOUBLE)"}, table).column("priority")
        return pc.fill_null(priority, -np.inf)


def _starts(key: np.ndarray) -> np.ndarray:
    """int64 [different keys]: where each begins in keys that are in order."""
    return np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))


class Decide(beam.DoFn):
    """All candidates of one partition -> (part, block of its roots: the survivor here, size and name of the cluster)."""

    def __init__(self, splits: int) -> None:
        self.splits = splits  # parts from this number on are of older runs and need no answer

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[BLOCK]:
        found = []
        for block in element[1]:
            if block.num_columns:
                found.append(block)
            else:
                yield int(block.schema.metadata[b"part"]), _answer(*(np.empty(0, t) for t in (np.int64, np.int64, np.int64, np.uint64)))
        if not found:
            return
        table = pa.Table.from_batches(found)
        table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST))
        root, part, place, count, content = (table.column(n).to_numpy() for n in ("root", "part", "place", "count", "content"))
        start = _starts(root)
        repeat = np.diff(start, append=len(root))
        size = np.repeat(np.add.reduceat(count, start), repeat)
        by_name = np.lexsort((content, ~table.column("older").to_numpy(), root))
        cluster = np.repeat(content[by_name][start], repeat)
        survivor = np.full(len(root), -1)
        survivor[start] = place[start]
        asked = np.flatnonzero(part < self.splits)
        order = asked[np.argsort(part[asked], kind="stable")]
        for chosen in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(chosen):
                yield int(part[chosen[0]]), _answer(root[chosen], survivor[chosen], size[chosen], cluster[chosen])


def _answer(root: np.ndarray, survivor: np.ndarray, size: np.ndarray, cluster: np.ndarray) -> pa.RecordBatch:
    """`survivor`: place of the document to keep, -1 if it is in another part."""
    return pa.record_batch({"root": root, "survivor": survivor, "size": size, "cluster": cluster})


class WriteNear(WriteFlags):
    """(number of a part, all answers to it) -> ledger record; the sidecar is committed."""

    def __init__(self, run: str, struct: Struct, splits: Sequence[Split], parts: Sequence[Part], labels: Mapping[int, str]) -> None:
        super().__init__(run, struct, "dedupe:minhash", splits)
        self.labels = {(p.split.source, p.split.name): (p.first, labels[p.number]) for p in parts if p.split and p.number in labels}

    def _flags(self, split: Split, signatures: pa.Table, answers: pa.Table) -> pa.StructArray:
        content = signatures.column(2).combine_chunks().field("content").to_numpy()
        cluster, size, keep = content.copy(), np.ones(len(content), np.int64), np.ones(len(content), bool)
        first, path = self.labels.get((split.source, split.name), (0, None))
        node, root = read_edges(path) if path else (np.empty(0, np.int64), np.empty(0, np.int64))
        asked, which = np.unique(root, return_inverse=True)
        answers = answers.take(pc.sort_indices(answers, sort_keys=[("root", "ascending")]))
        if not np.array_equal(asked, answers.column("root").to_numpy()):
            raise MisalignedError(
                f"{split.source}/{split.name}: {answers.num_rows} answers came back for {len(asked)} clusters; the engine lost or doubled some, run again"
            )
        place = node - first
        cluster[place] = answers.column("cluster").to_numpy()[which]
        size[place] = answers.column("size").to_numpy()[which]
        keep[place] = answers.column("survivor").to_numpy()[which] == place
        return pa.StructArray.from_arrays([pa.array(cluster), pa.array(size), pa.array(keep)], fields=list(FLAGS))
