"""Weights of the samples of a batch by their losses (dynamic loss-based reweighting, arXiv 2502.06733).

Losses are mapped to h in [-1, 1] (the batch's least to -1, its greatest to 1) and w = softmax(f(h) / strength), with

- linupper: f = min(h + 1, 1); samples of low loss weigh less, all above the middle weigh the same;
- quadratic: f = 1 - h²; medium losses weigh most;
- extremes: f = |h|; both ends weigh most;
- uniform: all weigh the same.

The greatest weight is exp(1 / strength) times the least where f spans its range: 2.7 at strength 1, 12.2 at 0.4. One
outlier compresses all others, and linupper never weighs noise down. Cost: a few passes over n numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Strategy = Literal["linupper", "quadratic", "extremes", "uniform"]

_GUARD = 1e-6  # of the span of the losses, in nats: equal losses give equal weights


def dynamic_weights(
    losses: np.ndarray, strategy: Strategy, strength: float, among: np.ndarray | None = None
) -> np.ndarray:
    """float64 [n]: the weight of each sample; those of a whole batch sum to 1.

    losses: float [n], mean loss of each sample in nats. strength: the temperature r of the softmax, above 0; large ones
    are nearly uniform. among: float [m], losses of all samples of the batch, where `losses` are only some of them (one
    process's, say); None: `losses` are all.

    Raises ValueError for losses that are no finite numbers and a strength that is not above 0.
    """
    losses = np.asarray(losses, np.float64)
    among = losses if among is None else np.asarray(among, np.float64)
    if not (strength > 0 and np.isfinite(losses).all() and np.isfinite(among).all()):
        raise ValueError(f"losses must be finite and strength ({strength}) above 0")
    if not len(among):
        return np.zeros(len(losses))
    low, high = among.min(), among.max()
    logits, all_logits = (_shape(_spread(x, low, high), strategy) / strength for x in (losses, among))
    top = all_logits.max()
    weights: np.ndarray = np.exp(logits - top) / np.exp(all_logits - top).sum()
    return weights


def _spread(losses: np.ndarray, low: float, high: float) -> np.ndarray:
    """Losses as numbers from -1 to 1."""
    return (2 * losses - (high + low)) / max(high - low, _GUARD)


def _shape(h: np.ndarray, strategy: Strategy) -> np.ndarray:
    if strategy == "linupper":
        return np.minimum(h + 1, 1)
    if strategy == "quadratic":
        return 1 - h**2
    if strategy == "extremes":
        return np.abs(h)
    if strategy == "uniform":
        return np.zeros_like(h)
    raise ValueError(f"no strategy {strategy!r}; there are linupper, quadratic, extremes and uniform")
