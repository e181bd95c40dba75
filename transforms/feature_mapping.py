"""Which clusters of a corpus serve a target: those that most of the target's documents vote for.

Feature mapping of DP4TL (Zhang et al. 2023, "Selectivity Drives Productivity", arXiv 2310.08782), by its definition: a
document votes for the nearest centroid, while the authors' script compares with one cluster only. Clusters are those of
k-means with Euclidean distances, or classes that are given. (Label mapping, the paper's other rule, needs classes: a
document votes for the one that a classifier of the corpus takes it for, `transforms.softmax`.)

Vectors are 16-bit integers (`transforms.semantic.quantise`) and so are centroids, rounded: all sums and distances are
exact, and no order of documents changes a bit. A round over n documents takes 2 n k d operations.
"""

from __future__ import annotations

import numpy as np

from transforms.semantic import cluster_sums, initial_centroids

_CELLS = 1 << 22  # of one block of distances: 32 MB


def kmeans(vectors: np.ndarray, draw: np.ndarray, k: int, rounds: int) -> np.ndarray:
    """Centroids, int16 [k or fewer, dimensions], by Lloyd's rounds until nothing moves or `rounds` are done.

    vectors: int16 [documents, dimensions]; draw: uint64 [documents], a hash of seed and name. It begins at the k
    different vectors of lowest draw; a centroid that loses all its documents stays where it is.
    """
    centroids, _ = initial_centroids(vectors, draw, k)
    for _ in range(rounds):
        labels = nearest(vectors, centroids)
        empty = np.bincount(labels, minlength=len(centroids)) == 0
        moved = np.where(empty[:, None], centroids, means(vectors, labels, len(centroids)))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def means(vectors: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """int16 [k, dimensions]: the rounded mean of the vectors (int16) of each label (int64, from 0), 0 without any."""
    size = np.bincount(labels, minlength=k)[:, None]
    return np.rint(cluster_sums(vectors, labels, k) / np.maximum(size, 1)).astype(np.int16)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Number of each vector's nearest centroid, the lowest among equals: int64 [documents]."""
    result = np.zeros(len(vectors), np.int64)
    columns = centroids.astype(np.float64)
    squares = (columns**2).sum(axis=1)
    rows = max(1, _CELLS // len(centroids))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows].astype(np.float64)
        result[start : start + rows] = (squares - 2 * (block @ columns.T)).argmin(axis=1)
    return result


def votes(target: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """How many of the target's vectors lie nearest to each centroid: int64 [centroids]. They add up to all of them."""
    return np.bincount(nearest(target, centroids), minlength=len(centroids))


def ranks(target: np.ndarray, centroids: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """1 for the centroid of most votes, and so on: int32 [centroids], all different.

    Many have the same votes, mostly none: then the one with the smaller mean squared distance to the target goes first,
    then the lower number.
    """
    columns = centroids.astype(np.float64)
    together = target.sum(axis=0, dtype=np.int64).astype(np.float64)
    distance = len(target) * (columns**2).sum(axis=1) - 2 * (columns @ together)  # but for a constant, times documents
    result = np.empty(len(centroids), np.int32)
    result[np.lexsort((distance, -votes))] = np.arange(1, len(centroids) + 1)
    return result
