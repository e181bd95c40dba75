"""Kernels that count words by kind and look for phrases. One pass over the words or the bytes."""

from __future__ import annotations

import numpy as np
from numba import njit

from transforms.characters import ALPHABETIC, PUNCTUATION, SYMBOL, TERMINAL
from transforms.text import flags_at

_STOP, _HASH = 46, 35


@njit(cache=True, nogil=True)
def count_word_kinds(
    data: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """int64 [documents, 3]: words that are not symbols alone, the characters in them, words that hold a letter."""
    out = np.zeros((offsets.size - 1, 3), np.int64)
    for d in range(offsets.size - 1):
        for w in range(offsets[d], offsets[d + 1]):
            characters, every, some, i = 0, SYMBOL, 0, start[w]
            while i < end[w]:
                flags, length = flags_at(data, i, end[w], classes)
                every &= flags
                some |= flags
                characters += 1
                i += length
            if not every:
                out[d, 0] += 1
                out[d, 1] += characters
            out[d, 2] += (some & ALPHABETIC) != 0
    return out


@njit(cache=True, nogil=True)
def count_listed(hashes: np.ndarray, offsets: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """int64 [documents]: how many different words of the list (uint64 hashes) a document holds."""
    out = np.zeros(offsets.size - 1, np.int64)
    seen = np.empty(listed.size, np.int64)
    seen[:] = -1
    for d in range(offsets.size - 1):
        for w in range(offsets[d], offsets[d + 1]):
            for k in range(listed.size):
                if hashes[w] == listed[k] and seen[k] != d:
                    seen[k] = d
                    out[d] += 1
    return out


@njit(cache=True, nogil=True)
def count_symbols(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [documents, 2]: signs "#", and ellipses ("..." or the one character)."""
    out = np.zeros((offsets.size - 1, 2), np.int64)
    for d in range(offsets.size - 1):
        dots = 0
        for i in range(offsets[d], offsets[d + 1]):
            c = data[i]
            out[d, 0] += c == _HASH
            dots = dots + 1 if c == _STOP else 0
            if dots == 3 or (c == 0xA6 and i >= offsets[d] + 2 and data[i - 1] == 0x80 and data[i - 2] == 0xE2):
                out[d, 1] += 1
                dots = 0
    return out


@njit(cache=True, nogil=True)
def count_sentences(
    data: np.ndarray, word_start: np.ndarray, word_end: np.ndarray, word_offsets: np.ndarray,
    line_start: np.ndarray, line_end: np.ndarray, line_offsets: np.ndarray, counted: np.ndarray, classes: np.ndarray,
) -> np.ndarray:
    """int64 [documents]: sentences of the `counted` lines, summed. A line is one sentence, and one more for every word
    that follows a terminal mark (with any punctuation behind it), as spaCy's sentencizer has it."""
    out = np.zeros(line_offsets.size - 1, np.int64)
    for d in range(line_offsets.size - 1):
        w, last = word_offsets[d], word_offsets[d + 1]
        for line in range(line_offsets[d], line_offsets[d + 1]):
            while w < last and word_start[w] < line_start[line]:
                w += 1
            if not counted[line]:
                continue
            out[d] += 1
            ended = False
            while w < last and word_end[w] <= line_end[line]:
                every, i = PUNCTUATION, word_start[w]
                flags, length = flags_at(data, i, word_end[w], classes)
                terminal = (flags & TERMINAL) != 0 and i + length == word_end[w]
                while i < word_end[w] and every:
                    flags, length = flags_at(data, i, word_end[w], classes)
                    every &= flags
                    i += length
                if terminal:
                    ended = True
                elif ended and not every:
                    out[d] += 1
                    ended = False
                w += 1
    return out
