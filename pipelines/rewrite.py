"""Rewriting: documents are given to a rewriter, and what it makes of them becomes documents of a source of their own.

    pieces:     RUN/rewrites/NAME/SOURCE/SPLIT.parquet     what came of each document, also what was refused, and why
    documents:  RUN/rewritten/NAME/SOURCE/SPLIT.parquet    those that are ok, as shards of the source NAME

Originals stay as they are. A new document belongs to the duplicates of its parent: it has the parent's columns of
`dedupe`, so that both fall on the same side of a holdout. Cost: the rewriter's; the text of a split's pieces is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import progress, shards, store
from pipelines.code import code_digest
from pipelines.cuts import CUTS
from pipelines.ledger import PIECES, Record
from pipelines.reading import tally
from pipelines.recipe import RecipeError
from pipelines.shards import Shard, Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Struct, Tables
from sql.expressions import Expression, evaluate
from transforms.batch import Batch
from transforms.rewriters import FAILED, OK, REJECTED, Piece, Rewriter

PIECE = {
    "chunk": pa.int32(),
    "text": pa.large_string(),
    "status": pa.string(),
    "reason": pa.string(),
    "prompt": pa.string(),
    "finish_reason": pa.string(),
    "prompt_tokens": pa.int32(),
    "output_tokens": pa.int32(),
    "seed": pa.int64(),
}
PROVENANCE = pa.struct(
    {"parent": pa.large_string(), "source": pa.string(), "shard": pa.string(), "row": pa.int64()}
    | {"name": pa.string(), "rewriter": pa.string(), "model": pa.string(), "revision": pa.string()}
    | {"sampling": pa.string()}
    | {name: kind for name, kind in PIECE.items() if name not in ("text", "reason")}
)
NOT_CHOSEN = "not chosen"  # documents, which the ledger counts beside what came of the pieces of others
NO_PIECE = "chosen, no piece"
MEASURED = ("token_count", "language_score")  # columns of FineWeb that say something of the text that was replaced
PROMPTS = Path(__file__).parents[1] / "transforms" / "rewriters" / "prompts"


def pieces_type(rewriter: Rewriter) -> pa.StructType:
    """Type of a rewriter's column: `accepted`, pieces that are ok, and all pieces, each with `own` columns of it."""
    own = [pa.field("own", pa.struct(list(rewriter.fields())))] if rewriter.fields() else []
    piece = pa.struct([*(pa.field(name, kind) for name, kind in PIECE.items()), *own])
    return pa.struct([pa.field("accepted", pa.int32()), pa.field("pieces", pa.large_list(piece))])


def new_columns(rewriter: Rewriter, there: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Columns that the rewriter's documents have besides their parents'.

    Args:
        there: columns of the shards, name -> type as text.

    Raises:
        ValueError: one of the shards' has the name, so that it would be replaced or have two types.
    """
    made = {field.name: field.type for field in rewriter.fields()} | {"rewrite": PROVENANCE}
    known = {name.lower(): name for name in there}  # SQL knows no upper and lower case
    for name, kind in made.items():
        if other := known.get(name.lower()):
            raise ValueError(
                f"{rewriter.name} writes a column {name!r} ({kind}), and the shards have {other!r} "
                f"({shards.type_of(there[other])}); rename or drop that of the shards"
            )
    return made


def rewrite(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, rewriter: Rewriter, kept: Sequence[str]
) -> tuple[Struct, list[Shard]]:
    """Write the pieces and the new documents of one rewriter; returns its column and the shards, not yet opened, of its
    source.

    Args:
        name: of the rewriter in the recipe, which is that of its column and of its source.
        kept: columns with a flag `keep` that all hold for what is rewritten, unless the rewriter says `where`.
    """
    try:
        new_columns(rewriter, tables.raw)  # of all shards; before the run, some footers were looked at
    except ValueError as error:
        raise RecipeError(f"rewrite.{name}: {error}") from error
    where = rewriter.where or " AND ".join([*(f"{flags}.keep" for flags in kept), "NOT holdout"])
    where = f"({where}) AND NOT {tables.emptied()}"
    kind = type(rewriter)
    names = {*Expression(where).names, *rewriter.needs, tables.text}
    prompts = PROMPTS / kind.name
    code = [code_digest(__name__), code_digest(kind.__module__)]
    code.append(store.folder_digest(str(prompts)) if prompts.is_dir() else "")
    base = store.digest(name, kind.name, store.content(rewriter), where, tables.base(names), code)
    struct = Struct(f"rewrites/{name}", pieces_type(rewriter), base)
    work = RewriteSplit(tables, name, rewriter, where)
    step = MapSplit(context.run, f"rewrite:{name}", f"{context.run}/{struct.folder}", base, work)
    context.run_splits(f"rewrite {name}", splits, beam.ParDo(step))
    folder = f"{context.run}/rewritten/{name}"
    write = WriteDocuments(replace(tables, structs={**tables.structs, name: struct}), name, rewriter)
    base = store.digest(base, sorted(tables.raw.items()))
    documents = MapSplit(context.run, f"{PIECES}{name}", folder, base, write)
    context.run_splits(f"new documents of {name}", splits, beam.ParDo(documents), copies=True)
    with ThreadPoolExecutor(16) as pool:  # remote run folders are slow to answer
        return struct, list(pool.map(lambda s: shards.at(name, f"{s.source}/{s.name}", s.sidecar(folder)), splits))


@dataclass(frozen=True)
class RewriteSplit:
    """Split -> the pieces of each of its documents; none for those that are not to be rewritten."""

    tables: Tables
    name: str
    rewriter: Rewriter
    where: str

    @cached_property
    def _ready(self) -> Rewriter:
        self.rewriter.setup()
        return self.rewriter

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        table = self.tables.load(split, Expression(self.where).names)
        chosen = evaluate({"chosen": f"coalesce({self.where}, false)"}, table).column("chosen").to_numpy()
        schema = pa.schema({"row": pa.int64(), "id": pa.large_string(), self.name: pieces_type(self.rewriter)})
        made, seen, counted = [], 0, Counter[str]()
        for part in self.tables.read(split, list(self.rewriter.needs)):
            documents = part.documents
            here = chosen[seen : seen + documents.num_rows]
            seen += documents.num_rows
            given = documents.filter(pa.array(here))
            found = self._ready.rewrite(Batch(given, text=self.tables.text)) if given.num_rows else []
            check_pieces(self.rewriter, found, given.num_rows)
            counted.update(told(piece.status, piece.reason) for piece in found)
            silent = given.num_rows - len({piece.document for piece in found})
            counted.update({NOT_CHOSEN: documents.num_rows - given.num_rows, NO_PIECE: silent})
            step = f"rewrite:{self.name}"
            progress.report(self.tables.run, step, split, documents.num_rows, documents.nbytes, part=True)
            column = self._column(found, np.flatnonzero(here), documents.num_rows)
            made.append(pa.record_batch([documents.column("row"), documents.column("id"), column], schema))
        rows = pa.Table.from_batches(made, schema)
        repaired = dict(sorted((+counted).items()))
        return rows, Record.of("", split, seen, rows.num_rows, repaired=repaired, bytes=split.text_bytes)

    def _column(self, pieces: list[Piece], places: np.ndarray, documents: int) -> pa.StructArray:
        """The pieces by document; `places`: of the documents that were rewritten among all of them."""
        kind = pieces_type(self.rewriter)
        of = np.array([piece.document for piece in pieces], np.int64)
        counts = np.bincount(places[of], minlength=documents)
        accepted = np.bincount(places[of], [piece.status == OK for piece in pieces], documents)
        own = {name: [getattr(piece, name) for piece in pieces] for name in PIECE}
        own |= {"own": [dict(piece.extra) for piece in pieces]}
        piece = kind.field("pieces").type.value_type
        values = pa.StructArray.from_arrays([pa.array(own[f.name], f.type) for f in piece], fields=list(piece))
        lists = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]), values)
        return pa.StructArray.from_arrays([pa.array(accepted.astype(np.int32)), lists], fields=list(kind))


def pieces_of(record: Record) -> int:
    """How many pieces the ledger counts of a split's documents."""
    return sum(n for what, n in record.repaired.items() if what not in (NOT_CHOSEN, NO_PIECE))


def told(status: str, reason: str | None) -> str:
    """How the ledger calls what came of a piece: `ok`, `rejected: too short`, `failed: timed out`."""
    return status if reason is None else f"{status}: {reason}"


def check_pieces(rewriter: Rewriter, pieces: Sequence[Piece], documents: int) -> None:
    """Raises ValueError: a rewriter does not keep to its contract."""
    places = [(piece.document, piece.chunk) for piece in pieces]
    if places != sorted(set(places)) or (places and not 0 <= places[0][0] <= places[-1][0] < documents):
        raise ValueError(f"rewriter {rewriter.name!r}: pieces are not in order of document and chunk, each once")
    for piece in pieces:
        if piece.status not in (OK, REJECTED, FAILED) or (piece.reason is None) != (piece.status == OK):
            raise ValueError(f"rewriter {rewriter.name!r}: status {piece.status!r} with reason {piece.reason!r}")
        if piece.status == OK and not (piece.text or "").strip():
            raise ValueError(f"rewriter {rewriter.name!r}: a piece is ok and has no text")


@dataclass(frozen=True)
class WriteDocuments:
    """Split -> the new documents made of it: the columns of their parents, the rewriter's own, and `rewrite`."""

    tables: Tables
    name: str
    rewriter: Rewriter

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        column = self.tables.load(split, {self.name}).column(self.name)
        batches, seen, came, dropped = [], 0, 0, Counter[str]()
        for part in self.tables.read(split):
            found = column.slice(seen, part.documents.num_rows).combine_chunks()
            seen += part.documents.num_rows
            parent, pieces = _flat(found)
            came += pieces.num_rows
            kept, lost = _joined(parent, pieces) if self.rewriter.join else _accepted(parent, pieces)
            dropped.update(lost)
            batches.append(self._documents(split, part.documents, *kept))
        rows = pa.Table.from_batches(batches) if batches else self._empty()
        size = rows.column(self.tables.text).nbytes
        return rows, Record.of("", split, came, rows.num_rows, dropped=dict(sorted(dropped.items())), bytes=size)

    def _documents(
        self, split: Split, documents: pa.RecordBatch, parent: np.ndarray, pieces: pa.RecordBatch
    ) -> pa.RecordBatch:
        own = documents.take(pa.array(parent))
        n, text = own.num_rows, self.tables.text
        ids = [own.column("id"), pa.scalar(self.name, pa.large_string())]
        ids += [] if self.rewriter.join else [pieces.column("chunk").cast(pa.large_string())]
        named = {"parent": own.column("id"), "row": own.column("row")}
        constant = {"source": split.source, "shard": split.shard, "name": self.name}
        constant |= {"rewriter": self.rewriter.name, **self.rewriter.provenance()}
        named |= {name: pa.repeat(pa.scalar(value, pa.string()), n) for name, value in constant.items()}
        named |= {name: pieces.column(name) for name in PIECE if name in PROVENANCE.names}
        provenance = pa.StructArray.from_arrays([named[f.name] for f in PROVENANCE], fields=list(PROVENANCE))
        carried = {name: own.column(name) for name in own.schema.names if name not in ("id", "row", text, *MEASURED)}
        if "row_original" in carried:  # as `reading` calls a column `row` of the shard's own
            carried["row"] = carried.pop("row_original")
        made = {"id": pc.binary_join_element_wise(*ids, pa.scalar(":", pa.large_string())), text: pieces.column("text")}
        extra = {f.name: pc.struct_field(pieces.column("own"), f.name) for f in self.rewriter.fields()}
        return pa.record_batch(carried | made | extra | {"rewrite": provenance})

    def _empty(self) -> pa.Table:
        return pa.table({"id": pa.array([], pa.large_string()), self.tables.text: pa.array([], pa.large_string())})


Sorted = tuple[tuple[np.ndarray, pa.RecordBatch], Counter[str]]  # place of each parent and its piece; pieces left out


def _flat(column: pa.StructArray) -> tuple[np.ndarray, pa.RecordBatch]:
    """The pieces end to end, and the place of the document of each."""
    lists = column.field("pieces")
    return pc.list_parent_indices(lists).to_numpy(), pa.RecordBatch.from_struct_array(lists.flatten())


def _accepted(parent: np.ndarray, pieces: pa.RecordBatch) -> Sorted:
    ok = pc.equal(pieces.column("status"), OK)
    return (parent[ok.to_numpy(zero_copy_only=False)], pieces.filter(ok)), _lost(pieces.filter(pc.invert(ok)))


def _lost(pieces: pa.RecordBatch) -> Counter[str]:
    named = pc.binary_join_element_wise(pieces.column("status"), pieces.column("reason"), ": ")
    return Counter(tally(named, OK))


def _joined(parent: np.ndarray, pieces: pa.RecordBatch) -> Sorted:
    """Documents all of whose pieces are ok, as one piece each."""
    (whole, some), lost = _accepted(parent, pieces)
    broken = np.isin(whole, parent[~pc.equal(pieces.column("status"), OK).to_numpy(zero_copy_only=False)])
    some, whole = some.filter(pa.array(~broken)), whole[~broken]
    first = np.flatnonzero(np.diff(whole, prepend=-1))
    texts = pa.LargeListArray.from_arrays(np.append(first, len(whole)), some.column("text"))
    sums = {name: np.add.reduceat(some.column(name).to_numpy(), first) if len(first) else np.zeros(0, np.int32)
            for name in ("prompt_tokens", "output_tokens")}  # fmt: skip
    made = {name: some.column(name).take(pa.array(first)) for name in some.schema.names}
    made |= {"text": pc.binary_join(texts, pa.scalar("\n\n", pa.large_string()))}
    made |= {name: pa.array(values, pa.int32()) for name, values in sums.items()}
    made |= {name: pa.nulls(len(first), PIECE[name]) for name in ("chunk", "seed")}
    lost.update({"of a document with a piece that is not ok": int(broken.sum()), "joined": len(whole) - len(first)})
    return (whole[first], pa.record_batch(made)), +lost


@dataclass(frozen=True)
class Inherit:
    """Split of new documents -> one column of their parents', in whose cuts there is nothing to cut."""

    tables: Tables
    name: str
    parents: Mapping[str, Split]  # by the name of the shard of their new documents

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        struct = self.tables.structs[self.name]
        index = store.read_table(split.sidecar(f"{self.tables.run}/index"))
        index = index.filter(pc.equal(index.column("status"), OK))
        part = struct.folder.partition("/")[0]
        column = pa.nulls(index.num_rows, struct.type)
        if part != "rewrites" and index.num_rows:
            column = self._of_parents(split, index.column("row"), struct)
        if part == "cuts":
            column = _uncut(column)
        schema = pa.schema({"row": pa.int64(), "id": pa.large_string(), self.name: struct.type})
        rows = pa.table([index.column("row"), index.column("id"), column], schema=schema)
        return rows, Record.of("", split, rows.num_rows, rows.num_rows)

    def _of_parents(self, split: Split, rows: pa.ChunkedArray, struct: Struct) -> pa.StructArray:
        with store.open_read(split.path) as file:
            parents = pq.ParquetFile(file).read(columns=["rewrite.row"]).column("rewrite").combine_chunks().field("row")
        held = store.read_table(self.parents[split.shard].sidecar(f"{self.tables.run}/{struct.folder}"))
        places = pc.index_in(parents.take(rows.combine_chunks()), held.column("row").combine_chunks())
        return held.column(2).take(places).combine_chunks()


def _uncut(column: pa.StructArray) -> pa.StructArray:
    """The same without anything to cut; what else a method of clean says of a document stays."""
    n = len(column)
    spans = pa.LargeListArray.from_arrays(np.zeros(n + 1, np.int64), pa.array([], CUTS.field("spans").type.value_type))
    own = {"spans": spans, "removed": pa.array(np.zeros(n, np.int64))}
    columns = [own.get(field.name, column.field(k)) for k, field in enumerate(column.type)]
    return pa.StructArray.from_arrays(columns, fields=list(column.type))


def inherit(context: Context, tables: Tables, splits: Sequence[Split], originals: Sequence[Split]) -> None:
    """Give the new documents of all rewriters the columns that their parents have of `dedupe`, `clean` and `rewrite`.

    The records stand with those of the steps that made the columns.
    """
    parents = {f"{split.source}/{split.name}": split for split in originals}
    for name, struct in tables.structs.items():
        part = struct.folder.partition("/")[0]
        if part not in ("dedupe", "cuts", "rewrites"):
            continue
        work = Inherit(tables, name, parents)
        step = MapSplit(context.run, f"inherit:{name}", f"{context.run}/{struct.folder}", struct.base, work)
        context.run_splits(f"columns of parents ({name})", splits, beam.ParDo(step), text=False)
