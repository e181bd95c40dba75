from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from transforms.loss_reweighting import Strategy, dynamic_weights

STRATEGIES = get_args(Strategy)
LOSSES = np.array([1.5, 2, 2.5, 3, 3.5])
REFERENCE = {  # worked by hand from the formulas
    ("linupper", 1.0): [0.093, 0.153, 0.252, 0.252, 0.252],
    ("quadratic", 1.0): [0.112, 0.236, 0.304, 0.236, 0.112],
    ("extremes", 1.0): [0.279, 0.169, 0.103, 0.169, 0.279],
    ("linupper", 0.4): [0.024, 0.085, 0.297, 0.297, 0.297],
}

losses = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 20))
strategies = st.sampled_from(STRATEGIES)
strengths = st.floats(0.05, 10)


@pytest.mark.parametrize(("strategy", "strength"), REFERENCE)
def test_reference_values(strategy, strength):
    found = dynamic_weights(LOSSES, strategy, strength)
    assert found == pytest.approx(REFERENCE[strategy, strength], abs=6e-4)


@given(losses, strategies, strengths)
def test_weights_are_a_distribution_and_follow_their_samples(values, strategy, strength):
    found = dynamic_weights(values, strategy, strength)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert np.allclose(dynamic_weights(values[::-1], strategy, strength)[::-1], found)


@given(losses, strategies, strengths, st.floats(-5, 5), st.floats(0.5, 4))
def test_shift_and_scale_change_nothing(values, strategy, strength, shift, scale):
    if 0 < np.ptp(values) < 1e-3:  # there the guard and rounding count
        values = np.round(values, 2)
    found = dynamic_weights(values * scale + shift, strategy, strength)
    assert np.allclose(found, dynamic_weights(values, strategy, strength), rtol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [0.0, 2.3, 1e6])
def test_equal_losses_weigh_the_same(strategy, value):
    for count in (1, 7):
        assert dynamic_weights(np.full(count, value), strategy, 0.4) == pytest.approx(np.full(count, 1 / count))


@given(losses, strategies)
def test_a_large_strength_is_uniform(values, strategy):
    assert np.allclose(dynamic_weights(values, strategy, 1e6), 1 / len(values), atol=1e-5)


@given(losses, strengths)
def test_uniform_is_uniform_at_any_strength(values, strength):
    assert np.allclose(dynamic_weights(values, "uniform", strength), 1 / len(values))


@given(losses, strategies, strengths, st.integers(1, 5))
def test_samples_spread_over_processes_weigh_as_together(values, strategy, strength, ranks):
    whole = dynamic_weights(values, strategy, strength)
    for rank in range(ranks):
        found = dynamic_weights(values[rank::ranks], strategy, strength, among=values)
        assert np.array_equal(found, whole[rank::ranks])


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.0])
def test_order_of_the_weights_is_that_of_the_strategy(strength):
    values = np.linspace(1, 5, 101)
    upper, medium, ends = (dynamic_weights(values, s, strength) for s in ("linupper", "quadratic", "extremes"))
    assert (np.diff(upper[:51]) > 0).all() and np.allclose(upper[50:], upper[50])
    assert upper[-1] / upper[0] == pytest.approx(np.exp(1 / strength))
    assert (np.diff(medium[:51]) > 0).all() and (np.diff(medium[50:]) < 0).all()
    assert (np.diff(ends[:51]) < 0).all() and (np.diff(ends[50:]) > 0).all()


@pytest.mark.parametrize("wrong", [np.array([1, np.nan]), np.array([1, np.inf])])
def test_what_is_no_number_is_refused(wrong):
    for strategy in STRATEGIES:
        with pytest.raises(ValueError, match="finite"):
            dynamic_weights(wrong, strategy, 1.0)
    with pytest.raises(ValueError, match="above 0"):
        dynamic_weights(LOSSES, "linupper", 0.0)
    with pytest.raises(ValueError, match="no strategy"):
        dynamic_weights(LOSSES, "upper", 1.0)
    assert len(dynamic_weights(np.array([]), "linupper", 1.0)) == 0


def errors(seed: int, strategy: str, noise: float = 0.0) -> np.ndarray:
    """[steps]: mean squared error on the distinct rows without noise, of an over-parameterised linear regression.

    Four fifths of the rows are copies of a few easy ones, a fifth are hard rows of their own. `noise`: share of the
    rows whose target is wrong.
    """
    draw, width = np.random.default_rng(seed), 60
    easy, hard = draw.normal(size=(4, width)) / width**0.5, draw.normal(size=(20, width)) / width**0.5
    truth = draw.normal(size=width)
    rows = np.concatenate([np.repeat(easy, 20, axis=0), hard])
    targets = rows @ truth
    wrong = draw.choice(len(rows), round(noise * len(rows)), replace=False)
    targets[wrong] += 3 * draw.normal(size=len(wrong))
    distinct, found, measured = np.concatenate([easy, hard]), np.zeros(width), []
    for _ in range(300):
        error = rows @ found - targets
        found = found - 0.5 * (dynamic_weights(error**2, strategy, 0.4) * 2 * error) @ rows
        measured.append(((distinct @ (found - truth)) ** 2).mean())
    return np.array(measured)


@pytest.mark.parametrize("seed", range(5))
def test_hard_rows_are_learned_in_fewer_steps(seed):
    upper, uniform = (int(np.argmax(errors(seed, s) < 0.05)) for s in ("linupper", "uniform"))
    assert 0 < upper < uniform / 2


def test_wrong_rows_harm_more_than_with_uniform_weights():
    """A limit of the method: the greatest losses keep their full weight, and wrong rows have them."""
    least = {s: np.mean([errors(seed, s, noise=0.05).min() for seed in range(5)]) for s in ("linupper", "uniform")}
    assert least["linupper"] > 1.3 * least["uniform"]
