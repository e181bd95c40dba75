"""PASER's budget: the damaged ability found, the budget spent on it in proportion, contradictions left out."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transforms.concepts import agree, concepts
from transforms.degradation import budgets, cluster_means, spend
from transforms.divergence import jensen_shannon

WEIGHTS = st.lists(st.just(0.0) | st.floats(1e-6, 1), min_size=2, max_size=8).filter(any)


def test_the_damaged_topic_degrades_most_and_gets_most() -> None:
    """Two softmax regressions over bags of words for four topics; of the second one topic's weights are zeroed. Long
    documents of another topic do not look degraded."""
    draw = np.random.default_rng(0)
    topic = np.arange(400) % 4
    length = np.where(topic == 1, 200, 20)
    weights = torch.kron(torch.eye(4), torch.full((1, 25), 0.5)).double()  # a topic's own 25 of 100 words speak for it
    pruned = weights.clone()
    pruned[2] = 0
    chances = torch.softmax(2 * torch.kron(torch.eye(4), torch.ones(1, 25)).double(), dim=1).numpy()
    divergence = np.empty(400)
    for i in range(400):
        words = draw.choice(100, length[i], p=chances[topic[i]])
        seen = torch.from_numpy(np.cumsum(np.eye(100)[words], axis=0)[:20])  # predicted from the words before
        p, q = (torch.softmax(seen @ w.T, dim=1) for w in (weights, pruned))
        divergence[i] = float(jensen_shannon(p, q).mean())
    degraded = cluster_means(divergence, topic, 4)
    assert degraded.argmax() == 2 and degraded[2] > 2 * np.delete(degraded, 2).max()
    spent = budgets(80, degraded, np.bincount(topic))
    assert spent.argmax() == 2 and spent.sum() == 80
    assert (np.abs(spent - 80 * degraded / degraded.sum()) <= 1).all()
    order = draw.permutation(400)
    np.testing.assert_array_equal(cluster_means(divergence[order], topic[order], 4), degraded)


def test_means_of_clusters_by_hand() -> None:
    found = cluster_means(np.array([1.0, 2.0, 6.0]), np.array([2, 0, 2]), 4)
    assert found.tolist() == [2.0, 0.0, 3.5, 0.0], "nothing is known of a cluster without documents"


@given(WEIGHTS, st.integers(0, 10_000))
def test_shares_are_in_proportion_within_one(weights: list[float], total: int) -> None:
    degradation = np.array(weights)
    found = budgets(total, degradation, np.full(len(weights), 10**9))
    exact = total * degradation / math.fsum(weights)
    assert found.sum() == total and (np.abs(found - exact) <= 1 + 1e-9 * total).all()


@given(WEIGHTS, st.integers(0, 2000), st.data())
def test_the_whole_budget_is_spent_fairly(weights: list[float], total: int, data: st.DataObject) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(0, 500), min_size=len(weights), max_size=len(weights))))
    degradation = np.array(weights)
    found = budgets(total, degradation, sizes)
    able = degradation > 0
    assert found.sum() == min(total, sizes[able].sum()) and (found <= sizes).all() and not found[~able].any()
    rate = found[able] / degradation[able]
    slack = 1 / degradation[able]
    for i in np.flatnonzero(found[able] < sizes[able]):  # whoever has documents left gets no less than its due
        assert (rate[i] + slack[i] >= rate - slack - 1e-6 * rate).all()


def test_budgets_by_hand() -> None:
    degradation, sizes = np.array([0.1, 0.2, 0.7, 0.0]), np.array([100, 100, 3, 100])
    assert budgets(10, degradation, sizes).tolist() == [2, 5, 3, 0]
    assert budgets(10, degradation, np.full(4, 50)).tolist() == [1, 2, 7, 0]
    assert budgets(7, np.array([1.0, 1.0]), np.array([9, 9])).tolist() == [4, 3], "ties to the lower number"
    assert budgets(10, 0 * degradation, sizes).tolist() == [0, 0, 0, 0]
    for wrong in ((-1, degradation, sizes), (5, degradation, sizes[1:]), (5, -degradation, sizes)):
        with pytest.raises(ValueError, match="give a size for each cluster, nothing below 0"):
            budgets(*wrong)
    with pytest.raises(ValueError, match="nan"):
        budgets(5, np.array([np.nan, 1]), sizes[:2])


def slow_spend(
    total: int, degradation: np.ndarray, cluster: list[int], sets: list[set[int]]
) -> tuple[list[int], set[int]]:
    """Taken and refused candidates, by sets: the same rounds, one candidate at a time."""
    known: set[int] = set()
    edges: set[frozenset[int]] = set()
    taken: list[int] = []
    refused: set[int] = set()
    queues = {c: [i for i, own in enumerate(cluster) if own == c] for c in range(len(degradation))}
    while True:
        sizes = np.array([len(queues[c]) for c in range(len(degradation))])
        shares = budgets(total - len(taken), degradation, sizes)
        if not shares.any():
            return taken, refused
        for c, share in enumerate(shares.tolist()):
            while share and queues[c]:
                i = queues[c].pop(0)
                pairs = {frozenset((a, b)) for a in sets[i] for b in sets[i] if a != b}
                if any(pair <= known and pair not in edges for pair in pairs):
                    refused.add(i)
                    continue
                known |= sets[i]
                edges |= pairs
                taken.append(i)
                share -= 1


@given(st.data())
def test_spending_equals_a_slow_walk(data: st.DataObject) -> None:
    """And what is taken of a cluster are the first of its candidates that agree with the last graph."""
    sets = data.draw(st.lists(st.sets(st.integers(0, 12), max_size=5), max_size=25))
    cluster = sorted(data.draw(st.lists(st.integers(0, 3), min_size=len(sets), max_size=len(sets))))
    degradation = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=4, max_size=4)))
    total = data.draw(st.integers(0, 30))
    hashed = np.array([h for s in sets for h in sorted(s)], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
    taken, refused, graph = spend(total, degradation, np.array(cluster, np.int64), hashed, offsets)
    expected, against = slow_spend(total, degradation, cluster, sets)
    assert set(np.flatnonzero(taken)) == set(expected) and set(np.flatnonzero(refused)) == against
    fits = agree(hashed, offsets, graph.edges())
    for c in range(4):
        own = [i for i, k in enumerate(cluster) if k == c and fits[i]]
        assert own[: sum(taken[i] for i in own)] == [i for i in own if taken[i]]


def test_a_planted_contradiction_is_refused() -> None:
    """Two concepts that were first seen apart; and what the cluster then lacks, the next of it gives."""
    texts = [
        "The copper kettle is on the iron stove.",
        "The green meadow is by the old mill.",
        "The copper kettle is in the green meadow.",
        "The paper boat is on the quiet pond.",
        "A loud drum.",
    ]
    found = concepts(pa.array(texts), 10)
    cluster = np.array([0, 0, 0, 0, 1])
    taken, refused, graph = spend(4, np.array([0.75, 0.25]), cluster, *found)
    assert taken.tolist() == [True, True, False, True, True] and refused.tolist() == [False, False, True, False, False]
    assert agree(*concepts(pa.array([*texts, "An unseen thing."]), 10), graph.edges()).tolist() == [*~refused, True]
    taken, refused, _ = spend(2, np.array([0.75, 0.25]), cluster, *found)
    assert taken.tolist() == [True, True, False, False, False] or taken.sum() == 2
    assert not refused.any(), "the walk ends before it"
