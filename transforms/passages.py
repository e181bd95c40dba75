"""Documents cut into passages: runs of whole sentences or lines, for models that read little at a time.

Cost: that of counting the tokens of every sentence and of every passage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numba import njit

from transforms.batch import Batch, Spans
from transforms.characters import classes
from transforms.sentences import sentences
from transforms.text import split_lines, strip

Unit = Literal["sentences", "lines"]


class Passages(NamedTuple):
    """Passages of documents, in order, without the white space at their ends."""

    document: np.ndarray  # int64 [passages], place in the batch
    number: np.ndarray  # int64 [passages], within the document, from 0
    start: np.ndarray  # int64 [passages], bytes from the beginning of the document
    end: np.ndarray  # int64 [passages]
    tokens: np.ndarray  # int64 [passages]
    texts: list[str]


def passages(batch: Batch, unit: Unit, most: int, lengths: Callable[[Sequence[str]], np.ndarray]) -> Passages:
    """Each document as runs of whole sentences or lines, as long as `most` tokens allow. One that has more is a passage
    of its own; what holds white space alone is in none.

    Args:
        lengths: tokens of each of some texts, int64.
    """
    pieces = sentences(batch) if unit == "sentences" else lines(batch)
    data = batch.bytes.tobytes()

    def texts(start: np.ndarray, end: np.ndarray) -> list[str]:
        return [data[a:b].decode() for a, b in zip(start, end, strict=True)]

    first = group(lengths(texts(pieces.start, pieces.end)), pieces.offsets, most)
    while True:  # tokens of a passage need not be the sum of those of its pieces
        stop = np.append(first, len(pieces))[1:]
        start, end = strip_spans(batch.bytes, pieces.start[first], pieces.end[stop - 1], classes())
        found = texts(start, end)
        tokens = lengths(found)
        over = (tokens > most) & (stop - first > 1)
        if not over.any():
            break
        first = np.sort(np.concatenate([first, (first[over] + stop[over]) // 2]))
    filled = start < end
    document = np.searchsorted(batch.offsets, start, "right")[filled] - 1
    number = np.arange(len(document)) - np.searchsorted(document, document)
    base = batch.offsets[document]
    spans = (start[filled] - base, end[filled] - base)
    return Passages(document, number, *spans, tokens[filled], [text for text in found if text])


@njit(cache=True, nogil=True)
def group(tokens: np.ndarray, offsets: np.ndarray, most: int) -> np.ndarray:
    """int64: the first piece of each passage, where pieces of so many tokens fill passages from left to right, at most
    `most` tokens each. None reaches over documents, whose pieces are offsets[d]:offsets[d + 1].
    """
    first, n = np.empty(tokens.size, np.int64), 0
    for d in range(offsets.size - 1):
        held = 0
        for i in range(offsets[d], offsets[d + 1]):
            if i == offsets[d] or held + tokens[i] > most:
                first[n] = i
                n, held = n + 1, 0
            held += tokens[i]
    return first[:n].copy()


@njit(cache=True, nogil=True)
def strip_spans(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [spans] each: the spans without the white space at their ends."""
    first, last = np.empty(start.size, np.int64), np.empty(start.size, np.int64)
    for i in range(start.size):
        first[i], last[i] = strip(data, start[i], end[i], classes)
    return first, last


def lines(batch: Batch) -> Spans:
    r"""Lines with the "\n" that ends them; end to end they are the text. An empty document has none."""
    start, end, offsets = split_lines(batch.bytes, batch.offsets)
    last = np.zeros(len(start), np.bool_)
    last[offsets[1:] - 1] = True
    end = np.where(last, end, end + 1).astype(np.int32)
    filled = start < end
    return Spans(start[filled], end[filled], np.concatenate([[0], np.cumsum(filled)])[offsets])
