"""Who stays of each cluster, and the flags of every document. Only documents that are not alone cross the shuffle.

A cluster is named by the smallest content hash in it (of an older run's documents, where it has any), so its name
depends on neither shards nor order. Within a split each cluster sends one candidate with a count. Flags are written
when all answers are there: no loss can leave a wrong flag behind. About 100 bytes per candidate; a worker holds one
partition (PARTITION_DOCUMENTS), or the flags of one split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import engine, ledger, store
from pipelines.clusters import BLOCK, ByHash, File, Part, Scratch, blocks, read_edges
from pipelines.dedupe import FLAGS, starts
from pipelines.ledger import Record
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Struct, Tables
from sql.expressions import Expression, evaluate

PARTITION_DOCUMENTS = 200_000  # candidates to a partition: 20 MB
BEST_FIRST = [
    (n, "descending" if n == "priority" else "ascending") for n in ("root", "priority", "id", "part", "place")
]


def flag(
    context: Context,
    tables: Tables,
    parts: Sequence[Part],
    labels: Mapping[int, File],
    prefer: str,
    struct: Struct,
    scratch: Scratch,
) -> list[Record]:
    """Write the flags of every part that has a split.

    Args:
        labels: files of (node, root) by part, as of `clusters.components`.
        prefer: SQL; the document with the highest value stays, then the one with the lowest id.

    Raises:
        LedgerError: an answer is missing. No flags are written then.
    """
    answers = _decide(context, tables, parts, labels, prefer, scratch) if labels else []
    paths = {f["partition"]: (labels[f["partition"]]["path"], f["path"]) for f in answers}
    splits = [p.split for p in parts if p.split]
    compute = Flag(parts, paths, struct.folder.split("/")[1])
    step = MapSplit(context.run, compute.step, f"{context.run}/{struct.folder}", struct.base, compute)
    records = context.run_splits("dedupe minhash", splits, beam.ParDo(step), text=False)
    ledger.check(compute.step, splits, records)
    return records


def _decide(
    context: Context, tables: Tables, parts: Sequence[Part], labels: Mapping[int, File], prefer: str, scratch: Scratch
) -> list[File]:
    """For each part with labels a file of answers: one row for each of its roots."""
    mine = [p for p in parts if p.number in labels]
    rows = sum(f["rows"] for f in labels.values())
    paths = {number: file["path"] for number, file in labels.items()}
    place = ByHash(max(1, -(-rows // PARTITION_DOCUMENTS)))

    def build(pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Parts" >> engine.deal(mine, [labels[p.number]["rows"] for p in mine], context.workers)
            | "Candidates" >> beam.ParDo(Candidates(tables, prefer, paths, place)).with_output_types(BLOCK)
            | "ByRoot" >> beam.GroupByKey()
            | "Decide" >> beam.ParDo(Decide()).with_output_types(BLOCK)
            | "ByPart" >> beam.GroupByKey()
            | "Answers" >> beam.ParDo(WriteAnswers(scratch))
        )

    answers: list[File] = context.graph("dedupe minhash", build, len(mine), sum(p.documents for p in mine))
    came = {f["partition"]: f["rows"] for f in answers}
    asked = {number: file["ends"] for number, file in labels.items()}
    if came != asked:
        raise ledger.LedgerError(
            f"dedupe:minhash: {sum(asked.values())} candidates were sent and {sum(came.values())} answers came back; "
            "the engine lost or doubled some, run again"
        )
    return answers


class Candidates(beam.DoFn):
    """Part -> (partition of the root, block of its clusters: best document here, how many, smallest content)."""

    def __init__(self, tables: Tables, prefer: str, labels: Mapping[int, str], place: ByHash) -> None:
        self.tables, self.prefer, self.labels, self.place = tables, prefer, dict(labels), place

    def process(self, part: Part) -> Iterator[BLOCK]:
        node, root = read_edges(self.labels[part.number])
        place = pa.array(node - part.first)
        table = pa.table(
            {
                "root": root,
                "priority": self._priority(part).take(place),
                "id": store.read_table(part.signatures, ["id"]).column("id").take(place),
                "part": np.full(len(node), part.number, np.int32),
                "place": place,
                "content": pa.array(part.contents()).take(place),
                "older": np.full(len(node), part.split is None),
            }
        )
        table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST)).combine_chunks()
        start = starts(table.column("root").to_numpy())
        columns = {n: table.column(n).take(pa.array(start)) for n in table.column_names}
        columns["content"] = np.minimum.reduceat(table.column("content").to_numpy(), start)
        columns["count"] = np.diff(start, append=len(node))
        yield from blocks(self.place(columns["root"].to_numpy()), columns)

    def _priority(self, part: Part) -> pa.ChunkedArray:
        """float64 of every document; those of an older run come before all."""
        if part.split is None:
            return pa.chunked_array([np.full(part.documents, np.inf)])
        table = self.tables.load(part.split, Expression(self.prefer).names)
        priority = evaluate({"priority": f"CAST({self.prefer} AS DOUBLE)"}, table).column("priority")
        return pc.fill_null(priority, -np.inf)


class Decide(beam.DoFn):
    """All candidates of one partition -> (part, block of its roots: the survivor here, size and name of the cluster).

    `survivor` is the place of the document to keep, -1 if it is in another part.
    """

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[BLOCK]:
        table = pa.Table.from_batches(list(element[1]))
        table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST))
        names = ("root", "part", "place", "count", "content", "older")
        root, part, place, count, content, older = (table.column(n).to_numpy() for n in names)
        start = starts(root)
        repeat = np.diff(start, append=len(root))
        survivor = np.full(len(root), -1)
        survivor[start] = place[start]
        by_name = np.lexsort((content, ~older, root))
        cluster, size = content[by_name][start], np.add.reduceat(count, start)
        columns = {
            "root": root,
            "survivor": survivor,
            "size": np.repeat(size, repeat),
            "cluster": np.repeat(cluster, repeat),
        }
        yield from blocks(part, columns)


class WriteAnswers(beam.DoFn):
    """(part, all answers to it) -> record of the file that holds them, in order of root."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[File]:
        part, table = element[0], pa.Table.from_batches(list(element[1]))
        path = f"{self.scratch.folder}/answers/{part}.parquet"
        record = {"path": path, "partition": part, "rows": table.num_rows}
        store.write_sidecar(
            path, self.scratch.folder, table.take(pc.sort_indices(table, sort_keys=[("root", "ascending")])), record
        )
        yield record


class Flag:
    """Split -> flags of its documents. `paths`: files of labels and answers by number of the part."""

    def __init__(self, parts: Sequence[Part], paths: Mapping[int, tuple[str, str]], method: str) -> None:
        self.parts = {(p.split.source, p.split.name): (p, *paths.get(p.number, ("", ""))) for p in parts if p.split}
        self.method, self.step = method, f"dedupe:{method}"

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        part, labels, answers = self.parts[split.source, split.name]
        cluster = part.contents().copy()
        size, keep = np.ones(len(cluster), np.int64), np.ones(len(cluster), bool)
        if labels:
            node, root = read_edges(labels)
            place, answer = node - part.first, store.read_table(answers)
            which = np.searchsorted(answer.column("root").to_numpy(), root)
            cluster[place] = answer.column("cluster").to_numpy()[which]
            size[place] = answer.column("size").to_numpy()[which]
            keep[place] = answer.column("survivor").to_numpy()[which] == place
        struct = pa.StructArray.from_arrays([pa.array(cluster), pa.array(size), pa.array(keep)], fields=list(FLAGS))
        named = store.read_table(part.signatures, ["row", "id"])
        table = named.append_column(self.method, struct)
        return table, Record.of(self.step, split, table.num_rows, table.num_rows)
