"""Which of many terms stand in documents: all of them at once, by the automaton of Aho and Corasick (1975) over bytes.

Letter case is folded by Arrow's `utf8_lower`, in terms and texts alike. The automaton is a table of states times the
bytes that terms are made of, 4 bytes a cell: 6,000 terms of 15 letters take about 15 MB. Time is linear in the text,
whatever the terms: of terms that end in one another each is met once per document (as substrings), or as often as such
terms are nested (as words).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.characters import ALPHABETIC, DIGIT, LETTER, classes
from transforms.text import flags_at, flags_before, inner

Boundaries = Literal["word", "substring"]
WORD = ALPHABETIC | DIGIT | LETTER


@dataclass(frozen=True)
class Terms:
    """Distinct terms in lower case, with weights."""

    terms: pa.LargeStringArray
    weights: np.ndarray  # float64


@dataclass(frozen=True)
class Found:
    """Distinct terms of each document."""

    counts: np.ndarray  # int32 [documents]
    weights: np.ndarray  # float64 [documents], summed over distinct terms
    first: np.ndarray  # int32 [documents, at most]: terms in the order in which they end first, -1 where there are none


def read_terms(path: Path) -> Terms:
    """A UTF-8 file of one term per line, with its weight after a tab where that is not 1; blank lines are skipped.

    White space around a term is left out. `path` may be a folder with `terms.txt`.

    Raises:
        ValueError: no such file, no terms, a weight that is no positive number, or one term with two weights.
    """
    file = path / "terms.txt" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no list of terms at {file}, a UTF-8 file of one term per line: {error}") from error
    numbers, given, weights = [], [], []
    for number, line in enumerate(lines, 1):
        term, _, weight = line.partition("\t")
        if not term.strip():
            continue
        try:
            value = float(weight) if weight.strip() else 1.0
        except ValueError:
            value = np.nan
        if not 0 < value < np.inf:
            raise ValueError(f"{file}, line {number}: weight {weight.strip()!r} of {term!r}, expected a number above 0")
        numbers.append(number)
        given.append(term.strip())
        weights.append(value)
    if not given:
        raise ValueError(f"{file} holds no terms; write one per line")
    lowered = pc.utf8_lower(pa.array(given, pa.large_string())).to_pylist()
    known: dict[str, float] = {}
    for number, term, value in zip(numbers, lowered, weights, strict=True):
        if known.setdefault(term, value) != value:
            raise ValueError(f"{file}, line {number}: {term!r} has weights {known[term]:g} and {value:g}; keep one")
    return Terms(pa.array(list(known), pa.large_string()), np.array(list(known.values()), np.float64))


class Automaton:
    """Finds terms in batches of text.

    Args:
        terms: not empty, each of at least one byte.
        boundaries: `substring`: anywhere. `word`: where no letter or digit of the text touches a letter or digit at
            either end of the term. Between words of Chinese, Japanese or Thai nothing else stands, so terms of such
            scripts need `substring`.

    Bytes are compared: "é" as one character and as "e" with an accent of its own (NFC, NFD) are different. Texts and
    terms of one form must be given; bringing texts into one here would take twice the time of finding the terms.
    """

    def __init__(self, terms: Terms, boundaries: Boundaries = "word") -> None:
        self.terms, self.words = terms, boundaries == "word"
        data, offsets = _bytes(terms.terms)
        self._sizes = np.diff(offsets).astype(np.int32)
        used = np.unique(data)
        self._codes = np.zeros(256, np.uint8 if len(used) < 256 else np.int16)
        self._codes[used] = np.arange(1, len(used) + 1)
        self._table, self._ends, self._next = _build(data, offsets, self._codes, len(used) + 1)

    def find(self, texts: pa.LargeStringArray, most: int) -> Found:
        """Distinct terms of each text (no nulls), the first `most` of them by number."""
        data, offsets = _bytes(pc.utf8_lower(texts))
        arrays = (self._codes, self._table, self._ends, self._next, self._sizes, self.terms.weights)
        return Found(*_find(data, offsets, *arrays, most, self.words, classes()))


def _bytes(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 bytes of the texts end to end and int64 [texts + 1] offsets."""
    _, places, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    held = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return held[offsets[0] : offsets[-1]], offsets - offsets[0]


@njit(cache=True, nogil=True)
def _build(data, offsets, codes, width):  # type: ignore[no-untyped-def]  # numba infers the types
    """int32 [states, width]: the state after each byte; the term that ends in a state or -1; and the next shorter
    state in which one does, 0 if none."""
    table = np.zeros((data.size + 1, width), np.int32)
    ends = np.full(data.size + 1, -1, np.int32)
    states = 1
    for term in range(offsets.size - 1):
        state = 0
        for i in range(offsets[term], offsets[term + 1]):
            code = codes[data[i]]
            if table[state, code] == 0:
                table[state, code] = states
                states += 1
            state = table[state, code]
        ends[state] = term
    fail, link = np.zeros(states, np.int32), np.zeros(states, np.int32)
    queue = np.empty(states, np.int32)
    head, tail = 0, 0
    for code in range(width):
        if table[0, code]:
            queue[tail] = table[0, code]
            tail += 1
    while head < tail:
        state = queue[head]
        head += 1
        shorter = fail[state]
        link[state] = shorter if ends[shorter] >= 0 else link[shorter]
        for code in range(width):
            child = table[state, code]
            if child:
                fail[child] = table[shorter, code]
                queue[tail] = child
                tail += 1
            else:
                table[state, code] = table[shorter, code]
    return table[:states].copy(), ends[:states].copy(), link


@inner
def _joined(data, start, i, stop, flags):  # type: ignore[no-untyped-def]
    """Whether letters or digits stand on both sides of byte `i`."""
    return flags_before(data, start, i, flags)[0] & WORD != 0 and flags_at(data, i, stop, flags)[0] & WORD != 0


@njit(cache=True, nogil=True)
def word_edges(data, start, end, first, last, flags):  # type: ignore[no-untyped-def]
    """bool [pieces] twice: whether a letter or digit opens and closes each piece, with none beside it.

    Pieces are bytes `start` to `end` of the documents from `first` to `last`, all integers [pieces].
    """
    opens, closes = np.zeros(start.size, np.bool_), np.zeros(start.size, np.bool_)
    for k in range(start.size):
        a, b, begin, stop = start[k], end[k], first[k], last[k]
        opens[k] = flags_at(data, a, stop, flags)[0] & WORD != 0 and not _joined(data, begin, a, stop, flags)
        closes[k] = flags_before(data, begin, b, flags)[0] & WORD != 0 and not _joined(data, begin, b, stop, flags)
    return opens, closes


@njit(cache=True, nogil=True)
def _find(data, offsets, codes, table, ends, link, sizes, weights, most, words, flags):  # type: ignore[no-untyped-def]
    documents = offsets.size - 1
    counts, sums = np.zeros(documents, np.int32), np.zeros(documents, np.float64)
    first = np.full((documents, most), -1, np.int32)
    seen = np.full(sizes.size, -1, np.int64)  # the last document a term was found in
    for d in range(documents):
        state = 0
        for i in range(offsets[d], offsets[d + 1]):
            state = table[state, codes[data[i]]]
            at = state if ends[state] >= 0 else link[state]
            if at == 0 or (words and _joined(data, offsets[d], i + 1, offsets[d + 1], flags)):
                continue
            while at:
                term = ends[at]
                at = link[at]
                if seen[term] == d:
                    if words:
                        continue
                    break  # all that end in it were found with it
                if words and _joined(data, offsets[d], i + 1 - sizes[term], offsets[d + 1], flags):
                    continue
                seen[term] = d
                if counts[d] < most:
                    first[d, counts[d]] = term
                counts[d] += 1
                sums[d] += weights[term]
    return counts, sums, first
