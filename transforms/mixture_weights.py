"""Mathematics of mixture weights: draws around a prior, group DRO's update, regressions of losses on shares.

Shares are float64 [sources], at least 0, and sum up to 1; mixtures are float64 [mixtures, sources].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

Predictor = Callable[[np.ndarray], np.ndarray]  # mixtures -> losses (float64 [mixtures])

STRENGTHS = (0.1, 5.0)  # sums of Dirichlet parameters, as RegMix draws them
FLOOR = 2e-4  # share under which a mixture is drawn again, of RegMix
TRIES = 2_000_000  # mixtures drawn at most
AT_ONCE = 1 << 16
SMALL = 1e-3  # added to shares before their logarithm
PENALTY = 1e-3  # of the ridge, per mixture, on features of deviation 1
# At 64 mixtures of 3 to 8 sources 1,000 trees at 0.01 that stop early after 3 rounds (those of the paper, for 512
# mixtures) leave about twice the regret.
TREES, RATE, LEAF = 300, 0.05, 5


def tempered(sizes: np.ndarray, temperature: float = 2.0) -> np.ndarray:
    """Shares proportional to sizes^(1 / temperature): at 1 by size, towards infinity uniform."""
    sizes = np.asarray(sizes, np.float64)
    powers = (sizes / sizes.max()) ** (1 / temperature)
    return powers / powers.sum()


def dirichlet_mixtures(
    prior: np.ndarray, most: np.ndarray, count: int, generator: np.random.Generator, floor: float = FLOOR
) -> np.ndarray:
    """Up to `count` mixtures around the prior, as RegMix draws them (arXiv 2407.01492).

    Each is Dirichlet(strength · prior), strength log-uniform in STRENGTHS; it is drawn again where a share is above
    `most` (float64 [sources]) or below `floor`. Fewer come back where that befalls nearly all of TRIES draws.
    """
    kept: list[np.ndarray] = []
    for _ in range(0, TRIES, AT_ONCE):
        strength = np.exp(generator.uniform(np.log(STRENGTHS[0]), np.log(STRENGTHS[1]), size=(AT_ONCE, 1)))
        drawn = generator.standard_gamma(strength * prior)  # may underflow to 0, and is then below the floor
        drawn /= np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300)
        kept.append(drawn[(drawn <= most).all(axis=1) & (drawn >= floor).all(axis=1)])
        if sum(map(len, kept)) >= count:
            break
    return np.concatenate(kept)[:count]


def exponentiated_gradient(
    alpha: np.ndarray, excess: np.ndarray, step: float = 1.0, smoothing: float = 1e-4
) -> np.ndarray:
    """The domain weights of DoReMi's next step (arXiv 2305.10429, algorithm 1).

    Args:
        alpha: shares, all above 0.
        excess: float64 [sources], mean excess loss of each, nats per token.
        smoothing: share of the result that is uniform, so that no source is lost for good.
    """
    logs = np.log(alpha) + step * excess
    grown = np.exp(logs - logs.max())
    return (1 - smoothing) * grown / grown.sum() + smoothing / len(alpha)


def subsets(sources: int, largest: int) -> list[np.ndarray]:
    """int64: the places of all sets of 1 to `largest` of the sources, small ones first."""
    sizes = range(1, min(sources, largest) + 1)
    return [np.array(chosen, np.int64) for size in sizes for chosen in combinations(range(sources), size)]


def fit_log_linear(mixtures: np.ndarray, losses: np.ndarray) -> Predictor:
    """Ridge regression of losses (float64 [mixtures]) on the shares and their logarithms."""

    def features(mixtures: np.ndarray) -> np.ndarray:
        return np.concatenate([mixtures, np.log(mixtures + SMALL)], axis=1)

    given = features(mixtures)
    mean, deviation = given.mean(axis=0), given.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    z = (given - mean) / deviation
    square = z.T @ z + PENALTY * len(z) * np.eye(z.shape[1])
    weights = np.linalg.solve(square, z.T @ (losses - losses.mean()))
    level = float(losses.mean())
    return lambda some: (features(some) - mean) / deviation @ weights + level


def fit_lightgbm(mixtures: np.ndarray, losses: np.ndarray) -> Predictor:
    """Gradient-boosted trees from shares to losses (float64 [mixtures]); the same arguments give the same trees."""
    import lightgbm

    settings = {"objective": "regression", "learning_rate": RATE, "min_data_in_leaf": LEAF, "seed": 0, "verbose": -1}
    settings |= {"num_threads": 1, "deterministic": True, "force_row_wise": True}
    trees = lightgbm.train(settings, lightgbm.Dataset(mixtures, losses), num_boost_round=TREES)
    return lambda some: np.asarray(trees.predict(some, num_threads=1), np.float64)


REGRESSIONS = {"log_linear": fit_log_linear, "lightgbm": fit_lightgbm}


def held_out_predictions(
    fit: Callable[[np.ndarray, np.ndarray], Predictor], mixtures: np.ndarray, losses: np.ndarray, folds: int = 8
) -> np.ndarray:
    """float64 [mixtures]: each loss as predicted by a regression on the mixtures of the other folds."""
    fold = np.arange(len(mixtures)) % folds
    predicted = np.empty(len(mixtures))
    for number in range(folds):
        own = fold == number
        predicted[own] = fit(mixtures[~own], losses[~own])(mixtures[own])
    return predicted


def mean_of_best(mixtures: np.ndarray, losses: np.ndarray, count: int = 128) -> np.ndarray:
    """Shares: the mean of the `count` mixtures of least loss; of equal ones the earlier come first."""
    best = mixtures[np.argsort(losses, kind="stable")[:count]].mean(axis=0)
    return best / best.sum()
