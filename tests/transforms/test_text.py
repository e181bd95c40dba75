"""Kernels over bytes against slow references: classes, hashes, lines, duplicates, marks."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import characters as ch
from transforms import lines, text, word_counts
from transforms.batch import Batch

LINE_TEXT = st.text(
    st.sampled_from(list("ab.-•…!？  \t\u3000") + list("\n\n\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")), max_size=40
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60)
TEXTS = st.lists(LINE_TEXT | ANY_TEXT, max_size=5)
MASK = (1 << 64) - 1


def make(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))


def test_classes_agree_with_python_on_every_code_point() -> None:
    table = ch.classes()
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        beyond = ch.IDEOGRAPH if ch.LIMIT <= code < 2 * ch.LIMIT else 0
        flags = int(table[code]) if code < ch.LIMIT else beyond
        if category == "Cn" and code >= ch.LIMIT:
            continue  # unassigned places between the blocks of ideographs count as such
        assert bool(flags & ch.SPACE) == character.isspace(), hex(code)
        assert bool(flags & ch.ALPHABETIC) == character.isalpha(), hex(code)
        assert bool(flags & ch.PUNCTUATION) == (category[0] == "P"), hex(code)
        assert bool(flags & ch.BREAK) == (len(f"a{character}b".splitlines()) == 2), hex(code)
        assert bool(flags & ch.DIGIT) == (character in "0123456789"), hex(code)


@pytest.mark.parametrize("mark", list(".?!。؟।？！‽"))
def test_terminal_marks(mark: str) -> None:
    assert ch.classes()[ord(mark)] & ch.TERMINAL


@pytest.mark.parametrize("other", list(",;:…'\"a·-"))
def test_other_marks(other: str) -> None:
    assert not ch.classes()[ord(other)] & ch.TERMINAL


def slow_hash(data: bytes) -> int:
    def fold(h: int) -> int:
        return h ^ h >> 32

    h = len(data) * 0x9E3779B97F4A7C15 & MASK
    whole = len(data) // 8 * 8
    for block in [data[i : i + 8] for i in range(0, whole, 8)] + [data[whole:]]:
        h = fold((h ^ int.from_bytes(block, "little")) * 0xD6E8FEB86659FD93 & MASK)
    return fold(h * 0xA0761D6478BD642F & MASK)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_hash_equals_slow_hash(blocks: list[bytes]) -> None:
    ends = np.cumsum([len(b) for b in blocks], dtype=np.int64)
    starts = ends - [len(b) for b in blocks]
    found = text.hash_pieces(np.frombuffer(b"".join(blocks), np.uint8), starts.astype(np.int64), ends)
    assert found.tolist() == [slow_hash(b) for b in blocks]


def test_hash_is_the_same_on_every_machine_and_does_not_collide() -> None:
    assert text.hash_words(["the"]).tolist() == [slow_hash(b"the")]
    many = [str(i) for i in range(200_000)] + [f"{i:012d}" for i in range(200_000)]
    hashes = text.hash_words(many)
    assert len(np.unique(hashes)) == len(many)
    ones = np.unpackbits(hashes.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.01
    assert len(np.unique(hashes & np.uint64(0xFFFFF))) > 0.28 * (
        1 << 20
    )  # low bits fill a table as random ones do: 0.317


@settings(deadline=None)
@given(TEXTS)
def test_blank_lines_and_line_ends(texts: list[str]) -> None:
    batch = make(texts)
    spans = batch.lines
    places = (batch.bytes, spans.start, spans.end)
    blank = lines.is_blank(*places, ch.classes())
    assert blank.tolist() == [not line.strip() for t in texts for line in t.split("\n")]
    found = lines.count_line_ends(*places, spans.offsets, blank, ch.classes(), 3)
    for row, t in zip(found.tolist(), texts, strict=True):
        filled = [line for line in t.split("\n") if line.strip()]
        ends = [ord(line[-1]) < ch.LIMIT and bool(ch.classes()[ord(line[-1])] & ch.TERMINAL) for line in filled]
        assert row == [len(filled), sum(ends), sum(len(line) <= 3 for line in filled)]


@settings(deadline=None)
@given(TEXTS)
def test_line_marks_equal_splitlines(texts: list[str]) -> None:
    batch = make(texts)
    found = lines.count_line_marks(batch.bytes, batch.offsets, ch.classes()).tolist()
    for row, t in zip(found, texts, strict=True):
        split = t.splitlines()
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in split)
        assert row == [len(split), bullets, sum(line.rstrip().endswith(("...", "…")) for line in split)]


@settings(deadline=None)
@given(st.lists(st.text("ab \n…", max_size=30) | ANY_TEXT, max_size=5))
def test_paragraphs_and_duplicates(texts: list[str]) -> None:
    batch = make(texts)
    start, end, offsets = lines.split_paragraphs(batch.bytes, batch.offsets, ch.classes())
    data = batch.bytes.tobytes()
    every = np.ones(len(start), np.bool_)
    hashes = text.hash_pieces(batch.bytes, start, end)
    counts, sizes = lines.count_duplicates(batch.bytes, start, end, offsets, hashes, every)
    for d, t in enumerate(texts):
        expected = [p.strip("\n") for p in t.strip().split("\n\n")]
        expected = expected[:1] + [p for p in expected[1:] if p]
        span = range(offsets[d], offsets[d + 1])
        assert [data[start[i] : end[i]].decode() for i in span] == expected
        again = [p for i, p in enumerate(expected) if p in expected[:i]]
        assert (counts[d], sizes[d]) == (len(again), sum(map(len, again)))
    ends = lines.count_empty_ends(batch.bytes, batch.offsets)
    assert ends.tolist() == [t.startswith("\n") + t.endswith("\n") for t in texts]


@settings(deadline=None)
@given(st.lists(st.text("#.… a", max_size=30), max_size=5))
def test_symbols(texts: list[str]) -> None:
    batch = make(texts)
    found = word_counts.count_symbols(batch.bytes, batch.offsets).tolist()
    assert found == [[t.count("#"), t.count("...") + t.count("…")] for t in texts]


@settings(deadline=None)
@given(TEXTS)
def test_word_kinds(texts: list[str]) -> None:
    batch = make(texts)
    spans = batch.words
    found = word_counts.count_word_kinds(batch.bytes, spans.start, spans.end, spans.offsets, ch.classes()).tolist()
    data = batch.bytes.tobytes()

    def is_symbol(c: str) -> bool:
        category = unicodedata.category(c)
        terminal = ord(c) < ch.LIMIT and ch.classes()[ord(c)] & ch.TERMINAL
        return category[0] == "P" or category == "Cc" or (category[0] == "S" and c.isascii()) or bool(terminal)

    for d, row in enumerate(found):
        words = [data[spans.start[i] : spans.end[i]].decode() for i in range(spans.offsets[d], spans.offsets[d + 1])]
        counted = [w for w in words if not all(map(is_symbol, w))]
        assert row == [len(counted), sum(map(len, counted)), sum(any(map(str.isalpha, w)) for w in words)]


def test_bytes_that_are_no_utf8_do_no_harm() -> None:
    broken = b"\xff\xfe abc \xc3 \xe2\x80 \xf0\x9f\x99 \x80. \xed\xa0\x80 \xe2"
    array = pa.Array.from_buffers(
        pa.large_string(), 1, [None, pa.py_buffer(np.array([0, len(broken)])), pa.py_buffer(broken)]
    )
    batch = Batch(pa.RecordBatch.from_arrays([array], ["text"]))
    words = batch.words
    assert (words.start < words.end).all()
    assert (words.end[:-1] <= words.start[1:]).all()
    assert words.end[-1] <= len(broken)
    assert b"abc" in broken[words.start[0] : words.end[0]]
    assert batch.lines.offsets.tolist() == [0, 1]
