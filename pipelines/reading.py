"""Reading a split: record batches of bounded bytes, and which of their rows are documents.

Admission is a pure function of the shard and the recipe's policy, so no step writes the text again: every step that
needs it reads the same documents with the same repairs. Batches take 16 MB whatever the lengths. A text column may hold
conversations: what is said in them is their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipelines import store
from pipelines.shards import Split, is_text
from transforms.conversations import contents, is_conversation
from transforms.draws import mix64

BATCH_BYTES = 16 << 20
BATCH_ROWS = 8192
STEP_ROWS = 256  # decoded at once: footers do not tell how long texts are that a dictionary holds once
STATUS = ("ok", "null", "empty", "blank", "invalid_utf8", "nul")
OK, NULL, EMPTY, BLANK, INVALID, NUL = range(6)
REPAIRED = ("", "invalid_utf8", "nul", "invalid_utf8+nul")  # bit 1: invalid UTF-8, bit 2: NULs
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
    """What to do with text that is not clean: repair it (U+FFFD for invalid bytes, no NULs) or drop the row."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    invalid_utf8: Literal["repair", "drop"] = "repair"
    nul: Literal["repair", "drop"] = "repair"


class CorruptSplitError(Exception):
    """A row group could not be decoded although its shard's footer could."""


@dataclass(frozen=True)
class Read:
    """One batch: `documents` (every wanted column, text as large_string, `id`, `row`) and the index of all its rows."""

    documents: pa.RecordBatch
    index: pa.RecordBatch

    def dropped(self) -> dict[str, int]:
        return tally(self.index.column("status"), "ok")

    def repaired(self) -> dict[str, int]:
        return tally(self.index.column("repaired"), "")


def tally(column: pa.Array, other_than: str) -> dict[str, int]:
    """How often each value stands in a column of text, but for one."""
    counts = pc.value_counts(column)
    pairs = zip(counts.field("values"), counts.field("counts"), strict=True)  # a handful of reasons, not rows
    return {str(v): int(str(c)) for v, c in pairs if str(v) != other_than}


def read(split: Split, text: str, policy: Admission, columns: list[str] | None = None) -> Iterator[Read]:
    """Every row of a split in order, as batches of at most 16 MB (or one document) and 8,192 rows.

    A column `row` of the shard's own is given as `row_original`, and a text column of conversations, as it is, as
    `<text>_original`.

    Args:
        columns: those wanted besides id and text; None for all there are, and conversations as they are.

    Raises:
        CorruptSplitError: a page could not be read or decoded.
    """
    row = split.first_row
    for batch in _bounded(_decoded(split, text, columns), text):
        yield _admit(split, batch, row, text, policy)
        row += batch.num_rows


def _decoded(split: Split, text: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """All rows as they are in the shard, a few at a time; pages with a checksum are checked."""
    seen = 0
    size = max(1, min(STEP_ROWS, split.rows * BATCH_BYTES // max(split.text_bytes, 1)))
    groups = list(range(split.first_group, split.first_group + len(split.groups)))
    try:
        with store.open_read(split.path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            present = parquet.schema_arrow.names
            wanted = None if columns is None else [c for c in dict.fromkeys(["id", text, *columns]) if c in present]
            for batch in parquet.iter_batches(batch_size=size, row_groups=groups, columns=wanted):
                seen += batch.num_rows
                yield _said(batch, text, keep=columns is None)
    except (OSError, pa.ArrowException) as error:
        at = split.first_row + seen
        raise CorruptSplitError(f"{split.path}, rows from {at}: {type(error).__name__}: {error}") from error
    if seen != split.rows:
        raise CorruptSplitError(f"{split.path}: the footer promises {split.rows} rows, {seen} could be read")


def _said(batch: pa.RecordBatch, text: str, keep: bool) -> pa.RecordBatch:
    """The batch with the text of its conversations, if these stand where text should; `keep`: and with themselves."""
    column = batch.column(text)
    if not is_conversation(column.type):
        return batch
    batch = batch.set_column(batch.schema.get_field_index(text), text, contents(column))
    return batch.append_column(f"{text}_original", column) if keep else batch


def _bounded(batches: Iterable[pa.RecordBatch], text: str) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most BATCH_BYTES (or one row) and BATCH_ROWS."""
    held: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        ends = np.concatenate([[0], np.cumsum(_bytes(batch, text))])
        at = 0
        while at < batch.num_rows:
            fits = int(np.searchsorted(ends, ends[at] + BATCH_BYTES - size, side="right")) - 1
            stop = max(at + (not held), min(fits, at + BATCH_ROWS - rows))
            if stop > at:
                held.append(batch.slice(at, stop - at))
                size, rows, at = size + int(ends[stop] - ends[at]), rows + stop - at, stop
            if at < batch.num_rows or rows == BATCH_ROWS:
                yield _joined(held)
                held, size, rows = [], 0, 0
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _bytes(batch: pa.RecordBatch, text: str) -> np.ndarray:
    """int64 [rows]: bytes of each text once decoded, and an equal share of the other columns."""
    column = batch.column(text)
    if pa.types.is_dictionary(column.type):
        lengths = _lengths(column.dictionary.cast(pa.large_binary())).take(column.indices)
    else:
        lengths = _lengths(column.cast(pa.large_binary()))
    others = sum(batch.column(n).nbytes for n in batch.schema.names if n != text) // max(batch.num_rows, 1)
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False) + others


def _lengths(column: pa.Array) -> pa.Array:
    return pc.binary_length(column).cast(pa.int64())


def _admit(split: Split, batch: pa.RecordBatch, first_row: int, text: str, policy: Admission) -> Read:
    valid, status, repaired = _text(batch.column(text), policy)
    lengths = _lengths(valid)
    status[(status == OK) & _blank(valid)] = BLANK
    status[(status == BLANK) & (lengths.to_numpy() == 0)] = EMPTY
    keep = status == OK
    repaired[~keep] = 0
    rows = pa.array(np.arange(first_row, first_row + batch.num_rows, dtype=np.int64))
    ids = _ids(batch, split, rows.to_numpy())
    characters = pc.utf8_length(valid).cast(pa.int64())
    named = [rows, ids, _named(status, STATUS), _named(repaired, REPAIRED), lengths, characters]
    index = pa.RecordBatch.from_arrays(named, schema=INDEX)
    others = {name: batch.column(name) for name in batch.schema.names if name not in ("id", text)}
    if "row" in others:
        others["row_original"] = others.pop("row")
    documents = pa.record_batch({"row": rows, "id": ids, text: valid, **others})
    return Read(documents if keep.all() else documents.filter(pa.array(keep)), index)


def _named(codes: np.ndarray, names: tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names)).cast(pa.string())


def _text(column: pa.Array, policy: Admission) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Valid large_string text without nulls, and codes of the status and repair of each row, int8 [rows]."""
    raw = _binary(column)
    status = np.where(raw.is_null().to_numpy(zero_copy_only=False), NULL, OK).astype(np.int8)
    repaired = np.zeros(len(raw), np.int8)
    valid, invalid = _utf8(pc.fill_null(raw, b""))
    if policy.invalid_utf8 == "drop":
        status[invalid] = INVALID
    else:
        repaired[invalid] |= 1
    if _has_nul(valid):
        nul = pc.match_substring(valid, "\0").to_numpy(zero_copy_only=False)
        if policy.nul == "drop":
            status[nul & (status == OK)] = NUL
        else:
            repaired[nul] |= 2
            valid = pc.replace_substring(valid, "\0", "")
    return valid, status, repaired


def _binary(column: pa.Array) -> pa.Array:
    """A column of any type of text as large_binary."""
    return (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).cast(pa.large_binary())


def _utf8(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """large_binary without nulls decoded, U+FFFD for each invalid part; and which rows were invalid, bool [rows]."""
    try:
        return raw.cast(pa.large_string()), np.zeros(len(raw), bool)
    except pa.ArrowInvalid:  # at least one is invalid; Arrow does not say which, so one by one (about 1 µs each)
        values = raw.to_pylist()
        texts = [value.decode("utf-8", "replace") for value in values]
        invalid = [i for i, text in enumerate(texts) if "\ufffd" in text and not _is_utf8(values[i])]
        mask = np.zeros(len(raw), bool)
        mask[invalid] = True
        return pa.array(texts, pa.large_string()), mask


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_nul(text: pa.Array) -> bool:
    """Whether there is a zero byte anywhere: one pass over the bytes, an order faster than to search each text."""
    data = text.buffers()[2]
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    if data is None or not len(text) or offsets[0] == offsets[-1]:
        return False
    return not np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].all()


def _blank(text: pa.Array) -> np.ndarray:
    """Texts of white space alone, or empty. RE2 stops at the first visible ASCII; only the odd rest is read whole."""
    doubtful = pc.invert(pc.match_substring_regex(text, r"[!-~]")).to_numpy(zero_copy_only=False)
    if doubtful.any():
        rest = pc.utf8_ltrim_whitespace(text.filter(pa.array(doubtful)))
        doubtful[doubtful] = _lengths(rest).to_numpy() == 0
    return doubtful


def _ids(batch: pa.RecordBatch, split: Split, rows: np.ndarray) -> pa.Array:
    """The user's ids as strings; where there is none, a 128-bit hash of source, shard name and row in hex."""
    made = _hashed_ids(split, rows)
    if "id" not in batch.schema.names:
        return made
    given = batch.column("id")
    kind = given.type.value_type if pa.types.is_dictionary(given.type) else given.type
    if not is_text(kind):
        return pc.coalesce(given.cast(kind).cast(pa.large_string()), made)
    raw = _binary(given)
    return pc.if_else(raw.is_null(), made, _utf8(pc.fill_null(raw, b""))[0])


def _hashed_ids(split: Split, rows: np.ndarray) -> pa.Array:
    seed = int(store.digest(split.source, split.shard), 16)
    words = np.empty((len(rows), 2), dtype=">u8")
    for half in range(2):
        words[:, half] = mix64(rows.astype(np.uint64) + np.uint64((seed >> (64 * half)) & (2**64 - 1)))
    text = np.frombuffer(words.tobytes().hex().encode(), dtype=np.uint8)
    offsets = np.arange(0, 32 * len(rows) + 1, 32, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))
