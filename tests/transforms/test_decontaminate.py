"""Decontamination: every planted item is found, disguised or not; clean text gives none; equal to sets of n-grams."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.decontaminate import FIELDS, build


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def names(count: int) -> pa.Array:
    return pa.array([f"item{i:04}" for i in range(count)])


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def reference(text: str, items: list[str], n: int, shortest: int) -> tuple[float, list[tuple[str, float, str]]]:
    words, covered, matches = text.split(), set(), []
    for number, item in enumerate(items):
        own = item.split()
        if len(own) < shortest:
            continue
        size = min(n, len(own))
        wanted = set(grams(own, size))
        hits = [i for i, gram in enumerate(grams(words, size)) if gram in wanted]
        covered |= {place for i in hits for place in range(i, i + size)}
        if hits:
            found = {gram for gram in grams(words, size) if gram in wanted}
            ngram = " ".join(words[hits[0] : hits[0] + size])
            matches.append((f"item{number:04}", len(found) / len(wanted), ngram))
    return (len(covered) / len(words) if words else 0.0), matches


TEXT = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4), st.integers(1, 5), st.integers(0, 4))
def test_equals_sets_of_ngrams(texts: list[str], items: list[str], n: int, fewer: int) -> None:
    shortest = max(1, n - fewer)
    index = build(batch_of(items), names(len(items)), n, shortest)
    short = [i for i, item in enumerate(items) if len(item.split()) < shortest]
    assert index.too_short.to_pylist() == [f"item{i:04}" for i in short]
    result = index.match(batch_of(texts))
    result.validate(full=True)
    assert result.type == FIELDS and len(result) == len(texts)
    for row, text in zip(result.to_pylist(), texts, strict=True):
        overlap, matches = reference(text, items, n, shortest)
        assert row["overlap"] == pytest.approx(overlap)
        assert [(m["item"], pytest.approx(m["share"]), m["ngram"]) for m in row["matches"]] == matches


def sentences(count: int, seed: int) -> list[str]:
    """Text of 2,000 words of unequal frequency, with punctuation."""
    random = np.random.default_rng(seed)
    vocabulary = ["".join(chr(97 + c) for c in random.integers(0, 26, random.integers(2, 9))) for _ in range(2000)]
    places = (2000 * random.random((count, 40)) ** 2).astype(int)
    return [" ".join(vocabulary[p] for p in row).capitalize() + "." for row in places]


def test_every_planted_item_is_found_and_none_in_a_clean_corpus() -> None:
    items = sentences(500, 1)
    items[100:200] = [" ".join(item.split()[:9]) for item in items[100:200]]  # shorter than n
    clean = sentences(3000, 2)
    index = build(batch_of(items), names(500))
    rows = index.match(batch_of(clean)).to_pylist()
    assert not any(row["matches"] or row["overlap"] for row in rows)
    disguises = [
        lambda item: item,
        str.upper,
        lambda item: item.replace(" ", "\n  "),
        lambda item: item.replace(" ", ", "),
        lambda item: item.replace("e", "é"),
        lambda item: "A: " + " ".join(item.split()[:25]),  # the first 25 words, or all
    ]
    planted = [f"{text} {disguises[i % 6](items[i])} {text}" for i, text in enumerate(clean[:500])]
    rows = index.match(batch_of(planted + clean[500:])).to_pylist()
    for i, row in enumerate(rows[:500]):
        assert [match["item"] for match in row["matches"]] == [f"item{i:04}"]
        if i % 6 < 5:
            assert row["matches"][0]["share"] == 1.0
            assert row["overlap"] == pytest.approx(len(items[i].split()) / (80 + len(items[i].split())))
        assert row["matches"][0]["ngram"] in planted[i]
    assert not any(row["matches"] for row in rows[500:])


def test_one_document_with_many_items_and_shared_ngrams() -> None:
    shared = "one two three four five six seven eight nine ten eleven twelve thirteen"
    index = build(batch_of([f"{shared} left", f"right {shared}", shared]), pa.array(["x", "y", "x"]))
    (row,) = index.match(batch_of([f"{shared} -- {shared} left"])).to_pylist()
    assert [(m["item"], m["share"]) for m in row["matches"]] == [("x", 1.0), ("y", 0.5), ("x", 1.0)]
    assert {m["ngram"] for m in row["matches"]} == {shared} and row["overlap"] == 1.0


def test_edges() -> None:
    index = build(batch_of(["spam " * 30, "", "中文" * 10]), names(3))
    assert index.too_short.to_pylist() == ["item0001"]
    texts = ["", "...", "spam " * 1_000_000, "x" * 1_000_000, "spam", "说" + "中文" * 10, "spam " * 12]
    rows = index.match(batch_of(texts)).to_pylist()
    assert [[m["item"] for m in row["matches"]] for row in rows] == [[], [], ["item0000"], [], [], ["item0002"], []]
    assert len(index.match(batch_of([]))) == 0
    assert build(batch_of([]), names(0)).match(batch_of(texts[:1])).to_pylist() == [{"overlap": 0.0, "matches": []}]
    with pytest.raises(ValueError, match="n=5, shortest=8"):
        build(batch_of(["a"]), names(1), 5)
