"""How a budget of documents goes to the abilities that a compressed model lost most: PASER (He et al. 2025, arXiv
2502.12594), its divergence between two models' predictions and its share for each cluster.

A recipe uses it with any scorer that tells a document's cluster, as `dp4tl` does: measure divergences on a sample,
allot the budget, and put the bounds on draws that follow into a condition under `select`:

    budget: "draw <= list_extract([14757395258967642112, 0, 3689348814741910528]::UBIGINT[], dp4tl.cluster + 1)"
"""

from __future__ import annotations

import math

import numpy as np


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of distributions along the last axis, in nats: float64, 0 where equal, at most log 2.

    Probabilities may be 0, as where a softmax underflows. A document's divergence is the mean over its positions: the
    published code sums them, by which long documents look degraded.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return np.maximum(0.5 * (_against_mean(p, q) + _against_mean(q, p)), 0)


def _against_mean(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL divergence of p from the mean of both."""
    ratio = np.divide(2 * p, p + q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=-1)


def cluster_means(divergence: np.ndarray, cluster: np.ndarray, clusters: int) -> np.ndarray:
    """A cluster's degradation, the mean divergence of its documents: float64 [clusters], 0 for one without any.

    divergence: float [documents], finite; cluster: int [documents], from 0.
    """
    count = np.bincount(cluster, minlength=clusters)
    order = np.lexsort((divergence, cluster))  # so that no order of documents changes a bit of the sums
    return np.bincount(cluster[order], divergence[order], minlength=clusters) / np.maximum(count, 1)


def budgets(total: int, degradation: np.ndarray, sizes: np.ndarray, redistribute: bool = False) -> np.ndarray:
    """Documents to take from each cluster, in proportion to its degradation and at most all: int64 [clusters].

    Args:
        total: documents in all.
        degradation: float [clusters], not negative; one of 0 gets nothing.
        sizes: int [clusters], documents there are.
        redistribute: whether what small clusters cannot give goes to the others, and what rounding down leaves to those
            with the largest fractions. The paper's rule does neither, and so spends less than the total.

    Raises:
        ValueError: a number is negative or not finite, or lengths differ.
    """
    if total < 0 or len(degradation) != len(sizes) or not (np.isfinite(degradation).all() and (degradation >= 0).all()):
        raise ValueError(
            f"budget {total}, degradation {degradation}, sizes {sizes}: give a size for each cluster, nothing below 0"
        )
    result = np.zeros(len(sizes), np.int64)
    waiting = np.flatnonzero((degradation > 0) & (sizes > 0) if redistribute else degradation > 0)
    left = total
    while len(waiting) and left:
        share = left * (degradation[waiting] / math.fsum(degradation[waiting]))
        full = share >= sizes[waiting]
        if full.any() and redistribute:
            result[waiting[full]] = sizes[waiting[full]]
            waiting, left = waiting[~full], total - int(result.sum())
            continue
        result[waiting] = np.minimum(np.floor(share).astype(np.int64), sizes[waiting])
        if redistribute:
            more = left - int(result[waiting].sum())
            result[waiting[np.argsort(np.floor(share) - share, kind="stable")[:more]]] += 1
        break
    return result


def draw_bounds(budgets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Largest draw (`transforms.draws`) of the documents to take, for about as many as each budget: uint64 [clusters].

    Draws are uniform: a cluster gives its budget give or take the square root of it. 0 takes none.
    """
    share = [min(int(b) / max(int(n), 1), 1.0) for b, n in zip(budgets, sizes, strict=True)]
    return np.array([min(int(s * 2**64), 2**64 - 1) for s in share], np.uint64)
