"""Kernels over lines and paragraphs: how they begin and end, how often they repeat. Each is one pass over the bytes."""

from __future__ import annotations

import numpy as np
from numba import njit

from transforms.characters import TERMINAL
from transforms.text import flags_before, inner, next_line, strip

_HYPHEN, _STOP, _BULLET, _ELLIPSIS = 45, 46, (0xE2, 0x80, 0xA2), (0xE2, 0x80, 0xA6)


@inner
def table_size(pieces: int) -> int:
    """Slots of an open-addressed table for so many pieces: a power of two, at most four fifths full."""
    size = 8
    while 4 * size < 5 * pieces:
        size *= 2
    return size


@njit(cache=True, nogil=True)
def count_duplicates(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, hashes: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of a document that stood in it before, and the characters in them: int64 [documents] each.

    Only pieces that are `counted` (bool [pieces]) take part.
    """
    documents = offsets.size - 1
    pieces, characters = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
    most = np.diff(offsets).max() if documents else 0
    table = np.empty(table_size(most), np.int32)
    for d in range(documents):
        size = table_size(offsets[d + 1] - offsets[d])
        table[:size] = -1
        for i in range(offsets[d], offsets[d + 1]):
            if not counted[i]:
                continue
            slot = np.int64(hashes[i]) & (size - 1)
            while table[slot] >= 0 and hashes[table[slot]] != hashes[i]:
                slot = (slot + 1) & (size - 1)
            if table[slot] < 0:
                table[slot] = i
                continue
            pieces[d] += 1
            for c in data[start[i] : end[i]]:
                characters[d] += (c & 0xC0) != 0x80
    return pieces, characters


@njit(cache=True, nogil=True)
def is_blank(data: np.ndarray, start: np.ndarray, end: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """bool [pieces]: white space alone, or nothing."""
    out = np.empty(start.size, np.bool_)
    for i in range(start.size):
        a, b = strip(data, start[i], end[i], classes)
        out[i] = a == b
    return out


@njit(cache=True, nogil=True)
def count_line_ends(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, blank: np.ndarray, classes: np.ndarray,
    short: int,
) -> np.ndarray:
    """int64 [documents, 3]: lines that are not blank, that end a sentence, that have at most `short` characters."""
    out = np.zeros((offsets.size - 1, 3), np.int64)
    for d in range(offsets.size - 1):
        for i in range(offsets[d], offsets[d + 1]):
            if blank[i]:
                continue
            out[d, 0] += 1
            out[d, 1] += (flags_before(data, start[i], end[i], classes)[0] & TERMINAL) != 0
            characters, j = 0, start[i]
            while j < end[i] and characters <= short:
                characters += (data[j] & 0xC0) != 0x80
                j += 1
            out[d, 2] += characters <= short
    return out


@njit(cache=True, nogil=True)
def count_line_marks(data: np.ndarray, offsets: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """int64 [documents, 3]: lines as of ``str.splitlines``, those after a bullet, those that end in an ellipsis."""
    out = np.zeros((offsets.size - 1, 3), np.int64)
    for d in range(offsets.size - 1):
        i = offsets[d]
        while i < offsets[d + 1]:
            end, after = next_line(data, i, offsets[d + 1], classes)
            a, b = strip(data, i, end, classes)
            out[d, 0] += 1
            out[d, 1] += a < b and (data[a] == _HYPHEN or _starts(data, a, b, _BULLET))
            dots = b - a > 2 and data[b - 1] == _STOP and data[b - 2] == _STOP and data[b - 3] == _STOP
            out[d, 2] += dots or (b - a > 2 and _starts(data, b - 3, b, _ELLIPSIS))
            i = after
    return out


@inner
def _starts(data: np.ndarray, i: int, stop: int, three: tuple[int, int, int]) -> bool:
    """Whether three bytes stand at `i`."""
    return bool(i + 2 < stop and data[i] == three[0] and data[i + 1] == three[1] and data[i + 2] == three[2])


@njit(cache=True, nogil=True)
def split_paragraphs(
    data: np.ndarray, offsets: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Pieces of the stripped document between two or more "\n": start, end (int32) and offsets of the documents."""
    documents = offsets.size - 1
    start, end = np.empty(data.size + documents, np.int32), np.empty(data.size + documents, np.int32)
    first = np.empty(documents + 1, np.int64)
    n = 0
    for d in range(documents):
        first[d] = n
        i, stop = strip(data, offsets[d], offsets[d + 1], classes)
        start[n] = i
        while i + 1 < stop:
            if data[i] != 10 or data[i + 1] != 10:
                i += 1
                continue
            end[n] = i
            while data[i] == 10:  # the stripped text does not end in one
                i += 1
            n += 1
            start[n] = i
        end[n] = stop
        n += 1
    first[documents] = n
    return start[:n], end[:n], first


def count_empty_ends(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    r"""int64 [documents]: how many ends of a document are a "\n". Split at runs of "\n" it has an empty piece there."""
    out = np.zeros(len(offsets) - 1, np.int64)
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    out[filled] = (data[offsets[filled]] == 10).astype(np.int64) + (data[offsets[filled + 1] - 1] == 10)
    return out
