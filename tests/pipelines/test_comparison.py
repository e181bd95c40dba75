"""What is called real: rarely where nothing differs, nearly always where much does; and the arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines import comparison
from pipelines.comparison import Comparison, Measure, holm


def measures(
    generator: np.random.Generator, effects: list[float], seeds: int = 3, noise: float = 0.01
) -> dict[str, Measure]:
    """Losses of 100 documents that are mostly the documents', with noise of every training and of each document."""
    documents = generator.normal(3, 1, 100)
    return {
        f"m{k}": Measure(
            documents
            + effect
            + generator.normal(0, noise, (seeds, 1))
            + generator.normal(0, 0.02, 100)
            + generator.normal(0, 0.02, (seeds, 100)),
            np.ones(100),
        )
        for k, effect in enumerate(effects)
    }


def test_equal_mixtures_are_rarely_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds: the noise of training is larger than what documents show. A bootstrap of three seeds fails here."""
    monkeypatch.setattr(comparison, "RESAMPLES", 2000)
    generator = np.random.default_rng(0)
    wrong = covered = naive = 0
    for trial in range(150):
        made = measures(generator, [0.0, 0.0])
        (pair,) = Comparison(made, trial).pairs()
        wrong += pair["real"]
        covered += pair["low"] <= 0 <= pair["high"]
        each = made["m0"].by_seed - made["m1"].by_seed
        naive += bool((each > 0).all() or (each < 0).all())
    assert wrong <= 13 and covered >= 137  # 5 % of 150 is 7.5; 13 is beyond its 97th percentile
    assert naive >= 25


def test_differences_are_found_and_their_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 2000)
    generator = np.random.default_rng(1)
    real, covered = 0, 0
    for trial in range(60):
        pairs = {(p["first"], p["second"]): p for p in Comparison(measures(generator, [0.0, 0.0, 0.1]), trial).pairs()}
        real += pairs["m0", "m2"]["real"] and pairs["m1", "m2"]["real"]
        covered += pairs["m0", "m2"]["low"] <= -0.1 <= pairs["m0", "m2"]["high"]
    assert real >= 57 and covered >= 53


def test_one_seed_leaves_the_documents_alone() -> None:
    """The interval is the normal one of a mean of paired differences."""
    generator = np.random.default_rng(2)
    base, gap = generator.normal(3, 1, 400), generator.normal(0.02, 0.1, 400)
    made = {"a": Measure((base + gap)[None], np.ones(400)), "b": Measure(base[None], np.ones(400))}
    found = Comparison(made).difference("a", "b")
    half = 1.96 * gap.std(ddof=1) / math.sqrt(400)
    assert found["mean"] == pytest.approx(gap.mean())
    assert [found["low"], found["high"]] == pytest.approx([gap.mean() - half, gap.mean() + half], abs=0.1 * half)
    z = abs(gap.mean()) / (gap.std(ddof=1) / 20)
    assert found["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.3)


def test_two_mixtures_without_documents_noise_are_a_paired_t_test() -> None:
    """Student's quantile for three seeds is 4.303; all documents are alike, so nothing else remains."""
    losses = np.array([[3.0, 3.1, 3.05], [2.9, 3.02, 2.99]])
    made = {str(k): Measure(np.repeat(row[:, None], 50, axis=1), np.ones(50)) for k, row in enumerate(losses)}
    found = Comparison(made).difference("0", "1")
    gaps = losses[0] - losses[1]
    half = 4.303 * gaps.std(ddof=1) / math.sqrt(3)
    assert [found["low"], found["high"]] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.15 * half)


def test_ratios_are_of_sums_and_many_items_go_in_groups() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 50, 5000)
    nats = tokens * generator.normal(3, 0.5, (2, 5000))
    found = Comparison({"a": Measure(nats, tokens), "b": Measure(nats + 0.1 * tokens, tokens)})
    assert found.items == 5000
    assert found.mean("a")["mean"] == pytest.approx(np.mean([row.sum() / tokens.sum() for row in nats]))
    gap = found.difference("b", "a")
    assert [gap["mean"], gap["low"], gap["high"]] == pytest.approx([0.1] * 3, abs=1e-6)
    direct = np.std(nats.mean(axis=0) - 3 * tokens) * math.sqrt(5000) / tokens.sum()
    drawn = found._drawn[0].std()
    assert drawn == pytest.approx(direct, rel=0.1)


def test_an_answer_does_not_depend_on_what_was_asked_before() -> None:
    made = measures(np.random.default_rng(4), [0.0, 0.01, 0.02])
    first, second = Comparison(made), Comparison(made)
    means, pairs = [first.mean(name) for name in made], first.pairs()
    assert second.pairs() == pairs
    assert [second.mean(name) for name in reversed(made)] == means[::-1]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
