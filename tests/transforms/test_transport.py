"""Optimal transport: the blocks equal a dense solver, gradients are those of finite differences, and dogs are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import transport
from transforms.semantic import SCALE, quantise
from transforms.transport import gradient, half_step, sinkhorn

Masses = np.ndarray


def costs(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    unit = SCALE if points.dtype == np.int16 else 1
    points, others = points.astype(float) / unit, others.astype(float) / unit
    return np.array([[((p - o) ** 2).sum() for o in others] for p in points]).reshape(len(points), len(others))


def soft_minimum(cost: np.ndarray, potential: np.ndarray, mass: Masses, epsilon: float) -> np.ndarray:
    """-epsilon log sum_j mass_j exp((potential_j - cost_ij) / epsilon), written out."""
    exponent = (potential - cost) / epsilon
    top = exponent.max(axis=1, keepdims=True)
    return -epsilon * (top[:, 0] + np.log((mass * np.exp(exponent - top)).sum(axis=1)))


def dense(cost: np.ndarray, mass: Masses, epsilon: float, iterations: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Sinkhorn's own iterations on the whole matrix, target masses uniform, until nothing moves."""
    even = np.full(len(cost), 1 / len(cost))
    f = np.zeros(len(cost))
    for _ in range(iterations):
        g = soft_minimum(cost.T, f, even, epsilon)
        before, f = f, soft_minimum(cost, g, mass, epsilon)
        if np.abs(f - before).max() < 1e-13:
            break
    return f, soft_minimum(cost.T, f, even, epsilon)


def dogs_among_cats(targets: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """A target of as many dogs as cats, and a pool of 990 cats and, at its end, 10 dogs. d = 8."""
    draw = np.random.default_rng(0)
    there = np.zeros(8)
    there[0] = 4

    def some(cats: int, dogs: int) -> np.ndarray:
        return 0.5 * draw.normal(size=(cats + dogs, 8)) + np.repeat([0 * there, there], [cats, dogs], axis=0)

    pool = some(990, 10)
    return some(targets, targets), pool


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_ROWS", 3)
    monkeypatch.setattr(transport, "_COLUMNS", 5)


@pytest.mark.usefixtures("small_blocks")
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.01, 0.1, 3.0]))
def test_half_step_equals_reference(seed: int, m: int, n: int, epsilon: float) -> None:
    draw = np.random.default_rng(seed)
    points, others, potential = draw.normal(size=(m, 3)), draw.normal(size=(n, 3)), draw.normal(size=n)
    for a, b in ((points, others), (quantise(points / 10), quantise(others / 10))):
        expected = soft_minimum(costs(a, b), potential, np.full(n, 1 / n), epsilon)
        np.testing.assert_allclose(half_step(a, b, potential, epsilon), expected, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_bits_do_not_depend_on_neighbours(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    points = quantise(draw.uniform(-0.3, 0.3, (count, 20)))
    others, potential = quantise(draw.uniform(-0.3, 0.3, (33, 20))), draw.normal(size=33)
    together = half_step(points, others, potential, 0.1)
    alone = [half_step(points[i : i + 1], others, potential, 0.1)[0] for i in range(count)]
    assert together.tolist() == alone
    order = draw.permutation(count)
    assert half_step(points[order], others, potential, 0.1).tolist() == together[order].tolist()


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("momentum", [1.0, 1.3])
def test_blocks_equal_dense(epsilon: float, momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    target, pool = dogs_among_cats(targets=20)
    pool = pool[-150:]
    f, g = dense(costs(target, pool), np.full(len(pool), 1 / len(pool)), epsilon)
    monkeypatch.setattr(transport, "_ROWS", 7)
    monkeypatch.setattr(transport, "_COLUMNS", 11)
    found = sinkhorn(target, pool, epsilon, momentum, tolerance=1e-9)
    np.testing.assert_allclose(found.g - found.g.mean(), g - g.mean(), atol=1e-6)
    np.testing.assert_allclose(found.f - found.f.mean(), f - f.mean(), atol=1e-6)
    assert found.cost == pytest.approx(f.mean() + g.mean(), abs=1e-6) and found.marginal_error <= 1e-9
    np.testing.assert_array_equal(found.g, half_step(pool, target, found.f, epsilon))


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0])
def test_the_ten_most_wanted_are_the_ten_dogs(epsilon: float) -> None:
    target, pool = dogs_among_cats()
    found = sinkhorn(target, pool, epsilon)
    wanted = gradient(found.g, found.g.mean(), len(pool))
    assert sorted(np.argsort(wanted)[:10]) == list(range(990, 1000))
    assert 0.1 < wanted[:990].mean() < 0.3 and -25 < wanted[990:].mean() < -12
    assert wanted[:990].mean() * 990 == pytest.approx(-wanted[990:].mean() * 10)
    order = np.random.default_rng(3).permutation(len(pool))
    again = sinkhorn(target, pool[order], epsilon)
    np.testing.assert_allclose(again.g, found.g[order], atol=1e-9)


def test_a_nearest_neighbour_matcher_returns_as_many_cats_as_dogs() -> None:
    """The contrast: matching the target takes what the pool has plenty of."""
    target, pool = dogs_among_cats()
    matched = costs(target, pool).argmin(axis=1) >= 990
    assert 0.45 <= matched.mean() <= 0.55


def test_gradient_is_that_of_finite_differences() -> None:
    """More mass on one point, less on all others alike: the cost changes by the calibrated gradient."""
    target, pool = dogs_among_cats(targets=8)
    pool = pool[-30:]
    cost, n, epsilon, step = costs(target, pool), len(pool), 0.5, 1e-4
    found = sinkhorn(target, pool, epsilon, tolerance=1e-10)
    wanted = gradient(found.g, found.g.mean(), n)

    def value(mass: Masses) -> float:
        f, g = dense(cost, mass, epsilon)
        return float(f.mean() + (mass * g).sum())

    for point in (0, 11, 25, 29):
        direction = np.full(n, -1 / (n - 1))
        direction[point] = 1
        up, down = (value(np.full(n, 1 / n) + sign * step * direction) for sign in (1, -1))
        assert (up - down) / (2 * step) == pytest.approx(wanted[point], rel=1e-3, abs=1e-4)


def test_gradient_by_hand_and_with_a_constant() -> None:
    g = np.array([1.0, 2.0, 6.0])
    by_definition = [g[j] - sum(g[k] for k in range(3) if k != j) / 2 for j in range(3)]
    np.testing.assert_allclose(gradient(g, g.mean(), 3), by_definition)
    np.testing.assert_allclose(gradient(g + 7, (g + 7).mean(), 3), by_definition)


def test_target_and_pool_are_not_exchangeable() -> None:
    target, pool = dogs_among_cats(targets=50)
    pool = pool[-100:]
    one, other = sinkhorn(target, pool, 0.5, tolerance=1e-8), sinkhorn(pool, target, 0.5, tolerance=1e-8)
    np.testing.assert_allclose(one.g - one.g.mean(), other.f - other.f.mean(), atol=1e-5)
    assert np.abs((one.g - one.g.mean()) - (other.g - other.g.mean())).max() > 1
    assert one.g.argmin() >= 90, "of the pool a dog is wanted"
    assert other.g.argmin() < 50, "of the target, which has too many dogs for the pool, a cat"


def test_far_points_and_equal_points() -> None:
    far = np.array([[0.0], [1e6]])
    found = sinkhorn(far, far, 0.1)
    np.testing.assert_allclose(found.g, found.g[0], atol=0.2)
    same = np.ones((5, 2))
    np.testing.assert_allclose(sinkhorn(same, same, 0.1).g, 0, atol=1e-12)
    assert np.isfinite(half_step(np.array([[1e9]]), far, found.f, 1e-3)).all()


def test_what_cannot_be_solved() -> None:
    target, pool = dogs_among_cats()
    with pytest.raises(ValueError, match=r"did not converge: marginal error .* after 3 iterations, expected 1e-09"):
        sinkhorn(target, pool, 0.1, tolerance=1e-9, iterations=3)
    for one, other in ((target[:0], pool), (target, pool[:0]), (target, pool[:, :3])):
        with pytest.raises(ValueError, match="give points of equal width on both sides"):
            sinkhorn(one, other, 0.1)
