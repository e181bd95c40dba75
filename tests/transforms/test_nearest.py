"""The nearest sentence of a bank: the slow reference, ties, and that nothing depends on order or company."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.nearest import Embedded, TfIdf, sorted_texts

WORDS = ["add", "Add", "salt", "the", "pan", "20", "2.5", "é", "猫", "don't", "I'm", "...", "—", "\n"]
ASSIGNED = st.characters(max_codepoint=0x2FFF, exclude_categories=("Cs", "Cn"))
TEXT = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(ASSIGNED, max_size=20)


def column(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def bank_of(texts: list[str]) -> pa.LargeStringArray:
    return sorted_texts(column(texts))["text"].combine_chunks()


def features(text: str) -> Counter[tuple[str, ...]]:
    """Words and pairs, by the strings themselves."""
    lowered = pc.utf8_lower(pa.scalar(text)).as_py()
    plain = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in lowered)
    batch = Batch(pa.record_batch({"text": column([plain])}))
    spans = zip(batch.words.start.tolist(), batch.words.end.tolist(), strict=True)
    words = [batch.bytes[a:b].tobytes().decode() for a, b in spans]
    return Counter([(word,) for word in words] + list(pairwise(words)))


def weights(found: Counter[tuple[str, ...]], frequency: Counter[tuple[str, ...]], size: int) -> dict:
    own = {
        feature: math.sqrt(count) * math.log(1 + (size - frequency[feature] + 0.5) / (frequency[feature] + 0.5))
        for feature, count in found.items()
    }
    length = math.sqrt(sum(value**2 for value in own.values()))
    return {feature: value / length for feature, value in own.items()}


def slow_cosines(texts: list[str], bank: list[str]) -> list[list[float]]:
    rows = [features(text) for text in bank]
    frequency = Counter(feature for row in rows for feature in row)
    weighed = [weights(row, frequency, len(bank)) for row in rows]
    asked = [weights(features(text), frequency, len(bank)) for text in texts]
    return [[sum(value * row.get(f, 0.0) for f, value in text.items()) for row in weighed] for text in asked]


@settings(max_examples=60)
@given(st.lists(TEXT, max_size=6), st.lists(TEXT, min_size=1, max_size=8))
def test_it_is_the_slow_reference(texts: list[str], bank: list[str]) -> None:
    sentences = bank_of(bank)
    if not len(sentences):
        return
    made = TfIdf(sentences)
    slow = np.array(slow_cosines(texts, sentences.to_pylist())).reshape(len(texts), len(sentences))
    rows, cosines = made.nearest(column(texts))
    everything = np.arange(len(sentences))
    assert made.cosines(column(texts), everything) == pytest.approx(slow, abs=1e-12)
    assert cosines == pytest.approx(slow.max(axis=1, initial=0), abs=1e-12)
    assert slow[np.arange(len(texts)), rows] == pytest.approx(cosines, abs=1e-12)
    fast = made.cosines(column(texts), everything)
    assert rows.tolist() == fast.argmax(axis=1).tolist(), "the first of equals"
    for text, row, cosine in zip(texts, rows, cosines, strict=True):
        alone = made.nearest(column([text]))
        assert (alone[0][0], alone[1][0]) == (row, cosine), "bit for bit, whatever else is asked"


def test_of_sentences_of_the_same_words_the_first_is_taken() -> None:
    sentences = bank_of(["Add salt!", "add SALT", "Add salt.", "Add pepper."])
    assert sentences.to_pylist() == ["Add pepper.", "Add salt!", "Add salt.", "add SALT"]
    rows, cosines = TfIdf(sentences).nearest(column(["so add salt", "…", ""]))
    assert rows.tolist() == [1, 0, 0] and 0 < cosines[0] < 1 and cosines[1:].tolist() == [0, 0]


def test_texts_are_far_that_speak_of_other_things() -> None:
    made = TfIdf(bank_of(["Add salt to the pan.", "Wash the pan."]))
    _, cosines = made.nearest(column(["add salt to the pan", "add salt to the pan and call my aunt", "call my aunt"]))
    assert cosines[0] == pytest.approx(1) and 0.3 < cosines[1] < 0.9 and cosines[2] == 0


@given(st.lists(st.tuples(st.sampled_from(["a", "b ", " b", "", "  ", "B"]), st.integers(0, 20)), max_size=9))
def test_a_bank_has_every_text_once_whatever_the_order(given_: list[tuple[str, int]]) -> None:
    slow: dict[str, str] = {}
    for text, name in given_:
        if text.strip():
            slow[text.strip()] = min(slow.get(text.strip(), "z"), str(name))
    texts, ids = column([text for text, _ in given_]), pa.array([name for _, name in given_], pa.int64())
    found = sorted_texts(texts, ids).to_pydict()
    assert found == {"text": sorted(slow), "id": [slow[text] for text in sorted(slow)]}
    assert sorted_texts(texts)["id"].null_count == len(slow)


def test_vectors_of_an_encoder(toy_encoder: Path) -> None:
    sentences = bank_of(["one two", "three", "four five six", "six six one"])
    made = Embedded(sentences, toy_encoder)
    asked = column(["three", "one two", "one", "five six"])
    rows, cosines = made.nearest(asked)
    assert rows[:2].tolist() == [3, 1] and cosines[:2] == pytest.approx(1, abs=1e-3)
    vectors = made.encoder.vectors(asked).astype(float)
    slow = vectors @ made.vectors.astype(float).T
    slow /= np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(made.vectors.astype(float), axis=1)
    found = made.cosines(asked, np.arange(4))
    assert found == pytest.approx(slow, abs=1e-3)
    assert rows.tolist() == slow.argmax(axis=1).tolist() and cosines.tolist() == found.max(axis=1).tolist()
