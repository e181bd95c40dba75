"""Sentences of whole batches, in any language that ends them by marks.

Sentences are pieces that follow one another without a gap: the white space after a sentence belongs to it. When in
doubt two sentences stay one, since what is cut at their ends must not cut one in two. One ends

- at a blank line, and at the end of a line unless the text is wrapped there: the next word would not have fitted into
  the longest line of the paragraph, of 40 to 120 characters;
- after a stop (property Sentence_Terminal of Unicode, or an ellipsis), quotes, brackets and footnote marks behind it,
  and white space, unless what follows begins in lower case (as UAX #29, rule SB8, has it);
- after a full stop not where it belongs to an abbreviation, to initials, to an ordinal number of two digits or to the
  number of a list's item. Some of these end sentences too: where the next word is one that often begins one;
- after a stop of scripts that put no space behind it, and after ! and ? before their letters.

Cost: one pass over the bytes, about 80 MB/s on a busy core.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numpy as np
from numba import njit

from transforms.batch import Batch, Spans
from transforms.characters import BREAK, DIGIT, LETTER, LOWER, QUOTES, SPACE, TERMINAL, UPPER, classes
from transforms.text import decode, flags_at, flags_before, hash_bytes, hash_words, inner

OPEN, CLOSE, STOP, DOT, STRONG = 128, 256, 512, 1024, 2048  # bits of `marks`, beside those of `classes`
# Of quotes only corner brackets and the like say which end they stand at.
OPENERS = "".join(q for q in QUOTES if unicodedata.category(q) != "Pe") + "([{（［｛〖¿¡*_-–—•·#>|"
# Variation selectors, as of an emoji in place of a mark, belong to what they follow.
CLOSERS = "".join(q for q in QUOTES if unicodedata.category(q) != "Ps") + ")]}）］｝〗*_\ufe0e\ufe0f"
DOTS, ELLIPSIS = ".․﹒．", "…"  # full stops: they stand in abbreviations and numbers too
NARROWEST, WIDEST = 40, 120  # characters of the longest line of a paragraph that is wrapped
NEVER, NUMBERED, UNSURE, STARTS = 1, 2, 4, 8  # kinds of words
_GUILLEMET = 0xBB

# With a full stop no end of a sentence, whatever follows.
_NEVER = """
mr mrs ms mx dr prof messrs mme mlle e.g i.e cf vs viz z.b d.h bzw hr sr sra srta sig dott dhr mevr bijv np напр т.е
p.ej ud uds vd al
"""
# None before a number.
_NUMBERED = """
no nos nr núm num fig figs vol vols ch chap cap sec sect art eq eqs par abs bd pp pág págs pag tab app ver op ca approx
ext tel abb kap lit ziff рис стр табл гл
"""
# None but before a word that often begins a sentence.
_UNSURE = """
st jr inc ltd co corp bros dept est univ assn gov gen col maj capt lt sgt adm sen rep rev hon pres supt mt ft ave blvd
rd etc ed eds trans approx ca resp usw sog ggf evtl inkl exkl ing dipl geb gest jh jhd str boul cie ste éd env depto
gral izq dcha prov ecc es al et fr тыс млн млрд руб ул им др пр гг вв
"""
_MONTHS = "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Okt Dez Janv Févr Juil Déc"
_STARTS = """
The This That These Those There It He She They We You His Her Its Their Our My But And However When While If As At On
For From After Before In What Who Why How Where So Then Some Many Most All Not Yes To By With Since Although Because
During Another Other Such Also Thus Here Did Does Is Are Was Were Please Let According Today Now Once Each Both Until
Der Die Das Ein Eine Er Sie Es Wir Ich Dies Diese Dieser Dieses Doch Aber Und Oder Auch Im Am An Auf Aus Bei Mit Nach
Von Vor Zu Zum Zur Für Wenn Weil Als Da Dann Hier Heute Man Nur Noch Nicht Seine Les Une Des Il Elle Ils Elles Nous
Vous Ce Cette Ces Mais Dans Pour Par Sur Avec Sans Quand Comme Aux Una En Para Con Pero Este Esta Cuando Por Nel Nella
Questo Questa Quando Он Она Оно Они Мы Вы Это Но Как Что Если После Когда На По Из
"""


@functools.cache
def marks() -> np.ndarray:
    """uint16 [LIMIT]: for every code point of the first two planes what the rules ask of it."""
    known = classes()
    table = known & np.uint16(SPACE | BREAK | LETTER | LOWER | UPPER | DIGIT)
    stops = (known & TERMINAL) != 0
    table[stops] |= np.uint16(STOP | STRONG)
    table[:0x80] &= np.uint16(~STRONG & 0xFFFF)
    for characters, flag in ((OPENERS, OPEN), (CLOSERS, CLOSE), (DOTS, STOP | DOT), (ELLIPSIS, STOP)):
        table[[ord(c) for c in characters]] |= np.uint16(flag)
    table[[ord(c) for c in DOTS]] &= np.uint16(~STRONG & 0xFFFF)
    table.flags.writeable = False
    return table


@functools.cache
def stops() -> str:
    """The characters that end sentences."""
    return "".join(map(chr, np.flatnonzero(marks() & STOP)))


@functools.cache
def words() -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words of the lists above, uint64 ascending, and the kinds of each, uint8."""
    kinds: dict[str, int] = {}
    for listed, kind in ((_NEVER, NEVER), (_NUMBERED, NUMBERED), (_UNSURE, UNSURE)):
        for word in listed.split():
            for form in {word, word.capitalize(), word.upper(), word.replace(".b", ".B")}:
                kinds[form] = kinds.get(form, 0) | kind
    kinds |= dict.fromkeys(_MONTHS.split(), UNSURE | NUMBERED)
    for word in _STARTS.split():
        kinds[word] = kinds.get(word, 0) | STARTS
    hashes = hash_words(list(kinds))
    order = np.argsort(hashes)
    return hashes[order], np.array(list(kinds.values()), np.uint8)[order]


def sentences(batch: Batch) -> Spans:
    """The sentences of each document; end to end they are its text. An empty document has none."""
    return Spans(*split_sentences(batch.bytes, batch.offsets, marks(), *words()))


@inner
def _kinds(data: np.ndarray, a: int, b: int, hashes: np.ndarray, kinds: np.ndarray) -> Any:
    """The kinds of a word, by binary search."""
    wanted = hash_bytes(data, a, b)
    low, high = 0, hashes.size
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return np.int64(kinds[low]) if low < hashes.size and hashes[low] == wanted else 0


@inner
def _back(data: np.ndarray, start: int, i: int, table: np.ndarray, flags: int) -> Any:
    """Where the run of characters with any of `flags` begins that ends before `i`."""
    while i > start:
        found, length = flags_before(data, start, i, table)
        if not found & flags:
            break
        i -= length
    return i


@inner
def _forth(data: np.ndarray, i: int, stop: int, table: np.ndarray, flags: int) -> Any:
    """Where the run of characters with any of `flags` ends that begins at `i`."""
    while i < stop:
        found, length = flags_at(data, i, stop, table)
        if not found & flags:
            break
        i += length
    return i


@inner
def _is_space(data: np.ndarray, i: int, stop: int, table: np.ndarray) -> Any:
    return flags_at(data, i, stop, table)[0] & SPACE != 0


@inner
def _before_closers(data: np.ndarray, start: int, i: int, table: np.ndarray) -> Any:
    """`i` moved back over quotes, brackets and footnote marks like [12]; also over the space before a »."""
    while True:
        j = _back(data, start, i, table, CLOSE)
        if j < i and j > start and decode(data, j, i)[0] == _GUILLEMET:
            flags, length = flags_before(data, start, j, table)
            if flags & SPACE and not flags & BREAK and flags_before(data, start, j - length, table)[0] & STOP:
                j -= length
        if j < i and data[j] == 93 and j > start:
            k = _back(data, start, j, table, DIGIT)
            if start < k < j and data[k - 1] == 91:
                j = k - 1
        if j == i:
            return i
        i = j


@inner
def _short(data: np.ndarray, a: int, b: int, table: np.ndarray) -> Any:
    """Whether a word before a full stop is one letter, initials (U.S, Ph.D) or a number of one or two digits."""
    letters, digits, dots, part = 0, 0, 0, 0
    while a < b:
        flags, length = flags_at(data, a, b, table)
        if flags & DOT:
            if not 0 < part <= 2:
                return False
            dots, part = dots + 1, 0
        elif flags & DIGIT:
            digits, part = digits + 1, part + 1
        else:
            if flags & LOWER and flags & UPPER:  # a script without capitals
                return False
            letters, part = letters + 1, part + 1
        a += length
    if digits:
        return letters == 0 and dots == 0 and digits <= 2
    return 0 < part <= 2 if dots else letters == 1


@inner
def _abbreviated(
    data: np.ndarray,
    start: int,
    a: int,
    b: int,
    n: int,
    stop: int,
    table: np.ndarray,
    hashes: np.ndarray,
    kinds: np.ndarray,
) -> Any:
    """Whether the full stop behind the word a:b is part of it alone; `n` is where the next word begins."""
    known = _kinds(data, a, b, hashes, kinds)
    if known & NEVER or (known & NUMBERED and flags_at(data, n, stop, table)[0] & DIGIT):
        return True
    short = _short(data, a, b, table)
    if not (short or known & UNSURE):
        return False
    line = _back(data, start, a, table, OPEN)
    if short and (line == start or flags_before(data, start, line, table)[0] & BREAK):
        return True  # the number of an item
    return not _kinds(data, n, _forth(data, n, stop, table, LETTER), hashes, kinds) & STARTS


@inner
def _stopped(
    data: np.ndarray, start: int, a: int, b: int, stop: int, table: np.ndarray, hashes: np.ndarray, kinds: np.ndarray
) -> Any:
    """Whether a sentence ends before the white space a:b, where the text goes on."""
    e = _before_closers(data, start, a, table)
    if e == start or not flags_before(data, start, e, table)[0] & STOP:
        return False
    code, length = decode(data, b, stop)
    if code == _GUILLEMET and not flags_at(data, b + length, stop, table)[0] & (LETTER | DIGIT):
        return False  # it closes, as in French
    n = _forth(data, b, stop, table, OPEN)
    flags, again = flags_at(data, n, stop, table)[0], _forth(data, n, stop, table, STOP)
    if (flags & LOWER and not flags & UPPER) or (again > n and (again == stop or _is_space(data, again, stop, table))):
        return False  # the sentence goes on, or another stop stands alone, as in ". . ."
    run = _back(data, start, e, table, STOP)
    _, length = flags_before(data, start, e, table)
    if run + length < e or not flags_before(data, start, e, table)[0] & DOT:
        return True  # several stops, or one that is no full stop
    w = _back(data, start, run, table, LETTER | DIGIT | DOT)
    return w == run or not _abbreviated(data, start, w, run, n, stop, table, hashes, kinds)


@inner
def _characters(data: np.ndarray, a: int, b: int) -> Any:
    n = 0
    for i in range(a, b):
        n += (data[i] & 0xC0) != 0x80
    return n


@inner
def _gap(data: np.ndarray, i: int, stop: int, table: np.ndarray) -> tuple[Any, Any, Any]:
    """Of the white space that begins at `i`: where it ends, how many line breaks it holds, where the last one ends."""
    breaks, line = 0, i
    while i < stop:
        flags, length = flags_at(data, i, stop, table)
        if not flags & SPACE:
            break
        if flags & BREAK:
            breaks += not (data[i] == 10 and line == i and breaks and data[i - 1] == 13)  # "\r\n" is one
            line = i + length
        i += length
    return i, breaks, line


@inner
def _width(data: np.ndarray, line: int, stop: int, table: np.ndarray) -> Any:
    """Characters of the longest line of the paragraph that begins at `line`, or of one longer than WIDEST."""
    longest, i = 0, line
    while i < stop:
        if not flags_at(data, i, stop, table)[0] & SPACE:
            i += flags_at(data, i, stop, table)[1]
            continue
        after, breaks, next_line = _gap(data, i, stop, table)
        if breaks:
            longest = max(longest, _characters(data, line, i))
            line = next_line
            if breaks > 1 or longest > WIDEST:
                return longest
        i = after
    return max(longest, _characters(data, line, i))


@inner
def _wrapped(data: np.ndarray, line: int, a: int, b: int, stop: int, width: int, table: np.ndarray) -> Any:
    """Whether the line that ends at `a` goes on at `b`: its next word would have made it longer than `width`."""
    if not NARROWEST <= width <= WIDEST:
        return False
    flags, _ = flags_at(data, b, stop, table)
    if not (flags & (LETTER | DIGIT) or data[b] in (34, 39, 40)):
        return False
    number = _forth(data, b, stop, table, DIGIT)
    if number > b and number < stop and data[number] in (41, 46):  # "1." and "1)"
        return False
    word = b
    while word < stop and not flags_at(data, word, stop, table)[0] & SPACE:
        word += flags_at(data, word, stop, table)[1]
    return _characters(data, line, a) + 1 + _characters(data, b, word) > width


@inner
def _unspaced(data: np.ndarray, i: int, stop: int, flags: int, table: np.ndarray) -> Any:
    """Whether a sentence ends at `i`, behind a stop with these flags that no white space follows."""
    follows, _ = flags_at(data, i, stop, table)
    if flags & STRONG:
        return not follows & (SPACE | STOP | CLOSE)
    return (data[i - 1] == 33 or data[i - 1] == 63) and follows & LOWER and follows & UPPER


@njit(cache=True, nogil=True)
def split_sentences(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, hashes: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentences: start, end (int32 [sentences]) and offsets of the documents (int64 [documents + 1])."""
    documents = offsets.size - 1
    start = np.empty(data.size + 1, np.int32)
    first = np.empty(documents + 1, np.int64)
    n = 0
    for d in range(documents):
        first[d] = n
        begin, stop = offsets[d], offsets[d + 1]
        i = line = begin
        width = _width(data, begin, stop, table)
        if begin < stop:
            start[n] = begin
            n += 1
        while i < stop:
            if 64 <= data[i] < 0x80:
                i += 1
                continue
            flags, length = flags_at(data, i, stop, table)
            if not flags & (SPACE | STOP):
                i += length
                continue
            a = i
            if flags & STOP:
                i += length
                ends = i < stop and _unspaced(data, i, stop, flags, table)
            else:
                i, breaks, next_line = _gap(data, a, stop, table)
                ends = a > begin and i < stop
                if ends and (breaks == 0 or (breaks == 1 and _wrapped(data, line, a, i, stop, width, table))):
                    ends = _stopped(data, begin, a, i, stop, table, hashes, kinds)
                if breaks:
                    line = next_line
                if breaks > 1:
                    width = _width(data, line, stop, table)
            if ends:
                start[n] = i
                n += 1
    first[documents] = n
    end = np.empty(n, np.int32)
    for d in range(documents):
        for k in range(first[d], first[d + 1]):
            end[k] = start[k + 1] if k + 1 < first[d + 1] else offsets[d + 1]
    return start[:n].copy(), end, first
