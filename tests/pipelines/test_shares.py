"""Weights of what rewriters made: as many tokens as the originals beside it, within what may be read."""

from __future__ import annotations

import pytest

from pipelines.shares import Part, weights_of

AVAILABLE = {"web": 1000, "books": 300, "plain": 100}


def natural(written: dict[str, int], most: float) -> dict[str, float]:
    part = Part("mix.all", None, "natural", "true")
    return weights_of(part, AVAILABLE, "", written, most)


@pytest.mark.parametrize(
    ("tokens", "most", "weight"),
    [(60, 4.0, 60), (250, 4.0, 250), (900, 4.0, 400), (900, 1.0, 100), (900, 0.5, 50), (0, 4.0, 100)],
    ids=["fewer", "as many", "no more than four times", "cap", "cap below one", "no original is taken"],
)
def test_natural_weights_of_rewrites(tokens: int, most: float, weight: float) -> None:
    assert natural({"plain": tokens}, most) == {"web": 1000, "books": 300, "plain": weight}


def test_sources_that_nothing_was_made_of_weigh_what_they_have() -> None:
    assert natural({}, 4.0) == AVAILABLE
