"""Semantic dedupe through the whole pipeline: planted rewordings, the kernels on all documents at once, any order."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import write

from pipelines import semantic, shards, steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from transforms.batch import Batch
from transforms.components import ranks
from transforms.draws import seeded
from transforms.semantic import HashingEncoder, duplicates, kmeans, nearest, quantise

Flags = dict[str, tuple[int, int, bool]]  # id -> cluster, size, keep
CLUSTERS = 4


def corpus(families: int = 60) -> tuple[list[str], list[int]]:
    """Texts with their family: a document of 80 words, one with a word more, an exact copy; two without words."""
    draw = np.random.default_rng(3)
    vocabulary = ["".join(chr(97 + c) for c in row) for row in draw.integers(0, 26, (2000, 6))]
    texts, family = [], []
    for number in range(families):
        words = [vocabulary[i] for i in draw.integers(0, 2000, 80)]
        made = [words, [*words, vocabulary[number]], words][: 1 + number % 3]
        texts += [" ".join(row) for row in made]
        family += [number] * len(made)
    order = draw.permutation(len(texts))
    return [texts[i] for i in order] + ["...", "!!!"], [family[i] for i in order] + [-1, -2]


TEXTS, FAMILY = corpus()
IDS = [f"{i * 7919 % 100_003:06d}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semantic")
    for k in range(3):
        write(folder / ("a" if k % 2 else "b") / f"{k}.parquet", TEXTS[k::3], IDS[k::3], group=10)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Flags:
    return dedupe(folder, tmp_path_factory.mktemp("plain"))


def recipe(folder: Path, **method: Any) -> dict[str, Any]:
    method = {"clusters": CLUSTERS, "threshold": 0.9, "rounds": 3, **method}
    sources = {n: f"{folder}/{n}/*.parquet" for n in ("a", "b")}
    return {"name": "s", "sources": sources, "dedupe": {"semantic": method}, "select": {"unique": "semantic.keep"}}


def dedupe(folder: Path, out: Path, workers: int = 1, **method: Any) -> Flags:
    summary = run(parse(recipe(folder, **method)), str(out), workers=workers, until="select")
    assert summary["ledger_balanced"] and not (out / "scratch" / "semantic").exists()
    rows = [r for p in sorted((out / "dedupe").rglob("*.parquet")) for r in pq.ParquetFile(p).read().to_pylist()]
    assert len(rows) == len(TEXTS)
    return {row["id"]: tuple(row["semantic"].values()) for row in rows}


def test_planted_families_and_their_survivors(expected: Flags) -> None:
    """One of each family stays: the longest, and of copies the one with the lowest id."""
    for number in set(FAMILY):
        members = [i for i in range(len(TEXTS)) if FAMILY[i] == number]
        best = min(members, key=lambda i: (-len(TEXTS[i]), IDS[i]))
        found = [expected[IDS[i]] for i in members]
        assert {size for _, size, _ in found} == {len(members)} and len({cluster for cluster, _, _ in found}) == 1
        assert [keep for _, _, keep in found] == [i == best for i in members]
    assert len({cluster for cluster, _, _ in expected.values()}) == len(set(FAMILY))


def test_equals_the_kernels_on_all_documents_at_once(folder: Path, tmp_path: Path) -> None:
    """A low threshold, so that much more than families falls together and clusters matter."""
    found = dedupe(folder, tmp_path, threshold=0.15)
    batch = Batch(pa.record_batch({"text": pa.array(TEXTS, pa.large_string())}))
    vectors = quantise(HashingEncoder().encode(batch))
    centroids = kmeans(vectors, seeded(0, semantic._hash(vectors)), CLUSTERS, rounds=3)
    length = np.array([len(text.encode()) for text in TEXTS])
    rank = ranks(-length, pa.array(IDS))
    group = duplicates(vectors, nearest(vectors, centroids), rank, 0.15)
    kept = {IDS[i] for i in np.unique(group)}
    assert {i for i, (_, _, keep) in found.items() if keep} == kept and len(kept) < 0.8 * len(set(FAMILY))
    sizes = np.bincount(group)
    assert {IDS[i]: sizes[group[i]] for i in range(len(TEXTS))} == {i: size for i, (_, size, _) in found.items()}


def test_other_shards_splits_and_groups_change_nothing(
    folder: Path, expected: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = tmp_path / "turned"
    for k in range(2):  # other shards, other order, other sources' names of files
        rows = list(range(len(TEXTS)))[k::2][::-1]
        write(turned / "ba"[k] / f"{9 - k}.parquet", [TEXTS[i] for i in rows], [IDS[i] for i in rows], group=7)
    assert dedupe(turned, tmp_path / "1") == expected
    monkeypatch.setattr(shards, "SPLIT_BYTES", 2000)
    monkeypatch.setattr(semantic, "GROUP_DOCUMENTS", 20)
    monkeypatch.setattr(semantic, "SHUFFLE_BYTES", 1 << 16)
    assert dedupe(folder, tmp_path / "2") == expected


def test_two_worker_processes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"rounds": 1, "threshold": 0.15}
    alone = dedupe(folder, tmp_path / "1", **given)
    run(parse(recipe(folder, **given)), str(tmp_path / "2"), until="score")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    run(parse(recipe(folder, **given)), str(tmp_path / "2"), workers=2, until="dedupe")
    monkeypatch.undo()
    assert dedupe(folder, tmp_path / "2", **given) == alone


def test_a_second_run_computes_nothing_and_another_threshold_no_vectors(folder: Path, tmp_path: Path) -> None:
    dedupe(folder, tmp_path)
    again = run(parse(recipe(folder)), str(tmp_path), until="dedupe")["ledger"]
    assert again["dedupe:semantic"]["reused"] == again["dedupe:semantic"]["splits"]
    other = run(parse(recipe(folder, threshold=0.99)), str(tmp_path), until="dedupe")["ledger"]
    assert other["dedupe:semantic"]["reused"] == 0
    assert other["signatures:semantic"]["reused"] == other["signatures:semantic"]["splits"]


def test_large_clusters_are_cut_and_copies_still_meet(
    folder: Path, expected: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(semantic, "BLOCK_DOCUMENTS", 8)
    with caplog.at_level(logging.WARNING, "corpusmill"):
        found = dedupe(folder, tmp_path)
    assert "blocks; raise clusters (now 4)" in caplog.text
    longest = {text: max(IDS[i] for i in range(len(TEXTS)) if TEXTS[i] == text) for text in TEXTS}
    for text, last in longest.items():
        copies = [IDS[i] for i in range(len(TEXTS)) if TEXTS[i] == text]
        assert sum(found[i][2] for i in copies) <= 1, last
    assert sum(keep for *_, keep in found.values()) > sum(keep for *_, keep in expected.values())


@pytest.mark.parametrize("encoder", ["nowhere", "empty"])
def test_encoders_that_are_none(folder: Path, tmp_path: Path, encoder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(RecipeError, match=r"dedupe\.semantic: .*(no encoder at|architecture none, expected)"):
        run(parse(recipe(folder, encoder=str(tmp_path / encoder))), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_transformer_folder(folder: Path, tmp_path: Path) -> None:
    """A tiny random BERT: exact copies meet, whatever it thinks of the rest."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(words) + 5, **size))
    model.save_pretrained(tmp_path / "bert")
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    found = dedupe(folder, tmp_path / "run", encoder=str(tmp_path / "bert"), threshold=1.0, max_tokens=64)
    for text in set(TEXTS):
        assert sum(found[IDS[i]][2] for i in range(len(TEXTS)) if TEXTS[i] == text) <= 1
