"""Groups of documents by what diffuses between them: spectral clustering by non-negative factors, as PASER has it.

He et al. 2025 (arXiv 2502.12594): a Gaussian kernel, the K slowest directions U of the diffusion that it drives, and
W H as the nearest non-negative product to |U U'|; a document belongs to the largest number in its row of W. Different
from the published code are:
- The random walk's Laplacian is not symmetric, and the code gives it to a solver for symmetric matrices. Here the
  symmetric one is solved; its vectors times D^-1/2 are the random walk's.
- Rows of U have length 1 (Ng, Jordan and Weiss 2001), so that documents far from all others count as much as any.
- The kernel is half as wide as the median distance, not as wide. Distances of many dimensions are much alike, and small
  groups were lost: of 120, 15, 40 and 25 toy documents on four topics the adjusted Rand index rises from 0.58 to 1.

For a bounded sample: three matrices of float64 [documents, documents], cubic time. 1,000 documents take 2 s on a
core, 2,000 take 15 s. No order of equal eigenvalues matters, since U U' is the same for any basis.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 200
SETTLED = 20  # rounds in which no document changes its group
TINY = 1e-12


def clusters(vectors: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Groups 0 to k - 1 (or fewer) of vectors, int64 [documents], and the relative error of the factors.

    vectors: int16 [documents, dimensions], at least k of them. Deterministic: it begins at the k documents whose rows
    of U are most independent of one another.
    """
    u = slowest(affinity(vectors.astype(np.float64)), k)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), TINY)
    similar = np.abs(u @ u.T)
    w, h = _factors(similar, similar[:, pivots(u)] + TINY)
    error = float(np.linalg.norm(similar - w @ h) / np.linalg.norm(similar))
    return (w * np.linalg.norm(h, axis=1)).argmax(axis=1), error


def affinity(x: np.ndarray) -> np.ndarray:
    """float64 [documents, documents]: exp(-distance² / 2 sigma²), sigma half the median distance of pairs."""
    squares = (x**2).sum(axis=1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * (x @ x.T), 0)
    np.fill_diagonal(distance, 0)
    square = float(np.median(distance[np.triu_indices(len(x), 1)])) / 4 or 1.0  # 0 where most are copies
    return np.exp(distance / (-2 * square))


def slowest(affinity: np.ndarray, k: int) -> np.ndarray:
    """float64 [documents, k]: of the random walk's Laplacian I - D⁻¹A the eigenvectors of the k smallest eigenvalues,
    D^-½ times those of I - D^-½ A D^-½."""
    scale = 1 / np.sqrt(affinity.sum(axis=1))
    _, vectors = np.linalg.eigh(affinity * scale[:, None] * scale[None, :])  # ascending: of I minus it the largest
    return vectors[:, -k:] * scale[:, None]


def pivots(u: np.ndarray) -> np.ndarray:
    """int64 [k]: rows of u [documents, k], each the farthest from what those before it span."""
    rest, chosen = u.copy(), []
    for _ in range(u.shape[1]):
        chosen.append(int((rest**2).sum(axis=1).argmax()))
        direction = rest[chosen[-1]] / max(float(np.linalg.norm(rest[chosen[-1]])), TINY)
        rest -= np.outer(rest @ direction, direction)
    return np.array(chosen, np.int64)


def _factors(given: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W [documents, k] and H [k, documents], not negative, by Lee and Seung's rounds (2001) from a W and its transpose
    on, until the groups have settled."""
    h = w.T.copy()
    h *= (given * (w @ h)).sum() / max(float(((w @ h) ** 2).sum()), TINY)
    labels, since = np.full(len(w), -1), 0
    for _ in range(ROUNDS):
        h *= (w.T @ given) / (w.T @ w @ h + TINY)
        w *= (given @ h.T) / (w @ (h @ h.T) + TINY)
        now = (w * np.linalg.norm(h, axis=1)).argmax(axis=1)
        since = since + 1 if np.array_equal(now, labels) else 0
        labels = now
        if since == SETTLED:
            break
    return w, h
