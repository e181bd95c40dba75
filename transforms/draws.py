"""Seeded draws: one uniform 64-bit number per document, a function of (seed, id) alone.

Every random choice and every tie goes by them, so that results do not change with the order of shards or workers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of uint64 [n]: a bijection that scatters all bits."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.uint64) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def draws(seed: int, ids: pa.Array) -> np.ndarray:
    """uint64 [n], uniform: the draw of each id (any string type, no nulls) under this seed."""
    return seeded(seed, hashes(ids))


def hashes(strings: pa.Array) -> np.ndarray:
    """uint64 [n]: a hash of the bytes of each string (any string type, no nulls), white space included."""
    from transforms.text import hash_pieces

    strings = strings.cast(pa.large_string())
    if not len(strings):
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(strings.buffers()[2] or b"", np.uint8)
    return hash_pieces(data, offsets[:-1], offsets[1:])


def seeded(seed: int, values: np.ndarray) -> np.ndarray:
    """uint64 [n], uniform: the draw of each 64-bit value (a cluster, say) under this seed."""
    return mix64(values ^ mix64(np.array([seed], dtype=np.uint64)))


def ranges(values: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """int64 [n], from 0 to `count` - 1: which of `count` (up to 2^32) equal ranges each 64-bit value falls in."""
    count = np.asarray(count, dtype=np.uint64)
    return (((values >> np.uint64(32)) * count) >> np.uint64(32)).astype(np.int64)


def below(draw: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: whether a draw falls in the first `share` (0 to 1) of the range of 64-bit numbers."""
    if share >= 1:
        return np.ones(len(draw), dtype=bool)
    return draw < np.uint64(int(share * 2**64))
