"""Which documents to keep by a model's error and uncertainty: the sample stage of Q-Tuning (arXiv 2509.23873, alg. 1).

High error with low uncertainty is a confident mistake, low error with high uncertainty a hesitant success; both corners
are kept. Errors known well or hopeless, the other two corners, and the middle are dropped. How far the corners reach is
a share `a` of the documents on each side, found by bisection. Error and uncertainty usually rise together, which makes
the kept corners thin; then the documents outside them whose error and uncertainty, each scaled to 0 to 1, differ most
fill up. That is no rare case: with normal scores that correlate by 0.9 the corners do not hold an eighth of 8 samples
in 43 % of the batches nor of 256 in 38 %, and a quarter of 256 in none; filling up then gives 48 % of what is kept.

Documents stand for samples here: of a run (`scorers/eu_plane.py`), of a step (`trainers/reweigh.py`).

Where the paper is silent: quantiles are discrete (nearest rank, as SQL's), corners include their edges, the bisection
ends on the side that keeps enough, nothing is dropped if a corner holds more than asked for, and documents of the
middle may fill up after those of the dropped corners. Cost: one sort of n numbers each, then n per round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MOST = 0.49  # of the documents on each side; at 0.5 the corners would meet
NOISE, MISTAKE, KNOWN, HESITANT, MIDDLE = 1, 2, 3, 4, 0  # the paper's Q1 … Q4, and what lies in none


@dataclass(frozen=True)
class Kept:
    """What the sample stage decides."""

    tail: float  # share of the documents that counts as high, and as low
    quadrant: np.ndarray  # int8 [documents], NOISE, MISTAKE, KNOWN, HESITANT or MIDDLE
    keep: np.ndarray  # bool [documents]: in a kept corner, or filled up
    filled: np.ndarray  # bool [documents]: kept only because the corners held too few


def sample_stage(error: np.ndarray, uncertainty: np.ndarray, share: float, draw: np.ndarray, rounds: int = 10) -> Kept:
    """Keep at least `share` of the documents.

    Args:
        error, uncertainty: float [documents], mean loss and mean entropy in nats; NaN where nothing was scored (such
            documents are never kept and do not count).
        share: of the documents to keep, above 0 and at most 1.
        draw: uint64 [documents], settles ties among those that fill up.

    Raises:
        ValueError: a share outside its range.
    """
    known = ~(np.isnan(error) | np.isnan(uncertainty))
    a = tail(error[known], uncertainty[known], share, rounds)
    quadrant = np.zeros(len(error), np.int8)
    quadrant[known] = quadrants(error[known], uncertainty[known], a)
    keep = (quadrant == MISTAKE) | (quadrant == HESITANT)
    missing = math.ceil(share * int(known.sum())) - int(keep.sum())
    if missing > 0:
        far = _disagreement(error, uncertainty, known)
        rest = np.flatnonzero(known & ~keep)
        order = np.lexsort((draw[rest], -far[rest], quadrant[rest] == MIDDLE))
        keep[rest[order[:missing]]] = True
    return Kept(a, quadrant, keep, keep & (quadrant != MISTAKE) & (quadrant != HESITANT))


def tail(error: np.ndarray, uncertainty: np.ndarray, share: float, rounds: int = 10) -> float:
    """The smallest tail, to 0.49 / 2^rounds, with which the kept corners hold `share` of the documents; 0.49 if none
    does. Both arrays float [documents], without NaN."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} documents to keep; give a number above 0, at most 1")
    low, high = 0.0, MOST
    for _ in range(rounds):
        a = (low + high) / 2
        found = quadrants(error, uncertainty, a)
        enough = ((found == MISTAKE) | (found == HESITANT)).sum() >= share * len(error)
        low, high = (low, a) if enough else (a, high)
    return high


def quadrants(error: np.ndarray, uncertainty: np.ndarray, a: float) -> np.ndarray:
    """int8 [documents]: the corner of each document when a share `a` counts as high, and as low."""
    if not len(error):
        return np.zeros(0, np.int8)
    (e_low, e_high), (u_low, u_high) = ((_quantile(x, a), _quantile(x, 1 - a)) for x in (error, uncertainty))
    corners = {
        NOISE: (error >= e_high) & (uncertainty >= u_high),
        KNOWN: (error <= e_low) & (uncertainty <= u_low),
        MISTAKE: (error >= e_high) & (uncertainty <= u_low),
        HESITANT: (error <= e_low) & (uncertainty >= u_high),
    }
    return np.select(list(corners.values())[::-1], list(corners)[::-1], MIDDLE).astype(np.int8)


def condition(a: float, column: str = "eu_plane") -> str:
    """SQL for `select` that holds in the kept corners: those of `quadrants` with this `a`."""
    low, high = a, 1 - a
    error, uncertainty = f"{column}.error", f"{column}.uncertainty"
    e_low, e_high, u_low, u_high = (f"quantile({x}, {q})" for x in (error, uncertainty) for q in (low, high))
    mistake = f"({error} >= {e_high} and {uncertainty} <= {u_low})"
    return f"{mistake} or ({error} <= {e_low} and {uncertainty} >= {u_high})"


def _quantile(values: np.ndarray, share: float) -> float:
    """The discrete quantile, SQL's PERCENTILE_DISC: the value of rank max(1, ceil(share · n))."""
    rank = max(1, math.ceil(Fraction(repr(share)) * len(values)))
    return float(np.partition(values, rank - 1)[rank - 1])


def _disagreement(error: np.ndarray, uncertainty: np.ndarray, known: np.ndarray) -> np.ndarray:
    """float [documents]: |P − E|, perplexity and entropy each scaled to 0..1 over the known documents."""
    finite = np.minimum(error, 1e30)
    perplexity = np.exp(finite - finite[known].max())  # a factor drops out of the scaling
    scaled = []
    for x in (perplexity, uncertainty):
        least, most = x[known].min(), x[known].max()
        scaled.append((x - least) / (most - least if most > least else 1.0))
    return np.abs(scaled[0] - scaled[1])
