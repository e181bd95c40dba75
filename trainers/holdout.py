"""How good a fitted model is on documents it did not learn from."""

from __future__ import annotations

from typing import Any

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """float64: places from 1 in ascending order; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def classification(good: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """ROC-AUC by ranks (ties count half), its standard error (Hanley and McNeil 1982), and how often documents of each
    decile of scores are good.

    Args:
        good, other: float64 probabilities of the documents that are good and of those that are not; neither is empty.
    """
    truth = np.concatenate([np.ones(len(good)), np.zeros(len(other))])
    scores = np.concatenate([good, other])
    pairs = len(good) * len(other)
    auc = float((ranks(scores)[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / pairs)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (len(good) - 1) * (q1 - auc**2) + (len(other) - 1) * (q2 - auc**2)) / pairs
    bins = np.minimum((scores * 10).astype(int), 9)
    calibration = []
    for decile in range(10):
        here = bins == decile
        if here.any():
            means = {"score": float(scores[here].mean()), "good": float(truth[here].mean())}
            calibration.append({"from": decile / 10, "documents": int(here.sum()), **means})
    error = float(np.sqrt(max(variance, 0.0)))
    return {"documents": len(truth), "auc": auc, "auc_standard_error": error, "calibration": calibration}


def regression(truth: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Mean squared error, share of the variance explained (R²) and Spearman's correlation of ranks.

    Both are None where the truth has but one value, the correlation also where the model gives but one.
    """
    error = float(np.mean((truth - found) ** 2))
    spread = float(np.var(truth))
    correlation = None
    if spread and np.var(found):
        correlation = float(np.corrcoef(ranks(truth), ranks(found))[0, 1])
    r2 = 1 - error / spread if spread else None
    return {"documents": len(truth), "mse": error, "r2": r2, "spearman": correlation}
