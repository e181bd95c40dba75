"""Kernels that count what a document is made of: kinds of characters, lines, words. Each is one pass over bytes or
pieces.

Cost per core: characters about 400 MB/s, lines 1 GB/s, words 150 MB/s (hashing them included).
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numba import njit

from transforms.characters import LIMIT, SYMBOL
from transforms.lines import table_size
from transforms.text import decode, flags_at

OTHER, LETTER, CAPITAL, DIGIT, SIGN, SPACE = range(6)  # every character is of one kind
KINDS = 6


@functools.cache
def kinds() -> np.ndarray:
    """uint8 [LIMIT]: the kind of every code point of the first two planes, by general category: capitals are Lu and Lt,
    letters the other L, digits Nd, signs P and S (punctuation, symbols, emoji); white space is that of
    ``str.isspace``."""
    of_category = {"Lu": CAPITAL, "Lt": CAPITAL, "Nd": DIGIT}
    of_class = {"L": LETTER, "P": SIGN, "S": SIGN}

    def kind(code: int) -> int:
        category = unicodedata.category(chr(code))
        return SPACE if chr(code).isspace() else of_category.get(category, of_class.get(category[0], OTHER))

    made = np.fromiter(map(kind, range(LIMIT)), np.uint8, LIMIT)
    made.flags.writeable = False
    return made


@njit(cache=True, nogil=True)
def count_kinds(data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """int64 [documents, KINDS + 1]: characters of each kind, then those beyond ASCII. Planes 2 and 3 hold
    ideographs."""
    out = np.zeros((offsets.size - 1, KINDS + 1), np.int64)
    for d in range(offsets.size - 1):
        counts, beyond, i, stop = out[d], 0, offsets[d], offsets[d + 1]
        while i < stop:
            if data[i] < 0x80:
                counts[kinds[data[i]]] += 1
                i += 1
                continue
            code, length = decode(data, i, stop)
            counts[kinds[code] if code < LIMIT else (LETTER if code < 2 * LIMIT else OTHER)] += 1
            beyond += 1
            i += length
        counts[KINDS] = beyond
    return out


@njit(cache=True, nogil=True)
def measure_lines(
    data: np.ndarray, end: np.ndarray, offsets: np.ndarray, blank: np.ndarray, characters: np.ndarray
) -> np.ndarray:
    r"""int64 [documents, 4]: lines that are not blank, runs of such lines (paragraphs), characters in them, and in the
    longest, without a "\r" at the end of a line. `end`, `blank` (bool) and `characters` (int64) are of every line."""
    out = np.zeros((offsets.size - 1, 4), np.int64)
    for d in range(offsets.size - 1):
        before = True
        for i in range(offsets[d], offsets[d + 1]):
            if not blank[i]:
                out[d, 0] += 1
                out[d, 1] += before
                length = characters[i] - (data[end[i] - 1] == 13)  # a line that is not blank has a last byte
                out[d, 2] += length
                out[d, 3] = max(out[d, 3], length)
            before = blank[i]
    return out


@njit(cache=True, nogil=True)
def measure_words(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, hashes: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Words that are not symbols alone: int64 [documents, 3], their number, their characters and how many are
    different; float64 [documents], Σ n log2 n over the different words, each of which stands n times in the
    document."""
    documents = offsets.size - 1
    out, weighted = np.zeros((documents, 3), np.int64), np.zeros(documents)
    most = np.diff(offsets).max() if documents else 0
    table, first, times = np.empty(table_size(most), np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    for d in range(documents):
        size, different = table_size(offsets[d + 1] - offsets[d]), 0
        table[:size] = -1
        for w in range(offsets[d], offsets[d + 1]):
            every, characters, i = SYMBOL, 0, start[w]
            while i < end[w]:
                flags, length = flags_at(data, i, end[w], classes)
                every &= flags
                characters += 1
                i += length
            if every:
                continue
            out[d, 0] += 1
            out[d, 1] += characters
            slot = np.int64(hashes[w]) & (size - 1)
            while table[slot] >= 0 and hashes[first[table[slot]]] != hashes[w]:
                slot = (slot + 1) & (size - 1)
            if table[slot] < 0:
                table[slot], first[different], times[different] = different, w, 0
                different += 1
            times[table[slot]] += 1
        out[d, 2] = different
        for k in range(different):
            weighted[d] += times[k] * np.log2(times[k])
    return out, weighted
