"""Evaluation items in documents: how much of a document overlaps them, and which item by which n-gram.

Costs about 20 ms per MB of documents, and 18 bytes of memory per n-gram of the items in every worker process.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from scorers import Scorer
from transforms.batch import Batch
from transforms.decontaminate import FIELDS, Index, build

log = logging.getLogger("corpusmill")
NAMED = 20  # items that a warning names


class Decontaminate(Scorer):
    """Overlap with evaluation items by n-grams of folded words (see `transforms.decontaminate`; Brown et al. 2020).

    `items`: a Parquet or JSONL file, or a folder of them, one row per item. `columns` hold its text, joined by line
    ends; `id` names it, and where there is no such column, file and row do. Items of fewer than `shortest` words are
    not looked for; a warning names them.
    """

    name: ClassVar[str] = "decontaminate"
    items: Path
    columns: tuple[str, ...] = Field(("text",), min_length=1)
    id: str = "id"
    n: int = Field(13, ge=1)
    shortest: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _readable(self) -> Decontaminate:
        if self.shortest > self.n:
            raise ValueError(f"shortest={self.shortest} is more than n={self.n}; give at most n")
        short = self._index.too_short
        if len(short):
            few = ", ".join(short[:NAMED].to_pylist()) + (", …" if len(short) > NAMED else "")
            of = f"{len(short)} of {len(self._index.ids)} items have fewer than {self.shortest} words"
            log.warning("%s: %s and are not looked for: %s", self.items, of, few)
        return self

    def fields(self) -> pa.StructType:
        unit = {"unit": "share of the document's words inside matched n-grams"}
        return pa.struct([FIELDS[0].with_metadata(unit), FIELDS[1]])

    @cached_property
    def _index(self) -> Index:
        tables = [_items(file, self.columns, self.id) for file in _files(self.items)]
        table = pa.concat_tables(tables).combine_chunks()
        if not table.num_rows:
            raise ValueError(f"{self.items} holds no items; give a file with one row per evaluation item")
        batch = Batch(table.select(["text"]).to_batches()[0])
        return build(batch, table.column("id").combine_chunks(), self.n, self.shortest)

    def setup(self) -> None:
        _ = self._index

    def score(self, batch: Batch) -> pa.StructArray:
        found = self._index.match(batch)
        return pa.StructArray.from_arrays(found.flatten(), fields=list(self.fields()))


def _files(path: Path) -> list[Path]:
    """The files with items, in order of name."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".jsonl")) if path.is_dir() else []
    if not found:
        raise ValueError(f"no evaluation items at {path}; give a .parquet or .jsonl file, or a folder with some")
    return found


def _items(file: Path, columns: tuple[str, ...], name: str) -> pa.Table:
    """id and text (large_string, no nulls) of the items of one file. Raises ValueError naming the file."""
    table = _table(file)
    for column in columns:
        if column not in table.column_names:
            there = ", ".join(table.column_names) or "none"
            raise ValueError(f"{file} has no text column {column!r}; its columns are {there}: name one in `columns`")
        kind = table.schema.field(column).type
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise ValueError(f"{file}: column {column!r} is {kind}; items are looked for by columns of strings")
    texts = [pc.fill_null(table.column(column).cast(pa.large_string()), "") for column in columns]
    made = pa.array([f"{file.stem}:{row}" for row in range(table.num_rows)], pa.large_string())
    ids = pa.chunked_array([made])
    if name in table.column_names:
        try:
            ids = pc.coalesce(table.column(name).cast(pa.large_string()), ids)
        except pa.ArrowException as error:
            raise ValueError(f"{file}: column {name!r} cannot name items: {error}") from error
    return pa.table({"id": ids, "text": pc.binary_join_element_wise(*texts, pa.scalar("\n", pa.large_string()))})


def _table(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        import polars

        return polars.read_ndjson(file, infer_schema_length=None).to_arrow()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix or 'JSONL'}: {error}") from error
    except Exception as error:  # polars' own, which share no base class with the others
        raise ValueError(f"{file} is not JSONL, one object per line: {error}") from error
