"""The documents of one split as a table: columns of its shard and its index, and a struct per sidecar, aligned by row.

What select, mix, fits and thresholds evaluate SQL on. Only the columns that an expression names are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import store, unfinished
from pipelines.cuts import read_cut
from pipelines.reading import Admission, Read
from pipelines.shards import Split, type_of
from transforms.draws import below, draws, seeded

INDEX_COLUMNS = {"row": pa.int64(), "id": pa.large_string(), "bytes": pa.int64(), "characters": pa.int64()}
DRAWN = {"draw": pa.uint64(), "holdout": pa.bool_()}


class MisalignedError(Exception):
    """A sidecar does not belong to the rows it should; it is refused rather than joined."""


@dataclass(frozen=True)
class Struct:
    """A struct column that a step has written: its folder in the run, its type, and the base of its files' keys."""

    folder: str
    type: pa.DataType
    base: str


@dataclass(frozen=True)
class Holdout:
    """Documents kept from training: a share of all clusters, so that duplicates fall on the same side."""

    share: float
    method: str  # the dedupe method whose clusters are meant


@dataclass(frozen=True)
class Tables:
    """How to assemble the documents of any split of a run. Picklable: workers hold a copy."""

    run: str
    text: str
    admission: Admission
    seed: int
    raw: Mapping[str, str]  # columns of the shards: name -> type as text
    structs: Mapping[str, Struct] = field(default_factory=dict)
    holdout: Holdout | None = None
    cuts: tuple[str, ...] = ()  # structs whose spans are cut from the text, in the order of their steps

    def schema(self) -> pa.Schema:
        """Every column an expression may name."""
        named = {"source": pa.string(), "shard": pa.string(), **INDEX_COLUMNS, **DRAWN}
        named |= {name: struct.type for name, struct in self.structs.items() if "/" not in name}
        named[self.text] = pa.large_string()
        hidden = {name.lower() for name in named}  # SQL knows no upper and lower case
        raw = {name: type_of(kind) for name, kind in self.raw.items() if name.lower() not in hidden}
        return pa.schema(list({**raw, **named}.items()))

    def base(self, names: Iterable[str]) -> str:
        """What the value of these columns depends on besides the split."""
        names = self._spelled(names)
        if self.text in names:
            names.update(self.cuts)
        held = [self.holdout.share, self.holdout.method] if self.holdout and "holdout" in names else None
        if self.holdout and held:
            names.add(self.holdout.method)
        structs = [(name, struct) for name, struct in sorted(self.structs.items()) if name in names]
        bases = [(name, struct.base + unfinished.mark(self.run, struct.folder)) for name, struct in structs]
        return store.digest(self.text, self.admission.model_dump(), self.seed, held, bases)

    def read(self, split: Split, columns: list[str] | None = None) -> Iterator[Read]:
        """The documents of a split as `reading.read` gives them, without what was cut from them."""
        folders = [self.structs[name].folder for name in self.cuts]
        return read_cut(self.run, split, self.text, self.admission, folders, columns)

    def emptied(self) -> str:
        """SQL: whether cuts have left nothing of a document; one method's then take all of it (`clean.WriteCuts`)."""
        return "(" + (" OR ".join(f"{name}.removed = bytes" for name in self.cuts) or "false") + ")"

    def _spelled(self, names: Iterable[str]) -> set[str]:
        """Names as the columns have them: SQL takes `FineWeb` for `fineweb`."""
        known = {name.lower(): name for name in [*self.structs, *self.schema().names]}
        return {known.get(name.lower(), name) for name in names}

    def load(self, split: Split, names: Iterable[str]) -> pa.Table:
        """The documents of a split with the columns named (those unknown are left to the evaluation to complain about).

        Raises:
            MisalignedError: a sidecar's rows are not those of the index.
        """
        names = self._spelled(names)
        index = store.read_table(split.sidecar(f"{self.run}/index"))
        admitted = pc.equal(index.column("status"), "ok")
        documents = index.filter(admitted)
        columns = {name: documents.column(name) for name in INDEX_COLUMNS}
        columns |= {name: self._struct(split, name, documents) for name in names & self.structs.keys()}
        n = documents.num_rows
        columns |= {"source": pa.repeat(split.source, n), "shard": pa.repeat(split.shard, n)}
        if "draw" in names:
            columns["draw"] = pa.array(draws(self.seed, documents.column("id").combine_chunks()))
        if "holdout" in names:
            columns["holdout"] = self._held(split, documents)
        columns |= self._raw(split, names - columns.keys(), admitted)
        return pa.table(columns)

    def _struct(self, split: Split, name: str, documents: pa.Table) -> pa.ChunkedArray:
        struct = self.structs[name]
        path = split.sidecar(f"{self.run}/{struct.folder}")
        if store.committed(path, store.digest(struct.base, split.identity())) is None:
            raise MisalignedError(f"{path} is missing or of another recipe; run again to compute it")
        sidecar = store.read_table(path)
        if not all(sidecar.column(key).equals(documents.column(key)) for key in ("row", "id")):
            raise MisalignedError(
                f"{self.structs[name].folder}/{split.source}/{split.name}.parquet holds {sidecar.num_rows} rows that "
                f"are not the {documents.num_rows} documents of its split; remove the file and run again"
            )
        return sidecar.column(2)

    def _held(self, split: Split, documents: pa.Table) -> pa.Array:
        if self.holdout is None:
            return pa.array(np.zeros(documents.num_rows, dtype=bool))
        clusters = self._struct(split, self.holdout.method, documents).combine_chunks()
        cluster = clusters.field("cluster").to_numpy(zero_copy_only=False).astype(np.uint64)
        return pa.array(below(seeded(self.seed, cluster), self.holdout.share))

    def _raw(self, split: Split, names: set[str], admitted: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
        wanted = sorted(names & self.raw.keys())
        if self.text in names:
            batches = [r.documents for r in self.read(split, wanted)]
            table = pa.Table.from_batches(batches) if batches else pa.table({self.text: pa.nulls(0, pa.large_string())})
        elif wanted:
            table = self._shard_columns(split, wanted, admitted)
        else:
            return {}
        found = {name: table.column(name) for name in table.column_names if name in names}
        empty = [name for name in wanted if name not in found or pa.types.is_null(found[name].type)]
        return found | {name: pa.nulls(table.num_rows, type_of(self.raw[name])) for name in empty}

    def _shard_columns(self, split: Split, wanted: list[str], admitted: pa.ChunkedArray) -> pa.Table:
        with store.open_read(split.path) as file:
            parquet = pq.ParquetFile(file)
            groups = list(range(split.first_group, split.first_group + len(split.groups)))
            present = [name for name in wanted if name in parquet.schema_arrow.names]
            rows = parquet.read_row_groups(groups, columns=present)
        if not present:
            return pa.table({"_": pa.nulls(pc.sum(admitted).as_py() or 0)})
        return rows.filter(admitted)
