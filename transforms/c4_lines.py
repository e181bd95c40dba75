"""The line rules of C4 (Raffel et al. 2020, section 2.2, and its published code), and texts without what they remove.

One pass over the bytes. Lines are those of ``str.splitlines``, stripped. A citation is "[edit]", "[citation needed]" or
a number in brackets; it goes, its line stays. A line is kept if it passes, in this order:

1. no word of more than `max_word_length` characters;
2. it ends in one of . ? ! " ' and not in "..." (citations at its end set aside);
3. at least `min_words` words;
4. no "javascript";
5. no phrase of a cookie notice or a privacy policy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from transforms.batch import Batch, Spans
from transforms.characters import SPACE, classes
from transforms.text import decode, flags_at, inner, next_line, strip
from transforms.word_counts import count_sentences

LONG_WORD, NO_TERMINAL, FEW_WORDS, JAVASCRIPT, POLICY, KEPT = range(6)
# Marks of a line that passed rules 1 to 3; of one that passed 1 to 4; of one that is kept.
LOREM_IPSUM, CURLY_BRACKET, CITATION = 1, 2, 4
_PHRASES = (
    "lorem ipsum", "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)
_OPEN, _CLOSE, _CURLY = 91, 93, 123
_EDIT, _NEEDED = tuple(b"[edit]"), tuple(b"[citation needed]")


@functools.cache
def _phrase_table(phrases: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The phrases as rows of zero-padded bytes, and which byte begins which, in bits."""
    table, first = np.zeros((len(phrases), 16), np.uint8), np.zeros(256, np.int64)
    for k, phrase in enumerate(phrases):
        table[k, : len(phrase)] = np.frombuffer(phrase.encode(), np.uint8)
        for letter in (phrase[0], phrase[0].upper()):
            first[ord(letter)] |= 1 << k
    return table, first


@inner
def _phrases(data: np.ndarray, a: int, b: int, table: np.ndarray, first: np.ndarray) -> int:
    """Which phrases stand in ``data[a:b]`` in any case of ASCII, in bits."""
    found = 0
    for i in range(a, b):
        wanted = first[data[i]] & ~found
        k = 0
        while wanted:
            if wanted & 1:
                j = 1
                while table[k, j] and i + j < b:
                    c = data[i + j]
                    if table[k, j] != (c | 32 if 65 <= c <= 90 else c):
                        break
                    j += 1
                found |= (table[k, j] == 0) << k
            wanted >>= 1
            k += 1
    return found


@inner
def _stands(data: np.ndarray, i: int, b: int, word: tuple[int, ...]) -> bool:
    if i + len(word) > b:
        return False
    same = 0
    for k in range(len(word)):
        same += data[i + k] == word[k]
    return same == len(word)


@inner
def _citation(data: np.ndarray, i: int, b: int) -> int:
    """Bytes of the citation at `i`; 0 where there is none."""
    if data[i] != _OPEN:
        return 0
    j = i + 1
    while j < b and 48 <= data[j] <= 57:
        j += 1
    if j < b and data[j] == _CLOSE:
        return j + 1 - i
    if _stands(data, i, b, _EDIT):
        return 6
    return 17 if _stands(data, i, b, _NEEDED) else 0


@inner
def _words(data: np.ndarray, a: int, b: int, classes: np.ndarray) -> tuple[int, int, int, bool]:
    """Words as of ``str.split``, the longest in characters, where citations at the end begin, whether there are any."""
    words, longest, now, end, i, cited = 0, 0, 0, a, a, a
    while i < b:
        cited = max(cited, i + _citation(data, i, b)) if data[i] == _OPEN else cited
        flags, length = flags_at(data, i, b, classes)
        words += now == 0 and flags & SPACE == 0
        now = 0 if flags & SPACE else now + 1
        longest = max(longest, now)
        i += length
        end = i if i > cited else end
    return words, longest, end, cited > a


@inner
def _judge(
    data: np.ndarray, a: int, b: int, classes: np.ndarray, table: np.ndarray, first: np.ndarray, min_words: int,
    max_word_length: int,
) -> tuple[int, int]:
    """The rule that removes a stripped line, or KEPT, and what else is in it."""
    words, longest, end, cited = _words(data, a, b, classes)
    if longest > max_word_length:
        return LONG_WORD, 0
    last = data[end - 1] if end > a else 0
    dots = end - a > 2 and last == 46 and data[end - 2] == 46 and data[end - 3] == 46
    if dots or not (last == 46 or last == 63 or last == 33 or last == 34 or last == 39):
        return NO_TERMINAL, 0
    if words < min_words:
        return FEW_WORDS, 0
    found = _phrases(data, a, end, table, first)
    marks = LOREM_IPSUM if found & 1 else 0
    if found & 2:
        return JAVASCRIPT, marks
    for c in data[a:end]:
        if c == _CURLY:
            marks |= CURLY_BRACKET
    if found >> 2:
        return POLICY, marks
    return KEPT, marks | (CITATION if cited else 0)


@njit(cache=True, nogil=True)
def _judge_lines(
    data: np.ndarray, offsets: np.ndarray, classes: np.ndarray, table: np.ndarray, first: np.ndarray, min_words: int,
    max_word_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stripped lines (start, end, offsets), the break before each, its rule and its marks."""
    documents = offsets.size - 1
    places = np.empty((3, data.size), np.int32)
    rule, marks = np.empty(data.size, np.uint8), np.empty(data.size, np.uint8)
    lines = np.empty(documents + 1, np.int64)
    n = 0
    for d in range(documents):
        lines[d] = n
        i = gap = offsets[d]
        while i < offsets[d + 1]:
            end, after = next_line(data, i, offsets[d + 1], classes)
            a, b = strip(data, i, end, classes)
            places[0, n], places[1, n], places[2, n] = a, b, gap
            rule[n], marks[n] = _judge(data, a, b, classes, table, first, min_words, max_word_length)
            n += 1
            i, gap = after, (after - 1 if data[after - 1] == 10 else end)
    lines[documents] = n
    return places[0, :n], places[1, :n], lines, places[2, :n], rule[:n], marks[:n]


@dataclass(frozen=True)
class JudgedLines:
    """The lines of a batch and what C4's rules say of them."""

    lines: Spans  # stripped
    gap: np.ndarray  # int32 [lines], where the one character of line break before a line begins
    rule: np.ndarray  # uint8 [lines], the rule that removes it, or KEPT
    marks: np.ndarray  # uint8 [lines], bits LOREM_IPSUM, CURLY_BRACKET, CITATION


def judge_lines(batch: Batch, min_words: int = 3, max_word_length: int = 1000) -> JudgedLines:
    """Applies the line rules. Lengths are in characters."""
    table = _phrase_table(_PHRASES)
    start, end, offsets, gap, rule, marks = _judge_lines(
        batch.bytes, batch.offsets, classes(), *table, min_words, max_word_length
    )
    return JudgedLines(Spans(start, end, offsets), gap, rule, marks)


@inner
def _cut(out: np.ndarray, n: int, a: int, b: int) -> int:
    if b <= a:
        return n
    out[0, n], out[1, n] = a, b
    return n + 1


@njit(cache=True, nogil=True)
def _removed(
    data: np.ndarray, documents: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray, gap: np.ndarray,
    rule: np.ndarray, marks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What goes: all but the kept lines and one character of line break between them; and citations."""
    out = np.empty((2, data.size), np.int32)
    first = np.empty(documents.size, np.int64)
    n = 0
    for d in range(documents.size - 1):
        first[d] = n
        done, some = documents[d], False
        for line in range(offsets[d], offsets[d + 1]):
            if rule[line] != KEPT:
                continue
            if some:
                n = _cut(out, n, done, gap[line])
                done = gap[line] + decode(data, gap[line], start[line])[1]
            n = _cut(out, n, done, start[line])
            some = True
            if marks[line] & CITATION:
                for i in range(start[line], end[line]):
                    n = _cut(out, n, i, i + _citation(data, i, end[line]))
            done = end[line]
        n = _cut(out, n, done, documents[d + 1])
    first[-1] = n
    return out[0, :n], out[1, :n], first


def removed_spans(batch: Batch, judged: JudgedLines) -> Spans:
    """The parts of the documents that the line rules remove, in order, as places in the batch."""
    lines = judged.lines
    return Spans(*_removed(batch.bytes, batch.offsets, lines.start, lines.end, lines.offsets, judged.gap, judged.rule,
                           judged.marks))


def clean_lines(batch: Batch, min_words: int = 3, max_word_length: int = 1000) -> tuple[pa.LargeStringArray, Spans]:
    """The texts with the lines that C4 keeps, and the spans of the batch whose deletion gives those texts."""
    removed = removed_spans(batch, judge_lines(batch, min_words, max_word_length))
    return delete_spans(batch.bytes, batch.offsets, removed), removed


def delete_spans(data: np.ndarray, offsets: np.ndarray, spans: Spans) -> pa.LargeStringArray:
    """The documents without the spans, which are in order and do not overlap."""
    lengths = np.diff(offsets)
    gone = np.concatenate([[0], np.cumsum(spans.end.astype(np.int64) - spans.start)])
    kept = np.concatenate([[0], np.cumsum(lengths - np.diff(gone[spans.offsets]))])
    out = _copy_rest(data, spans.start, spans.end, int(kept[-1]))
    return pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(kept), pa.py_buffer(out))


@njit(cache=True, nogil=True)
def _copy_rest(data: np.ndarray, start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    out = np.empty(size, np.uint8)
    done, n = 0, 0
    for k in range(start.size):
        out[n : n + start[k] - done] = data[done : start[k]]
        n += start[k] - done
        done = end[k]
    out[n:] = data[done:]
    return out


def sentences(batch: Batch, judged: JudgedLines) -> np.ndarray:
    """int64 [documents]: sentences of the kept lines.

    Words are the batch's. Documents with citations are cut into words once more, since a citation hides the full stop
    before it.
    """
    words, lines = batch.words, judged.lines
    counts = count_sentences(batch.bytes, words.start, words.end, words.offsets, lines.start, lines.end, lines.offsets,
                             judged.rule == KEPT, classes())
    cited = np.unique(np.searchsorted(lines.offsets, np.flatnonzero(judged.marks & CITATION), side="right") - 1)
    if len(cited):
        removed = removed_spans(batch, judged)
        texts = delete_spans(batch.bytes, batch.offsets, removed).take(pa.array(cited))
        again = Batch(pa.record_batch({"text": texts}))
        kept = judge_lines(again, 0)
        words, lines = again.words, kept.lines
        counts[cited] = count_sentences(again.bytes, words.start, words.end, words.offsets, lines.start, lines.end,
                                        lines.offsets, kept.rule == KEPT, classes())
    return counts


@njit(cache=True, nogil=True)
def _count_rules(offsets: np.ndarray, rule: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rules, found = np.zeros((offsets.size - 1, KEPT + 1), np.int64), np.zeros(offsets.size - 1, np.uint8)
    for d in range(offsets.size - 1):
        for line in range(offsets[d], offsets[d + 1]):
            rules[d, rule[line]] += 1
            found[d] |= marks[line]
    return rules, found


def count_rules(judged: JudgedLines) -> tuple[np.ndarray, np.ndarray]:
    """int64 [documents, 6], lines by rule; uint8 [documents], the marks of any line."""
    return _count_rules(judged.lines.offsets, judged.rule, judged.marks)
