"""Embeddings of documents: the first characters only, the same bits in any company, kept whole in a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from transforms.batch import Batch
from transforms.embedding import Embedding
from transforms.semantic import HashingEncoder, quantise

WORDS = ["one", "two", "three", "four", "five", "six"]


@given(st.lists(st.text(max_size=60), max_size=5), st.integers(1, 50))
def test_the_first_characters_are_read(texts: list[str], characters: int) -> None:
    found = Embedding(characters=characters).vectors(pa.array(texts, pa.string()))
    cut = pa.record_batch({"text": pa.array([text[:characters] for text in texts], pa.large_string())})
    np.testing.assert_array_equal(found, quantise(HashingEncoder().encode(Batch(cut))))


def test_chunks_and_slices() -> None:
    texts = pa.array(["a b c", "", "...", "ü" * 2000, "日本 語"])
    expected = Embedding().vectors(texts)
    assert expected.dtype == np.int16 and expected.shape == (5, 256) and not expected[1:3].any()
    chunks = pa.chunked_array([texts[:2], texts[2:2], texts[2:]])
    np.testing.assert_array_equal(Embedding().vectors(chunks), expected)
    np.testing.assert_array_equal(Embedding().vectors(texts[3:]), expected[3:])
    assert Embedding().vectors(texts[:0]).shape == (0, 256)


def test_a_transformers_vectors_do_not_depend_on_neighbours(toy_encoder: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, int(n))) for n in draw.integers(0, 60, 40)]
    embedding = Embedding(encoder=toy_encoder)
    found = embedding.vectors(pa.array(texts))
    assert found.dtype == np.int16 and found.shape == (40, 64)
    order = draw.permutation(40)
    np.testing.assert_array_equal(embedding.vectors(pa.array([texts[i] for i in order])), found[order])
    np.testing.assert_array_equal(embedding.vectors(pa.array(texts[7:8])), found[7:8])
    assert embedding.vectors(pa.array([], pa.string())).shape == (0, 64)


def test_a_model_keeps_its_encoder(toy_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "left from before").touch()
    given = json.loads(json.dumps(Embedding(encoder=toy_encoder, characters=9).keep(tmp_path)))
    assert not (tmp_path / "encoder" / "left from before").exists()
    kept = Embedding.kept(tmp_path, given)
    assert kept == Embedding(encoder=tmp_path / "encoder", characters=9)
    texts = pa.array(["one two three", "six"])
    np.testing.assert_array_equal(kept.vectors(texts), Embedding(encoder=toy_encoder, characters=9).vectors(texts))
    assert Embedding.kept(tmp_path, Embedding().keep(tmp_path)) == Embedding()
    assert not (tmp_path / "encoder").exists()


def test_encoders_that_do_not_serve(toy_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no model folder at"):
        Embedding(encoder=tmp_path / "nowhere")
    Embedding(encoder=toy_encoder).keep(tmp_path)
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValidationError, match="its header promises"):
        Embedding.kept(tmp_path, {"encoder": "encoder", "characters": 9})
    with pytest.raises(ValidationError, match="characters"):
        Embedding(characters=0)
