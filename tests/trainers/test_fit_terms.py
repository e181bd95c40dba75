"""The fitted list holds the planted terms, none of the common words, and escalates documents it did not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_corpus import prose

from scorers.safety import Safety
from trainers.fit_terms import FitTerms, _frequencies, _names
from transforms.batch import Batch
from transforms.terms import Automaton, Terms

PLANTED = ["castling", "zugzwang", "knight fork", "stalemate", "dvoretsky"]


def documents(count: int, share: float, seed: int) -> list[str]:
    """Prose; each planted term is in a document with the chance given. `fork` and `knight` stand everywhere."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        terms = [f"Then came {term.title()}, once." for term in PLANTED if draw.random() < share]
        texts.append(
            f"{prose(draw, 3)} a fork for every knight. Then came rain, once. {' '.join(terms)} {prose(draw, 1)}"
        )
    return texts


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": [str(k) for k in range(len(texts))], "text": texts})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("terms") / "gate"
    fit = FitTerms(positives="chess", min_documents=15)
    samples = {"positives": table(documents(200, 0.7, 1)), "negatives": table(documents(1500, 0.01, 2))}
    return out, fit.fit(samples, out, 0)


def test_planted_terms(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    terms = (out / "terms.txt").read_text().splitlines()
    assert {"castling", "zugzwang", "knight fork", "stalemate", "dvoretsky"} <= set(terms)
    assert not {"fork", "knight", "then", "the", "boat"} & set(terms) and len(terms) == card["terms"]
    assert not any("castling" in t for t in terms if t != "castling"), "phrases that hold a kept term are left out"
    assert json.loads((out / "card.json").read_text()) == card


def test_it_serves_the_scorer(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    assert card["holdout"]["positives_escalated"] >= 0.95 and card["holdout"]["negatives_escalated"] < 0.05
    texts = documents(100, 0.7, 8)
    flagged = Safety(terms=out).score(Batch(pa.record_batch({"text": texts}))).field("flagged").to_numpy(False)
    assert flagged.mean() >= 0.95


def slow(texts: list[str], words: int) -> dict[str, int]:
    """Documents of each phrase of ASCII letters with single spaces between, by splitting at all else."""
    counts: dict[str, int] = {}
    for text in texts:
        pieces = [line.split(" ") for line in text.lower().split("\n")]
        found = {
            " ".join(line[a : a + n]) for line in pieces for n in range(1, words + 1) for a in range(len(line) - n + 1)
        }
        for phrase in found:
            if "" not in phrase.split(" "):
                counts[phrase] = counts.get(phrase, 0) + 1
    return counts


@given(st.lists(st.text(alphabet="abAB  \n", max_size=30), max_size=6), st.integers(1, 3))
def test_counts_equal_plain_counting(texts: list[str], words: int) -> None:
    column = pa.array(texts, pa.large_string())
    hashes, counts = _frequencies(column, words)
    assert dict(zip(_names(column, words, hashes), counts.tolist(), strict=True)) == slow(texts, words)
    only, of_them = _frequencies(column, words, hashes[::2])
    assert np.array_equal(only, hashes[::2]) and np.array_equal(of_them, counts[::2])


@given(st.lists(st.text(alphabet="aBé日9 “”’—-🎉\u0301\n", max_size=30), max_size=6))
def test_the_scorer_finds_every_phrase(texts: list[str]) -> None:
    """As often as it was counted, or more often where words are not split at the same places."""
    column = pa.array(texts, pa.large_string())
    hashes, counts = _frequencies(column, 2)
    for name, count in zip(_names(column, 2, hashes), counts.tolist(), strict=True):
        found = Automaton(Terms(pa.array([name], pa.large_string()), np.ones(1))).find(column, 0)
        assert found.counts.sum() >= count and {name[0], name[-1]}.isdisjoint("“”’—-🎉 ")


def test_words_beside_other_signs_than_ascii() -> None:
    texts = pa.array(["“Castling” — the rook’s 🎉"], pa.large_string())
    hashes, _ = _frequencies(texts, 1)
    assert sorted(_names(texts, 1, hashes)) == ["castling", "rook", "the"]


def test_the_order_of_documents_does_not_matter(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Among those learned from (every tenth is held out), nor that of the samples."""
    positives, negatives = documents(200, 0.7, 1), documents(1500, 0.01, 2)
    positives[1:10], negatives[11:20] = positives[9:0:-1], negatives[19:10:-1]
    FitTerms(positives="chess", min_documents=15).fit(
        {"negatives": table(negatives), "positives": table(positives)}, tmp_path, 5
    )
    assert (tmp_path / "terms.txt").read_bytes() == (fitted[0] / "terms.txt").read_bytes()


def test_samples_that_do_not_serve(tmp_path: Path) -> None:
    few = {"positives": table(["a"] * 30), "negatives": table(["b"] * 30)}
    with pytest.raises(ValueError, match=r"share of positives \(0\.50\) below the ratio \(0\.4\)"):
        FitTerms(positives="x").fit(few, tmp_path, 0)
    with pytest.raises(ValueError, match="no term of 30 positives passes"):
        many = {"positives": table(["a b"] * 30), "negatives": table(["a b"] * 300)}
        FitTerms(positives="x").fit(many, tmp_path, 0)
