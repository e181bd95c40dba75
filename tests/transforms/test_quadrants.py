"""The sample stage of Q-Tuning on planted corners, shuffled grids and correlated scores."""

from __future__ import annotations

import numpy as np
import pytest

from transforms.quadrants import (
    HESITANT,
    KNOWN,
    MIDDLE,
    MISTAKE,
    MOST,
    NOISE,
    condition,
    quadrants,
    sample_stage,
    tail,
)

DRAW = np.random.default_rng(1).integers(0, 2**63, 10_000).astype(np.uint64)


def test_planted_corners() -> None:
    """Four clusters of ten, far apart, and twenty documents between them."""
    draw = np.random.default_rng(0)
    centres = {NOISE: (5, 5), MISTAKE: (5, 1), KNOWN: (1, 1), HESITANT: (1, 5), MIDDLE: (3, 3)}
    truth = np.repeat([*centres, MIDDLE], 10)
    points = np.array([centres[t] for t in truth]) + draw.uniform(-0.5, 0.5, (60, 2))
    order = draw.permutation(60)
    error, uncertainty = points[order].T
    assert np.array_equal(quadrants(error, uncertainty, 20 / 60), truth[order])
    found = sample_stage(error, uncertainty, 20 / 60, DRAW[:60])
    assert np.array_equal(found.keep, np.isin(truth[order], [MISTAKE, HESITANT]))
    assert found.tail <= 20 / 60 + 0.01


@pytest.mark.parametrize("share", [0.05, 0.125, 0.25, 0.4])
def test_bisection_finds_the_share_where_it_can_be_had(share: float) -> None:
    """Independent scores: corners of tail a hold 2 a² of the documents."""
    error, uncertainty = np.random.default_rng(3).normal(size=(2, 10_000))
    found = sample_stage(error, uncertainty, share, DRAW)
    corners = np.isin(found.quadrant, [MISTAKE, HESITANT])
    assert share <= corners.mean() <= share + 0.01 and np.array_equal(found.keep, corners)
    assert found.tail == pytest.approx(np.sqrt(share / 2), abs=0.02)
    smaller = quadrants(error, uncertainty, found.tail - MOST / 500)
    assert np.isin(smaller, [MISTAKE, HESITANT]).mean() < share, "no smaller tail does"


def test_four_samples_in_four_corners() -> None:
    error, uncertainty = np.array([3.0, 3.1, 0.2, 0.1]), np.array([2.0, 0.3, 0.2, 2.1])
    found = sample_stage(error, uncertainty, 0.5, DRAW[:4])
    assert found.quadrant.tolist() == [NOISE, MISTAKE, KNOWN, HESITANT]
    assert found.keep.tolist() == [False, True, False, True] and not found.filled.any()
    more = sample_stage(error, uncertainty, 0.75, DRAW[:4])
    assert more.filled.tolist() == [True, False, False, False], "|P - E| of the noise is larger than that of the known"


@pytest.mark.parametrize("size", [8, 32, 256])
def test_with_scores_that_correlate_filling_up_reaches_the_share(size: int) -> None:
    draw = np.random.default_rng(8)
    filled = kept = 0
    for _ in range(100):
        error, noise = draw.normal(size=(2, size))
        found = sample_stage(error, 0.9 * error + np.sqrt(1 - 0.9**2) * noise, 0.25, DRAW[:size])
        assert found.keep.sum() >= size / 4
        if found.filled.any():
            assert found.keep.sum() == size / 4 and found.tail == MOST
        filled, kept = filled + int(found.filled.sum()), kept + int(found.keep.sum())
    assert 0.3 < filled / kept < 0.6


def test_where_corners_are_thin_disagreement_fills_up() -> None:
    """Scores that rise together: the corners are nearly empty, and |P - E| decides."""
    draw = np.random.default_rng(4)
    uncertainty = draw.uniform(1, 3, 1000)
    error = np.log(uncertainty) + draw.normal(0, 0.02, 1000)
    found = sample_stage(error, uncertainty, 0.25, DRAW[:1000])
    corners = np.isin(found.quadrant, [MISTAKE, HESITANT])
    assert found.tail == MOST and corners.sum() < 100
    assert found.keep.sum() == 250 and (found.keep | ~corners).all()
    assert np.array_equal(found.filled, found.keep & ~corners)
    p = np.exp(error)
    far = np.abs((p - p.min()) / np.ptp(p) - (uncertainty - uncertainty.min()) / np.ptp(uncertainty))
    rest = ~corners & np.isin(found.quadrant, [NOISE, KNOWN])
    taken, left = far[rest & found.keep], far[rest & ~found.keep]
    assert len(taken) == 250 - corners.sum() and taken.min() >= left.max()


def test_ties_are_settled_by_the_draw_and_the_order_does_not_matter() -> None:
    error, uncertainty = np.tile([1.0, 2.0], 50), np.tile([1.0, 2.0], 50)
    draw, order = DRAW[:100], np.random.default_rng(5).permutation(100)
    found = sample_stage(error, uncertainty, 0.1, draw)
    again = sample_stage(error[order], uncertainty[order], 0.1, draw[order])
    assert found.keep.sum() == 10 and np.array_equal(found.keep[order], again.keep)


def test_documents_without_scores_are_not_kept_and_do_not_count() -> None:
    draw = np.random.default_rng(6)
    error, uncertainty = draw.normal(size=(2, 500))
    gaps = np.full(100, np.nan)
    found = sample_stage(np.append(error, gaps), np.append(uncertainty, gaps), 0.2, DRAW[:600])
    alone = sample_stage(error, uncertainty, 0.2, DRAW[:500])
    assert np.array_equal(found.keep, np.append(alone.keep, np.zeros(100, bool))) and found.tail == alone.tail
    nothing = sample_stage(gaps, gaps, 0.2, DRAW[:100])
    assert not nothing.keep.any() and not len(sample_stage(gaps[:0], gaps[:0], 0.2, DRAW[:0]).keep)


def test_infinite_errors_are_the_highest() -> None:
    error, uncertainty = np.array([1.0, np.inf, 2.0, 1.5]), np.array([1.0, 0.5, 3.0, 1.5])
    found = sample_stage(error, uncertainty, 0.5, DRAW[:4])
    assert found.keep[1] and found.keep.sum() == 2


def test_all_are_kept_where_all_are_asked_for() -> None:
    error, uncertainty = np.random.default_rng(7).normal(size=(2, 33))
    assert sample_stage(error, uncertainty, 1.0, DRAW[:33]).keep.all()


def test_shares_are_checked() -> None:
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="share of"):
            tail(np.ones(3), np.ones(3), share)


def test_the_condition_names_both_corners() -> None:
    assert condition(0.3, "m") == (
        "(m.error >= quantile(m.error, 0.7) and m.uncertainty <= quantile(m.uncertainty, 0.3)) "
        "or (m.error <= quantile(m.error, 0.3) and m.uncertainty >= quantile(m.uncertainty, 0.7))"
    )
