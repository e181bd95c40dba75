"""Repeated lines and paragraphs: planted ones go, all others stay, byte for byte as a slow reference has it."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.cut import Cuts, cut
from transforms.repeated_lines import Unit, count, frequent, merge, repeats

LINES = st.sampled_from(["a", "b ", "  a", "é中", "", " ", "\t", "c d", "c  d", "\u2003", "x\r"])
TEXT = st.one_of(st.lists(LINES, max_size=8).map("\n".join), st.text("ab \n", max_size=12))
UNITS: list[Unit] = ["line", "paragraph"]


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def keys(text: str, unit: Unit) -> list[str]:
    """Folded pieces in order: lines, or runs of non-blank lines."""
    if unit == "line":
        pieces = text.split("\n")
    else:
        pieces = [""]
        for line in text.split("\n"):
            pieces = [*pieces[:-1], f"{pieces[-1]}\n{line}"] if line.split() else [*pieces, ""]
    return [" ".join(piece.split()) for piece in pieces if piece.split()]


def remove_lines(text: str, gone: set[str]) -> str:
    """Every line that goes takes the blank ones up to the next line along; at the end, those before it."""
    kept, lines = [], text.split("\n")
    blanks = [not line.split() for line in lines]
    remove = False
    for line, blank in zip(lines, blanks, strict=True):
        remove = remove if blank else " ".join(line.split()) in gone
        kept.append(not remove)
    last = max((i for i, blank in enumerate(blanks) if not blank), default=-1)
    if last >= 0 and not kept[last]:  # the run at the end goes with the break before it
        stay = max((i for i in range(last) if kept[i] and not blanks[i]), default=-1)
        if stay >= 0:
            return "\n".join(line for line, keep in zip(lines[: stay + 1], kept, strict=False) if keep)
        first = next(i for i, blank in enumerate(blanks) if not blank)
        return "".join(line + "\n" for line in lines[:first])
    return "\n".join(line for line, keep in zip(lines, kept, strict=True) if keep)


def counted(texts: list[str], unit: Unit) -> Counter[str]:
    return Counter(key for text in texts for key in set(keys(text, unit)))


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 3))
def test_lines_equal_reference(texts: list[str], most: int) -> None:
    batch = batch_of(texts)
    expected = counted(texts, "line")
    counts = count(batch)
    assert sorted(counts.documents.tolist()) == sorted(expected.values())
    cuts = repeats(batch, frequent(counts, most))
    gone = {key for key, documents in expected.items() if documents > most}
    assert cut(batch, cuts).to_pylist() == [remove_lines(text, gone) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 2), st.integers(1, 4))
def test_shorter_lines_neither_count_nor_go(texts: list[str], most: int, least: int) -> None:
    batch = batch_of(texts)
    lines = [[line for line in text.split("\n") if line.split()] for text in texts]
    long = [[" ".join(line.split()) for line in own if len(line.encode()) >= least] for own in lines]
    expected = Counter(key for own in long for key in set(own))
    counts = count(batch, least=least)
    assert sorted(counts.documents.tolist()) == sorted(expected.values())
    left = cut(batch, repeats(batch, frequent(counts, most), least=least)).to_pylist()
    for own, rest in zip(lines, left, strict=True):
        stay = [line for line in own if len(line.encode()) < least or expected[" ".join(line.split())] <= most]
        assert keys(rest, "line") == [" ".join(line.split()) for line in stay]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 3))
def test_paragraphs(texts: list[str], most: int) -> None:
    """What stays is, in order, the paragraphs that are not frequent, and nothing else."""
    batch = batch_of(texts)
    expected = counted(texts, "paragraph")
    counts = count(batch, "paragraph")
    assert sorted(counts.documents.tolist()) == sorted(expected.values())
    left = cut(batch, repeats(batch, frequent(counts, most), "paragraph")).to_pylist()
    for text, rest in zip(texts, left, strict=True):
        assert keys(rest, "paragraph") == [key for key in keys(text, "paragraph") if expected[key] <= most]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=8), st.integers(0, 8), st.sampled_from(UNITS))
def test_counts_merge_in_any_order(texts: list[str], place: int, unit: Unit) -> None:
    whole = count(batch_of(texts), unit)
    parts = [count(batch_of(part), unit) for part in (texts[place:], [], texts[:place])]
    for merged in (merge(parts), merge(parts[::-1]), merge([merge(parts[:2]), parts[2]])):
        np.testing.assert_array_equal(merged.hash, whole.hash)
        np.testing.assert_array_equal(merged.documents, whole.documents)


def test_planted_notice_goes_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    own = [[f"Sentence {i} of page {page}." for i in range(5)] for page in range(200)]
    texts = []
    for lines in own:
        place = int(random.integers(0, 6))
        texts.append("\n".join([*lines[:place], "We use  cookies.", *lines[place:], "Share this"]))
    batch = batch_of(texts)
    cuts = repeats(batch, frequent(count(batch), 10))
    assert cut(batch, cuts).to_pylist() == ["\n".join(lines) for lines in own]
    spans = cuts.arrow().to_pylist()
    assert len(spans) == 200
    for text, removed in zip(texts, spans, strict=True):
        taken = "".join(text.encode()[span["start"] : span["end"]].decode() for span in removed)
        assert re.sub(r"\s+", " ", taken).strip() == "We use cookies. Share this"


def test_examples() -> None:
    texts = ["a\nx\nb", "x", "\n\nx\n", "a\n\nx\n\n", "y\nz"]
    batch = batch_of(texts)
    assert cut(batch, repeats(batch, frequent(count(batch), 3))).to_pylist() == ["a\nb", "", "\n\n", "a", "y\nz"]
    texts = ["a\nb\n\nx\nx\n\nc", "x\nx", "d\n\nx\nx\n"]
    batch = batch_of(texts)
    hashes = frequent(count(batch, "paragraph"), 2)
    assert cut(batch, repeats(batch, hashes, "paragraph")).to_pylist() == ["a\nb\n\nc", "", "d"]


def test_edges() -> None:
    texts = ["x\n" * 1_000_000, "x", "", "\n" * 1_000_000, "y" * 5_000_000]
    batch = batch_of(texts)
    counts = count(batch)
    assert sorted(counts.documents.tolist()) == [1, 2]
    assert cut(batch, repeats(batch, frequent(counts, 1))).to_pylist() == ["", "", *texts[2:]]
    assert cut(batch, repeats(batch, counts.hash[:0])).to_pylist() == texts
    with pytest.raises(ValueError, match="most=0"):
        frequent(counts, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=6), st.lists(st.integers(0, 6), max_size=6)), max_size=4))
def test_cut_equals_slices(rows: list[tuple[str, list[int]]]) -> None:
    texts, starts, ends, sizes, expected = [], [], [], [], []
    for text, places in rows:
        points = sorted({min(p, len(text)) for p in places})
        points = points[: len(points) // 2 * 2]
        pairs = list(zip(points[::2], points[1::2], strict=True))
        kept = "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in pairs))
        texts.append(text)
        expected.append(kept)
        starts += [len(text[:a].encode()) for a, _ in pairs]
        ends += [len(text[:b].encode()) for _, b in pairs]
        sizes.append(len(pairs))
    cuts = Cuts(np.array(starts, np.int64), np.array(ends, np.int64), np.cumsum([0, *sizes]))
    result = cut(batch_of(texts), cuts)
    result.validate(full=True)
    assert result.to_pylist() == expected
