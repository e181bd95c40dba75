"""Scripts of letters against the Unicode property that the regular expressions of polars know, and a slow count."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import scripts
from transforms.batch import Batch
from transforms.characters import LIMIT

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "aZ1 жЖあア漢ก\u0301é𝒳𠀀", max_size=30
)


def counted(texts: list[str]) -> list[tuple[str, int, int]]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    codes = scripts.codes()
    latin, han = codes.index("Latn"), codes.index("Hani")
    found = scripts.count_scripts(batch.bytes, batch.offsets, scripts.table(), latin, han, len(codes))
    return [(codes[s], int(n), int(of)) for s, n, of in zip(*found, strict=True)]


def test_every_letter_has_the_script_of_the_unicode_property() -> None:
    """Where polars has the property, the table agrees with it or leaves a letter out; it leaves out few."""
    letters = [c for c in map(chr, range(LIMIT)) if unicodedata.category(c)[0] == "L"]
    column, codes, table = pl.Series(letters), scripts.codes(), scripts.table()
    property_of: dict[str, str] = {}
    for code in codes[1:]:
        of_script = column.str.contains(rf"^\p{{sc={code}}}$").to_numpy()
        property_of |= {letters[i]: code for i in np.flatnonzero(of_script)}
    named = [c for c in letters if table[ord(c)]]
    wrong = [(hex(ord(c)), codes[table[ord(c)]]) for c in named if codes[table[ord(c)]] != property_of.get(c)]
    left_out = [c for c in letters if not table[ord(c)] and c in property_of]
    assert wrong == []
    assert len(left_out) < 250 and all(unicodedata.name(c).split()[0] != "LATIN" for c in left_out)
    assert not any(table[code] for code in range(LIMIT) if unicodedata.category(chr(code))[0] != "L")


def slow(text: str) -> tuple[str, int, int]:
    def script(c: str) -> str:
        if ord(c) >= LIMIT:
            return "Hani" if ord(c) < 2 * LIMIT else ""
        return scripts.codes()[scripts.table()[ord(c)]]

    found = Counter(s for c in text if (s := script(c)))
    best = min(found, key=lambda s: (-found[s], s), default="")
    return best, found[best], found.total()


@given(st.lists(ANY_TEXT, max_size=5))
def test_counts_equal_the_slow_count(texts: list[str]) -> None:
    assert counted(texts) == [slow(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Straße", "Latn"), ("Москва", "Cyrl"), ("Ελλάδα", "Grek"), ("שלום", "Hebr"), ("مرحبا", "Arab"),
        ("नमस्ते", "Deva"),
        ("ภาษาไทย", "Thai"), ("한국어", "Hang"), ("ひらがな", "Hira"), ("カタカナ", "Kana"), ("中文", "Hani"),
        ("ქართული", "Geor"),
        ("አማርኛ", "Ethi"), ("𐌰𐌹𐍅𐍃", "Goth"), ("𠀀𠀁", "Hani"), ("12 + 3!", ""), ("𝒳𝒴", ""), ("ʰʲ", ""),
    ],
)  # fmt: skip
def test_planted_scripts(text: str, code: str) -> None:
    assert counted([text])[0][0] == code


def test_the_table_covers_the_planes_it_says() -> None:
    assert len(scripts.table()) == LIMIT < sys.maxunicode and len(scripts.codes()) < 256
