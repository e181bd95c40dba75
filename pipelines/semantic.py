"""Semantic duplicates: SemDeDup (Abbas et al. 2023, arXiv 2303.09540) over the engine. Flags in a sidecar.

    vectors (scoring pass) -> k-means, a graph per round -> blocks of a cluster -> survivors -> flags

All sums are of integers, so neither the order of splits nor the number of workers changes a bit. Within a split equal
vectors are one row with a count, so copies cost nothing. A round holds the vectors of a split (512 bytes per document
with the hashing encoder) and the sums of the clusters; a worker then holds one block of BLOCK_DOCUMENTS, 50 MB. A
cluster with more documents is cut into blocks by a hash of the vector: copies still meet, near ones of other blocks are
not compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipelines import engine, ledger, store
from pipelines.clusters import BLOCK, Scratch, blocks
from pipelines.code import code_digest
from pipelines.dedupe import FLAGS, starts
from pipelines.ledger import Record
from pipelines.score import Column
from pipelines.semantic_signature import Encoder, SemanticSignature, check
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import MisalignedError, Struct, Tables
from sql.expressions import Expression, evaluate
from transforms.components import ranks
from transforms.draws import hashes, ranges, seeded
from transforms.semantic import cluster_sums, duplicates, initial_centroids, move, nearest
from transforms.text import hash_pieces

log = logging.getLogger("corpusmill")
FOLDER = "signatures/semantic"
CLUSTER_DOCUMENTS = 10_000  # documents per cluster where `clusters` is not given
BLOCK_DOCUMENTS = 20_000  # of one block, all of which are compared: 10 s
GROUP_DOCUMENTS = 200_000  # of the splits whose sums one element of a round adds up
SHUFFLE_BYTES = 1 << 30  # vectors in one graph of the local engine, which holds them in memory
BEST_FIRST = [("hash", "ascending"), ("priority", "descending")] + [(n, "ascending") for n in ("id", "split", "row")]


class Semantic(BaseModel):
    """Documents whose embeddings have a cosine of `threshold` or more, within one of `clusters` of k-means.

    `encoder`: `hashing` (words and pairs, no model) or the folder of a transformers or sentence-transformers encoder.
    `clusters` is one for every 10,000 documents unless given; `rounds` bounds k-means. Kept is the document with the
    highest `prefer`, then the lowest id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    encoder: Encoder = "hashing"
    max_tokens: PositiveInt = 512
    device: str = "cpu"
    clusters: PositiveInt | None = None
    threshold: float = Field(0.95, gt=0, le=1)
    rounds: PositiveInt = 20
    prefer: str = "bytes"

    @model_validator(mode="after")
    def _encodes(self) -> Semantic:
        check(self.encoder)
        return self

    def column(self) -> Column:
        signature = SemanticSignature(encoder=self.encoder, max_tokens=self.max_tokens, device=self.device)
        return Column("semantic", FOLDER, signature)


def semantic(
    context: Context, tables: Tables, splits: Sequence[Split], method: Semantic, documents: int
) -> tuple[Struct, list[Record]]:
    """Flag the semantic duplicates of all splits; returns the new column and the step's records."""
    splits = sorted(splits, key=lambda s: (s.source, s.shard, s.first_group))
    struct = Struct("dedupe/semantic", FLAGS, _base(tables, method, splits))
    folder = f"{context.run}/{struct.folder}"
    held = [store.committed(s.sidecar(folder), store.digest(struct.base, s.identity())) for s in splits]
    scratch = Scratch(f"{context.run}/scratch/semantic")
    answers: dict[int, list[str]] = {}
    if not all(held):
        scratch.discard()
        work = _Work(context, tables, tuple(enumerate(splits)), scratch, documents)
        answers = _decide(work, method, _clusters(work, method))
    compute = Flag(context.run, {(s.source, s.name): answers.get(n, []) for n, s in enumerate(splits)})
    step = MapSplit(context.run, "dedupe:semantic", folder, struct.base, compute)
    records = context.run_splits("dedupe semantic", splits, beam.ParDo(step), text=False)
    scratch.discard()
    return struct, records


def _base(tables: Tables, method: Semantic, splits: Sequence[Split]) -> str:
    """What the flags of any one split depend on: the vectors of all of them, the seed and the rule of survival."""
    return store.digest(
        method.model_dump(include={"clusters", "threshold", "rounds", "prefer"}),
        tables.seed,
        tables.structs[FOLDER].base,
        tables.base(Expression(method.prefer).names),
        sorted(s.identity() for s in splits),
        code_digest(__name__),
    )


@dataclass(frozen=True)
class _Work:
    """What every graph of the step needs. `splits` are numbered in their order."""

    context: Context
    tables: Tables
    splits: tuple[tuple[int, Split], ...]
    scratch: Scratch
    documents: int

    def groups(self) -> list[list[tuple[int, Split]]]:
        """Splits in order, about GROUP_DOCUMENTS rows together."""
        ends = np.cumsum([s.rows for _, s in self.splits]) // GROUP_DOCUMENTS
        return [[self.splits[i] for i in np.flatnonzero(ends == end)] for end in np.unique(ends)]

    def each_group(self, label: str, work: beam.DoFn) -> list[dict]:
        """Records of `work` on (number, group) of every group, in order of group.

        Raises:
            LedgerError: not one came back for each.
        """
        groups = list(enumerate(self.groups()))
        sizes = [sum(s.rows for _, s in group) + 1 for _, group in groups]

        def build(pipeline: beam.Pipeline) -> beam.PCollection:
            return pipeline | engine.deal(groups, sizes, self.context.workers) | beam.ParDo(work)

        made: list[dict] = self.context.graph(label, build, len(groups), self.documents) if groups else []
        made.sort(key=lambda record: record["group"])
        if [record["group"] for record in made] != list(range(len(groups))):
            raise ledger.LedgerError(f"{label}: {len(groups)} groups were sent, {len(made)} came back; run again")
        return made


def _clusters(work: _Work, method: Semantic) -> np.ndarray:
    """k-means: int64 [clusters], documents in each. The last round's labels lie in the scratch folder."""
    k = method.clusters or max(1, round(work.documents / CLUSTER_DOCUMENTS))
    path = f"{work.scratch.folder}/centroids.npy"
    centroids = np.empty((0, 0), np.int16)
    for record in work.each_group("semantic seeds", Seeds(work, k)):
        found = store.read_array(record["path"])
        both = np.concatenate([centroids, found]) if len(centroids) else found
        centroids = initial_centroids(both, _draw(work, both), k)[0]
    if not len(centroids):
        return np.empty(0, np.int64)
    for number in range(method.rounds + 1):
        store.write_array(path, centroids)
        made = work.each_group("semantic k-means", Assign(work, path))
        sums = (store.read_array(record["path"]) for record in made)
        moved = move(centroids, sum(sums, np.zeros(centroids.shape, np.int64)))
        if np.array_equal(moved, centroids) or number == method.rounds:
            break
        centroids = moved
    return np.sum([record["counts"] for record in made], axis=0)


def _decide(work: _Work, method: Semantic, counts: np.ndarray) -> dict[int, list[str]]:
    """Number of a split -> files of the answers to its vectors."""
    if not len(counts):
        return {}
    pieces = np.maximum(1, -(-counts // BLOCK_DOCUMENTS))
    for cluster in np.flatnonzero(pieces > 1)[:5]:
        cut = f"cluster {cluster} has {counts[cluster]:,} documents and is compared in {pieces[cluster]} blocks"
        log.warning("dedupe.semantic: %s; raise clusters (now %d) to compare alike ones", cut, len(counts))
    local = engine.resolve(work.context.options).runner == "FnApiRunner"
    width = 2 * work.tables.structs[FOLDER].type.field("vector").type.byte_width
    graphs = max(1, -(-work.documents * width // SHUFFLE_BYTES)) if local else 1
    answers: dict[int, list[str]] = {}
    for number in range(graphs):
        part = Candidates(work, method.prefer, pieces, (number, graphs))

        def build(pipeline: beam.Pipeline, part: beam.DoFn = part, number: int = number) -> beam.PCollection:
            return (
                pipeline
                | "Splits" >> work.context.deal([s for _, s in work.splits], list(work.splits))
                | "Candidates" >> beam.ParDo(part).with_output_types(BLOCK)
                | "ByBlock" >> beam.GroupByKey()
                | "Decide" >> beam.ParDo(Decide(method.threshold)).with_output_types(BLOCK)
                | "BySplit" >> beam.GroupByKey()
                | "Answers" >> beam.ParDo(WriteAnswers(work.scratch, number))
            )

        for record in work.context.graph("dedupe semantic", build, len(work.splits), work.documents):
            answers.setdefault(record["split"], []).append(record["path"])
    return answers


def _vectors(run: str, split: Split) -> tuple[pa.Table, np.ndarray]:
    """row and id of a split's documents, and their vectors: int16 [documents, dimensions]."""
    table = store.read_table(split.sidecar(f"{run}/{FOLDER}")).combine_chunks()
    if not table.num_rows:
        return table, np.empty((0, table.schema.field("semantic").type.field("vector").type.byte_width // 2), np.int16)
    packed = table.column("semantic").combine_chunks().field("vector")
    width = packed.type.byte_width // 2
    values = np.frombuffer(packed.buffers()[1], "<i2")[packed.offset * width :]
    return table, values[: len(packed) * width].reshape(len(packed), width)


def _hash(vectors: np.ndarray) -> np.ndarray:
    """uint64 [documents]; vectors of one hash count as one (among 10^8 a false pair has probability 0.0003)."""
    data = np.ascontiguousarray(vectors).view(np.uint8).ravel()
    width = vectors.itemsize * vectors.shape[1]
    ends = width * np.arange(1, len(vectors) + 1, dtype=np.int64)
    return hash_pieces(data, ends - width, ends)


def _distinct(vectors: np.ndarray) -> np.ndarray:
    """Places of the first of each vector, zeros left out, in order of hash."""
    first = np.unique(_hash(vectors), return_index=True)[1]
    return first[vectors[first].any(axis=1)]


def _draw(work: _Work, vectors: np.ndarray) -> np.ndarray:
    return seeded(work.tables.seed, _hash(vectors))


class Seeds(beam.DoFn):
    """Group -> file of its k distinct vectors of lowest draw: the centroids to begin with are among them."""

    def __init__(self, work: _Work, k: int) -> None:
        self.run, self.seed, self.folder, self.k = work.tables.run, work.tables.seed, work.scratch.folder, k

    def process(self, element: tuple[int, list[tuple[int, Split]]]) -> Iterator[dict]:
        number, splits = element
        held: np.ndarray | None = None
        for _, split in splits:
            vectors = _vectors(self.run, split)[1]
            vectors = vectors[_distinct(vectors)]
            both = vectors if held is None else np.concatenate([held, vectors])
            held = initial_centroids(both, seeded(self.seed, _hash(both)), self.k)[0]
        path = f"{self.folder}/seeds/{number}.npy"
        store.write_array(path, np.empty((0, 0), np.int16) if held is None else held)
        yield {"group": number, "path": path}


class Assign(beam.DoFn):
    """Group -> file of the sums of its clusters, and how many documents each has; labels of each split to a file."""

    def __init__(self, work: _Work, centroids: str) -> None:
        self.run, self.folder, self.centroids = work.tables.run, work.scratch.folder, centroids

    def process(self, element: tuple[int, list[tuple[int, Split]]]) -> Iterator[dict]:
        number, splits = element
        centroids = store.read_array(self.centroids)
        sums, counts = np.zeros(centroids.shape, np.int64), np.zeros(len(centroids), np.int64)
        for place, split in splits:
            vectors = _vectors(self.run, split)[1]
            labels = nearest(vectors, centroids)
            sums += cluster_sums(vectors, labels, len(centroids))
            counts += np.bincount(labels[vectors.any(axis=1)], minlength=len(centroids))
            store.write_array(f"{self.folder}/labels/{place}.npy", labels)
        path = f"{self.folder}/sums/{number}.npy"
        store.write_array(path, sums)
        yield {"group": number, "path": path, "counts": counts.tolist()}


class Candidates(beam.DoFn):
    """(number, split) -> (block, the best document of each distinct vector, and how many have it).

    `part`: of how many graphs this is which; each does the blocks that leave its number as the rest.
    """

    def __init__(self, work: _Work, prefer: str, pieces: np.ndarray, part: tuple[int, int]) -> None:
        self.tables, self.folder, self.prefer = work.tables, work.scratch.folder, prefer
        self.pieces, self.part = pieces, part

    def process(self, element: tuple[int, Split]) -> Iterator[BLOCK]:
        number, split = element
        table, vectors = _vectors(self.tables.run, split)
        some = np.flatnonzero(vectors.any(axis=1))
        if not len(some):
            return
        known = self.tables.load(split, Expression(self.prefer).names)
        priority = evaluate({"priority": f"CAST({self.prefer} AS DOUBLE)"}, known).column("priority")
        columns = {
            "hash": pa.array(_hash(vectors)),
            "priority": pc.fill_null(priority, -np.inf),
            "id": table.column("id"),
            "split": np.full(len(vectors), number, np.int32),
            "row": table.column("row"),
            "place": np.arange(len(vectors)),
        }
        ordered = pa.table(columns).take(pa.array(some))
        ordered = ordered.take(pc.sort_indices(ordered, sort_keys=BEST_FIRST)).combine_chunks()
        start = starts(ordered.column("hash").to_numpy())
        best = ordered.take(pa.array(start))
        place = best.column("place").to_numpy()
        rows = {name: best.column(name) for name in ("hash", "priority", "id", "split", "row")}
        rows["count"] = pa.array(np.diff(start, append=ordered.num_rows))
        width = vectors.itemsize * vectors.shape[1]
        chosen = pa.py_buffer(np.ascontiguousarray(vectors[place]))
        rows["vector"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(place), [None, chosen])
        labels = store.read_array(f"{self.folder}/labels/{number}.npy")
        block = self._block(labels[place], best.column("hash").to_numpy())
        mine = np.flatnonzero(block % self.part[1] == self.part[0])
        yield from blocks(block[mine], {name: column.take(pa.array(mine)) for name, column in rows.items()})

    def _block(self, labels: np.ndarray, hashed: np.ndarray) -> np.ndarray:
        """Number of the block: those of a cluster follow each other."""
        first = np.cumsum(self.pieces) - self.pieces
        return first[labels] + ranges(hashed, self.pieces[labels])


class Decide(beam.DoFn):
    """All candidates of a block -> (number of the split, hashes of its vectors: survivor, size and name of the group).

    `survivor` is the row of the document to keep, -1 if it is in another split or another vector's.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[BLOCK]:
        table = pa.Table.from_batches(list(element[1]))
        table = table.take(pc.sort_indices(table, sort_keys=BEST_FIRST)).combine_chunks()
        hashed, split, row, count = (table.column(n).to_numpy() for n in ("hash", "split", "row", "count"))
        start = starts(hashed)
        packed = table.column("vector").take(pa.array(start)).combine_chunks()
        vectors = np.frombuffer(packed.buffers()[1], "<i2")[: len(start) * packed.type.byte_width // 2]
        vectors = vectors.reshape(len(start), -1)
        best = table.take(pa.array(start))
        rank = ranks(-best.column("priority").to_numpy(), best.column("id").combine_chunks(), split[start], row[start])
        group = duplicates(vectors, np.zeros(len(start), np.int64), rank, self.threshold)
        size = np.zeros(len(start), np.int64)
        np.add.at(size, group, np.add.reduceat(count, start))
        which = np.repeat(np.arange(len(start)), np.diff(start, append=len(hashed)))
        survivor = np.full(len(hashed), -1)
        alone = np.flatnonzero(group == np.arange(len(start)))
        survivor[start[alone]] = row[start[alone]]
        cluster = hashed[start][group][which]
        yield from blocks(split, {"hash": hashed, "survivor": survivor, "size": size[group][which], "cluster": cluster})


class WriteAnswers(beam.DoFn):
    """(number of a split, all answers to it) -> record of the file that holds them."""

    def __init__(self, scratch: Scratch, graph: int) -> None:
        self.scratch, self.graph = scratch, graph

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[dict]:
        split, table = int(element[0]), pa.Table.from_batches(list(element[1]))
        path = f"{self.scratch.folder}/answers/{split}-{self.graph}.parquet"
        store.write_sidecar(path, self.scratch.folder, table, {})
        yield {"split": split, "path": path}


class Flag:
    """Split -> flags of its documents. `answers`: files by source and name of the split."""

    def __init__(self, run: str, answers: Mapping[tuple[str, str], Sequence[str]]) -> None:
        self.run, self.answers = run, dict(answers)

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        table, vectors = _vectors(self.run, split)
        n = len(vectors)
        size, keep = np.ones(n, np.int64), np.ones(n, bool)
        cluster = hashes(table.column("id").combine_chunks())  # of a document whose vector is zero, which stays
        some = np.flatnonzero(vectors.any(axis=1))
        hashed, which = np.unique(_hash(vectors[some]), return_inverse=True)
        files = [store.read_table(path) for path in self.answers[split.source, split.name]]
        if len(some) and files:
            found = pa.concat_tables(files)
            found = found.take(pc.sort_indices(found, sort_keys=[("hash", "ascending")]))
            self._check(split, hashed, found.column("hash").to_numpy())
            row = table.column("row").to_numpy()[some]
            keep[some] = found.column("survivor").to_numpy()[which] == row
            size[some], cluster[some] = (found.column(n).to_numpy()[which] for n in ("size", "cluster"))
        else:
            self._check(split, hashed, hashed[:0])
        struct = pa.StructArray.from_arrays([pa.array(cluster), pa.array(size), pa.array(keep)], fields=list(FLAGS))
        rows = table.select(["row", "id"]).append_column("semantic", struct)
        return rows, Record.of("dedupe:semantic", split, n, n)

    def _check(self, split: Split, asked: np.ndarray, answered: np.ndarray) -> None:
        if not np.array_equal(asked, answered):
            lost = f"{len(answered)} answers came back for {len(asked)} vectors"
            raise MisalignedError(f"{split.source}/{split.name}: {lost}; the engine lost or doubled some, run again")
