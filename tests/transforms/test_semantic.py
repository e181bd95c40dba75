"""Semantic duplicates: planted paraphrases go, others stay; exact whatever the order, blocks and shards."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import semantic
from transforms.batch import Batch
from transforms.semantic import (
    SCALE,
    HashingEncoder,
    TransformerEncoder,
    cluster_sums,
    duplicates,
    initial_centroids,
    kmeans,
    move,
    nearest,
    quantise,
)


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def sentences(count: int, words: int, seed: int) -> list[list[str]]:
    random = np.random.default_rng(seed)
    vocabulary = ["".join(chr(97 + c) for c in row) for row in random.integers(0, 26, (3000, 6))]
    return [[vocabulary[i] for i in row] for row in random.integers(0, 3000, (count, words))]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_hashing_encoder_keeps_cosines() -> None:
    """Cosines of the projection are those of the counted features, up to the noise of 256 dimensions."""
    rows = sentences(200, 60, 0)
    random = np.random.default_rng(1)
    for i in range(100):  # the second half are copies with a growing share of new words
        fresh = random.random(60) < i / 100
        rows[100 + i] = [new if swap else old for old, new, swap in zip(rows[i], rows[100 + i], fresh, strict=True)]
    vectors = HashingEncoder().encode(batch_of([" ".join(row) for row in rows]))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def features(row: list[str]) -> dict[object, float]:
        found = [*row, *pairwise(row)]
        return {feature: found.count(feature) ** 0.5 for feature in found}

    errors = []
    for i in range(100):
        a, b = features(rows[i]), features(rows[100 + i])
        true = sum(a[f] * b[f] for f in a.keys() & b.keys())
        true /= (sum(x * x for x in a.values()) * sum(x * x for x in b.values())) ** 0.5
        errors.append(vectors[i] @ vectors[100 + i] - true)
    assert abs(np.mean(errors)) < 4 / (256 * 100) ** 0.5
    assert np.std(errors) < 1.3 / 256**0.5


def test_hashing_encoder_edges() -> None:
    texts = ["", "...", "word", "Word!", "word " * 1_000_000, "中文", "😀 😀", "x" * 1_000_000]
    vectors = HashingEncoder().encode(batch_of(texts))
    assert not vectors[:2].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[2:], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[2], vectors[3])
    alone = np.concatenate([HashingEncoder().encode(batch_of([text])) for text in texts])
    np.testing.assert_array_equal(vectors, alone)
    assert (HashingEncoder(seed=1).encode(batch_of(texts))[2] != vectors[2]).any()
    assert HashingEncoder().encode(batch_of([])).shape == (0, 256)


def planted(groups: int, each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(groups, 32)))
    rows = np.repeat(centres, each, axis=0) + noise * random.normal(size=(groups * each, 32))
    return quantise(unit(rows)), np.repeat(np.arange(groups), each)


def test_kmeans_finds_planted_groups() -> None:
    vectors, group = planted(8, 200, 0.04)
    draw = np.random.default_rng(1).integers(0, 2**64, 1600, dtype=np.uint64)
    for seed in (0, 1 << 63, 0x5555555555555555):  # with more centroids than groups no bad start can join two
        centroids = kmeans(vectors, draw ^ np.uint64(seed), 40)
        labels = nearest(vectors, centroids)
        assert all(len(np.unique(group[labels == label])) == 1 for label in np.unique(labels))
        cosines = (vectors.astype(float) * centroids[labels]).sum(axis=1) / SCALE**2
        assert cosines.min() > 0.9


def test_kmeans_in_any_order_and_by_shards() -> None:
    vectors, _ = planted(10, 100, 0.3)
    draw = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    expected = kmeans(vectors, draw, 12, rounds=7)
    order = np.random.default_rng(2).permutation(1000)
    np.testing.assert_array_equal(kmeans(vectors[order], draw[order], 12, rounds=7), expected)
    shards = np.split(order, [1, 300, 310])
    starts = [initial_centroids(vectors[s], draw[s], 12) for s in shards]
    centroids, _ = initial_centroids(*(np.concatenate(part) for part in zip(*starts, strict=True)), 12)
    for _ in range(7):
        sums = sum(cluster_sums(vectors[s], nearest(vectors[s], centroids), 12) for s in shards)
        centroids = move(centroids, sums)
    np.testing.assert_array_equal(centroids, expected)


def test_kmeans_lowers_the_error_every_round() -> None:
    vectors, _ = planted(20, 50, 0.5)
    draw = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    fit = [
        float((vectors.astype(float) * c[nearest(vectors, c)]).sum()) / SCALE**2
        for c in (kmeans(vectors, draw, 20, rounds=r) for r in (1, 2, 4, 8, 16))
    ]
    assert fit == sorted(fit) and fit[-1] > fit[0]


def slow_duplicates(vectors: np.ndarray, labels: np.ndarray, rank: np.ndarray, threshold: float) -> list[int]:
    result = list(range(len(vectors)))
    integers = vectors.astype(object)
    for i in np.argsort(rank).tolist():
        better = []
        for j in range(len(vectors)):
            dot, a, b = (int(x @ y) for x, y in ((integers[i], integers[j]), (integers[i],) * 2, (integers[j],) * 2))
            if labels[i] == labels[j] and rank[j] < rank[i] and a and b:
                same = bool((vectors[i] == vectors[j]).all())
                better += [(rank[j], j)] * (same or dot >= threshold * (a**0.5 * b**0.5))
        if better:
            result[i] = result[min(better)[1]]
    return result


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(semantic, "_ROWS", 3)
        monkeypatch.setattr(semantic, "_COLUMNS", 4)


@pytest.mark.usefixtures("blocks")
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.sampled_from([0.3, 0.8, 0.95, 1.0]))
def test_duplicates_equal_reference(seed: int, count: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (count, 3)).astype(float)
    vectors = quantise(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))
    labels, rank = random.integers(0, 2, count), random.permutation(count)
    expected = slow_duplicates(vectors, labels, rank, threshold)
    assert duplicates(vectors, labels, rank, threshold).tolist() == expected


def test_planted_paraphrases_go_and_nothing_else() -> None:
    rows = sentences(600, 120, 3)
    random = np.random.default_rng(4)
    for i in range(300):  # documents 300 to 599 are near copies of 0 to 299: one word of 120 changed, two swapped
        copy = list(rows[i])
        copy[int(random.integers(0, 120))] = "changed"
        copy[5], copy[6] = copy[6], copy[5]
        rows[300 + i] = copy
    rows += sentences(400, 120, 5)
    vectors = quantise(HashingEncoder().encode(batch_of([" ".join(row) for row in rows])))
    draw = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    labels = nearest(vectors, kmeans(vectors, draw, 4))
    together = labels[:300] == labels[300:600]
    assert together.mean() > 0.9
    rank = np.random.default_rng(6).permutation(1000)
    stays = duplicates(vectors, labels, rank, 0.9)
    winner = np.where(rank[:300] < rank[300:600], np.arange(300), np.arange(300, 600))
    expected = np.arange(1000)
    expected[:300][together] = expected[300:600][together] = winner[together]
    np.testing.assert_array_equal(stays, expected)


def test_crowd_of_copies() -> None:
    vectors = np.tile(quantise(unit(np.ones((1, 256)))), (100_000, 1))
    rank = np.random.default_rng(0).permutation(100_000)
    assert (duplicates(vectors, np.zeros(100_000, int), rank, 0.95) == rank.argmin()).all()
    assert len(kmeans(vectors, rank.astype(np.uint64), 10)) == 1
    nothing = np.zeros((5, 256), np.int16)
    assert duplicates(nothing, np.zeros(5, int), np.arange(5), 0.9).tolist() == [0, 1, 2, 3, 4]
    assert kmeans(nothing, np.arange(5, dtype=np.uint64), 3).shape == (0, 256)


def test_wrong_parameters() -> None:
    vectors = np.zeros((1, 4), np.int16)
    with pytest.raises(ValueError, match="threshold=2"):
        duplicates(vectors, np.zeros(1, int), np.zeros(1, int), 2)
    with pytest.raises(ValueError, match="k=0"):
        kmeans(vectors, np.zeros(1, np.uint64), 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, and a tokenizer of words."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "one", "two", "three", "four", "five", "six"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=7, max_position_embeddings=8, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_transformer_encoder(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import BertModel

    texts = ["one two three", "", "six", "two one four five six one two three four five six", "one two three"]
    model = BertModel.from_pretrained(encoder).eval()
    for pooling in ("mean", "first"):
        if pooling == "first":
            (encoder / "1_Pooling").mkdir()
            config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
            (encoder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        vectors = TransformerEncoder(folder=encoder).encode(batch_of(texts))
        assert vectors.shape == (5, 16) and not vectors[1].any()
        for i in (0, 2, 3, 4):
            names = ["[UNK]", "one", "two", "three", "four", "five", "six"]
            tokens = torch.tensor([[names.index(word) for word in texts[i].split()][:8]])
            with torch.inference_mode():
                hidden = model(input_ids=tokens).last_hidden_state[0]
            pooled = hidden.mean(0) if pooling == "mean" else hidden[0]
            np.testing.assert_allclose(vectors[i], (pooled / pooled.norm()).numpy(), atol=1e-5)
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(ValueError, match="lasttoken"):
        TransformerEncoder(folder=encoder).pooling()


def test_encoders_are_whole_and_float32_and_read_again_when_changed(encoder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("1_Pooling"))
    weights, texts = load_file(folder / "model.safetensors"), batch_of(["one two three"])

    def encoded(changed: dict[str, torch.Tensor]) -> np.ndarray:
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return TransformerEncoder(folder=folder).encode(texts)

    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    found = encoded(half)
    assert not np.array_equal(found, encoded({name: tensor * 2 for name, tensor in weights.items()}))
    assert np.array_equal(found, encoded({name: tensor.float() for name, tensor in half.items()}))
    with pytest.raises(ValueError, match="1 tensors of the model are missing or misshapen: encoder"):
        encoded({name: tensor for name, tensor in weights.items() if name != "encoder.layer.1.output.dense.weight"})
    encoded({name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")})


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60))
def test_groups_of_like_length(lengths: list[int], budget: int) -> None:
    groups = semantic._alike(lengths, budget)
    assert sorted(i for group in groups for i in group.tolist()) == [i for i, n in enumerate(lengths) if n]
    assert all(len(group) == 1 or len(group) * lengths[group[-1]] <= budget for group in groups)
    assert all(lengths[group[-1]] == max(lengths[i] for i in group) for group in groups)
