"""Entropic optimal transport between two clouds of points with uniform masses, and its gradient in a point's mass.

Sinkhorn's algorithm in the log domain (Cuturi 2013, arXiv 1306.0895; over-relaxed as in Thibault et al. 2017, arXiv
1711.01851), cost |x - y|². Costs are computed block by block and forgotten, so memory is 25 MB and a
number per point.

Points are floats, or the 16-bit integers of `transforms.semantic.quantise`, which stand for themselves / 32767. Of
integers every cost is exact, and a point's sum runs over the other side in order: its potential has the same bits
whatever points stand beside it. An iteration over m and n points of d numbers takes 4 m n d operations and 2 m n exp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from transforms.semantic import SCALE

_ROWS, _COLUMNS = 512, 2048  # of one block of costs: 8 MB
_NEGLIGIBLE = -50.0  # exp of it, 1e18 times over, changes no bit of a sum


@dataclass(frozen=True)
class Transport:
    """A solution of the dual: potentials of both sides, of which `g` is exactly the half step from `f`.

    `marginal_error` is the L1 distance of the plan's target marginal from uniform (its other one is exact), `cost` the
    entropic cost: the dual's value.
    """

    f: np.ndarray  # float64 [target points]
    g: np.ndarray  # float64 [pool points]
    iterations: int
    marginal_error: float

    @property
    def cost(self) -> float:
        return float(self.f.mean() + self.g.mean())


def sinkhorn(
    target: np.ndarray,
    pool: np.ndarray,
    epsilon: float,
    momentum: float = 1.3,
    tolerance: float = 1e-3,
    iterations: int = 2000,
    start: np.ndarray | None = None,
) -> Transport:
    """Solve to a marginal error of `tolerance`.

    Args:
        target, pool: [points, dimensions], floats or quantised integers.
        epsilon: weight of the entropy, in the unit of the cost.
        momentum: factor of each step, 1 is Sinkhorn's own; up to 2, but the larger, the less sure to converge.
        start: float64 [target points], potentials `f` to begin with.

    Raises:
        ValueError: a side is empty, widths differ, or it did not converge; the message says what to change.
    """
    if not len(target) or not len(pool) or target.shape[1] != pool.shape[1]:
        raise ValueError(f"target {target.shape} and pool {pool.shape}: give points of equal width on both sides")
    f = np.zeros(len(target)) if start is None else start
    g = half_step(pool, target, f, epsilon)
    error = math.inf
    for iteration in range(1, iterations + 1):
        f = f + momentum * (half_step(target, pool, g, epsilon) - f)
        exact = half_step(pool, target, f, epsilon)
        error = _error(g, exact, epsilon)
        if error <= tolerance:  # of the relaxed potentials; what counts is that of the exact ones
            error = _error(f, half_step(target, pool, exact, epsilon), epsilon)
            if error <= tolerance:
                return Transport(f, exact, iteration, error)
        g = g + momentum * (exact - g)
    raise ValueError(
        f"optimal transport did not converge: marginal error {error:.2g} after {iterations} iterations, expected "
        f"{tolerance:g}; raise epsilon ({epsilon:g}) or iterations, or lower momentum ({momentum:g}) towards 1"
    )


def half_step(points: np.ndarray, others: np.ndarray, potential: np.ndarray, epsilon: float) -> np.ndarray:
    """Potentials of `points` that follow from those of `others`: float64 [points].

    -epsilon log mean_i exp((potential_i - |point - other_i|²) / epsilon), for any points: also such as were not there
    when the potentials of the others were found.
    """
    unit = 1 / SCALE**2 if np.issubdtype(points.dtype, np.integer) else 1.0
    result = np.empty(len(points))
    squares = _squares(others)
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS].astype(np.float64)
        own = _squares(block)
        top, total = np.full(len(block), -np.inf), np.zeros(len(block))
        for column in range(0, len(others), _COLUMNS):
            some = slice(column, column + _COLUMNS)
            products = block @ others[some].astype(np.float64).T
            _add(products, own, squares[some], potential[some], unit, epsilon, top, total)
        result[start : start + len(block)] = _potentials(top, total, len(others), epsilon)
    return result


def gradient(potential: np.ndarray, mean: float, points: int) -> np.ndarray:
    """Calibrated gradients of the transport cost in the mass of pool points (Kang et al. 2024, arXiv 2405.02774).

    A potential less the mean of those of all other points of the pool, since potentials are known up to a constant:
    points / (points - 1) (g - mean). Where it is negative, more mass there brings the pool nearer to the target.
    """
    return points / (points - 1) * (potential - mean)


def _squares(points: np.ndarray) -> np.ndarray:
    result = np.empty(len(points))
    for start in range(0, len(points), _COLUMNS):
        result[start : start + _COLUMNS] = (points[start : start + _COLUMNS].astype(np.float64) ** 2).sum(axis=1)
    return result


def _error(potential: np.ndarray, exact: np.ndarray, epsilon: float) -> float:
    """How far the plan's marginal is from uniform, in L1: a point has exp of what its potential has too much."""
    with np.errstate(over="ignore"):
        return float(np.abs(np.expm1((potential - exact) / epsilon)).mean())


@njit(cache=True, nogil=True)
def _add(products, own, squares, potential, unit, epsilon, top, total):  # type: ignore[no-untyped-def]
    """Add a block to sums of exp, kept relative to their largest exponent `top`. Overwrites `products`."""
    for i in range(products.shape[0]):
        row = products[i]
        highest = top[i]
        for j in range(len(row)):
            cost = max(own[i] + squares[j] - 2 * row[j], 0.0) * unit  # of floats it may round to below 0
            row[j] = (potential[j] - cost) / epsilon
            highest = max(highest, row[j])
        sum_ = total[i] * math.exp(top[i] - highest) if total[i] > 0 else 0.0
        for value in row:
            if value - highest > _NEGLIGIBLE:
                sum_ += math.exp(value - highest)
        top[i], total[i] = highest, sum_


@njit(cache=True, nogil=True)
def _potentials(top, total, others, epsilon):  # type: ignore[no-untyped-def]
    """In a loop of scalars, so that a value's bits do not depend on its place, as those of vector units may."""
    result = np.empty(len(top))
    for i in range(len(top)):
        result[i] = -epsilon * (top[i] + math.log(total[i] / others))
    return result
