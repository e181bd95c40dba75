"""Feature mapping: votes by definition, planted topics first, the same whatever the order, and it serves the target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import feature_mapping
from transforms.feature_mapping import kmeans, nearest, ranks, votes
from transforms.semantic import quantise

TOPICS = np.random.default_rng(7).normal(size=(20, 32))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def documents(topics: np.ndarray, seed: int, noise: float = 0.5) -> np.ndarray:
    """One document for each topic named."""
    return quantise(unit(TOPICS[topics] + noise * np.random.default_rng(seed).normal(size=(len(topics), 32))))


def hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def by_definition(target: np.ndarray, centroids: np.ndarray) -> tuple[list[int], list[int]]:
    """Votes and ranks with Python's integers, one document and one centroid at a time."""
    far = [[sum((int(a) - int(b)) ** 2 for a, b in zip(x, c, strict=True)) for c in centroids] for x in target]
    counted = [0] * len(centroids)
    for row in far:
        counted[row.index(min(row))] += 1
    order = sorted(range(len(centroids)), key=lambda c: (-counted[c], sum(row[c] for row in far), c))
    return counted, [order.index(c) + 1 for c in range(len(centroids))]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 7))
def test_votes_and_ranks_equal_the_definition(seed: int, documents: int, clusters: int) -> None:
    """Small numbers, so that there are ties."""
    draw = np.random.default_rng(seed)
    target, centroids = (draw.integers(-2, 3, (n, 3)).astype(np.int16) for n in (documents, clusters))
    counted = votes(target, centroids)
    expected, order = by_definition(target, centroids)
    assert counted.tolist() == expected and counted.sum() == documents
    assert ranks(target, centroids, counted).tolist() == order


def test_three_classes_of_which_two_are_voted_for() -> None:
    """The published loop compares with the class of the document's own number and gives (2, 1, 0) for three of them."""
    centroids = np.array([[0, 0], [100, 0], [0, 100]], np.int16)
    target = np.array([[90, 0], [99, 5], [0, 90], [7, 80]], np.int16)
    assert votes(target, centroids).tolist() == [0, 2, 2]
    assert ranks(target, centroids, votes(target, centroids))[0] == 3


def test_the_planted_topics_come_first() -> None:
    topic = np.repeat(np.arange(20), 60)
    pool = documents(topic, 1)
    wanted = np.array([2, 5, 11, 17])
    noise = np.random.default_rng(3).integers(0, 20, 30)
    target = documents(np.concatenate([np.repeat(wanted, [90, 80, 60, 40]), noise]), 2)
    centroids = kmeans(pool, hashes(len(pool)), 60, rounds=20)  # many more than topics: no bad start joins two
    labels = nearest(pool, centroids)
    counted = votes(target, centroids)
    assert counted.sum() == 300
    rank = ranks(target, centroids, counted)
    pure = {c: np.bincount(topic[labels == c]).argmax() for c in np.unique(labels)}
    ours = [c for c in pure if pure[c] in wanted]
    by_rank = [pure[c] for c in np.argsort(rank) if c in pure]
    assert set(by_rank[: len(ours) - 2]) == set(wanted), "clusters of one topic share its votes"
    top = {int(c) for c in np.flatnonzero(rank <= 10)}
    assert top < set(np.flatnonzero(rank <= 11)) and not top & set(np.flatnonzero(rank > 50))


@pytest.mark.parametrize("cells", [1, 1 << 22])
def test_order_changes_no_bit(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_mapping, "_CELLS", cells)
    pool, draw = documents(np.arange(400) % 20, 1, noise=1.5), hashes(400)
    expected = kmeans(pool, draw, 30, rounds=9)
    order = np.random.default_rng(2).permutation(400)
    np.testing.assert_array_equal(kmeans(pool[order], draw[order], 30, rounds=9), expected)
    np.testing.assert_array_equal(nearest(pool[order], expected), nearest(pool, expected)[order])


def test_every_round_lowers_the_error() -> None:
    pool, draw = documents(np.arange(600) % 20, 1, noise=1.5), hashes(600)

    def error(centroids: np.ndarray) -> float:
        return float(((pool.astype(float) - centroids[nearest(pool, centroids)]) ** 2).sum())

    errors = [error(kmeans(pool, draw, 25, rounds=r)) for r in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_fewer_different_documents_than_clusters() -> None:
    pool = documents(np.array([1, 2]), 1).repeat(50, axis=0)
    centroids = kmeans(pool, hashes(100), 10, rounds=5)
    assert sorted(map(tuple, centroids)) == sorted({tuple(row) for row in pool})


def test_learning_on_the_clusters_kept_serves_the_target() -> None:
    """A classifier learned on the documents kept, few shots of the target with it: the top 8 of 40 clusters do no worse
    than 8 at random in nine of ten draws."""
    from sklearn.linear_model import LogisticRegression

    wanted = np.array([2, 5, 11, 17])
    won = 0
    for seed in range(10):
        topic = np.arange(1200) % 20
        pool, target = documents(topic, seed, 1.0), documents(wanted.repeat(75), 100 + seed, 1.0)
        centroids = kmeans(pool, hashes(len(pool), seed), 40, rounds=20)
        labels, rank = nearest(pool, centroids), ranks(target, centroids, votes(target, centroids))
        truth, few = wanted.repeat(75), np.arange(0, 300, 75)
        accuracy = []
        for kept in (np.flatnonzero(rank <= 8), np.random.default_rng(seed).permutation(40)[:8]):
            some = np.isin(labels, kept)
            rows, names = np.concatenate([pool[some], target[few]]), np.concatenate([topic[some], truth[few]])
            accuracy.append(LogisticRegression().fit(rows / 32767, names).score(target / 32767, truth))
        won += accuracy[0] >= accuracy[1]
    assert won >= 9
