"""SALT's score of a sequence that is hard yet learnable (Rawat et al. 2024, arXiv 2410.18779): the median over its
tokens of a small model's loss, counted only where the token is among the k that the model holds most likely.

One sort of all tokens; about 0.2 s for a million.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LearnableLoss:
    """Of each document; NaN where it has no token that counts."""

    score: np.ndarray  # float64 [documents], nats, the median
    share: np.ndarray  # float64 [documents], of the tokens, that are learnable
    mean: np.ndarray  # float64 [documents], nats, mean of the losses with those of other tokens as 0


def learnable_loss(
    document: np.ndarray, loss: np.ndarray, rank: np.ndarray, documents: int, k: int, drop: bool
) -> LearnableLoss:
    """Medians by document of `loss` over the learnable tokens, those of a `rank` below `k`.

    Args:
        document: int [tokens], number of the document, 0 to documents - 1.
        loss: float [tokens], nats.
        rank: int [tokens], how many tokens the model held for likelier.
        drop: leave the other tokens out; else they count as 0, so that a document of which more than half cannot be
            learned has the score 0. Which of the two the paper means could not be verified.
    """
    learnable = rank < k
    masked = np.where(learnable, loss, 0).astype(np.float64)
    tokens = np.bincount(document, minlength=documents)
    with np.errstate(invalid="ignore"):
        share = np.bincount(document, learnable, documents) / tokens
        mean = np.bincount(document, masked, documents) / tokens
    kept = learnable if drop else np.ones(len(loss), bool)
    return LearnableLoss(_medians(document[kept], masked[kept], documents), share, mean)


def _medians(document: np.ndarray, values: np.ndarray, documents: int) -> np.ndarray:
    """float64 [documents]: the median of each one's values, the mean of the middle two of an even number."""
    ordered = values[np.lexsort((values, document))]
    counts = np.bincount(document, minlength=documents)
    some = counts > 0
    first = (np.cumsum(counts) - counts)[some]
    low, high = (ordered[first + (counts[some] - 1 + up) // 2] for up in (0, 1))
    found = np.full(documents, np.nan)
    found[some] = (low + high) / 2
    return found
