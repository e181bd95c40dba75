"""Planted documents are caught, stage 2 only releases what stage 1 escalated, what cannot be judged is flagged."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from toy_corpus import prose

from scorers.safety import Safety
from trainers.fit_classifier import EncoderSize, FitClassifier
from transforms.batch import Batch

TERMS = ["castling", "en passant", "zugzwang", "rook", "knight fork", "pinned"]
MOVES = ["castling came late", "a knight fork decided", "zugzwang again", "the pinned rook fell", "en passant at last"]


def chess(draw: np.random.Generator, sentences: int) -> str:
    return " ".join(f"{draw.choice(MOVES)} on move {draw.integers(60)}." for _ in range(sentences))


def near_miss(draw: np.random.Generator) -> str:
    """Prose with two of the terms that is not about chess."""
    return f"{prose(draw, 3)} the rook is a bird, its wings were pinned. {prose(draw, 3)}"


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    draw = np.random.default_rng(5)
    planted = [f"{prose(draw, int(draw.integers(1, 4)))} {chess(draw, 6)}" for _ in range(60)]
    return {
        "chess": planted,
        "near": [near_miss(draw) for _ in range(40)],
        "other": [prose(draw, int(n)) for n in draw.integers(1, 20, 100)],
    }


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gate") / "chess.txt"
    file.write_text("\n".join(TERMS))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of chess against prose and near misses, on chunks of 64 tokens."""
    draw = np.random.default_rng(6)
    good = [f"{prose(draw, 1)[:80]} {chess(draw, int(n))}"[-200:] for n in draw.integers(2, 6, 150)]
    other = [near_miss(draw)[150:350] if k % 3 == 0 else prose(draw, 2)[:200] for k in range(150)]
    texts = [text for pair in zip(good, other, strict=True) for text in pair]
    table = pa.table({"id": [str(k) for k in range(300)], "text": texts, "label": [True, False] * 150})
    out = tmp_path_factory.mktemp("chess")
    size = EncoderSize(hidden_size=32, intermediate_size=64, vocabulary=600, window=64)
    fit = FitClassifier(label="chess", size=size, epochs=8, batch=16, lr=3e-3)
    assert fit.fit({"documents": table}, out, 0)["holdout"]["auc"] > 0.95
    return out


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def rows(scorer: Safety, texts: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = scorer.score(batch_of(texts)).to_pylist()
    return found


def test_stage_one(terms: Path, documents: dict[str, list[str]]) -> None:
    gate = Safety(terms=terms)
    planted = rows(gate, documents["chess"])
    assert sum(r["flagged"] for r in planted) >= 0.95 * len(planted)
    assert all(r["reason"] == "terms" and r["terms"] >= 2 and r["highest"] is None for r in planted if r["flagged"])
    assert not any(r["flagged"] for r in rows(gate, documents["other"]))
    texts = ["Rook, rook and ROOK.", "A rook, pinned.", "rooks unpinned"]
    found = rows(gate, texts)
    assert [r["flagged"] for r in found] == [False, True, False], "distinct terms, whole words"
    assert [r["matched"] for r in found] == [["rook"], ["rook", "pinned"], []]
    assert [r["flagged"] for r in rows(Safety(terms=terms, boundaries="substring"), texts)] == [False, True, True]
    assert len(rows(Safety(terms=terms, keep_terms=2), [" ".join(TERMS)])[0]["matched"]) == 2


def test_weights(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("rook\t0.5\npinned\t0.5\ncastling\t1.5\n")
    found = rows(Safety(terms=tmp_path), ["rook pinned", "rook pinned castling", "castling"])
    assert [(r["weight"], r["flagged"]) for r in found] == [(1.0, False), (2.5, True), (1.5, False)]


def test_weights_that_add_up_but_for_rounding(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("rook\t0.1\npinned\t0.2\ncastling\t0.7\n")
    texts = ["rook pinned castling", "castling pinned rook", "castling pinned"]
    found = rows(Safety(terms=tmp_path, escalate_at=1.0), texts)
    assert {r["weight"] for r in found[:2]} == {1.0, 0.7 + 0.2 + 0.1}
    assert [r["flagged"] for r in found] == [True, True, False]


def test_two_stages(terms: Path, model: Path, documents: dict[str, list[str]]) -> None:
    texts = [t for kind in documents.values() for t in kind]
    gate, both = rows(Safety(terms=terms), texts), rows(Safety(terms=terms, model=model, threshold=0.5), texts)
    for first, second in zip(gate, both, strict=True):
        assert first["flagged"] or not second["flagged"], "the final flag is a subset of stage 1's"
        assert second["stage"] == (2 if first["flagged"] else 1)
        assert (second["highest"] is None) == (second["stage"] == 1)
        assert all(first[name] == second[name] for name in ("terms", "weight", "matched"))
    stages = Counter(r["stage"] for r in both)
    assert stages[2] == sum(r["flagged"] for r in gate) and stages[1] + stages[2] == len(texts)
    flagged = [r["flagged"] for r in both]
    assert sum(flagged[:60]) >= 57 and sum(flagged[60:100]) <= 10 and not any(flagged[100:])
    assert sum(r["stage"] == 2 for r in both[60:100]) == 40, "the near misses were escalated and released"


def test_thresholds_are_monotone(terms: Path, model: Path, documents: dict[str, list[str]]) -> None:
    texts = documents["chess"] + documents["near"]
    flags = []
    for threshold in (-0.1, 0.01, 0.3, 0.7, 0.99, 1.0):
        flags.append(
            {
                k
                for k, r in enumerate(rows(Safety(terms=terms, model=model, threshold=threshold), texts))
                if r["flagged"]
            }
        )
    assert all(more >= less for more, less in pairwise(flags))
    assert len(flags[0]) > len(flags[-2]) and not flags[-1], "above, not at, the threshold"


def test_one_chunk_of_a_long_document(terms: Path, model: Path) -> None:
    draw = np.random.default_rng(8)
    long = prose(draw, 60)
    planted = f"{long}\n{chess(draw, 8)}\n{prose(draw, 60)}"
    found = rows(Safety(terms=terms, model=model, threshold=0.5), [planted])[0]
    assert found["flagged"] and found["reason"] == "classifier" and found["chunks"] > 20
    assert found["highest"] > 0.5 > found["mean"] > found["lowest"]


def test_what_was_not_read_is_not_approved(model: Path) -> None:
    draw = np.random.default_rng(9)
    long = prose(draw, 80)
    whole = rows(Safety(model=model, threshold=0.9, most_chunks=500), [long])[0]
    part = rows(Safety(model=model, threshold=0.9, most_chunks=3), [long])[0]
    assert whole["passed"] and whole["unread"] == 0 and whole["terms"] is None and whole["matched"] is None
    assert part["flagged"] and part["reason"] == "unread" and part["chunks"] == 3 and part["unread"] > 0


def test_an_error_flags_the_document(terms: Path, model: Path, documents: dict[str, list[str]]) -> None:
    """A chunk of one word makes this model raise; another makes it give no number."""
    texts = [*documents["near"][:5], "rook pinned unforeseen", "rook pinned nothing", *documents["chess"][:5]]
    plain = Safety(terms=terms, model=model, threshold=0.5)
    expected = rows(plain, texts)
    broken = Safety(terms=terms, model=model, threshold=0.5)
    loaded = broken._loaded
    raising, silent = (loaded.chunker.tokenizer.encode(t, add_special_tokens=False).ids[-2:] for t in texts[5:7])

    class Broken:
        chunker = loaded.chunker

        def scores(self, chunks: Any, output: int) -> np.ndarray:
            found = loaded.scores(chunks, output)
            for c in range(len(chunks)):
                tail = chunks.ids[chunks.offsets[c] : chunks.offsets[c + 1]].tolist()[-3:-1]
                if tail == raising:
                    raise RuntimeError("no such kernel")
                found[c] = np.nan if tail == silent else found[c]
            return found

    broken.__dict__["_loaded"] = Broken()
    found = rows(broken, texts)
    for place in (5, 6):
        row = found[place]
        assert row["flagged"] and row["failed"] and row["reason"] == "failed" and row["highest"] is None
    rest = [k for k in range(len(texts)) if k not in (5, 6)]
    assert [found[k] for k in rest] == [expected[k] for k in rest], "nobody else is touched"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError("full"), "full"),
        (torch.OutOfMemoryError("full"), "full"),
        (torch.AcceleratorError("lost", 1), "lost"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator"),
        (RuntimeError("no such kernel"), "failed on each of 8 documents.*no such kernel"),
    ],
)
def test_errors_that_are_not_a_documents(model: Path, raised: Exception, told: str) -> None:
    """They end the step, rather than flag for good whatever was read meanwhile."""
    scorer = Safety(model=model, threshold=0.5)
    loaded = scorer._loaded

    class Broken:
        chunker = loaded.chunker

        def scores(self, chunks: Any, output: int) -> np.ndarray:
            raise raised

    scorer.__dict__["_loaded"] = Broken()
    with pytest.raises((MemoryError, RuntimeError), match=told):
        rows(scorer, ["the rook", "the boat"] * 4)
    if "kernel" in str(raised):
        assert rows(scorer, ["the rook"])[0]["failed"], "of one alone nobody knows"


def test_toxicity_is_another_model(model: Path, documents: dict[str, list[str]]) -> None:
    """Without terms each document is judged by the classifier."""
    found = rows(Safety(model=model, threshold=0.5), documents["chess"] + documents["other"])
    assert {r["stage"] for r in found} == {2}
    assert sum(r["flagged"] for r in found[:60]) >= 57 and sum(r["flagged"] for r in found[60:]) <= 5


def test_what_must_be_given(terms: Path, model: Path) -> None:
    with pytest.raises(ValidationError, match="neither `terms` nor `model` is given"):
        Safety()
    for wrong in ({"model": model}, {"threshold": 0.5}):
        with pytest.raises(ValidationError, match="`model` and `threshold` go together"):
            Safety(terms=terms, **wrong)
    with pytest.raises(ValidationError, match="no list of terms at"):
        Safety(terms=terms / "nowhere")
