import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.packing import pack, split_lengths


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The obvious quadratic packer. Of rows with equal room it takes the one that got that room last."""
    rows: list[list[int]] = []
    room: list[int] = []
    touched: list[int] = []
    for time, piece in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[piece]]
        if fitting:
            r = min(fitting, key=lambda r: (room[r], -touched[r]))
        else:
            r = len(rows)
            rows.append([])
            room.append(capacity)
            touched.append(time)
        rows[r].append(piece)
        room[r] -= lengths[piece]
        touched[r] = time
    return rows


def first_fit(lengths: list[int], capacity: int) -> int:
    room: list[int] = []
    for length in lengths:
        r = next((r for r in range(len(room)) if room[r] >= length), None)
        if r is None:
            room.append(capacity - length)
        else:
            room[r] -= length
    return len(room)


capacities = st.integers(1, 70)


@settings(deadline=None)  # the first call compiles
@given(st.data(), capacities)
def test_pack_equals_the_quadratic_packer(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    packed = pack(np.array(lengths, dtype=np.int64), capacity)
    rows = [packed.order[a:b].tolist() for a, b in zip(packed.offsets[:-1], packed.offsets[1:], strict=True)]
    assert rows == best_fit_decreasing(lengths, capacity)


@settings(deadline=None)  # the first call compiles
@given(st.data(), capacities)
def test_every_piece_is_in_exactly_one_row_and_no_row_overflows(data, capacity):
    lengths = np.array(data.draw(st.lists(st.integers(1, capacity), max_size=200)), dtype=np.int32)
    packed = pack(lengths, capacity)
    assert sorted(packed.order.tolist()) == list(range(len(lengths)))
    filled = [lengths[packed.order[a:b]].sum() for a, b in zip(packed.offsets[:-1], packed.offsets[1:], strict=True)]
    assert all(0 < f <= capacity for f in filled)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 300)), st.integers(1, 64))
def test_split_covers_every_token_once_and_in_order(lengths, capacity):
    pieces = split_lengths(np.array(lengths, dtype=np.int64), capacity)
    tokens = [
        (d, s + t) for d, s, n in zip(pieces.document, pieces.start, pieces.length, strict=True) for t in range(n)
    ]
    assert tokens == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert all(1 <= n <= capacity for n in pieces.length)
    assert len(pieces) == sum(-(-n // capacity) for n in lengths)


def test_log_normal_lengths_fill_rows_better_than_first_fit():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, 0.9, 3000), 1, 512).astype(np.int64)
    rows = len(pack(lengths, 512))
    assert rows < first_fit(lengths.tolist(), 512)
    assert lengths.sum() / (rows * 512) > 0.99


@pytest.mark.parametrize(("lengths", "capacity"), [([1, 9], 8), ([0], 8), ([3], 0)])
def test_impossible_lengths_are_refused(lengths, capacity):
    with pytest.raises(ValueError, match=r"tokens"):
        pack(np.array(lengths), capacity)
