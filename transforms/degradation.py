"""How a budget of documents goes to the abilities that a damaged model lost most: PASER (He et al. 2025, arXiv
2502.12594). Each cluster of documents gets a share in proportion to its degradation, and the most efficient of its
documents that agree with what was taken before.
"""

from __future__ import annotations

import math

import numpy as np

from transforms.concepts import Graph


def cluster_means(divergence: np.ndarray, cluster: np.ndarray, clusters: int) -> np.ndarray:
    """A cluster's degradation, the mean divergence of its documents: float64 [clusters], 0 for one without any.

    divergence: float [documents], finite; cluster: int [documents], from 0.
    """
    count = np.bincount(cluster, minlength=clusters)
    order = np.lexsort((divergence, cluster))  # so that no order of documents changes a bit of the sums
    return np.bincount(cluster[order], divergence[order], minlength=clusters) / np.maximum(count, 1)


def budgets(total: int, degradation: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Documents to take from each cluster, in proportion to its degradation and at most all: int64 [clusters].

    They add up to `total`, or to all documents of the clusters that are degraded: what small ones cannot give goes to
    the others, and what rounding down leaves to the largest remainders, then to the lower number. (The paper rounds
    down.)

    Args:
        degradation: float [clusters], not negative; one of 0 gets nothing.
        sizes: int [clusters], documents there are.

    Raises:
        ValueError: a number is negative or not finite, or lengths differ.
    """
    if total < 0 or len(degradation) != len(sizes) or not (np.isfinite(degradation).all() and (degradation >= 0).all()):
        raise ValueError(
            f"budget {total}, degradation {degradation}, sizes {sizes}: give a size for each cluster, nothing below 0"
        )
    result = np.zeros(len(sizes), np.int64)
    waiting, left = np.flatnonzero((degradation > 0) & (sizes > 0)), total
    while len(waiting) and left:
        share = left * (degradation[waiting] / math.fsum(degradation[waiting]))
        full = share >= sizes[waiting]
        if full.any():
            result[waiting[full]] = sizes[waiting[full]]
            waiting, left = waiting[~full], total - int(result.sum())
            continue
        result[waiting] = np.floor(share).astype(np.int64)
        more = left - int(result[waiting].sum())
        result[waiting[np.argsort(np.floor(share) - share, kind="stable")[:more]]] += 1
        break
    return result


def spend(
    total: int, degradation: np.ndarray, cluster: np.ndarray, concepts: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Graph]:
    """Which candidates a budget takes: bool [candidates] twice, taken and refused, and the graph of their concepts.

    Clusters are walked by number, candidates in the order given. One that contradicts the graph is refused, and what a
    cluster then lacks goes to those that have candidates left, in further rounds. A candidate that is neither taken nor
    refused lay beyond its cluster's budget. Refusals stand for good: two concepts that are known and not connected are
    never connected later. So the taken ones of a cluster are the first of its candidates that agree with the last
    graph, as many as there are taken ones.

    Args:
        cluster: int64 [candidates], ascending; degradation: float64 [clusters].
        concepts, offsets: those of candidate i are concepts[offsets[i]:offsets[i + 1]] (`transforms.concepts`).
    """
    clusters = len(degradation)
    at, end = (np.searchsorted(cluster, np.arange(clusters), side) for side in ("left", "right"))
    taken, graph = np.zeros(len(cluster), bool), Graph(concepts, offsets, total)
    while (shares := budgets(total - int(taken.sum()), degradation, end - at)).any():
        for c in np.flatnonzero(shares):
            at[c] = graph.walk(int(at[c]), int(end[c]), int(shares[c]), taken)
    refused = ~taken & (np.arange(len(cluster)) < at[cluster])
    return taken, refused, graph
