"""Lines and paragraphs that many documents share (navigation, cookie notices, licences): counted, then removed.

Two passes. `count` gives, per batch, how many documents hold each piece; `merge` adds counts up in any order and
`frequent` keeps what goes. `repeats` finds those pieces in a batch and `transforms.cut.cut` removes them. Pieces are
equal when 64 bits of the content hash of their text are, so white space is folded. Blank pieces are never counted.

Cost: 16 bytes per distinct piece while counting; where that does not fit, shuffle the rows of `count` by their hash and
merge each partition on its own. About 100 MB/s per core and pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numba import njit

from transforms.cut import Cuts
from transforms.hashing import hash_spans, space_width

if TYPE_CHECKING:
    from transforms.batch import Batch

Unit = Literal["line", "paragraph"]


class Counts(NamedTuple):
    """Sorted distinct hashes (uint64) and how many documents hold each (int64)."""

    hash: np.ndarray
    documents: np.ndarray


class _Pieces(NamedTuple):
    """Non-blank pieces: their content start:end, where the next piece of the document begins, and their document."""

    start: np.ndarray
    end: np.ndarray
    following: np.ndarray
    document: np.ndarray
    hash: np.ndarray


def count(batch: Batch, unit: Unit = "line", least: int = 1) -> Counts:
    """Documents of the batch that hold each piece of `least` bytes or more; a piece counts once per document."""
    pieces = _pieces(batch, unit)
    long = pieces.end - pieces.start >= least
    hashes, documents = pieces.hash[long], pieces.document[long]
    order = np.lexsort((documents, hashes))
    key, document = hashes[order], documents[order]
    new = np.ones(len(key), bool)
    new[1:] = (key[1:] != key[:-1]) | (document[1:] != document[:-1])
    return Counts(*np.unique(key[new], return_counts=True))


def merge(counts: list[Counts]) -> Counts:
    """Counts of several disjoint sets of documents, added up."""
    if not counts:
        return Counts(np.empty(0, np.uint64), np.empty(0, np.int64))
    keys, place = np.unique(np.concatenate([c.hash for c in counts]), return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, place, np.concatenate([c.documents for c in counts]))
    return Counts(keys, total)


def frequent(counts: Counts, most: int) -> np.ndarray:
    """Sorted hashes (uint64) of the pieces that more than `most` documents hold."""
    if most < 1:
        raise ValueError(f"most={most}: a piece may stay if 1 document or more holds it; give at least 1")
    return counts.hash[counts.documents > most]


def repeats(batch: Batch, hashes: np.ndarray, unit: Unit = "line", least: int = 1) -> Cuts:
    """Where the pieces of these hashes (sorted uint64, from `frequent`) and of `least` bytes stand, as spans to cut.

    A span reaches to the next piece; at the end of a document it takes the break before it instead, so that what stays
    reads as if the pieces had never been there. Neighbouring spans are one.
    """
    pieces = _pieces(batch, unit)
    place = np.searchsorted(hashes, pieces.hash)
    gone = np.zeros(len(place), bool)
    inside = place < len(hashes)
    gone[inside] = hashes[place[inside]] == pieces.hash[inside]
    gone &= pieces.end - pieces.start >= least
    return Cuts(*_spans(gone, pieces.start, pieces.end, pieces.following, pieces.document, batch.offsets))


def _pieces(batch: Batch, unit: Unit) -> _Pieces:
    nowhere = np.empty(0, np.int64)
    size = _find(batch.bytes, batch.offsets, unit == "paragraph", nowhere, nowhere, nowhere)
    start, end, document = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    _find(batch.bytes, batch.offsets, unit == "paragraph", start, end, document)
    following = batch.offsets[document + 1]
    inner = np.flatnonzero(document[1:] == document[:-1])
    following[inner] = start[inner + 1]
    return _Pieces(start, end, following, document, hash_spans(batch.bytes, start, end)[0])


@njit(cache=True, nogil=True)
def _find(text, offsets, paragraphs, start, end, document):  # type: ignore[no-untyped-def]
    """Write the non-blank lines, or runs of them, where there is room; how many there are."""
    size = 0
    for d in range(len(offsets) - 1):
        i, stop, going_on = offsets[d], offsets[d + 1], False
        while i < stop:
            begin, blank = i, True
            while i < stop and text[i] != 10:
                width = space_width(text, i, stop) if blank else 0
                blank = blank and width > 0
                i += max(1, width)
            if not blank:
                size += not (paragraphs and going_on)
                if len(start):
                    end[size - 1], document[size - 1] = i, d
                    if not (paragraphs and going_on):
                        start[size - 1] = begin
            going_on = not blank
            i += 1
    return size


@njit(cache=True, nogil=True)
def _spans(gone, start, end, following, document, offsets):  # type: ignore[no-untyped-def]
    """Merged spans of the pieces that go, in bytes of their document, and their offsets per document."""
    begin, finish = np.empty(gone.sum(), np.int64), np.empty(gone.sum(), np.int64)
    bounds = np.zeros(len(offsets), np.int64)
    size, first = 0, 0  # first piece of the run
    for i in range(len(gone)):
        if not gone[i]:
            continue
        base = offsets[document[i]]
        if i == 0 or not gone[i - 1] or document[i - 1] != document[i]:
            first = i
            begin[size] = start[i] - base
            size += 1
            bounds[document[i] + 1] += 1
        finish[size - 1] = following[i] - base
        if following[i] == offsets[document[i] + 1] and first > 0 and document[first - 1] == document[i]:
            begin[size - 1] = end[first - 1] - base
    return begin[:size], finish[:size], bounds.cumsum()
