"""Cardinality: within its standard error over eight orders of magnitude; shares of duplicates against planted ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.distinct import HyperLogLog, duplicate_share


def sketch(hashes: np.ndarray, precision: int = 14) -> HyperLogLog:
    result = HyperLogLog(precision)
    result.add(hashes)
    return result


def uniform(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(4, 18))
def test_registers_equal_reference(values: list[int], precision: int) -> None:
    expected = np.zeros(1 << precision, np.uint8)
    for value in values:
        bits = f"{value:064b}"
        rank = (bits[precision:] + "1").index("1") + 1
        expected[int(bits[:precision], 2)] = max(expected[int(bits[:precision], 2)], rank)
    np.testing.assert_array_equal(sketch(np.array(values, np.uint64), precision).registers, expected)


@pytest.mark.parametrize("count", [0, 1, 10, 1000, 20_000, 100_000, 3_000_000])
def test_error(count: int) -> None:
    estimates = [sketch(np.tile(uniform(count, seed), 2)).estimate() for seed in range(5)]
    assert np.mean(estimates) == pytest.approx(count, rel=3 * 0.0082 / 5**0.5, abs=0.5)
    assert all(abs(estimate - count) <= 4 * 0.0082 * count + 0.5 for estimate in estimates)


def test_full_registers() -> None:
    """Hashes beyond what the registers can tell apart raise nothing and give a huge number."""
    every = np.arange(16, dtype=np.uint64) << np.uint64(60)
    assert sketch(every, 4).estimate() > 2**60


def test_merge_in_any_order() -> None:
    parts = [uniform(5000, seed) for seed in range(4)]
    whole = sketch(np.concatenate(parts))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2, 2]):
        merged = HyperLogLog()
        for i in order:
            merged.merge(sketch(parts[i]))
        np.testing.assert_array_equal(merged.registers, whole.registers)
    with pytest.raises(ValueError, match="14 and 10"):
        whole.merge(HyperLogLog(10))
    with pytest.raises(ValueError, match="precision=3"):
        HyperLogLog(3)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("copies", ["none", "few", "one large cluster", "all alike"])
def test_duplicate_share(rate: float, copies: str) -> None:
    random = np.random.default_rng(7)
    own = uniform(100_000, 1)
    corpus = {
        "none": own,
        "few": own[random.integers(0, 60_000, 100_000)],
        "one large cluster": np.concatenate([own[:50_000], np.full(50_000, own[0])]),
        "all alike": np.full(100_000, own[0]),
    }[copies]
    true = 1 - len(np.unique(corpus)) / len(corpus)
    sample = random.choice(corpus, int(rate * len(corpus)), replace=False)
    found = duplicate_share(sample, len(corpus))
    assert found.least - 0.01 <= true <= found.most + 1e-9
    assert found.least - 1e-9 <= found.share <= found.most + 1e-9
    distinct = len(np.unique(corpus))
    assert distinct * rate**0.5 * 0.95 <= found.distinct <= distinct / rate**0.5 * 1.05
    if rate >= 0.1:
        assert found.share == pytest.approx(true, abs=0.1)
    if rate == 1:
        assert found.share == pytest.approx(true) == found.least == found.most


def test_impossible_samples() -> None:
    for size in (0, 11):
        with pytest.raises(ValueError, match=f"a sample of {size} from 10"):
            duplicate_share(uniform(size, 0), 10)
