"""Cleaning: text is cut from documents, or replaced. Spans go to sidecars, shards are never written again.

    lines:      counts per split -> by hash: those above the count -> spans of each split
    substring:  words per split -> repeats of k words, in this process -> spans of each split
    c4, pii:    spans of each split (see `pipelines.clean_local`); so does prox, by a model (`pipelines.clean_prox`)

For the first two a document does not count, and is not cut, where a dedupe method drops it: else the copy that stays
could lose its text to the copy that goes. Documents that cuts leave empty go on until `mix` drops them. They read every
split twice. `lines` holds 16 bytes per distinct piece of a split, then PIECES of a partition, then 8 bytes per piece
that goes; `substring` holds 10 bytes per word of the corpus (see SUBSTRING_BYTES).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pipelines import engine, ledger, store
from pipelines.clean_local import Local, Told
from pipelines.clusters import BLOCK, blocks
from pipelines.code import code_digest
from pipelines.cuts import CUTS, Spans
from pipelines.ledger import Record
from pipelines.reading import read
from pipelines.recipe import RecipeError
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Struct, Tables
from sql.expressions import Expression, evaluate
from transforms import repeated_lines
from transforms.batch import Batch
from transforms.components import ranks
from transforms.cut import Cuts, cut, union
from transforms.draws import ranges
from transforms.repeated_lines import Counts
from transforms.substring import TokenSpans, cuts_of, repeated_spans

PIECES = 4_000_000  # rows of one partition of the counts: 64 MB, 200 MB at work
PIECE_BYTES = 40  # of text for each distinct line of a split, about
SHUFFLE_ROWS = 16_000_000  # counts in one graph of the local engine: 1.3 GB
SUBSTRING_BYTES = 1_000_000_000  # of text in a corpus: 200 million words, 2 GB and 80 bytes per word that repeats


class Lines(BaseModel):
    """Lines, or paragraphs, of `least` bytes or more that stand in more than `count` documents, are cut everywhere.

    `where`: SQL; documents that count and are cut. Unless given, those that every dedupe method of the recipe keeps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: PositiveInt = 10
    unit: Literal["line", "paragraph"] = "line"
    least: int = Field(20, ge=1)
    where: str | None = None


class Substring(BaseModel):
    """Sequences of `tokens` words or more that an earlier document, by id, or an earlier place has too, are cut.

    `where`: as in `Lines`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: PositiveInt = 50
    where: str | None = None


def check_size(methods: Iterable[str], splits: Sequence[Split]) -> None:
    """Raises RecipeError: the corpus is larger than one process can look for repeats in."""
    size = sum(s.text_bytes for s in splits)
    if "substring" in methods and size > SUBSTRING_BYTES:
        raise RecipeError(
            f"clean.substring: the corpus has {size:,} bytes of text, and one process compares at most "
            f"{SUBSTRING_BYTES:,}; run it by source, or clean lines alone"
        )


@dataclass(frozen=True)
class _Work:
    """One method's work. `splits` are numbered in their order; `where` is resolved."""

    context: Context
    tables: Tables
    splits: tuple[Split, ...]
    where: str
    scratch: str

    def graph(self, label: str, work: beam.DoFn) -> list[dict[str, Any]]:
        """Records of `work` on (number, split) of every split, in order.

        Raises:
            LedgerError: not one came back for each.
        """

        def build(pipeline: beam.Pipeline) -> beam.PCollection:
            return pipeline | self.context.deal(self.splits, list(enumerate(self.splits))) | beam.ParDo(work)

        made: list[dict[str, Any]] = self.context.graph(label, build, len(self.splits)) if self.splits else []
        made.sort(key=lambda record: record["number"])
        if [record["number"] for record in made] != list(range(len(self.splits))):
            raise ledger.LedgerError(f"{label}: {len(self.splits)} splits were sent, {len(made)} came back; run again")
        return made


def clean(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    name: str,
    method: Lines | Substring | Local,
    kept: Sequence[str],
) -> tuple[Struct, list[Record]]:
    """Write the cuts of one method; returns the new column and the step's records.

    Args:
        name: of the method in recipes, folders and columns.
        kept: columns with a flag `keep` that all hold for the documents that count, unless the method says `where` or
            is local.
    """
    kept = [] if isinstance(method, Local) else kept
    splits = sorted(splits, key=lambda s: (s.source, s.shard, s.first_group))
    where = method.where or " AND ".join(f"{flags}.keep" for flags in kept) or "true"
    names = {*Expression(where).names, tables.text}
    identities = [] if isinstance(method, Local) else sorted(s.identity() for s in splits)
    code = [code_digest(__name__), code_digest(type(method).__module__)]
    base = store.digest(store.content(method), where, tables.base(names), identities, code)
    struct = Struct(f"cuts/{name}", cut_type(method), base)
    folder = f"{context.run}/{struct.folder}"
    held = [store.committed(s.sidecar(folder), store.digest(base, s.identity())) for s in splits]
    work = _Work(context, tables, tuple(splits), where, f"{context.run}/scratch/{name}")
    find = None if all(held) and not isinstance(method, Local) else _finder(work, method)
    step = MapSplit(context.run, f"clean:{name}", folder, base, WriteCuts(work, name, find, struct.type))
    records = context.run_splits(f"clean {name}", splits, beam.ParDo(step))
    if not store.is_remote(work.scratch):
        shutil.rmtree(work.scratch, ignore_errors=True)
    return struct, records


def _finder(work: _Work, method: Lines | Substring | Local) -> Any:
    """What finds the cuts of a batch: `of` the number of a split, a function of its batches in order."""
    if isinstance(method, Local):
        return OneByOne(method)
    return _lines(work, method) if isinstance(method, Lines) else _substring(work, method)


def _chosen(tables: Tables, split: Split, where: str) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Documents of a split as admitted, and which of them count: bool [documents]."""
    table = tables.load(split, Expression(where).names)
    counts = evaluate({"counts": f"coalesce({where}, false)"}, table).column("counts").to_numpy()
    seen = 0
    for part in read(split, tables.text, tables.admission, columns=[]):
        n = part.documents.num_rows
        yield part.documents, counts[seen : seen + n]
        seen += n


class WriteCuts:
    """Split -> spans of its documents. What is left blank by all cuts up to these is cut whole."""

    def __init__(self, work: _Work, name: str, find: Any, kind: pa.StructType) -> None:
        self.tables, self.where, self.name, self.find, self.kind = work.tables, work.where, name, find, kind
        self.numbers = {(s.source, s.name): n for n, s in enumerate(work.splits)}
        self.earlier = [work.tables.structs[name].folder for name in work.tables.cuts]

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        schema = pa.schema([("row", pa.int64()), ("id", pa.large_string()), (self.name, self.kind)])
        find: Callable[[Batch], Cuts | Told] = self.find.of(self.numbers[split.source, split.name])
        earlier = Spans(self.tables.run, split, self.earlier)
        made, total, told = [], 0, Counter[str]()
        for documents, counts in _chosen(self.tables, split, self.where):
            total += documents.num_rows
            batch = Batch(documents, text=self.tables.text)
            said = find(Batch(documents.filter(pa.array(counts)), text=self.tables.text))
            found = said if isinstance(said, Told) else Told(said)
            told.update(found.counted.to_pylist() if found.counted is not None else ())
            cuts = _whole(batch, _spread(found.cuts, counts), earlier.take(documents))
            struct = _struct(cuts, self.kind, [_placed(column, counts) for column in found.columns])
            made.append(pa.record_batch([documents.column("row"), documents.column("id"), struct], schema))
        table = pa.Table.from_batches(made, schema)
        column = table.column(self.name).combine_chunks()
        touched = int(np.count_nonzero(np.diff(column.field("spans").offsets.to_numpy())))
        repaired = ({"cut": touched} if touched else {}) | dict(sorted(told.items()))
        detail = {"removed": int(column.field("removed").to_numpy().sum())}
        return table, Record.of("", split, total, table.num_rows, repaired=repaired, detail=detail)


def _spread(cuts: Cuts, counts: np.ndarray) -> Cuts:
    """Cuts of the documents that count as those of all documents."""
    lengths = np.zeros(len(counts), np.int64)
    lengths[counts] = np.diff(cuts.offsets)
    return Cuts(cuts.start, cuts.end, np.concatenate([[0], np.cumsum(lengths)]), cuts.put)


def _whole(batch: Batch, cuts: Cuts, earlier: Cuts) -> Cuts:
    """The cuts, and all of each document that only they and the earlier ones together leave blank."""
    both = union(cuts, earlier)
    left = pc.binary_length(pc.utf8_trim_whitespace(cut(batch, both)))
    size = np.diff(batch.offsets)
    whole = pc.equal(left, 0).to_numpy(zero_copy_only=False) & (_removed(earlier) < size)
    begin = np.zeros(int(whole.sum()), np.int64)
    return union(cuts, Cuts(begin, size[whole], np.concatenate([[0], np.cumsum(whole)])))


def _removed(cuts: Cuts) -> np.ndarray:
    """int64 [documents]: bytes in whose place nothing stands."""
    gone = (cuts.end - cuts.start) * cuts.texts().is_null().to_numpy(zero_copy_only=False)
    sums = np.concatenate([[0], np.cumsum(gone)])
    return sums[cuts.offsets[1:]] - sums[cuts.offsets[:-1]]


def cut_type(method: Lines | Substring | Local) -> pa.StructType:
    """Type of a method's column: its cuts, and what else it says of a document."""
    return pa.struct([*CUTS, *(method.fields if isinstance(method, Local) else ())])


def _struct(cuts: Cuts, kind: pa.StructType, columns: Sequence[pa.Array]) -> pa.StructArray:
    spans = cuts.arrow().cast(CUTS[0].type)
    return pa.StructArray.from_arrays([spans, pa.array(_removed(cuts)), *columns], fields=list(kind))


def _placed(column: pa.Array, counts: np.ndarray) -> pa.Array:
    """Values of the documents that count among all documents; null for the others."""
    places = np.cumsum(counts) - 1
    return column.take(pa.array(places, mask=~counts))


@dataclass(frozen=True)
class OneByOne:
    """Finds what a local method cuts."""

    method: Local

    def of(self, number: int) -> Callable[[Batch], Cuts | Told]:
        return self.method.cuts


@dataclass(frozen=True)
class RepeatedLines:
    """Finds the pieces whose hashes stand in a file."""

    method: Lines
    path: str

    def of(self, number: int) -> Callable[[Batch], Cuts]:
        hashes = store.read_array(self.path)
        return lambda batch: repeated_lines.repeats(batch, hashes, self.method.unit, self.method.least)


def _lines(work: _Work, method: Lines) -> RepeatedLines:
    """Count the pieces of all splits; those above the count are in the file of what is returned."""
    counted = work.graph("count lines", CountPieces(work, method))
    partitions = max(1, -(-sum(s.text_bytes for s in work.splits) // (PIECES * PIECE_BYTES)))
    rows = sum(record["rows"] for record in counted)
    local = engine.resolve(work.context.options).runner == "FnApiRunner"
    graphs = min(partitions, max(1, -(-rows // SHUFFLE_ROWS))) if local else 1
    made: list[dict[str, Any]] = []
    for number in range(graphs):
        part = ByHash(partitions, (number, graphs))

        def build(pipeline: beam.Pipeline, part: beam.DoFn = part) -> beam.PCollection:
            files = [(record["path"], record["rows"]) for record in counted]
            return (
                pipeline
                | "Counts" >> engine.deal([path for path, _ in files], [n + 1 for _, n in files], work.context.workers)
                | "Key" >> beam.ParDo(part).with_output_types(BLOCK)
                | "ByHash" >> beam.GroupByKey()
                | "Frequent" >> beam.ParDo(Frequent(method.count, work.scratch))
            )

        made += work.context.graph("count lines", build, len(counted), rows)
    received = sum(record["rows"] for record in made)
    if received != rows:
        raise ledger.LedgerError(f"clean:lines: {rows} counts were sent, {received} arrived; run again")
    path = f"{work.scratch}/frequent.npy"
    frequent = [np.empty(0, np.uint64), *(store.read_array(record["path"]) for record in made)]
    store.write_array(path, np.sort(np.concatenate(frequent)))
    return RepeatedLines(method, path)


class CountPieces(beam.DoFn):
    """(number, split) -> record of the file of its distinct pieces: hash, and how many documents hold it."""

    def __init__(self, work: _Work, method: Lines) -> None:
        self.tables, self.where, self.scratch, self.method = work.tables, work.where, work.scratch, method

    def process(self, element: tuple[int, Split]) -> Iterator[dict[str, Any]]:
        number, split = element
        total = repeated_lines.merge([])
        for documents, counts in _chosen(self.tables, split, self.where):
            batch = Batch(documents.filter(pa.array(counts)), text=self.tables.text)
            total = repeated_lines.merge([total, repeated_lines.count(batch, self.method.unit, self.method.least)])
        path = f"{self.scratch}/counts/{number}.parquet"
        store.write_sidecar(path, "", pa.table({"hash": total.hash, "documents": total.documents}), {})
        yield {"number": number, "path": path, "rows": len(total.hash)}


class ByHash(beam.DoFn):
    """Path of a file of counts -> (partition of the hash, its counts). `part`: as in `semantic.Candidates`."""

    def __init__(self, partitions: int, part: tuple[int, int]) -> None:
        self.partitions, self.part = partitions, part

    def process(self, path: str) -> Iterator[BLOCK]:
        table = store.read_table(path)
        hashed, documents = table.column("hash").to_numpy(), table.column("documents").to_numpy()
        partition = ranges(hashed, self.partitions)
        mine = partition % self.part[1] == self.part[0]
        yield from blocks(partition[mine], {"hash": hashed[mine], "documents": documents[mine]})


class Frequent(beam.DoFn):
    """(partition, all its counts) -> record of the file with the hashes above `count`."""

    def __init__(self, count: int, scratch: str) -> None:
        self.count, self.scratch = count, scratch

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[dict[str, Any]]:
        table = pa.Table.from_batches(list(element[1]))
        counts = Counts(table.column("hash").to_numpy(), table.column("documents").to_numpy())
        path = f"{self.scratch}/frequent/{element[0]}.npy"
        store.write_array(path, repeated_lines.frequent(repeated_lines.merge([counts]), self.count))
        yield {"path": path, "rows": table.num_rows}


@dataclass(frozen=True)
class RepeatedWords:
    """Finds the spans of words that stand in the file of a split."""

    paths: Mapping[int, str]

    def of(self, number: int) -> Callable[[Batch], Cuts]:
        table = store.read_table(self.paths[number]).combine_chunks()
        spans = table.column("spans").combine_chunks()
        start, end = spans.values.field("start").to_numpy(), spans.values.field("end").to_numpy()
        offsets = spans.offsets.to_numpy()
        document = word = 0  # where the next batch begins

        def find(batch: Batch) -> Cuts:
            nonlocal document, word
            mine = offsets[document : document + len(batch) + 1]
            some = slice(mine[0], mine[-1])
            cuts = cuts_of(TokenSpans(start[some] - word, end[some] - word, mine - mine[0]), batch)
            document, word = document + len(batch), word + len(batch.words)
            return cuts

        return find


def _substring(work: _Work, method: Substring) -> RepeatedWords:
    """Find the repeats among the words of all splits; spans of each are in the files of what is returned."""
    made = work.graph("read words", WriteWords(work))
    words = np.empty(sum(record["words"] for record in made), np.uint64)
    lengths, ids, filled = [np.empty(0, np.int64)], [pa.array([], pa.large_string())], 0
    for record in made:
        words[filled : filled + record["words"]] = store.read_array(record["path"])
        filled += record["words"]
        documents = store.read_table(record["documents"])
        lengths.append(documents.column("words").to_numpy())
        ids += documents.column("id").chunks
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    rank = ranks(pa.concat_arrays(ids), np.arange(len(offsets) - 1))
    spans = repeated_spans(words, offsets, rank, method.tokens)
    paths, first = {}, 0
    for record, own in zip(made, lengths[1:], strict=True):
        mine = spans.offsets[first : first + len(own) + 1]
        some, shift = slice(mine[0], mine[-1]), offsets[first]
        cuts = Cuts(spans.start[some] - shift, spans.end[some] - shift, mine - mine[0])
        paths[record["number"]] = f"{work.scratch}/spans/{record['number']}.parquet"
        store.write_sidecar(paths[record["number"]], "", pa.table({"spans": cuts.arrow()}), {})
        first += len(own)
    return RepeatedWords(paths)


class WriteWords(beam.DoFn):
    """(number, split) -> record of its files: hashes of the words; id and number of words of each document."""

    def __init__(self, work: _Work) -> None:
        self.tables, self.where, self.scratch = work.tables, work.where, work.scratch

    def process(self, element: tuple[int, Split]) -> Iterator[dict[str, Any]]:
        number, split = element
        words, documents = [np.empty(0, np.uint64)], []
        for found, counts in _chosen(self.tables, split, self.where):
            batch = Batch(found.filter(pa.array(counts)), text=self.tables.text)
            words.append(batch.word_hashes)
            ids = batch.records.column("id")
            documents.append(pa.table({"id": ids, "words": np.diff(batch.words.offsets).astype(np.int64)}))
        empty = pa.table({"id": pa.array([], pa.large_string()), "words": pa.array([], pa.int64())})
        paths = [f"{self.scratch}/words/{number}.{kind}" for kind in ("npy", "parquet")]
        store.write_array(paths[0], np.concatenate(words))
        store.write_sidecar(paths[1], "", pa.concat_tables([empty, *documents]), {})
        yield {"number": number, "path": paths[0], "documents": paths[1], "words": sum(map(len, words))}
