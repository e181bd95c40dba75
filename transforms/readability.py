"""Words, sentences, letters and syllables of English text, as readability formulas want them. One pass over the bytes.

- A word is what stands between white space and dashes (`—`, `–`, `--`) and holds a letter or digit, as Flesch (1948)
  counts words: contractions, hyphenated words and figures are one.
- A sentence ends before a word that does not begin with a small letter if a mark `. ! ? …` closed the word before (with
  quotes or brackets behind it), or if a line of fewer than `SHORT_LINE` bytes ended between them (headings, items);
  before any word if a blank line stands between; and with the document. The full stop of a letter (`J.`, `U.S.`, but
  not `I.`) or of a title (`Mr.`) closes nothing.
- Syllables: `transforms.syllables`; every word has one at least.

Cost: about 110 MB/s per core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from transforms.characters import ALPHABETIC, DIGIT, LIMIT, LOWER, SPACE, UPPER
from transforms.syllables import _OTHER, LETTERS, LONGEST, count_syllables, is_vowel
from transforms.text import decode, inner

SHORT_LINE = 50
TITLES = "mr mrs ms dr prof st vs fig gen rev capt sgt lt col gov sen rep"
COLUMNS = ("words", "sentences", "letters", "characters", "syllables", "long_words")
WORDS, SENTENCES, ALPHAS, CHARACTERS, SYLLABLES, LONG_WORDS = range(6)  # long words have three syllables or more
_STOP, _HYPHEN, _APOSTROPHE, _ELLIPSIS, _N, _T, _I = 0x2E, 0x2D, 0x2019, 0x2026, ord("n"), ord("t"), ord("i")


def titles() -> np.ndarray:
    """int64: the titles, packed as the kernel packs the letters of a word."""
    return np.array([int.from_bytes(title.encode(), "big") for title in TITLES.split()], np.int64)


@inner
def _flags(code: int, classes: np.ndarray) -> int:
    return int(classes[code]) if code < LIMIT else (ALPHABETIC if code < 2 * LIMIT else 0)


@inner
def _dash(data: np.ndarray, i: int, stop: int) -> int:
    """Bytes of the dash that begins at `i`, or 0."""
    if data[i] == _HYPHEN and i + 1 < stop and data[i + 1] == _HYPHEN:
        return 2
    dash = i + 2 < stop and data[i] == 0xE2 and data[i + 1] == 0x80 and (data[i + 2] == 0x93 or data[i + 2] == 0x94)
    return 3 if dash else 0


@inner
def _closes(data: np.ndarray, a: int, b: int, titles: np.ndarray) -> bool:
    """Whether the piece ``data[a:b]`` ends in a mark that closes a sentence."""
    while b > a:  # take off what may stand behind the mark: quotes and brackets
        c = data[b - 1]
        if c == 0x22 or c == 0x27 or c == 0x29 or c == 0x5D:
            b -= 1
        elif b - a > 2 and data[b - 3] == 0xE2 and data[b - 2] == 0x80 and (c == 0x99 or c == 0x9D):
            b -= 3
        else:
            break
    if b == a:
        return False
    if data[b - 1] != _STOP:
        dots = b - a > 2 and data[b - 3] == 0xE2 and data[b - 2] == 0x80 and data[b - 1] == 0xA6
        return bool(dots or data[b - 1] == 0x21 or data[b - 1] == 0x3F)
    while a < b - 1 and not 97 <= data[a] | 0x20 <= 122:
        a += 1
    return not (_is_letters(data, a, b) or _is_title(data, a, b, titles))


@inner
def _is_letters(data: np.ndarray, a: int, b: int) -> bool:
    """Whether ``data[a:b]`` is letters with a full stop after each, but not the one word `I`."""
    if (b - a) % 2 or a == b or (b - a == 2 and data[a] == _I - 32):
        return False
    every = True
    for k in range(a, b, 2):
        every &= 97 <= data[k] | 0x20 <= 122 and data[k + 1] == _STOP
    return every


@inner
def _is_title(data: np.ndarray, a: int, b: int, titles: np.ndarray) -> bool:
    """Whether ``data[a:b]`` is one of the titles with a full stop."""
    if b - a > 5:
        return False
    packed: Any = 0
    for k in range(a, b - 1):
        packed = packed << 8 | (np.int64(data[k]) | 0x20)
    found = False
    for title in titles:
        found |= title == packed
    return found


@inner
def _read_word(
    data: np.ndarray, a: int, b: int, classes: np.ndarray, letters: np.ndarray, word: np.ndarray
) -> tuple[int, int, int, bool]:
    """Letters, letters and digits, syllables of the piece ``data[a:b]``, and whether it begins with a small letter.

    `word` is room for the letters of the part that is read: parts of a word end at what is no letter.
    """
    alphas, characters, syllables, small, n, i = 0, 0, 0, False, 0, a
    while i < b:
        code, length = decode(data, i, b)
        flags = _flags(code, classes)
        i += length
        if characters == 0 and flags & (ALPHABETIC | DIGIT):
            small = flags & LOWER != 0 and flags & UPPER == 0
        alphas += flags & ALPHABETIC != 0
        characters += flags & (ALPHABETIC | DIGIT) != 0
        if flags & ALPHABETIC:
            if n < LONGEST:
                word[n] = letters[code] if code < LETTERS else _OTHER
                n += 1
            continue
        if (code == 0x27 or code == _APOSTROPHE) and n > 1 and i < b and data[i] | 0x20 == _T:
            syllables += word[n - 1] == _N and not is_vowel(word, n - 2, n)  # didn't, but not don't
        syllables += count_syllables(word, n)
        n = 0
    return alphas, characters, syllables + count_syllables(word, n), small


@njit(cache=True, nogil=True)
def measure(
    data: np.ndarray, offsets: np.ndarray, classes: np.ndarray, letters: np.ndarray, titles: np.ndarray
) -> np.ndarray:
    """int64 [documents, 6]: the COLUMNS; `characters` are letters and digits."""
    out = np.zeros((offsets.size - 1, 6), np.int64)
    word = np.empty(LONGEST, np.uint8)
    for d in range(offsets.size - 1):
        i, stop = offsets[d], offsets[d + 1]
        line, breaks, short, closed = i, 0, False, False  # since the last word; `line` is where the line began
        while i < stop:
            a = i
            while i < stop and not _dash(data, i, stop):
                code, length = decode(data, i, stop)
                if _flags(code, classes) & SPACE:
                    break
                i += length
            if i > a:
                alphas, characters, syllables, small = _read_word(data, a, i, classes, letters, word)
                if characters:
                    if breaks > 1 or (not small and (closed or (breaks == 1 and short))):
                        out[d, SENTENCES] += out[d, WORDS] > 0
                    syllables = max(syllables, 1)
                    out[d, WORDS] += 1
                    out[d, ALPHAS] += alphas
                    out[d, CHARACTERS] += characters
                    out[d, SYLLABLES] += syllables
                    out[d, LONG_WORDS] += syllables > 2
                    breaks, short, closed = 0, False, False
                closed |= _closes(data, a, i, titles)
                continue
            if data[i] == 10:
                short = i - line < SHORT_LINE if breaks == 0 else short
                breaks += 1
                line = i + 1
            i += max(_dash(data, i, stop), decode(data, i, stop)[1])
        out[d, SENTENCES] += out[d, WORDS] > 0
    return out
