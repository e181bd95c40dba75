"""Reading a split: record batches of bounded bytes, and which of their rows are documents.

Admission is a pure function of the shard and the recipe's policy, so no step writes the text again: every step that needs
it reads the same documents with the same repairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipelines import store
from pipelines.shards import Split
from transforms.draws import mix64

BATCH_BYTES = 16 << 20
BATCH_ROWS = 8192
INDEX = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("repaired", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("characters", pa.int64(), nullable=False),
    ]
)


class Admission(BaseModel):
    """What to do with text that is not clean: repair it (U+FFFD for invalid bytes, NULs removed) or drop the row."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    invalid_utf8: Literal["repair", "drop"] = "repair"
    nul: Literal["repair", "drop"] = "repair"


class CorruptSplitError(Exception):
    """A row group could not be decoded although its shard's footer could."""


@dataclass(frozen=True)
class Read:
    """One batch as read: `documents` (every wanted column, text as large_string, `id`, `row`) and the index of all rows."""

    documents: pa.RecordBatch
    index: pa.RecordBatch

    def dropped(self) -> dict[str, int]:
        return _tally(self.index.column("status"), "ok")

    def repaired(self) -> dict[str, int]:
        return _tally(self.index.column("repaired"), "")


def _tally(column: pa.Array, other_than: str) -> dict[str, int]:
    counts = pc.value_counts(column)
    pairs = zip(counts.field("values"), counts.field("counts"), strict=True)  # a handful of reasons, not rows
    return {str(v): int(str(c)) for v, c in pairs if str(v) != other_than}


def read(split: Split, text: str, policy: Admission, columns: list[str] | None = None) -> Iterator[Read]:
    """Every row of a split in order, as batches of about 16 MB of text or 8,192 rows, whichever is less.

    Args:
        columns: those wanted besides id and text; None for all there are.

    Raises:
        CorruptSplitError: a page could not be read or decoded.
    """
    row = split.first_row
    size = max(1, min(BATCH_ROWS, split.rows * BATCH_BYTES // max(split.text_bytes, 1)))
    groups = list(range(split.first_group, split.first_group + len(split.groups)))
    try:
        with store.open_read(split.path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            present = parquet.schema_arrow.names
            wanted = None if columns is None else [c for c in dict.fromkeys(["id", text, *columns]) if c in present]
            for batch in parquet.iter_batches(batch_size=size, row_groups=groups, columns=wanted):
                yield _admit(split, batch, row, text, policy)
                row += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise CorruptSplitError(f"{split.path}, rows from {row}: {type(error).__name__}: {error}") from error
    if row - split.first_row != split.rows:
        raise CorruptSplitError(f"{split.path}: the footer promises {split.rows} rows, {row - split.first_row} could be read")


def _admit(split: Split, batch: pa.RecordBatch, first_row: int, text: str, policy: Admission) -> Read:
    n = batch.num_rows
    raw, missing, status, repaired = _text(batch.column(text), policy)
    status[np.asarray(_blank(raw)) & (status == "ok")] = "blank"
    lengths = pc.binary_length(raw).to_numpy(zero_copy_only=False).astype(np.int64)
    status[(lengths == 0) & ((status == "ok") | (status == "blank"))] = "empty"
    status[missing] = "null"
    rows = np.arange(first_row, first_row + n, dtype=np.int64)
    ids = _ids(batch, split, rows)
    characters = pc.utf8_length(raw).to_numpy(zero_copy_only=False).astype(np.int64)
    index = pa.RecordBatch.from_arrays(
        [pa.array(rows), ids, pa.array(status, pa.string()), pa.array(repaired, pa.string()), pa.array(lengths), pa.array(characters)],
        schema=INDEX,
    )
    others = [name for name in batch.schema.names if name not in ("id", "row", text)]
    documents = pa.RecordBatch.from_arrays(
        [pa.array(rows), ids, raw, *(batch.column(name) for name in others)], names=["row", "id", text, *others]
    )
    keep = status == "ok"
    return Read(documents if keep.all() else documents.filter(pa.array(keep)), index)


def _text(column: pa.Array, policy: Admission) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Valid large_string text without nulls, which rows were null, and the status and repair of each row."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing = column.is_null().to_numpy(zero_copy_only=False)
    raw = pc.fill_null(column.cast(pa.large_binary()), b"")
    status = np.full(len(raw), "ok", dtype=object)
    repaired = np.full(len(raw), "", dtype=object)
    try:
        valid = raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        valid = _repair_utf8(raw, policy, status, repaired)
    nul = pc.match_substring(valid, "\0").to_numpy(zero_copy_only=False)
    if nul.any():
        if policy.nul == "drop":
            status[nul] = "nul"
        else:
            repaired[nul] = np.where(repaired[nul] == "", "nul", "invalid_utf8+nul")
            valid = pc.replace_substring(valid, "\0", "")
    return valid, missing, status, repaired


def _repair_utf8(raw: pa.Array, policy: Admission, status: np.ndarray, repaired: np.ndarray) -> pa.Array:
    """Decode a column that holds at least one invalid value; a rare path, so it may walk the values one by one."""
    texts = []
    for i, value in enumerate(raw.to_pylist()):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError:
            texts.append(value.decode("utf-8", "replace"))
            if policy.invalid_utf8 == "drop":
                status[i] = "invalid_utf8"
            else:
                repaired[i] = "invalid_utf8"
    return pa.array(texts, pa.large_string())


def _blank(text: pa.Array) -> np.ndarray:
    """Texts of white space alone. RE2 stops at the first visible ASCII character, so only the odd rest is looked at whole."""
    doubtful = pc.invert(pc.match_substring_regex(text, r"[!-~]")).to_numpy(zero_copy_only=False)
    if doubtful.any():
        rest = text.filter(pa.array(doubtful))
        doubtful[doubtful] = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rest)), 0).to_numpy(zero_copy_only=False)
    return doubtful


def _ids(batch: pa.RecordBatch, split: Split, rows: np.ndarray) -> pa.Array:
    """The user's ids as strings; where there is none, a 128-bit hash of source, shard name and row in hex."""
    made = _hashed_ids(split, rows)
    if "id" not in batch.schema.names:
        return made
    given = batch.column("id").cast(pa.large_string())
    return pc.coalesce(given, made)


def _hashed_ids(split: Split, rows: np.ndarray) -> pa.Array:
    seed = int(store.digest(split.source, split.shard), 16)
    words = np.empty((len(rows), 2), dtype=">u8")
    for half in range(2):
        words[:, half] = mix64(rows.astype(np.uint64) + np.uint64((seed >> (64 * half)) & (2**64 - 1)))
    text = np.frombuffer(words.tobytes().hex().encode(), dtype=np.uint8)
    offsets = np.arange(0, 32 * len(rows) + 1, 32, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))

