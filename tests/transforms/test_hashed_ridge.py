"""Hashed features and their regression against slow, obvious references."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.hashed_ridge import BITS, Features, dot, features, ridge, spread
from transforms.minhash import roll


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def reference(text: str, limit: int) -> dict[int, float]:
    """Place -> value, from the words as strings; grams of one place add up."""
    batch = batch_of([text])
    data = batch.bytes.tobytes()
    spans = list(zip(batch.words.start.tolist(), batch.words.end.tolist(), strict=True))[:limit]
    words = [data[a:b] for a, b in spans]
    known = {word: np.uint64(h) for word, h in zip(words, batch.word_hashes.tolist(), strict=False)}
    grams = Counter([(w,) for w in words] + list(pairwise(words)))
    found: dict[int, float] = {}
    for gram, count in grams.items():
        out = np.empty(1, np.uint64)
        roll(np.array([known[w] for w in gram], np.uint64), len(gram), len(gram), out)
        value = (count / grams.total()) ** 0.5 * (1 if int(out[0]) & 1 else -1)
        place = int(out[0]) >> (64 - BITS)
        found[place] = found.get(place, 0.0) + value
    return found


WORDY = st.lists(st.sampled_from(["a", "b", "A", "the cat", "né", "日本", "x.", "\n"]), max_size=30).map(" ".join)


@given(texts=st.lists(st.text(max_size=60) | WORDY, max_size=5), limit=st.integers(1, 12))
def test_features_equal_those_counted_by_words(texts: list[str], limit: int) -> None:
    found = features(batch_of(texts), limit)
    assert len(found.offsets) == len(texts) + 1
    for d, text in enumerate(texts):
        own: dict[int, float] = {}
        for i in range(found.offsets[d], found.offsets[d + 1]):
            own[int(found.place[i])] = own.get(int(found.place[i]), 0.0) + float(found.value[i])
        assert own == pytest.approx(reference(text, limit))


def test_values_have_length_one_and_words_beyond_the_limit_are_not_read() -> None:
    found = features(batch_of(["one two two three", "", "one two five six"]), 2)
    assert np.diff(found.offsets).tolist() == [3, 0, 3], "two words and a pair"
    first, last = (slice(found.offsets[d], found.offsets[d + 1]) for d in (0, 2))
    assert np.array_equal(found.place[first], found.place[last])
    assert (found.value[first] ** 2).sum() == pytest.approx(1)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), penalty=st.sampled_from([0.01, 0.1, 1.0, 10.0]))
def test_ridge_equals_the_closed_form(seed: int, penalty: float) -> None:
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(list("abcdefgh"), int(draw.integers(0, 9)))) for _ in range(25)]
    given_ = features(batch_of(texts), 100)
    places, column = np.unique(given_.place, return_inverse=True)
    dense = np.zeros((25, len(places)))
    np.add.at(dense, (np.repeat(np.arange(25), np.diff(given_.offsets)), column), given_.value)
    target = draw.normal(size=25)
    expected = dense.T @ np.linalg.solve(dense @ dense.T + penalty * np.eye(25), target)
    weights = ridge(given_, target, penalty)
    assert np.abs(weights[places] - expected).max() < 1e-6
    assert np.count_nonzero(weights) <= len(places)
    assert dot(given_, weights) == pytest.approx(dense @ expected, abs=1e-6)
    assert spread(given_, target)[places] == pytest.approx(dense.T @ target)


def test_a_target_of_zeros_has_weights_of_zero() -> None:
    assert not ridge(features(batch_of(["a b", "c"]), 9), np.zeros(2), 1.0).any()


def test_documents_are_taken_in_the_order_given() -> None:
    texts = ["a b c", "", "d e", "f"]
    whole = features(batch_of(texts), 9)
    taken, alone = whole.take(np.array([3, 1, 0, 3])), features(batch_of([texts[i] for i in (3, 1, 0, 3)]), 9)
    for one, other in zip(taken, alone, strict=True):
        assert np.array_equal(one, other)
    assert isinstance(whole.take(np.zeros(0, np.int64)), Features)
