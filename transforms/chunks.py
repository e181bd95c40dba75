"""Documents cut into chunks of tokens that fit the window of a model.

A document is tokenised once; chunks are slices of its tokens, each with the special tokens that the tokenizer puts
around a text. Nothing is decoded and tokenised again, so no chunk can grow. What is read of a document is bounded:
about CHARACTERS characters for each token that its chunks can hold; what no chunk holds is counted.
Cost: about 1 MB/s, and 100 bytes of memory per byte for half a MB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.pieces import groups

Sections = Literal["whole", "beginning", "top_middle_bottom"]
CHARACTERS = 16  # read of a long document for each token of a chunk; few texts have so many to a token


@dataclass(frozen=True)
class Chunks:
    """Chunks of documents, in order, special tokens included."""

    ids: np.ndarray  # int32, the chunks end to end
    offsets: np.ndarray  # int64 [chunks + 1] into ids
    counts: np.ndarray  # int64 [documents], chunks of each; 0 where a text has no tokens
    tokens: np.ndarray  # int64 [documents], in their chunks, special tokens not counted
    unread: np.ndarray  # int64 [documents], characters in no chunk

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, documents: np.ndarray) -> Chunks:
        """The chunks of some documents (int, ascending)."""
        first = np.concatenate([[0], np.cumsum(self.counts)])
        wanted = np.concatenate([np.arange(first[d], first[d + 1]) for d in documents] or [np.zeros(0, np.int64)])
        parts = [self.ids[self.offsets[c] : self.offsets[c + 1]] for c in wanted]
        chosen = (self.counts[documents], self.tokens[documents], self.unread[documents])
        return Chunks(*_flat(parts), *chosen)


class Chunker:
    """Cuts texts by the tokenizer of a model folder. Threads may share it.

    Args:
        window: tokens of a chunk at most, special tokens included.

    Raises:
        ValueError: the window has no room beside the special tokens, or these need segments (`token_type_ids`).
    """

    def __init__(self, folder: Path, window: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        probe = self.tokenizer.encode("a", add_special_tokens=True)
        if any(probe.type_ids):
            raise ValueError(f"{folder}: its tokenizer puts single texts into a second segment, which is not supported")
        special = np.array(probe.special_tokens_mask, bool)
        content = np.flatnonzero(~special)
        first, last = (content[0], content[-1] + 1) if len(content) else (len(special) // 2,) * 2
        self.prefix, self.suffix = np.array(probe.ids, np.int32)[:first], np.array(probe.ids, np.int32)[last:]
        around = len(self.prefix) + len(self.suffix)
        self.room = window - around
        if self.room < 1:
            raise ValueError(f"{folder}: a window of {window} tokens has no room beside {around} special tokens")

    def special(self) -> set[int]:
        """Ids that never stand in the middle of a text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {*self.prefix.tolist(), *self.suffix.tolist(), *(i for i, token in added.items() if token.special)}

    def cut(self, texts: pa.LargeStringArray, sections: Sections, most: int) -> Chunks:
        """Chunks of each text (no nulls), at most `most` of a document.

        `whole`: as few chunks as hold the text, of equal length within one token, so that none is a mere scrap; of a
        text that needs more than `most`, the first `most` full ones. `beginning`: the first chunk, from the first
        character on that is no white space. `top_middle_bottom`: full chunks at the start, about the middle and at the
        end; of a text of at most two chunks the first and the last (they may overlap), of a text of one chunk that one
        alone.

        Of a text that holds more than white space and yet gets no chunk, all characters are unread.
        """
        lengths = pc.utf8_length(texts)
        blanks = pc.subtract(lengths, pc.utf8_length(pc.utf8_ltrim_whitespace(texts))).to_pylist()
        lengths, stretch = lengths.to_pylist(), self.room * CHARACTERS
        documents = [list(_stretches(*d, sections, stretch, most)) for d in zip(lengths, blanks, strict=True)]
        whole = (text.as_py() for text in texts)  # one at a time: a long one is dropped when its sections are cut out
        strings = (text[a:b] for text, found in zip(whole, documents, strict=True) for a, b in found)
        tokens = _tokenised(self.tokenizer, pa.array(strings, pa.large_string()))
        parts: list[np.ndarray] = []
        counts, read, unread = (np.zeros(len(documents), np.int64) for _ in range(3))
        for d, (found, length, blank) in enumerate(zip(documents, lengths, blanks, strict=True)):
            held, known = 0, 0
            for number, (a, b) in enumerate(found):
                ids, starts = next(tokens)
                places = np.append(starts, b - a) + a
                for first, stop in _ranges(len(ids), number, len(found), sections, self.room, most):
                    parts.append(np.concatenate([self.prefix, ids[first:stop], self.suffix]))
                    counts[d] += 1
                    read[d] += stop - first
                    begin, end = places[first] if first else a if number else 0, places[stop]
                    held, known = held + max(0, end - max(begin, known)), max(known, end)
            unread[d] = length - held if counts[d] or blank < length else 0
        return Chunks(*_flat(parts), counts, read, unread)


def _stretches(length: int, blank: int, sections: Sections, stretch: int, most: int) -> Iterator[tuple[int, int]]:
    """The characters of a document that are tokenised, from and to; `blank` is the white space it begins with."""
    if sections == "top_middle_bottom":
        if length > 3 * stretch:
            middle = (length - stretch) // 2
            yield from ((0, stretch), (middle, middle + stretch), (length - stretch, length))
            return
        most = 3
    if sections == "beginning":
        start = blank if blank < length else 0
        yield start, min(length, start + stretch)
    else:
        yield 0, min(length, stretch * most)


def _ranges(
    count: int, stretch: int, stretches: int, sections: Sections, room: int, most: int
) -> list[tuple[int, int]]:
    """From and to of the chunks among the `count` tokens of one stretch of a document."""
    if not count:
        return []
    if sections == "beginning":
        return [(0, min(count, room))]
    if sections == "whole":
        pieces = -(-count // room)
        if pieces > most:
            return [(k * room, (k + 1) * room) for k in range(most)]
        return [(k * count // pieces, (k + 1) * count // pieces) for k in range(pieces)]
    size = min(count, room)
    middle = (count - size) // 2
    sought = [(0, size), (middle, middle + size), (count - size, count)]
    if stretches == 3:
        return [sought[stretch]]
    return sought[:1] if count <= room else [sought[0], sought[2]] if count <= 2 * room else sought


def _tokenised(tokenizer: Any, stretches: pa.LargeStringArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """int32 ids and int64 first characters of the tokens of each stretch, in order."""
    ids: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    at, base = 0, 0
    for numbers, pieces in groups(stretches):
        for number, piece, found in zip(
            numbers, pieces, tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True
        ):
            if number != at:
                yield np.concatenate(ids), np.concatenate(starts)
                ids, starts, at, base = [], [], number, 0
            ids.append(np.array(found.ids, np.int32))
            starts.append(np.fromiter((first for first, _ in found.offsets), np.int64, len(found)) + base)
            base += len(piece)
    if ids:
        yield np.concatenate(ids), np.concatenate(starts)


def _flat(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts], dtype=np.int64)]).astype(np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, np.int32)), offsets
