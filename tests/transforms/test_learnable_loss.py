"""Medians of learnable tokens' losses equal those of a loop, in both readings of what is not learnable."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transforms.learnable_loss import learnable_loss

token = st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.25, 1.0, 3.5, 9.0, math.inf]), st.integers(0, 15))


def slow(tokens: list[tuple[float, int]], k: int, drop: bool) -> tuple[float, float, float]:
    """Score, share and mean of one document."""
    if not tokens:
        return (math.nan,) * 3
    masked = [loss if rank < k else 0.0 for loss, rank in tokens]
    counted = [loss for loss, rank in tokens if rank < k] if drop else masked
    share = sum(rank < k for _, rank in tokens) / len(tokens)
    return median(counted) if counted else math.nan, share, sum(masked) / len(tokens)


@given(st.lists(token, max_size=40), st.integers(1, 16), st.booleans(), st.booleans())
def test_it_equals_a_slow_reference(tokens: list[tuple[int, float, int]], k: int, drop: bool, tidy: bool) -> None:
    tokens = sorted(tokens, key=lambda t: t[0]) if tidy else tokens
    document, loss, rank = (
        np.array([t[i] for t in tokens], kind) for i, kind in enumerate((int, np.float32, np.int32))
    )
    found = learnable_loss(document, loss, rank, 6, k, drop)
    for number in range(6):
        expected = slow([(t[1], t[2]) for t in tokens if t[0] == number], k, drop)
        own = [float(values[number]) for values in (found.score, found.share, found.mean)]
        np.testing.assert_allclose(own, expected, rtol=1e-6)


def test_more_than_half_unlearnable_is_zero_or_ignored() -> None:
    loss, rank = np.array([2.0, 3.0, 8.0, 9.0, 9.0], np.float32), np.array([3, 9, 10, 700, 11], np.int32)
    document = np.zeros(5, np.int64)
    assert learnable_loss(document, loss, rank, 1, 10, drop=False).score.tolist() == [0.0]
    assert learnable_loss(document, loss, rank, 1, 10, drop=True).score.tolist() == [2.5]
    everything = [learnable_loss(document, loss, rank, 1, 1000, drop).score.tolist() for drop in (True, False)]
    assert everything == [[8.0], [8.0]], "the plain median"
