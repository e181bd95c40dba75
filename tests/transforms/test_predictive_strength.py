"""Predictive strength counts concordant pairs as a loop does, chance is Mahonian, and labels come from the two ends."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.predictive_strength import LACKING, NEGATIVE, NEITHER, POSITIVE, chance, labels, predictive_strength

MAHONIAN = [1, 5, 14, 29, 49, 71, 90, 101, 101, 90, 71, 49, 29, 14, 5, 1]
losses_of = st.sampled_from([0.0, 1.0, 1.5, 2.0, 700.0, float("inf"), float("nan")])


def slow(losses: list[float], ability: list[float]) -> int:
    if any(loss != loss for loss in losses):
        return LACKING
    ranked = [loss for _, loss in sorted(zip(ability, losses, strict=True))]
    return sum(ranked[i] > ranked[j] for j in range(len(ranked)) for i in range(j))


@given(st.data())
def test_it_equals_a_slow_reference(data: st.DataObject) -> None:
    ability = data.draw(st.lists(st.floats(-10, 100), min_size=2, max_size=7, unique=True))
    row = st.lists(losses_of, min_size=len(ability), max_size=len(ability))
    losses = data.draw(st.lists(row, max_size=8))
    found = predictive_strength(np.array(losses).reshape(-1, len(ability)), np.array(ability))
    assert found.tolist() == [slow(one, ability) for one in losses]


def test_every_order_of_six_models_gives_the_mahonian_numbers() -> None:
    found = predictive_strength(
        np.array(list(permutations(range(6)))), np.array([75.38, 77.27, 80.47, 81.19, 76.3, 79.46])
    )
    assert np.bincount(found).tolist() == MAHONIAN
    np.testing.assert_allclose(chance(6) * 720, MAHONIAN, rtol=1e-12)
    assert chance(2).tolist() == [0.5, 0.5]


def test_ties_count_for_nothing() -> None:
    ability = np.arange(6.0)
    losses = np.array([[1.0] * 6, [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 2], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, np.nan]])
    assert predictive_strength(losses, ability).tolist() == [0, 15, 14, 0, LACKING]
    assert predictive_strength(losses + 1e-9, ability * 3 - 7).tolist() == [0, 15, 14, 0, LACKING]


def test_labels_come_from_both_ends() -> None:
    strength = np.array([15, 3, LACKING, 1, 15, 0, 1, 15, 1])
    expected = [POSITIVE, NEITHER, NEITHER, NEGATIVE, POSITIVE, NEGATIVE, NEGATIVE, POSITIVE, NEITHER]
    assert labels(strength, 15).tolist() == expected, "of those of 1 the first two in order"
    assert labels(np.array([15, 15, 14]), 15).tolist() == [POSITIVE, POSITIVE, NEGATIVE], "none left for a second"
    assert labels(np.array([0, 14, LACKING]), 15).tolist() == [NEITHER] * 3
    assert labels(np.zeros(0, np.int32), 15).tolist() == []


@given(st.lists(st.integers(-1, 6), max_size=60))
def test_labels_hold_to_their_rules(given: list[int]) -> None:
    strength = np.array(given, dtype=np.int64)
    found = labels(strength, 6)
    assert np.array_equal(found == POSITIVE, strength == 6)
    wanted = min((strength == 6).sum(), ((strength >= 0) & (strength < 6)).sum())
    assert (found == NEGATIVE).sum() == wanted
    rest = strength[(found == NEITHER) & (strength >= 0)]
    if wanted and len(rest):
        assert strength[found == NEGATIVE].max() <= rest.min()


@pytest.mark.parametrize(
    ("models", "ability", "message"),
    [
        (3, [1, 2], "losses of 3 models"),
        (1, [1], "at least two"),
        (2, [1, 1], "no two are equal"),
        (2, [1, np.nan], "rank"),
    ],
)
def test_abilities_must_rank_the_models(models: int, ability: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictive_strength(np.zeros((4, models)), np.array(ability, float))
