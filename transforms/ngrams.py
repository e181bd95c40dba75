"""Repeated word n-grams of documents.

Only places whose n-gram is repeated can hold a repeated (n+1)-gram, so the work shrinks as n grows. Besides the words
and their hashes it takes 20 bytes per word of the longest document, and a table of 5 to 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from transforms.lines import table_size
from transforms.text import inner

_K, _HALF = np.uint64(0xE7037ED1A0B428DB), np.uint64(32)


@inner
def _joined(gram: Any, word: Any) -> Any:
    """The hash of an n-gram and one word more."""
    h = (gram ^ (gram >> _HALF)) * _K + word
    return h ^ (h >> _HALF)


@inner
def _group(
    grams: np.ndarray, places: np.ndarray, first: np.ndarray, count: np.ndarray, table: np.ndarray
) -> None:
    """For every place: `first` is the first place with its n-gram, and `count` there is how many there are."""
    size = table_size(places.size)
    table[:size] = -1
    for p in places:
        gram = grams[p]
        slot = np.int64(gram) & (size - 1)
        while table[slot] >= 0 and grams[table[slot]] != gram:
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0:
            table[slot] = p
            count[p] = 0
        first[p] = table[slot]
        count[table[slot]] += 1


@inner
def _characters(data: np.ndarray, start: np.ndarray, end: np.ndarray, word: int, n: int) -> int:
    """Code points of `n` words, without what stands between them."""
    total = 0
    for w in range(word, word + n):
        for c in data[start[w] : end[w]]:
            total += (c & 0xC0) != 0x80
    return total


@inner
def _most_common(places: np.ndarray, first: np.ndarray, count: np.ndarray) -> tuple[int, int]:
    """The place and the number of the most common n-gram, the first one of equals."""
    best, most = 0, 1
    for p in places:
        if count[first[p]] > most:
            best, most = p, count[first[p]]
    return best, most


@inner
def _repeated(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, n: int,
    places: np.ndarray, first: np.ndarray, count: np.ndarray,
) -> int:
    """Characters in n-grams that stood before, left to right and without overlap. The counts it met turn negative."""
    total, free = 0, 0
    for p in places:
        f = first[p]
        if p < free or -1 <= count[f] <= 1:
            continue
        if count[f] > 0:
            count[f] = -count[f]
        else:
            total += _characters(data, start, end, p, n)
            free = p + n
    return total


@inner
def _repetition(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, hashes: np.ndarray, work: tuple[np.ndarray, ...],
    grams: np.ndarray, out: np.ndarray,
) -> None:
    """Fills one document's row of `count_repetition`."""
    all_places, first, count, table = work
    words = start.size
    kept = words
    for w in range(words):
        all_places[w] = w
        grams[w] = hashes[w]
    for n in range(2, 11):
        m = 0
        for p in all_places[:kept]:
            if p + n <= words:
                grams[p] = _joined(grams[p], hashes[p + n - 1])
                all_places[m] = p
                m += 1
        places = all_places[:m]
        _group(grams, places, first, count, table)
        if n <= 4 and words >= n:
            best, most = _most_common(places, first, count)
            out[n - 2] = most * (_characters(data, start, end, best, n) + n - 1)
        elif n > 4:
            out[n - 2] = _repeated(data, start, end, n, places, first, count)
        kept = 0
        for p in places:
            if abs(count[first[p]]) > 1:
                all_places[kept] = p
                kept += 1


@njit(cache=True, nogil=True)
def count_repetition(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, hashes: np.ndarray
) -> np.ndarray:
    """Characters in repeated n-grams: int64 [documents, 9].

    First those of the most common 2-, 3- and 4-gram, every time it occurs, with single spaces between its words; then
    those of the words in 5- to 10-grams that stood in the document before.
    """
    documents = offsets.size - 1
    out = np.zeros((documents, 9), np.int64)
    most = np.diff(offsets).max() if documents else 0
    places, first, count = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    grams, table = np.empty(most, np.uint64), np.empty(table_size(most), np.int32)
    for d in range(documents):
        a, b = offsets[d], offsets[d + 1]
        _repetition(data, start[a:b], end[a:b], hashes[a:b], (places, first, count, table), grams, out[d])
    return out
