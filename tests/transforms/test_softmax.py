"""The classifier reaches the least loss, which scikit-learn finds too."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from transforms.semantic import SCALE, quantise
from transforms.softmax import PENALTY, _loss, _with_constant, fit_softmax, predict

MEANS = np.random.default_rng(5).normal(size=(6, 12))


def sample(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 6, count)
    rows = MEANS[labels] + 1.2 * draw.normal(size=(count, 12))
    return quantise(rows / np.linalg.norm(rows, axis=1, keepdims=True)), labels


def test_the_gradient_is_that_of_the_loss() -> None:
    vectors, labels = sample(40, 0)
    x, weights = _with_constant(vectors), np.random.default_rng(1).normal(size=(13, 6))
    _, gradient = _loss(x, labels, weights)
    for i, j in ((0, 0), (5, 3), (12, 5)):
        step = np.zeros_like(weights)
        step[i, j] = 1e-5
        slope = (_loss(x, labels, weights + step)[0] - _loss(x, labels, weights - step)[0]) / 2e-5
        np.testing.assert_allclose(gradient[i, j], slope, rtol=1e-4, atol=1e-9)


def test_it_predicts_as_well_as_a_solver() -> None:
    vectors, labels = sample(1500, 2)
    fresh, truth = sample(1000, 3)
    theirs = LogisticRegression(C=1 / (PENALTY * len(labels)), max_iter=2000).fit(vectors / SCALE, labels)
    expected = float((theirs.predict(fresh / SCALE) == truth).mean())
    weights = fit_softmax(vectors, labels, 6)
    assert expected > 0.7 and abs(float((predict(fresh, weights) == truth).mean()) - expected) < 0.02
    theirs_weights = np.concatenate([theirs.coef_.T, theirs.intercept_[None]])
    own, best = (_loss(_with_constant(vectors), labels, w)[0] for w in (weights, theirs_weights))
    assert own < best + 0.01


def test_classes_without_documents_and_rare_ones() -> None:
    vectors, labels = sample(300, 4)
    labels[labels == 5] = 4
    found = predict(vectors, fit_softmax(vectors, labels, 6))
    assert 5 not in found and (found == labels).mean() > 0.7
