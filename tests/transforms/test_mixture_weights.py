import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.holdout import regression
from transforms.mixture_weights import (
    REGRESSIONS,
    dirichlet_mixtures,
    exponentiated_gradient,
    held_out_predictions,
    mean_of_best,
    subsets,
    tempered,
)

EPSILON = 0.01


class Law:
    """Losses Σ a (w + ε)^-b of mixtures, whose minimum is known: there a b (w + ε)^-(b + 1) is equal for all."""

    def __init__(self, sources: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.a, self.b = draw.uniform(0.5, 2, sources), draw.uniform(0.2, 0.8, sources)

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        return (self.a * (mixtures + EPSILON) ** -self.b).sum(axis=-1)

    def best(self) -> np.ndarray:
        low, high = -30.0, 30.0
        for _ in range(200):
            level = (low + high) / 2
            shares = np.maximum((self.a * self.b / np.exp(level)) ** (1 / (self.b + 1)) - EPSILON, 0)
            low, high = (level, high) if shares.sum() > 1 else (low, level)
        return shares / shares.sum()


def mixtures(sources: int, count: int, seed: int, most: float = 1.0) -> np.ndarray:
    prior = np.full(sources, 1 / sources)
    return dirichlet_mixtures(prior, np.full(sources, most), count, np.random.default_rng(seed))


def test_the_law_has_its_minimum_where_it_says() -> None:
    law = Law(5, 0)
    best = law.best()
    near = np.abs(best + np.random.default_rng(1).normal(0, 0.02, (1000, 5)))
    assert (law(near / near.sum(axis=1, keepdims=True)) >= law(best)).all()


@pytest.mark.parametrize(
    ("regression_name", "apart", "spearman"), [("log_linear", 0.06, 0.97), ("lightgbm", 0.2, 0.85)]
)
def test_the_minimum_is_found_from_64_mixtures(regression_name: str, apart: float, spearman: float) -> None:
    for seed, sources in enumerate([3, 4, 5, 6]):
        law = Law(sources, seed)
        drawn = mixtures(sources, 64, seed)
        fit = REGRESSIONS[regression_name]
        candidates = mixtures(sources, 20_000, seed + 100)
        found = mean_of_best(candidates, fit(drawn, law(drawn))(candidates))
        assert np.abs(found - law.best()).max() < apart
        assert law(found) < np.quantile(law(candidates), 0.02)
        held = regression(law(drawn), held_out_predictions(fit, drawn, law(drawn)))
        assert held["spearman"] > spearman


def test_on_64_mixtures_logarithms_predict_better_than_trees() -> None:
    law, drawn = Law(5, 7), mixtures(5, 64, 7)
    errors = {
        n: np.mean((held_out_predictions(f, drawn, law(drawn)) - law(drawn)) ** 2) for n, f in REGRESSIONS.items()
    }
    assert errors["log_linear"] < errors["lightgbm"] / 2


def test_trees_are_the_same_every_time() -> None:
    law, drawn = Law(4, 3), mixtures(4, 64, 3)
    first, second = (REGRESSIONS["lightgbm"](drawn, law(drawn))(drawn) for _ in range(2))
    assert (first == second).all()


def test_a_source_that_never_changes_does_not_break_the_regression() -> None:
    drawn = np.concatenate([mixtures(3, 40, 0) * 0.9, np.full((40, 1), 0.1)], axis=1)
    found = REGRESSIONS["log_linear"](drawn, drawn[:, 0])(drawn)
    np.testing.assert_allclose(found, drawn[:, 0], atol=0.01)


def test_held_out_predictions_do_not_know_their_own_loss() -> None:
    draw = np.random.default_rng(0)
    drawn, losses = mixtures(3, 64, 0), draw.normal(size=64)
    predicted = held_out_predictions(REGRESSIONS["log_linear"], drawn, losses)
    changed = losses.copy()
    changed[::8] += 100.0
    again = held_out_predictions(REGRESSIONS["log_linear"], drawn, changed)
    np.testing.assert_array_equal(again[::8], predicted[::8])
    assert (again[1::8] != predicted[1::8]).all()


def test_mixtures_keep_cap_and_floor_and_sum_up_to_one() -> None:
    prior = np.array([0.5, 0.3, 0.2])
    most = np.array([0.6, 1.0, 0.4])
    drawn = dirichlet_mixtures(prior, most, 500, np.random.default_rng(0), floor=0.01)
    assert drawn.shape == (500, 3)
    assert (drawn <= most).all() and (drawn >= 0.01).all()
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)
    np.testing.assert_array_equal(drawn, dirichlet_mixtures(prior, most, 500, np.random.default_rng(0), floor=0.01))


def test_mixtures_lie_around_the_prior() -> None:
    prior = np.array([0.6, 0.3, 0.1])
    drawn = dirichlet_mixtures(prior, np.ones(3), 20_000, np.random.default_rng(0), floor=0.0)
    np.testing.assert_allclose(drawn.mean(axis=0), prior, atol=0.01)
    assert (drawn.max(axis=1) > 0.95).mean() > 0.2  # small strengths give mixtures of nearly one source
    assert (np.abs(drawn - prior).max(axis=1) < 0.2).mean() > 0.05  # large ones some near the prior


def test_caps_that_leave_no_mixture_give_none() -> None:
    assert len(dirichlet_mixtures(np.full(3, 1 / 3), np.full(3, 0.2), 10, np.random.default_rng(0))) == 0


def test_temperature() -> None:
    sizes = np.array([900, 100])
    np.testing.assert_allclose(tempered(sizes, 1.0), [0.9, 0.1])
    np.testing.assert_allclose(tempered(sizes, 2.0), [0.75, 0.25])
    np.testing.assert_allclose(tempered(sizes, 1e9), [0.5, 0.5], atol=1e-6)


def test_sets_of_sources() -> None:
    assert [s.tolist() for s in subsets(3, 2)] == [[0], [1], [2], [0, 1], [0, 2], [1, 2]]


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=6).flatmap(
        lambda a: st.tuples(st.just(a), st.lists(st.floats(0, 50), min_size=len(a), max_size=len(a)))
    )
)
def test_update_of_the_weights(given_: tuple[list[float], list[float]]) -> None:
    alpha, excess = np.array(given_[0]) / sum(given_[0]), given_[1]
    grown = [a * np.exp(e) for a, e in zip(alpha, excess, strict=True)]
    expected = [(1 - 1e-4) * g / sum(grown) + 1e-4 / len(alpha) for g in grown]
    found = exponentiated_gradient(alpha, np.array(excess))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(found.sum(), 1.0)


def test_noise_takes_no_weight_and_what_can_be_learned_does() -> None:
    """Learners with losses floor + gap (1 + tokens)^-1/2 by source; the reference has had 200 tokens of each."""
    floors, gaps = np.array([1.0, 2.0, 7.0]), np.array([1.0, 4.0, 0.0])  # easy, hard but learnable, noise
    reference = floors + gaps * 201.0**-0.5
    draw = np.random.default_rng(0)
    alpha, tokens, history = np.full(3, 1 / 3), np.zeros(3), []
    for _ in range(300):
        losses = floors + gaps * (1 + tokens) ** -0.5
        excess = np.maximum(losses - reference + draw.normal(0, 0.02, 3), 0)
        alpha = exponentiated_gradient(alpha, excess)
        tokens += alpha
        history.append(alpha)
    easy, hard, noise = np.mean(history, axis=0)
    assert hard > 0.5
    assert noise < 0.01
    assert hard > easy


def test_equal_predictions_are_settled_by_order() -> None:
    drawn = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(mean_of_best(drawn, np.zeros(3), 2), [0.5, 0.5])
    np.testing.assert_allclose(mean_of_best(drawn, np.array([2.0, 1.0, 0.0]), 1), [0.5, 0.5])
