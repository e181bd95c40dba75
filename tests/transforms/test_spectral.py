"""Planted topics are found; the directions are those of the random walk; no order of documents matters."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from toy_damage import TOPICS, document

from transforms.embedding import Embedding
from transforms.semantic import quantise
from transforms.spectral import affinity, clusters, pivots, slowest


def vectors(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Documents of the toy topics in random order, and their topics."""
    import pyarrow as pa

    draw = np.random.default_rng(seed)
    topic = draw.permutation(np.repeat(np.arange(TOPICS), sizes))
    return Embedding().vectors(pa.array([document(int(t), draw) for t in topic])), topic


@pytest.mark.parametrize("sizes", [[40, 40, 40, 40], [120, 15, 40, 25], [150, 20, 20, 20]])
def test_topics_are_found(sizes: list[int]) -> None:
    given, topic = vectors(sizes)
    found, error = clusters(given, TOPICS)
    assert adjusted_rand_score(topic, found) > 0.95 and 0 <= error < 0.3


def test_rings_that_means_cannot_part() -> None:
    """What diffusion is for: two arcs, each nearer to its neighbours than to its own other end."""
    angle = np.linspace(0, 0.9 * np.pi, 60)
    arcs = np.concatenate([np.stack([r * np.cos(angle), r * np.sin(angle)], 1) for r in (0.3, 1.0)])
    u = slowest(np.exp(-(((arcs[:, None] - arcs[None]) ** 2).sum(-1)) / 0.01), 2)
    split = u[:, 0] / u[:, 1] > np.median(u[:, 0] / u[:, 1])
    assert adjusted_rand_score(np.repeat([0, 1], 60), split) > 0.95


def test_directions_are_eigenvectors_of_the_random_walk() -> None:
    """(I - D⁻¹A) u = lambda u with the smallest lambdas, of which the first is 0 and its vector constant."""
    given, _ = vectors([10, 10, 10, 10])
    a = affinity(given.astype(np.float64))
    assert (a == a.T).all() and (np.diag(a) == 1).all() and a.min() > 0
    u = slowest(a, 5)
    walk = np.eye(len(a)) - a / a.sum(axis=1, keepdims=True)
    values = np.array([(walk @ v)[np.abs(v).argmax()] / v[np.abs(v).argmax()] for v in u.T])
    np.testing.assert_allclose(walk @ u, u * values, atol=1e-9)
    np.testing.assert_allclose(np.sort(values), np.sort(np.linalg.eigvals(walk).real)[:5], atol=1e-9)
    assert abs(values.min()) < 1e-9 and np.ptp(u[:, values.argmin()]) < 1e-9


def test_the_kernel_is_half_as_wide_as_the_median_distance() -> None:
    points = np.array([[0.0], [1.0], [3.0]])
    expected = np.exp(-np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / 2)
    np.testing.assert_allclose(affinity(points), expected)
    assert (affinity(np.zeros((4, 2))) == 1).all()


def test_order_changes_no_group() -> None:
    given, _ = vectors([30, 20, 25, 15], seed=3)
    order = np.random.default_rng(1).permutation(len(given))
    one, other = clusters(given, TOPICS)[0], clusters(given[order], TOPICS)[0]
    assert adjusted_rand_score(one[order], other) == 1


def test_pivots_span_the_rows() -> None:
    u = np.random.default_rng(0).normal(size=(20, 4))
    chosen = pivots(u)
    assert len(set(chosen.tolist())) == 4 and np.linalg.matrix_rank(u[chosen]) == 4
    assert chosen[0] == (u**2).sum(axis=1).argmax()
    turned = u @ np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert pivots(turned).tolist() == chosen.tolist(), "whatever the basis"


def test_copies_and_few_documents() -> None:
    same = quantise(np.repeat(np.eye(3, 8), [5, 4, 3], axis=0))
    found, _ = clusters(same, 3)
    assert adjusted_rand_score(np.repeat([0, 1, 2], [5, 4, 3]), found) == 1
    assert len(clusters(np.repeat(same[:1], 6, axis=0), 3)[0]) == 6
