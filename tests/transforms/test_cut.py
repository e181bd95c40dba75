"""Spans that put something in their place: joined and cut as a slow reference does it, byte by byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.cut import Cuts, cut, union

Pieces = list[tuple[int, int, str | None]]  # start, end, what is put there


@st.composite
def pieces(draw: st.DrawFn) -> Pieces:
    """Spans of "a".."t", sorted and apart; plain ones do not touch."""
    made: Pieces = []
    for start in sorted(draw(st.sets(st.integers(0, 18), max_size=5))):
        end, put = start + draw(st.integers(1, 5)), draw(st.sampled_from([None, "<X>", "", "é"]))
        if made and (start < made[-1][1] or (start == made[-1][1] and put is None and made[-1][2] is None)):
            continue
        made.append((start, min(end, 20), put))
    return made


def cuts_of(documents: list[Pieces]) -> Cuts:
    flat = [piece for document in documents for piece in document]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    start, end = (np.array([piece[k] for piece in flat], np.int64) for k in (0, 1))
    return Cuts(start, end, offsets, pa.array([put for _, _, put in flat], pa.large_string()))


def both(one: Pieces, other: Pieces) -> Pieces:
    made: Pieces = []
    for start, end, put in sorted([*one, *other], key=lambda p: p[0]):  # stable: the first operand's come first
        if made and start < made[-1][1]:
            kept = None if put is None else made[-1][2]
            made[-1] = (made[-1][0], max(end, made[-1][1]), kept)
        elif made and start == made[-1][1] and put is None and made[-1][2] is None:
            made[-1] = (made[-1][0], end, None)
        else:
            made.append((start, end, put))
    return made


def applied(text: str, spans: Pieces) -> str:
    for start, end, put in reversed(spans):
        text = text[:start] + (put or "") + text[end:]
    return text


@given(st.lists(st.tuples(pieces(), pieces()), max_size=4))
def test_union_and_cut(pairs: list[tuple[Pieces, Pieces]]) -> None:
    found = union(cuts_of([a for a, _ in pairs]), cuts_of([b for _, b in pairs]))
    wanted = [both(a, b) for a, b in pairs]
    assert [[tuple(s.values()) for s in row] for row in found.arrow().to_pylist()] == wanted
    texts = pa.array(["abcdefghijklmnopqrst"] * len(pairs), pa.large_string())
    left = cut(Batch(pa.record_batch({"text": texts})), found)
    left.validate(full=True)
    assert left.to_pylist() == [applied("abcdefghijklmnopqrst", spans) for spans in wanted]


def test_nothing_put_anywhere_needs_no_column() -> None:
    plain = Cuts(np.array([1]), np.array([3]), np.array([0, 1]))
    assert union(plain, plain).put is None
    assert plain.arrow().to_pylist() == [[{"start": 1, "end": 3, "put": None}]]
    assert cut(Batch(pa.record_batch({"text": ["abcd"]})), plain).to_pylist() == ["ad"]
