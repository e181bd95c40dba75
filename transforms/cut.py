"""Removing spans of bytes from the texts of a batch, with or without something in their place, or taking them out.

Cost: one copy of what stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.batch import Batch


class Cuts(NamedTuple):
    """Spans to remove: int64 start and end, in bytes of the document's own text, sorted and apart; those of document i
    are offsets[i]:offsets[i+1] (int64). In their places stands `put` (large_string [spans]), and nothing where that is
    null; None: nothing anywhere."""

    start: np.ndarray
    end: np.ndarray
    offsets: np.ndarray
    put: pa.LargeStringArray | None = None

    def texts(self) -> pa.LargeStringArray:
        """What stands in the place of each span, or null."""
        return pa.nulls(len(self.start), pa.large_string()) if self.put is None else self.put

    def arrow(self) -> pa.LargeListArray:
        """list<struct<start, end, put>> per document, for a sidecar."""
        columns = [pa.array(self.start), pa.array(self.end), self.texts()]
        spans = pa.StructArray.from_arrays(columns, ["start", "end", "put"])
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), spans)


def union(one: Cuts, other: Cuts) -> Cuts:
    """What either of them removes from the same documents.

    Spans that overlap become one; what the first of them puts stands there, but nothing if any of them puts nothing.
    Spans that touch become one where both put nothing.
    """
    plain = pa.concat_arrays([one.texts(), other.texts()]).is_null()
    start, end, offsets, origin = _union(*one[:3], *other[:3], plain.to_numpy(zero_copy_only=False))
    if one.put is None and other.put is None:
        return Cuts(start, end, offsets)
    places = pa.array(origin, mask=origin < 0)
    return Cuts(start, end, offsets, pa.concat_arrays([one.texts(), other.texts()]).take(places))


def cut(batch: Batch, cuts: Cuts) -> pa.LargeStringArray:
    """The texts without the spans, which must lie on character boundaries; texts that lose nothing are unchanged."""
    put, places = np.empty(0, np.uint8), np.zeros(len(cuts.start) + 1, np.int64)
    if cuts.put is not None:
        texts = Batch(pa.record_batch({"text": pc.fill_null(cuts.put, "")}))
        put, places = texts.bytes, texts.offsets
    data, offsets = _cut(batch.bytes, batch.offsets, cuts.start, cuts.end, cuts.offsets, put, places)
    return pa.LargeStringArray.from_buffers(len(batch), pa.py_buffer(offsets), pa.py_buffer(data))


def slices(batch: Batch, start: np.ndarray, end: np.ndarray) -> pa.LargeStringArray:
    """The texts between start and end (int64, in bytes of `Batch.bytes`, on character boundaries)."""
    offsets = np.concatenate([[0], np.cumsum(end - start)]).astype(np.int64)
    data = _slices(batch.bytes, start, end, offsets)
    return pa.LargeStringArray.from_buffers(len(start), pa.py_buffer(offsets), pa.py_buffer(data))


@njit(cache=True, nogil=True)
def _union(start, end, offsets, other_start, other_end, other_offsets, plain):  # type: ignore[no-untyped-def]
    """Also which span of the first, or then of the second, says what stands there: int64, -1 for nothing."""
    most = len(start) + len(other_start)
    begin, finish, bounds = np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(len(offsets), np.int64)
    origin = np.empty(most, np.int64)
    size = 0
    for d in range(len(offsets) - 1):
        i, j, first = offsets[d], other_offsets[d], size
        while i < offsets[d + 1] or j < other_offsets[d + 1]:
            if j == other_offsets[d + 1] or (i < offsets[d + 1] and start[i] <= other_start[j]):
                a, b, at = start[i], end[i], -1 if plain[i] else i
                i += 1
            else:
                a, b, at = other_start[j], other_end[j], -1 if plain[len(start) + j] else len(start) + j
                j += 1
            touching = size > first and a == finish[size - 1] and at < 0 and origin[size - 1] < 0
            if touching or (size > first and a < finish[size - 1]):
                finish[size - 1] = max(finish[size - 1], b)
                origin[size - 1] = -1 if at < 0 else origin[size - 1]
            else:
                begin[size], finish[size], origin[size] = a, b, at
                size += 1
        bounds[d + 1] = size
    return begin[:size].copy(), finish[:size].copy(), bounds, origin[:size].copy()


@njit(cache=True, nogil=True)
def _slices(text, start, end, offsets):  # type: ignore[no-untyped-def]
    data = np.empty(offsets[-1], np.uint8)
    for i in range(len(start)):
        data[offsets[i] : offsets[i + 1]] = text[start[i] : end[i]]
    return data


@njit(cache=True, nogil=True)
def _cut(text, offsets, start, end, pieces, put, places):  # type: ignore[no-untyped-def]
    data = np.empty(len(text) - (end - start).sum() + len(put), np.uint8)
    bounds = np.zeros(len(offsets), np.int64)
    size = 0
    for document in range(len(offsets) - 1):
        base = place = offsets[document]
        for piece in range(pieces[document], pieces[document + 1]):
            until = base + start[piece]
            data[size : size + until - place] = text[place:until]
            size += until - place
            for k in range(places[piece], places[piece + 1]):
                data[size] = put[k]
                size += 1
            place = base + end[piece]
        until = offsets[document + 1]
        data[size : size + until - place] = text[place:until]
        size += until - place
        bounds[document + 1] = size
    return data, bounds
