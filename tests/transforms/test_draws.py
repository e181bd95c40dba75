"""Draws are uniform, a function of seed and id alone, and differ for every difference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.draws import below, draws, hashes, mix64, seeded

MASK = 2**64 - 1


def slow_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(st.lists(st.integers(0, MASK)))
def test_mix_is_splitmix(values: list[int]) -> None:
    assert mix64(np.array(values, np.uint64)).tolist() == [slow_mix(v) for v in values]


def test_mix_gives_the_published_first_numbers() -> None:
    """Of SplitMix64 with seed 1234567, as its authors' reference program prints them."""
    step = 0x9E3779B97F4A7C15
    states = [(1234567 + i * step) & MASK for i in range(3)]
    assert mix64(np.array(states, np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.lists(st.text(max_size=20)), st.integers(0, 2**63), st.data())
def test_a_draw_depends_on_seed_and_id_alone(ids: list[str], seed: int, data: st.DataObject) -> None:
    column = pa.array(ids, pa.string())
    whole = draws(seed, column)
    at = data.draw(st.integers(0, len(ids)))
    assert draws(seed, column[at:]).tolist() == whole[at:].tolist()
    assert draws(seed, column.cast(pa.large_string())).tolist() == whole.tolist()
    assert [int(draws(seed, pa.array([i]))[0]) for i in ids] == whole.tolist()
    assert len({int(d) for d in whole}) == len(set(ids)), "white space and case make another id"


@pytest.mark.parametrize("ids", [["a b", "a  b", "a\nb", " a b"], ["", " ", "\t"], ["A", "a"]])
def test_white_space_makes_another_id(ids: list[str]) -> None:
    assert len(set(hashes(pa.array(ids)).tolist())) == len(ids)


def test_no_documents() -> None:
    for empty in (pa.array([], pa.string()), pa.array(["a"]).filter(pa.array([False]))):
        assert draws(0, empty).shape == (0,) and draws(0, empty).dtype == np.uint64


def test_draws_are_uniform_and_seeds_independent() -> None:
    ids = pa.array([f"id {i}" for i in range(100_000)])
    one, other = draws(0, ids), draws(1, ids)
    for drawn in (one, other):
        counts = np.bincount((drawn >> np.uint64(56)).astype(int), minlength=256)
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 160 < chi2 < 370  # 255 degrees of freedom, five standard deviations
    assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.02
    assert seeded(0, hashes(ids)).tolist() == one.tolist()


@given(st.floats(0, 1), st.lists(st.integers(0, MASK)))
def test_below_is_the_share_of_the_range(share: float, values: list[int]) -> None:
    drawn = np.array(values, np.uint64)
    assert below(drawn, share).tolist() == [v < int(share * 2**64) or share == 1 for v in values]
