"""PASER's budget: divergences by definition, the damaged ability found, the budget spent on it in proportion."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.degradation import budgets, cluster_means, draw_bounds, jensen_shannon

WEIGHTS = st.lists(st.just(0.0) | st.floats(1e-6, 1), min_size=2, max_size=8).filter(any)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1.0, 30.0, 2000.0]))
def test_divergence_equals_definition(seed: int, words: int, scale: float) -> None:
    """Symmetric, 0 for equals, at most log 2, a number even where probabilities underflow."""
    draw = np.random.default_rng(seed)
    p, q = (softmax(scale * draw.normal(size=(5, words))) for _ in range(2))
    found = jensen_shannon(p, q)
    for row, a, b in zip(found, p, q, strict=True):
        m = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
        kl = [sum(x * math.log(x / z) for x, z in zip(side, m, strict=True) if x > 1e-300) for side in (a, b)]
        assert row == pytest.approx(sum(kl) / 2, abs=1e-12)
    np.testing.assert_allclose(jensen_shannon(q, p), found, atol=1e-15)
    assert (jensen_shannon(p, p) == 0).all() and (found >= 0).all() and (found <= math.log(2) + 1e-12).all()


def test_disjoint_and_subnormal_distributions() -> None:
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(math.log(2))
    tiny = np.array([1.0, 5e-324])
    assert jensen_shannon(tiny, np.array([1.0, 0.0])) == pytest.approx(0, abs=1e-300)


def test_the_damaged_topic_degrades_most_and_gets_most() -> None:
    """Two softmax regressions over bags of words for four topics; of the second one topic's weights are zeroed. Long
    documents of another topic do not look degraded."""
    draw = np.random.default_rng(0)
    topic = np.arange(400) % 4
    length = np.where(topic == 1, 200, 20)
    weights = np.kron(np.eye(4), np.full((1, 25), 0.5))  # a topic's own 25 of 100 words speak for it
    pruned = weights.copy()
    pruned[2] = 0
    chances = softmax(2 * np.kron(np.eye(4), np.ones((1, 25))))
    divergence = np.empty(400)
    for i in range(400):
        words = draw.choice(100, length[i], p=chances[topic[i]])
        seen = np.cumsum(np.eye(100)[words], axis=0)[:20]  # what is predicted at each position from the words before
        divergence[i] = jensen_shannon(softmax(seen @ weights.T), softmax(seen @ pruned.T)).mean()
    degraded = cluster_means(divergence, topic, 4)
    assert degraded.argmax() == 2 and degraded[2] > 2 * np.delete(degraded, 2).max()
    sizes = np.bincount(topic)
    for redistribute in (False, True):
        spent = budgets(80, degraded, sizes, redistribute)
        assert spent.argmax() == 2 and spent.sum() <= 80
        assert (np.abs(spent - 80 * degraded / degraded.sum()) <= 1).all()
    order = draw.permutation(400)
    np.testing.assert_array_equal(cluster_means(divergence[order], topic[order], 4), degraded)


def test_means_of_clusters_by_hand() -> None:
    found = cluster_means(np.array([1.0, 2.0, 6.0]), np.array([2, 0, 2]), 4)
    assert found.tolist() == [2.0, 0.0, 3.5, 0.0], "nothing is known of a cluster without documents"


@given(WEIGHTS, st.integers(0, 10_000))
def test_the_papers_rule(weights: list[float], total: int) -> None:
    degradation = np.array(weights)
    found = budgets(total, degradation, np.full(len(weights), 10**9))
    whole = sum(map(Fraction, weights))
    for n, weight in zip(found, weights, strict=True):
        exact = total * Fraction(weight) / whole
        assert n == math.floor(exact) or abs(exact - round(exact)) < 1e-8, "floats may round at a whole number"
    assert found.sum() <= total + len(weights) * (total > 0)
    sizes = np.arange(len(weights))
    np.testing.assert_array_equal(budgets(total, degradation, sizes), np.minimum(found, sizes))


@given(WEIGHTS, st.integers(0, 2000), st.data())
def test_redistributed_the_whole_budget_is_spent_fairly(weights: list[float], total: int, data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(0, 500), min_size=len(weights), max_size=len(weights))))
    degradation = np.array(weights)
    found = budgets(total, degradation, sizes, redistribute=True)
    able = degradation > 0
    assert found.sum() == min(total, sizes[able].sum()) and (found <= sizes).all() and not found[~able].any()
    rate = found[able] / degradation[able]
    slack = 1 / degradation[able]
    open_ = found[able] < sizes[able]
    for i in np.flatnonzero(open_):  # whoever has documents left gets no less for its degradation than any other
        assert (rate[i] + slack[i] >= rate - slack - 1e-6 * rate).all()


def test_budgets_by_hand() -> None:
    degradation, sizes = np.array([0.1, 0.2, 0.7, 0.0]), np.array([100, 100, 3, 100])
    assert budgets(10, degradation, sizes).tolist() == [1, 2, 3, 0]
    assert budgets(10, degradation, sizes, redistribute=True).tolist() == [2, 5, 3, 0]
    assert budgets(10, 0 * degradation, sizes, redistribute=True).tolist() == [0, 0, 0, 0]
    for wrong in ((-1, degradation, sizes), (5, degradation, sizes[1:]), (5, -degradation, sizes)):
        with pytest.raises(ValueError, match="give a size for each cluster, nothing below 0"):
            budgets(*wrong)
    with pytest.raises(ValueError, match="nan"):
        budgets(5, np.array([np.nan, 1]), sizes[:2])


def test_bounds_on_draws_take_about_the_budget() -> None:
    sizes, wanted = np.array([10_000, 10_000, 10_000, 0]), np.array([2_500, 0, 10_000, 0])
    bounds = draw_bounds(wanted, sizes)
    draw = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64)
    taken = [(draw <= bound).sum() for bound in bounds]
    assert abs(taken[0] - 2_500) < 4 * 2_500**0.5 and taken[1:] == [0, 10_000, 0]
