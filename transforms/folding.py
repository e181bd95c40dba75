"""Words and characters as near-duplicate search sees them: case, accents, digits and punctuation folded away.

Rules, per code point (`table`): lower case; canonical decomposition without marks and format characters; every number
(digits of any script, with a decimal part or not) is one `0`; punctuation, mathematical, currency and modifier symbols,
spaces and control characters separate words. Emoji and other pictures stay. Scripts written without spaces (Han, kana,
Thai, Lao, Burmese, Khmer) give one word per character. This follows the text normalisation of datatrove's MinHash, with
four differences: scripts without spaces are cut up, all punctuation separates (theirs is a fixed list), final sigma
equals sigma, and format characters go.

Cost: about 150 MB/s per core; tables of 1 MB built in 0.3 s on first use. They follow the Unicode version of the Python
that runs, so all workers should run the same.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from transforms.hashing import mix
from transforms.text import decode

if TYPE_CHECKING:
    from transforms.batch import Batch

# Kinds of table entries, in the highest byte; the lower three hold a code point or a place in the pool of sequences.
# Code points (kind 0), sequences and digits are part of a word.
SEQUENCE, DIGIT, SEPARATOR, REMOVED, ALONE = (np.uint32(kind << 24) for kind in (1, 2, 3, 4, 5))
_KIND, _VALUE = np.uint32(0xFF << 24), np.uint32(0xFFFFFF)
LIMIT = 0x30000  # beyond: a plane of ideographs, tags and selectors (removed), private use
UNSPACED = (  # first and last code points of scripts written without spaces
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3040, 0x312F),
    (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
DECIMAL_MARKS = ".,،٫⎖⎗⎘"

_START, _STEP, _S32 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)
SPACE_UNIT = np.uint64(0x20)


class Table(NamedTuple):
    """How code points fold: entries uint32 [LIMIT], pool uint32 (length, code points, length, …)."""

    entries: np.ndarray
    pool: np.ndarray


@functools.cache
def table() -> Table:
    """The folding described above."""
    entries, pool = np.empty(LIMIT, np.uint32), [0]
    for code in range(LIMIT):
        kind = _separates_or_goes(code)
        folded = "" if kind else _fold(chr(code))
        if kind or not folded:
            entries[code] = kind or REMOVED
        elif len(folded) == 1:
            entries[code] = ord(folded)
        else:  # none has more than 4, and fill_characters leaves room for 7
            entries[code] = SEQUENCE | np.uint32(len(pool))
            pool += [len(folded), *map(ord, folded)]
    for first, last in UNSPACED:
        some = entries[first : last + 1]
        some[(some & _KIND) == 0] |= ALONE
    return Table(entries, np.array(pool, np.uint32))


def _separates_or_goes(code: int) -> np.uint32 | None:
    category = unicodedata.category(chr(code))
    if category == "Nd":
        return DIGIT
    if category in ("Mn", "Me", "Cf"):
        return REMOVED
    return SEPARATOR if category[0] in "PZ" or category in ("Sm", "Sc", "Sk", "Cc") else None


def _fold(character: str) -> str:
    if character.lower() == character != "ς" and unicodedata.is_normalized("NFD", character):
        return character  # most are; spares half a second
    parts = unicodedata.normalize("NFD", character.lower().replace("ς", "σ"))
    return "".join(part for part in parts if unicodedata.category(part) != "Mn")


@functools.cache
def identity(words: bool) -> Table:
    """No folding: every code point stands for itself; with `words`, white space separates."""
    entries = np.arange(LIMIT, dtype=np.uint32)
    if words:
        entries[[code for code in range(LIMIT) if chr(code).isspace()]] = SEPARATOR
    return Table(entries, np.zeros(1, np.uint32))


class Words(NamedTuple):
    """Folded words of a batch: uint64 hash, int64 start and end (bytes of Batch.bytes), int64 offsets per document."""

    hash: np.ndarray
    start: np.ndarray
    end: np.ndarray
    offsets: np.ndarray


def folded_words(batch: Batch) -> Words:
    """Hash and place of every folded word. Cost: 24 bytes per word."""
    return Words(*_folded_words(batch.bytes, batch.offsets, *table()))


@njit(cache=True, nogil=True)
def _folded_words(text, offsets, entries, pool):  # type: ignore[no-untyped-def]
    documents = len(offsets) - 1
    most = (len(text) + documents) // 2 + 1  # a word takes a byte and its separator one, except characters of 3 bytes
    hashes, start, end = np.empty(most, np.uint64), np.empty(most, np.int64), np.empty(most, np.int64)
    bounds = np.zeros(documents + 1, np.int64)
    filled = 0
    for i in range(documents):
        _, filled = fill_words(text, offsets[i], offsets[i + 1], entries, pool, hashes, start, end, filled)
        bounds[i + 1] = filled
    return hashes[:filled].copy(), start[:filled].copy(), end[:filled].copy(), bounds


@njit(cache=True, nogil=True)
def _entry(code, entries):  # type: ignore[no-untyped-def]
    if code < LIMIT:
        return entries[code]
    if entries[0x300] == 0x300:  # identity
        return np.uint32(code)
    if code == 0xE0001 or 0xE0020 <= code <= 0xE007F or 0xE0100 <= code <= 0xE01EF:  # tags, variation selectors
        return REMOVED
    return np.uint32(code | ALONE) if code < 0x40000 else np.uint32(code)


@njit(cache=True, nogil=True)
def _number_end(text, i, end, entries):  # type: ignore[no-untyped-def]
    """End of the number that starts at i: digits, then at most one decimal mark with digits."""
    after_mark = False
    while True:
        while i < end:
            code, width = decode(text, i, end)
            if _entry(code, entries) != DIGIT:
                break
            i += width
        if after_mark or i >= end:
            return i
        code, width = decode(text, i, end)
        if not (code == 0x2E or code == 0x2C or code == 0x60C or code == 0x66B or 0x2396 <= code <= 0x2398):
            return i
        if i + width >= end or _entry(decode(text, i + width, end)[0], entries) != DIGIT:
            return i
        i += width
        after_mark = True


@njit(cache=True, nogil=True)
def _absorb(h, code):  # type: ignore[no-untyped-def]
    h = (h ^ np.uint64(code)) * _STEP
    return h ^ (h >> _S32)


@njit(cache=True, nogil=True)
def fill_words(text, i, end, entries, pool, out, start, stop, filled):  # type: ignore[no-untyped-def]
    """Hash words of text[i:end] into out from `filled` on, until it is full or the text ends; (next place, filled).

    start, stop: int64, as long as out, take the places of the words; or both of length 0.
    """
    h, begin, finish = _START, -1, 0  # begin < 0: between words
    while i < end and filled < len(out):
        code, width = decode(text, i, end)
        entry = _entry(code, entries)
        kind = entry & _KIND
        if kind <= DIGIT:
            begin = i if begin < 0 else begin
            if kind == 0:
                h = _absorb(h, entry)
            elif kind == DIGIT:
                h = _absorb(h, 0x30)
                width = _number_end(text, i, end, entries) - i
            else:
                at = np.int64(entry & _VALUE)
                for k in range(at + 1, at + 1 + pool[at]):
                    h = _absorb(h, pool[k])
            finish = i + width
        elif kind != REMOVED:
            if begin >= 0:
                filled = _put(mix(h), begin, finish, out, start, stop, filled)
                h, begin = _START, -1
                continue  # the separator is read again, as out may be full
            if kind == ALONE:
                filled = _put(mix(_absorb(_START, entry & _VALUE)), i, i + width, out, start, stop, filled)
        i += width
    if begin >= 0:
        filled = _put(mix(h), begin, finish, out, start, stop, filled)
    return i, filled


@njit(cache=True, nogil=True)
def _put(value, begin, finish, out, start, stop, filled):  # type: ignore[no-untyped-def]
    out[filled] = value
    if len(start):
        start[filled] = begin
        stop[filled] = finish
    return filled + 1


@njit(cache=True, nogil=True)
def fill_characters(text, i, end, entries, pool, out, filled, owed):  # type: ignore[no-untyped-def]
    """Hash folded characters into out, one space between words; (next place, filled, whether a space is owed).

    Stops when fewer than 8 places are left in out, as one character may fold to several.
    """
    while i < end and filled + 8 <= len(out):
        code, width = decode(text, i, end)
        entry = _entry(code, entries)
        kind = entry & _KIND
        if kind == SEPARATOR:
            owed = True
        elif kind != REMOVED:
            if owed and filled:
                out[filled] = mix(SPACE_UNIT)
                filled += 1
            owed = False
            if kind == SEQUENCE:
                at = np.int64(entry & _VALUE)
                for k in range(at + 1, at + 1 + pool[at]):
                    out[filled] = mix(np.uint64(pool[k]))
                    filled += 1
            elif kind == DIGIT:
                width = _number_end(text, i, end, entries) - i
                out[filled] = mix(np.uint64(0x30))
                filled += 1
            else:
                out[filled] = mix(np.uint64(entry & _VALUE))
                filled += 1
        i += width
    return i, filled, owed
