"""folded words equal a slow reference on every script; the kernels may stop and go on anywhere."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.folding import (
    DECIMAL_MARKS,
    LIMIT,
    UNSPACED,
    fill_characters,
    fill_words,
    folded_words,
    identity,
    table,
)

SAMPLE = "Aß9Éİςﬁ中ガ가กΣ.,،٫ \n-_😀\u0301\u200d\u00ad१४🏽𝟗ꯀ\U0002f800\U000e0100\U000f0000$+^©²"
TEXT = st.text(st.one_of(st.sampled_from(SAMPLE), st.characters(codec="utf-8")))


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def reference(text: str) -> list[str]:
    """Folded words, character by character, from unicodedata."""
    text = text.replace("\ue000", " ")  # private use: marks cuts below
    digits = "".join("\ue000" if unicodedata.category(c) == "Nd" else c for c in text)
    numbers = re.sub(f"\ue000+([{DECIMAL_MARKS}]\ue000+)?", "0", digits)
    out = ""
    for c in numbers:
        category = unicodedata.category(c)
        if category in ("Mn", "Me", "Cf"):
            continue
        if category[0] in "PZ" or category in ("Sm", "Sc", "Sk", "Cc"):
            out += " "
            continue
        folded = unicodedata.normalize("NFD", c.lower().replace("ς", "σ"))
        folded = "".join(part for part in folded if unicodedata.category(part) != "Mn")
        alone = len(folded) == 1 and any(first <= ord(c) <= last for first, last in UNSPACED)
        out += f" {folded} " if alone else folded
    return [word for word in out.split(" ") if word]


def pieces(texts: list[str]) -> list[list[int]]:
    words = folded_words(batch_of(texts))
    return [words.hash[a:b].tolist() for a, b in zip(words.offsets, words.offsets[1:], strict=False)]


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT))
def test_words_equal_reference(texts: list[str]) -> None:
    texts = [text.replace("\ue000", "") for text in texts]
    expected = [reference(text) for text in texts]
    found = pieces(texts)
    assert [len(words) for words in found] == [len(words) for words in expected]
    names: dict[int, str] = {}
    for hashes, words in zip(found, expected, strict=True):
        for value, word in zip(hashes, words, strict=True):
            assert names.setdefault(value, word) == word
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("start", range(0, 0x110000, 0x8000))
def test_every_code_point(start: int) -> None:
    codes = [code for code in range(start, start + 0x8000) if not 0xD800 <= code < 0xE000 and code != 0xE000]
    texts = [f"x{chr(code)}y" for code in codes]
    expected = [reference(text) for text in texts]
    assert [len(words) for words in pieces(texts)] == [len(words) for words in expected]
    assert pieces(texts) == pieces([" ".join(words) for words in expected])


@settings(max_examples=200, deadline=None)
@given(TEXT, st.integers(1, 4))
def test_words_in_small_buffers(text: str, size: int) -> None:
    batch, (entries, pool) = batch_of([text]), table()
    whole = folded_words(batch)
    out, start, stop = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
    rows: list[tuple[int, int, int]] = []
    i = 0
    while i < len(batch.bytes):
        i, filled = fill_words(batch.bytes, i, len(batch.bytes), entries, pool, out, start, stop, 0)
        rows += zip(out[:filled].tolist(), start[:filled].tolist(), stop[:filled].tolist(), strict=True)
    assert rows == list(zip(whole.hash.tolist(), whole.start.tolist(), whole.end.tolist(), strict=True))


def characters(text: str, size: int, folding) -> list[int]:  # type: ignore[no-untyped-def]
    data, out, rows = batch_of([text]).bytes, np.empty(size, np.uint64), []
    i, owed, held = 0, False, 0
    while i < len(data):
        i, filled, owed = fill_characters(data, i, len(data), *folding, out, held, owed)
        rows += out[held:filled].tolist()
        held = min(1, filled)
    return rows


@settings(max_examples=200, deadline=None)
@given(TEXT, st.integers(9, 12))
def test_characters(text: str, size: int) -> None:
    text = text.replace("\ue000", "")
    whole = characters(text, 10_000, table())
    assert characters(text, size, table()) == whole
    cut = re.sub(" +", " ", "".join(f"{c}" for c in _folded_characters(text))).strip()
    assert characters(cut, 10_000, identity(False)) == whole
    assert len(characters(text, 10_000, identity(False))) == len(text)


def _folded_characters(text: str) -> str:
    """The reference again, without cutting up the scripts that have no spaces."""
    digits = "".join("\ue000" if unicodedata.category(c) == "Nd" else c for c in text)
    out = ""
    for c in re.sub(f"\ue000+([{DECIMAL_MARKS}]\ue000+)?", "0", digits):
        category = unicodedata.category(c)
        if category in ("Mn", "Me", "Cf"):
            continue
        separates = category[0] in "PZ" or category in ("Sm", "Sc", "Sk", "Cc")
        folded = unicodedata.normalize("NFD", c.lower().replace("ς", "σ"))
        out += " " if separates else "".join(part for part in folded if unicodedata.category(part) != "Mn")
    return out


def test_examples() -> None:
    same = [
        ("Café, No. 3,141.5!", "cafe no 7 8.1"),
        ("ΟΔΌΣ", "οδος"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("१२३ ٣٫٤", "0 0"),
        ("가", "\u1100\u1161"),
        ("中文 ガラス", "中 文カ ラ ス"),
        ("😀 !", "(😀)"),
    ]
    for a, b in same:
        assert pieces([a]) == pieces([b]), (a, b)
    assert [len(words) for words in pieces(["", " .,!?\t", "don't", "x" * 1_000_000])] == [0, 0, 2, 1]


def test_a_character_folds_to_few() -> None:
    assert max(len(reference(chr(code))[0]) for code in range(0xAC00, 0xD7A4)) == 3
    _, pool = table()
    at, longest = 1, 0
    while at < len(pool):
        longest = max(longest, int(pool[at]))
        at += 1 + int(pool[at])
    assert longest <= 4


def test_identity_separates_on_white_space_only() -> None:
    entries, _ = identity(True)
    assert [code for code in range(LIMIT) if entries[code] != code] == [c for c in range(LIMIT) if chr(c).isspace()]
