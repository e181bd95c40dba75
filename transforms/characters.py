"""Character classes of Unicode as one table of bit flags, built once per process from ``unicodedata`` (about 60 ms)."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator

import numpy as np

SPACE = 1  # str.isspace
BREAK = 2  # str.splitlines ends a line here
ALPHABETIC = 4  # str.isalpha
DIGIT = 8  # ASCII 0-9
LETTER = 16  # letters, and the marks that scripts from Hebrew on write their vowels with
LOWER = 32  # letters that are not upper case: lower case and scripts without case
UPPER = 64  # letters that are not lower case
PREFIX = 128  # comes off the front of a word
SUFFIX = 256  # comes off the end of a word
QUOTE = 512
ICON = 1024  # other symbols (category So): emoji, dingbats, arrows
BEFORE_STOP = 2048  # a full stop after it is a word of its own
SPLITS = 4096  # a word that holds none of these, nor digits, is split by the list of exceptions alone
PUNCTUATION = 8192  # category P
SYMBOL = 16384  # punctuation, ASCII symbols and control characters: words of these alone are not counted as words
TERMINAL = 32768  # ends a sentence

LIMIT = 0x20000  # the table ends here; the two planes beyond hold ideographs only
IDEOGRAPH = ALPHABETIC | LETTER | LOWER | UPPER

# Property Sentence_Terminal of the Unicode Character Database (PropList.txt), as hexadecimal ranges.
SENTENCE_TERMINAL = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d5 1803
1809 1944-1945 1aa8-1aab 1b4e-1b4f 1b5a-1b5b 1b5e-1b5f 1b7d-1b7f 1c3b-1c3c 1c7e-1c7f 2024 203c-203d 2047-2049
2cf9-2cfb 2e2e 2e3c 2e53-2e54 2e60-2e61 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f
aaf0-aaf1 abeb fe12 fe15-fe16 fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048
110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 113d4-113d5 1144b-1144c
115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8
11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16d6e-16d6f 16e98 1bc9f 1da88
"""
# spaCy's punctuation for the edges of words: marks, then quotes and brackets.
EDGE_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪—–"
QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧"
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
INFIXES = ".+-*^,~:<>=/—–%§"


def _terminals() -> Iterator[int]:
    for part in SENTENCE_TERMINAL.split():
        first, _, last = part.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def _category_flags(code: int) -> int:
    """The flags that follow from a character's general category."""
    character = chr(code)
    category = unicodedata.category(character)
    flags = SPACE if character.isspace() else 0
    if category[0] == "L" or (category[0] == "M" and code > 0x590):
        cased = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER | BEFORE_STOP}
        flags |= LETTER | cased.get(category, LOWER | UPPER | BEFORE_STOP)
        flags |= ALPHABETIC if category[0] == "L" else 0
    elif category[0] == "P":
        flags |= PUNCTUATION | SYMBOL
    elif category == "Cc" or (category[0] == "S" and code < 0x80):
        flags |= SYMBOL
    if category == "So":
        flags |= ICON | PREFIX | SUFFIX | SPLITS
    elif category == "Sc":
        flags |= PREFIX | SPLITS
    return flags


@functools.cache
def classes() -> np.ndarray:
    """uint16 [LIMIT]: the flags of every code point of the first two planes."""
    table = np.fromiter(map(_category_flags, range(LIMIT)), np.uint16, LIMIT)

    def mark(characters: str, flags: int) -> None:
        table[[ord(c) for c in characters]] |= np.uint16(flags)

    mark(EDGE_MARKS, PREFIX | SUFFIX | SPLITS)
    mark(QUOTES, PREFIX | SUFFIX | SPLITS | QUOTE)
    mark("§%=", PREFIX)
    mark(INFIXES, SPLITS)
    mark("0123456789", DIGIT)
    mark(EDGE_MARKS[:-2] + QUOTES + "0123456789%²-+|", BEFORE_STOP)
    mark(LINE_BREAKS, BREAK)
    table[list(_terminals())] |= np.uint16(TERMINAL | SYMBOL)
    table.flags.writeable = False
    return table
