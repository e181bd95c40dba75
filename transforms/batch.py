"""A record batch and what its scorers share: bytes, lines, words and their hashes, each computed once, when asked for.

The bytes are those of Arrow, not a copy. Words take 16 bytes each with their hashes, lines too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Spans:
    """Pieces of the documents of a batch, in order."""

    start: np.ndarray  # int32 [pieces], byte offset into Batch.bytes
    end: np.ndarray  # int32 [pieces]
    offsets: np.ndarray  # int64 [documents + 1]: the pieces of document i are offsets[i]:offsets[i + 1]

    def __len__(self) -> int:
        return len(self.start)


def _text_column(records: pa.RecordBatch, name: str) -> pa.LargeStringArray:
    """The named column as large_string without nulls."""
    at = records.schema.get_all_field_indices(name)
    if len(at) != 1:
        raise KeyError(f"{len(at)} columns are named {name!r}; the batch needs one. It has {records.schema.names}")
    column = records.column(at[0])
    if column.type not in (pa.string(), pa.large_string(), pa.string_view()):
        raise TypeError(f"column {name!r} is {column.type}; expected string, large_string or string_view")
    if column.null_count:
        raise ValueError(f"column {name!r} holds {column.null_count} nulls; drop or fill those rows before")
    return column if column.type == pa.large_string() else pc.cast(column, pa.large_string())


class Batch:
    """Documents in columns.

    Args:
        records: a record batch, possibly a slice; every column is kept.
        text: name of the column of texts (string, large_string or string_view; valid UTF-8, no nulls).

    Raises:
        KeyError: no such column, or several. TypeError: it holds no strings. ValueError: it holds nulls or 2 GiB.
    """

    def __init__(self, records: pa.RecordBatch, text: str = "text") -> None:
        self.records = records
        self.text = _text_column(records, text)
        if self.offsets[-1] >= 2**31:
            raise ValueError(f"the batch holds {self.offsets[-1]} bytes of text; split it below {2**31}")

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 [documents + 1]: Arrow's offsets, which need not start at 0."""
        buffer = self.text.buffers()[1]
        if buffer is None or buffer.size == 0:
            return np.zeros(1, np.int64)
        return np.frombuffer(buffer, np.int64)[self.text.offset : self.text.offset + len(self.text) + 1]

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [documents + 1] into `bytes`."""
        return self._places - self._places[0]

    @cached_property
    def bytes(self) -> np.ndarray:
        """uint8: the texts end to end, a view of Arrow's buffer."""
        buffer = self.text.buffers()[2]
        if buffer is None:
            return np.zeros(0, np.uint8)
        return np.frombuffer(buffer, np.uint8)[self._places[0] : self._places[-1]]

    @cached_property
    def characters(self) -> np.ndarray:
        """int64 [documents]: code points."""
        from transforms.text import count_characters

        return count_characters(self.bytes, self.offsets[:-1], self.offsets[1:])

    @cached_property
    def lines(self) -> Spans:
        r"""Pieces between "\n"; an empty document has one empty line."""
        from transforms.text import split_lines

        return Spans(*split_lines(self.bytes, self.offsets))

    @cached_property
    def words(self) -> Spans:
        """Words and punctuation marks, close to spaCy's English tokens; white space belongs to none."""
        from transforms.characters import classes
        from transforms.words import split_words, tables

        return Spans(*split_words(self.bytes, self.offsets, classes(), *tables()))

    @cached_property
    def line_hashes(self) -> np.ndarray:
        """uint64 [lines]."""
        from transforms.text import hash_pieces

        return hash_pieces(self.bytes, self.lines.start, self.lines.end)

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """uint64 [words]."""
        from transforms.text import hash_pieces

        return hash_pieces(self.bytes, self.words.start, self.words.end)
