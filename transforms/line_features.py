"""What can be told of a line of a web page without a language model: its shape, its words, its place on the page.

Two passes over the bytes and one over the lines. `line_shapes` looks at one line alone, `line_grams` gives its words
and word pairs as hashed places, `line_context` sets it beside its neighbours and the page. Only lines that are not
blank count, so that blank ones change nothing.

Cost: 50 MB/s of web pages per core (50 bytes to a line); per line 4 bytes for each of SHAPES and CONTEXT, per word 8.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numba import njit

from transforms.batch import Batch
from transforms.characters import DIGIT, LETTER, LOWER, PUNCTUATION, QUOTE, SPACE, TERMINAL, UPPER, classes
from transforms.lines import table_size
from transforms.text import flags_at, inner, strip

BITS = 16  # of the place of a word or pair
MOST_WORDS = 64  # of a line whose words are read
CASED = 0x590  # code points below may have a lower case: Latin, Greek, Cyrillic, Armenian
UNSPACED = 0x2E80  # from here on every letter is a word
PROSE = 12  # words of a line that looks like running text, with a mark at its end
SHORT = 4  # words of a line that looks like a link
ABOVE = 32  # lines that are looked back or ahead for prose, at most

SHAPES = (
    "log characters", "log words", "log longest word", "characters per word", "capitals", "digits", "punctuation",
    "other symbols", "capitalised words", "short lower-case words", "ends a sentence", "ends in a colon",
    "ends in an arrow", "begins in lower case", "begins with a digit", "begins with a mark", "commas per word",
    "log sentence ends within", "link marks", "separators per word", "copyright", "brackets per word",
    "quotes per word", "prose", "short",
)  # fmt: skip
NEAR = (0, 1, 4, 5, 8, 9, 10, 19)  # shapes of the neighbours that are looked at
WINDOWS = (2, 6, 20)  # lines to each side that means are over
AVERAGED = (0, 10, 8, 9, 23, 24)
CONTEXT = (
    *(f"{SHAPES[k]}, {side}" for side in ("line before", "line after") for k in NEAR),
    *(f"{SHAPES[k]}, mean of {w} lines to each side" for w in WINDOWS for k in AVERAGED),
    "log lines", "log lines before", "log lines after", "place among lines", "place among characters",
    "times on the page", "words of the first line", "same first word before", "same first word after",
    "lines up to prose before", "lines up to prose after", "prose before", "prose after", "prose on the page",
    "log short lines around", "log length against the line before", "characters near, of the most on the page",
    "words of prose", "words of other prose",
)  # fmt: skip
(
    _CHARACTERS, _SOLID, _WORDS, _LONGEST, _LETTERS, _CAPITALS, _CAPITALISED, _SMALL, _DIGITS, _PUNCTUATION, _OTHER,
    _COMMAS, _SENTENCES, _ENDED, _LINKS, _SEPARATORS, _COPYRIGHT, _BRACKETS, _QUOTES, _COUNTS,
) = range(20)  # fmt: skip
_FEW, _NARROW = 4, 40  # letters of a short word, characters of a short line
_PRIME, _SEED = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
_S32, _TOP = np.uint64(32), np.uint64(64 - BITS)
_PAIR, _LINE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Lines(NamedTuple):
    """The lines of a batch that are not blank, without the white space at their ends."""

    start: np.ndarray  # int64 [lines], into Batch.bytes
    end: np.ndarray  # int64 [lines]
    offsets: np.ndarray  # int64 [documents + 1]
    number: np.ndarray  # int64 [lines], which of `Batch.lines` it is


class Grams(NamedTuple):
    """Places of the words and word pairs of each line, and of the whole line: those of line i are offsets[i]:…"""

    place: np.ndarray  # int32 [grams], below 2 ** BITS
    offsets: np.ndarray  # int64 [lines + 1]


@functools.cache
def lower_case() -> np.ndarray:
    """int32 [CASED]: the lower case of a code point, itself where there is none or more than one."""
    return np.array([ord(low) if len(low := chr(code).lower()) == 1 else code for code in range(CASED)], np.int32)


def filled_lines(batch: Batch) -> Lines:
    r"""The lines between "\n" that hold more than white space."""
    lines = batch.lines
    return Lines(*_filled(batch.bytes, lines.start, lines.end, lines.offsets, classes()))


def line_shapes(batch: Batch, lines: Lines) -> np.ndarray:
    """float32 [lines, len(SHAPES)]."""
    found: np.ndarray = _shapes(batch.bytes, lines.start, lines.end, classes(), len(SHAPES))
    return found


def line_grams(batch: Batch, lines: Lines) -> Grams:
    """Words are runs of letters or digits in lower case, every digit a 0; the first MOST_WORDS of a line."""
    return Grams(*_grams(batch.bytes, lines.start, lines.end, classes(), lower_case()))


def line_context(shapes: np.ndarray, lines: Lines, grams: Grams) -> np.ndarray:
    """float32 [lines, len(CONTEXT)]: each line beside the others of its document."""
    near, averaged = np.array(NEAR), np.array(AVERAGED)
    found: np.ndarray = _context(
        shapes, lines.offsets, grams.place, grams.offsets, near, averaged, np.array(WINDOWS), len(CONTEXT)
    )
    return found


@njit(cache=True, nogil=True)
def _filled(data, start, end, offsets, classes):  # type: ignore[no-untyped-def]
    places, bounds = np.empty((3, len(start)), np.int64), np.zeros(len(offsets), np.int64)
    n = 0
    for d in range(len(offsets) - 1):
        for i in range(offsets[d], offsets[d + 1]):
            a, b = strip(data, start[i], end[i], classes)
            if a < b:
                places[0, n], places[1, n], places[2, n] = a, b, i
                n += 1
        bounds[d + 1] = n
    return places[0, :n].copy(), places[1, :n].copy(), bounds, places[2, :n].copy()


@njit(cache=True, nogil=True)
def _shapes(data, start, end, classes, width):  # type: ignore[no-untyped-def]
    out, n = np.zeros((len(start), width), np.float32), np.empty(_COUNTS, np.int64)
    for i in range(len(start)):
        n[:] = 0
        _count(data, start[i], end[i], classes, n)
        _shape(data, start[i], end[i], classes, n, out[i])
    return out


@inner
def _count(data, a, b, classes, n):  # type: ignore[no-untyped-def]
    """One pass over a line, counting into `n`."""
    length, small = 0, False  # of the word so far: characters, whether it is in lower case
    i = a
    while i < b:
        flags, size = flags_at(data, i, b, classes)
        n[_CHARACTERS] += 1
        if flags & SPACE:
            n[_SENTENCES] += n[_ENDED]
            n[_ENDED] = 0
            _end_word(length, small, n)
            length = 0
            i += size
            continue
        if flags & LETTER:
            upper = flags & UPPER != 0 and flags & LOWER == 0
            n[_LETTERS] += 1
            n[_CAPITALS] += upper
            n[_CAPITALISED] += length == 0 and upper
            small = not upper and (length == 0 or small)
        else:
            small = False
            _count_mark(data, a, i, b, size, flags, n)
        length += 1
        if flags & TERMINAL:
            n[_ENDED] = 1
        elif flags & (QUOTE | PUNCTUATION) == 0:
            n[_ENDED] = 0
        i += size
    _end_word(length, small, n)


@inner
def _end_word(length, small, n):  # type: ignore[no-untyped-def]
    n[_WORDS] += length > 0
    n[_SMALL] += small and 0 < length <= _FEW
    n[_SOLID] += length
    n[_LONGEST] = max(n[_LONGEST], length)


@inner
def _count_mark(data, a, i, b, size, flags, n):  # type: ignore[no-untyped-def]
    """What is neither space nor letter: which kind, and the marks that links and lists are full of."""
    c = data[i]
    second, third = data[i + 1] if size > 1 else 0, data[i + 2] if size > 2 else 0
    n[_DIGITS] += flags & DIGIT != 0
    n[_PUNCTUATION] += flags & PUNCTUATION != 0
    n[_OTHER] += flags & (DIGIT | PUNCTUATION) == 0
    n[_QUOTES] += flags & QUOTE != 0
    n[_COMMAS] += c == 44
    n[_SEPARATORS] += c == 124 or c == 47 or c == 43 or c == 62  # | / + >
    n[_SEPARATORS] += c == 0xC2 and (second == 0xB7 or second == 0xBB)  # · »
    n[_SEPARATORS] += c == 0xE2 and second == 0x80 and third == 0xA2  # bullet
    n[_BRACKETS] += c == 40 or c == 91 or c == 123
    n[_COPYRIGHT] |= c == 0xC2 and second == 0xA9
    n[_LINKS] += c == 64 or (c == 58 and i + 2 < b and data[i + 1] == 47 and data[i + 2] == 47)  # @ ://
    n[_LINKS] += c == 46 and i - a >= 3 and data[i - 1] | 32 == 119 and data[i - 2] | 32 == 119  # www.


@inner
def _shape(data, a, b, classes, n, out):  # type: ignore[no-untyped-def]
    """The values of SHAPES from the counts, the first character and the last bytes."""
    first, _ = flags_at(data, a, b, classes)
    unit, part = 1.0 / max(1, n[_WORDS]), 1.0 / max(1, n[_SOLID])
    last, before = data[b - 1], data[b - 2] if b - a > 1 else 0
    out[0], out[1], out[2] = np.log1p(n[_CHARACTERS]), np.log1p(n[_WORDS]), np.log1p(n[_LONGEST])
    out[3], out[4] = min(40.0, n[_SOLID] * unit), n[_CAPITALS] / max(1, n[_LETTERS])
    out[5], out[6], out[7] = n[_DIGITS] * part, n[_PUNCTUATION] * part, n[_OTHER] * part
    out[8], out[9], out[10] = n[_CAPITALISED] * unit, n[_SMALL] * unit, n[_ENDED]
    out[11] = last == 58
    arrow = (before == 0xC2 and last == 0xBB) or (before == 0x80 and (last == 0xBA or last == 0xA6))  # » › …
    out[12] = last == 62 or arrow
    out[13] = first & LETTER != 0 and (first & UPPER == 0 or first & LOWER != 0)
    out[14], out[15] = first & DIGIT != 0, first & (LETTER | DIGIT) == 0
    out[16], out[17], out[18] = n[_COMMAS] * unit, np.log1p(n[_SENTENCES]), min(3, n[_LINKS])
    out[19], out[20] = n[_SEPARATORS] * unit, n[_COPYRIGHT]
    out[21], out[22] = n[_BRACKETS] * unit, n[_QUOTES] * unit
    dense = data[a] >= 0xE3 and n[_SOLID] >= 4 * PROSE and n[_WORDS] < PROSE  # scripts without spaces
    out[23] = n[_ENDED] != 0 and (n[_WORDS] >= PROSE or dense)
    out[24] = n[_WORDS] <= SHORT and n[_CHARACTERS] <= _NARROW


@njit(cache=True, nogil=True)
def _grams(data, start, end, classes, lower):  # type: ignore[no-untyped-def]
    most = 0
    for i in range(len(start)):
        most += 2 * min(MOST_WORDS, (end[i] - start[i] + 1)) + 1
    place, offsets = np.empty(most, np.int32), np.zeros(len(start) + 1, np.int64)
    n = 0
    for i in range(len(start)):
        n = _line_grams(data, start[i], end[i], classes, lower, place, n)
        offsets[i + 1] = n
    return place[:n].copy(), offsets


@inner
def _line_grams(data, a, b, classes, lower, place, n):  # type: ignore[no-untyped-def]
    word, before, whole = _SEED, np.uint64(0), _SEED
    words, length, i = 0, 0, a
    while i <= b and words < MOST_WORDS:
        flags, size = flags_at(data, i, b, classes) if i < b else (0, 1)
        joins = flags & (LETTER | DIGIT)
        code = 0
        if joins:
            code = _letter(data, i, size, flags, lower)
        if length and (not joins or code >= UNSPACED):
            place[n] = _mixed(word) >> _TOP
            n += 1
            if words:
                place[n] = _mixed(word * _PAIR ^ before) >> _TOP
                n += 1
            whole = (whole ^ word) * _PRIME
            before, word, length = word, _SEED, 0
            words += 1
        if joins:
            word = (word ^ np.uint64(code)) * _PRIME
            length += 1
        i += size
    place[n] = _mixed(whole * _LINE) >> _TOP
    return n + 1


@inner
def _letter(data, i, size, flags, lower):  # type: ignore[no-untyped-def]
    """The code point in lower case, a 0 for digits."""
    if flags & DIGIT:
        return 48
    c = np.int64(data[i])
    if size == 1:
        code = c
    elif size == 2:
        code = (c & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F)
    elif size == 3:
        code = (c & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F)
    else:
        code = (c & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12 | np.int64(data[i + 2] & 0x3F) << 6
    return np.int64(lower[code]) if code < CASED else code


@inner
def _mixed(x):  # type: ignore[no-untyped-def]
    x ^= x >> _S32
    x *= _LINE
    return x ^ (x >> _S32)


@njit(cache=True, nogil=True)
def _context(shapes, offsets, place, grams, near, averaged, windows, width):  # type: ignore[no-untyped-def]
    out = np.zeros((len(shapes), width), np.float32)
    held = np.zeros(1 << BITS, np.int32)  # of words in prose: in how many places of the page
    for d in range(len(offsets) - 1):
        a, b = offsets[d], offsets[d + 1]
        at = _neighbours(shapes, a, b, near, out)
        at = _means(shapes, a, b, averaged, windows, out, at)
        _page(shapes, a, b, place, grams, out, at)
        _prose(shapes, a, b, out, at + 9)
        _vocabulary(shapes, a, b, place, grams, held, out, at + 17)
    return out


@inner
def _neighbours(shapes, a, b, near, out):  # type: ignore[no-untyped-def]
    for i in range(a, b):
        for k in range(len(near)):
            out[i, k] = shapes[i - 1, near[k]] if i > a else -1
            out[i, len(near) + k] = shapes[i + 1, near[k]] if i + 1 < b else -1
    return 2 * len(near)


@njit(cache=True, nogil=True)
def _means(shapes, a, b, averaged, windows, out, at):  # type: ignore[no-untyped-def]
    sums = np.zeros(b - a + 1)
    for j in range(len(averaged)):
        for i in range(a, b):
            sums[i - a + 1] = sums[i - a] + shapes[i, averaged[j]]
        for w in range(len(windows)):
            for i in range(a, b):
                first, last = max(a, i - windows[w]) - a, min(b, i + windows[w] + 1) - a
                out[i, at + w * len(averaged) + j] = (sums[last] - sums[first]) / (last - first)
    return at + len(windows) * len(averaged)


@njit(cache=True, nogil=True)
def _page(shapes, a, b, place, grams, out, at):  # type: ignore[no-untyped-def]
    """How long the page is and where the line stands; what it shares with other lines."""
    lines, total = b - a, 0.0
    for i in range(a, b):
        total += np.expm1(shapes[i, 0])
    table, counts = np.full(table_size(lines), -1, np.int64), np.zeros(table_size(lines), np.int64)
    title = set(place[grams[a] : grams[a + 1]]) if lines else {np.int32(0)}
    done = 0.0
    for i in range(a, b):
        out[i, at], out[i, at + 1], out[i, at + 2] = np.log1p(lines), np.log1p(i - a), np.log1p(b - 1 - i)
        out[i, at + 3], out[i, at + 4] = (i - a) / lines, done / max(1.0, total)
        done += np.expm1(shapes[i, 0])
        counts[_slot(place, grams, table, i)] += 1
        shared = 0
        for k in range(grams[i], grams[i + 1] - 1):
            shared += place[k] in title
        out[i, at + 6] = shared / max(1, grams[i + 1] - 1 - grams[i])
        out[i, at + 7] = i > a and place[grams[i]] == place[grams[i - 1]]
        out[i, at + 8] = i + 1 < b and place[grams[i]] == place[grams[i + 1]]
    for i in range(a, b):
        out[i, at + 5] = np.log(counts[_slot(place, grams, table, i)])


@inner
def _slot(place, grams, table, i):  # type: ignore[no-untyped-def]
    """Where lines equal to line `i` are counted: lines of the same places, in the same order."""
    size = grams[i + 1] - grams[i]
    h = np.uint64(size)
    for k in range(grams[i], grams[i + 1]):
        h = (h ^ np.uint64(place[k])) * _PRIME
    slot = np.int64(_mixed(h) >> np.uint64(1)) & (len(table) - 1)
    while table[slot] >= 0:
        other, same = table[slot], grams[table[slot] + 1] - grams[table[slot]] == size
        k = 0
        while same and k < size:
            same = place[grams[other] + k] == place[grams[i] + k]
            k += 1
        if same:
            return slot
        slot = (slot + 1) & (len(table) - 1)
    table[slot] = i
    return slot


@njit(cache=True, nogil=True)
def _prose(shapes, a, b, out, at):  # type: ignore[no-untyped-def]
    """Where running text stands, seen from each line."""
    every = 0
    for i in range(a, b):
        every += shapes[i, 23] > 0
    seen, last, run = 0, a - ABOVE, 0
    for i in range(a, b):
        out[i, at] = min(ABOVE, i - last)
        out[i, at + 2] = seen / max(1, every)
        seen += shapes[i, 23] > 0
        last = i if shapes[i, 23] > 0 else last
        out[i, at + 3] = (every - seen) / max(1, every)
        out[i, at + 4] = every / (b - a)
        run = run + 1 if shapes[i, 24] > 0 else 0
        out[i, at + 5] = run
        out[i, at + 6] = shapes[i, 0] - shapes[i - 1, 0] if i > a else 0.0
    last, run = b + ABOVE, 0
    most, near = 1.0, np.zeros(b - a)
    for i in range(b - 1, a - 1, -1):
        out[i, at + 1] = min(ABOVE, last - i)
        last = i if shapes[i, 23] > 0 else last
        run = max(run, out[i, at + 5]) if shapes[i, 24] > 0 else 0
        out[i, at + 5] = np.log1p(run)
        for j in range(max(a, i - 4), min(b, i + 5)):
            near[i - a] += np.expm1(shapes[j, 0])
        most = max(most, near[i - a])
    for i in range(a, b):
        out[i, at + 7] = near[i - a] / most


@inner
def _vocabulary(shapes, a, b, place, grams, held, out, at):  # type: ignore[no-untyped-def]
    """How many of a line's words and pairs the running text of the page has too, with this line and without it."""
    for add in (1, -1):
        for i in range(a, b):
            if shapes[i, 23] > 0:
                for k in range(grams[i], grams[i + 1] - 1):
                    held[place[k]] += add
        for i in range(a, b) if add > 0 else range(0):
            both = others = 0
            for k in range(grams[i], grams[i + 1] - 1):
                both += held[place[k]] > 0
                others += held[place[k]] > (shapes[i, 23] > 0)
            out[i, at] = both / max(1, grams[i + 1] - 1 - grams[i])
            out[i, at + 1] = others / max(1, grams[i + 1] - 1 - grams[i])
