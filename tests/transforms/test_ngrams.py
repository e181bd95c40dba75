"""Repeated n-grams against Counter and sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.ngrams import count_repetition


def measure(documents: list[list[str]]) -> list[list[int]]:
    """The kernel on words that are single tokens by construction."""
    batch = Batch(pa.record_batch({"text": pa.array([" ".join(words) for words in documents], pa.string())}))
    spans = batch.words
    assert np.diff(spans.offsets).tolist() == [len(words) for words in documents]
    return count_repetition(batch.bytes, spans.start, spans.end, spans.offsets, batch.word_hashes).tolist()


def slow(words: list[str]) -> list[int]:
    out = []
    for n in (2, 3, 4):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = max(grams.items(), key=lambda item: item[1], default=((), 0))
        out.append(count * len(" ".join(gram)))
    for n in range(5, 11):
        seen: set[tuple[str, ...]] = set()
        total = i = 0
        while i + n <= len(words):
            gram = tuple(words[i : i + n])
            total += len("".join(gram)) * (gram in seen)
            i += n if gram in seen else 1
            seen.add(gram)
        out.append(total)
    return out


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "éé", "水", "x"]), max_size=60), max_size=4))
def test_repetition_equals_slow(documents: list[list[str]]) -> None:
    assert measure(documents) == [slow(words) for words in documents]


@pytest.mark.parametrize("block", [5, 7, 11])
def test_planted_block(block: int) -> None:
    names = [f"w{i}q" for i in range(400)]
    words = names[:100] + names[40 : 40 + block] + names[100:]
    found = measure([words])[0]
    assert found == slow(words)
    assert [column > 0 for column in found[3:]] == [n <= block for n in range(5, 11)]


def test_long_documents() -> None:
    million = measure([["word"] * 1_000_000, ["one", "two"]])
    assert million[0][:3] == [(1_000_000 - n + 1) * (5 * n - 1) for n in (2, 3, 4)]
    assert million[0][3] == 4 * 5 * ((1_000_000 - 1) // 5)
    assert million[1] == [len("one two"), 0, 0, 0, 0, 0, 0, 0, 0]
