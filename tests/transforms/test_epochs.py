"""The law of effective data gives the figures that its authors publish, and has its limits where they must be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.epochs import REPEATS, effective, loss, marginal

SIZES = st.floats(1, 1e13)


@pytest.mark.parametrize(
    ("parameters", "tokens", "unique", "expected"),
    [(6.34e9, 242e9, 25e9, 2.22564409), (8.67e9, 178e9, 25e9, 2.22696341)],
)
def test_published_losses(parameters, tokens, unique, expected):
    assert loss(parameters, tokens, unique) == pytest.approx(expected, abs=5e-9)


def test_published_optimum_of_a_budget_of_compute():
    """1e22 FLOPs on 25 B unique tokens: 237.3 B tokens, 9.49 epochs, 7.02 B parameters."""
    sizes = np.arange(5e9, 9e9, 1e7)
    best = sizes[np.argmin([loss(n, 1e22 / 6 / n, 25e9) for n in sizes])]
    assert best == pytest.approx(7.02e9, rel=0.002)
    assert 1e22 / 6 / best / 25e9 == pytest.approx(9.49, abs=0.02)


@pytest.mark.parametrize(
    ("epochs", "worth", "next_one"),
    [(1, 1.00, 1.00), (2, 1.97, 0.94), (4, 3.73, 0.82), (8, 6.62, 0.63), (16, 10.58, 0.38), (40, 15.17, 0.08)],
)
def test_table_of_epochs(epochs, worth, next_one):
    assert effective(epochs * 1000, 1000) / 1000 == pytest.approx(worth, abs=0.006)
    assert marginal(epochs * 1000, 1000) == pytest.approx(next_one, abs=0.006)


@given(SIZES, st.floats(0, 1e6))
def test_limits(unique, epochs):
    worth = effective(epochs * unique, unique)
    assert worth <= epochs * unique * (1 + 1e-12) and worth <= (1 + REPEATS) * unique * (1 + 1e-12)
    if epochs <= 1:
        assert worth == epochs * unique and marginal(epochs * unique * 0.999, unique) == 1.0
    else:
        assert worth >= unique
    assert 0 <= marginal(epochs * unique, unique) <= 1


@given(SIZES)
def test_many_repeats_are_worth_no_more_than_a_number_of_epochs(unique):
    assert effective(1e9 * unique, unique) == pytest.approx((1 + REPEATS) * unique)
    assert effective(1.0001 * unique, unique) == pytest.approx(1.0001 * unique, rel=1e-8), "the first repeat is as good"


@given(SIZES, st.floats(1.01, 100))
def test_the_margin_is_the_slope_of_the_worth(unique, epochs):
    step = 1e-4 * unique
    slope = (effective(epochs * unique + step, unique) - effective(epochs * unique - step, unique)) / (2 * step)
    assert marginal(epochs * unique, unique) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_more_unique_text_is_better_and_nothing_is_worth_nothing():
    losses = [loss(1e9, 20e9, unique) for unique in (20e9, 10e9, 5e9, 1e9)]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert effective(0, 0) == effective(0, 5) == 0
    for tokens, unique in ((1, 0), (-1, 5), (1, -1), (math.nan, 1)):
        with pytest.raises(ValueError, match="give numbers that are not negative"):
            effective(tokens, unique)
