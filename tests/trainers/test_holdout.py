"""Measures of fitted models, by hand and against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import r2_score, roc_auc_score

from trainers.holdout import classification, ranks, regression

SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99, 1.0]), min_size=1, max_size=30)


def test_classification_by_hand() -> None:
    """Hanley and McNeil's standard error, written out for AUC 0.75 of two against two."""
    found = classification(np.array([0.9, 0.3]), np.array([0.35, 0.2]))
    q1, q2 = 0.75 / 1.25, 2 * 0.75**2 / 1.75
    variance = (0.75 * 0.25 + q1 - 0.75**2 + q2 - 0.75**2) / 4
    assert found["auc"] == 0.75 and found["auc_standard_error"] == pytest.approx(variance**0.5)
    assert found["calibration"] == [
        {"from": 0.2, "documents": 1, "score": 0.2, "good": 0.0},
        {"from": 0.3, "documents": 2, "score": pytest.approx(0.325), "good": 0.5},
        {"from": 0.9, "documents": 1, "score": 0.9, "good": 1.0},
    ]
    assert classification(np.array([0.5, 0.5]), np.array([0.5, 0.5]))["auc"] == 0.5, "ties count half"
    assert classification(np.array([1.0]), np.array([0.0]))["auc_standard_error"] == 0.0


@given(SCORES, SCORES)
def test_auc_equals_scikit_learns(good: list[float], other: list[float]) -> None:
    truth = [1] * len(good) + [0] * len(other)
    assert classification(np.array(good), np.array(other))["auc"] == pytest.approx(roc_auc_score(truth, good + other))


@given(SCORES)
def test_equal_values_share_ranks(values: list[float]) -> None:
    assert ranks(np.array(values)).tolist() == rankdata(values).tolist()


def test_regression_equals_scipys_and_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 6, 200).astype(float)
    found = truth + draw.normal(0, 1, 200)
    measured = regression(truth, found)
    assert measured["mse"] == pytest.approx(np.mean((truth - found) ** 2)) and measured["documents"] == 200
    assert measured["r2"] == pytest.approx(r2_score(truth, found))
    assert measured["spearman"] == pytest.approx(spearmanr(truth, found).statistic)


def test_what_cannot_be_measured_is_none() -> None:
    assert regression(np.ones(4), np.arange(4.0)) == {
        "documents": 4,
        "mse": 1.5,
        "r2": None,
        "spearman": None,
    }
    assert regression(np.arange(4.0), np.ones(4))["spearman"] is None
