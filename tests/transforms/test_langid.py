"""The automaton's naive Bayes against a slow one on a small model, and against py3langid on its own."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import langid
from transforms.batch import Batch
from transforms.langid import Model

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.text("aé e\u0301", max_size=40))


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def toy_model() -> Model:
    """Four states by the last byte modulo 4, all of which but the first report a feature; rows are shared by two
    states."""
    draw = np.random.default_rng(3)
    rows = np.concatenate([np.arange(256) % 4, (np.arange(256) + 1) % 4]).astype(np.uint16)
    weights = draw.normal(-3, 1, (3, 5)).astype(np.float32)
    feature = np.array([-1, 0, 1, 2], np.int32)
    return Model(rows, np.array([0, 1, 0, 1], np.uint16), feature, weights, draw.normal(-1, 1, 5).astype(np.float32))


def slow(text: str, model: Model) -> list[float]:
    state, seen, data = 0, [], text.encode()
    for byte in data:
        state = int(model.rows[int(model.row[state]) * 256 + byte])
        seen.append(int(model.feature[state]))
    counts = Counter(f for f in seen if f >= 0)
    scores = model.prior.astype(float) if counts else np.zeros(5)
    for f, n in counts.items():
        scores = scores + np.log1p(n) * model.weights[f]
    powers = np.exp((scores - scores.max()) / np.sqrt(len(data) or 1))
    return (powers / powers.sum()).tolist()


@given(TEXTS)
def test_probabilities_equal_the_slow_ones(texts: list[str]) -> None:
    model = toy_model()
    array = pa.array(texts, pa.large_string())
    found = langid.probabilities(array, model)
    assert found.shape == (len(texts), 5)
    for row, text in zip(found, texts, strict=True):
        assert row.tolist() == pytest.approx(slow(text, model), abs=1e-4)
    assert np.array_equal(langid.probabilities(array.slice(1), model), found[1:])


def slow_sample(text: str, size: int) -> str:
    data = text.encode()
    if len(data) > size:
        length, pieces = size // 3, []
        for k in range(3):
            a = k * (len(data) - length) // 2
            b = a + length
            while a < b and data[a] & 0xC0 == 0x80:
                a += 1
            while a < b < len(data) and data[b] & 0xC0 == 0x80:
                b -= 1
            pieces.append(data[a:b].decode())
        text = " ".join(pieces)
    return unicodedata.normalize("NFC", text)


@given(TEXTS, st.sampled_from([6, 12, 30, 1536]))
def test_samples_equal_the_slow_ones(texts: list[str], size: int) -> None:
    batch = batch_of([text + "a" for text in texts])  # a small letter: nothing is all capitals
    found = langid.sample(batch.bytes, batch.offsets, size).to_pylist()
    expected = [slow_sample(text + "a", size) for text in texts]
    assert [f.casefold() for f in found] == [e.casefold() for e in expected]


def test_samples_come_from_beginning_middle_and_end() -> None:
    text = "start " * 300 + "middle " * 300 + "final " * 300
    batch = batch_of([text, "x" * 1_000_000, "SHOUTED É", "", "e\u0301"])
    found = langid.sample(batch.bytes, batch.offsets).to_pylist()
    assert len(found[0]) <= langid.SAMPLE + 2 and all(word in found[0] for word in ("start", "middle", "final"))
    assert len(found[1]) == langid.SAMPLE + 2
    assert found[2:] == ["shouted é", "", "é"]
