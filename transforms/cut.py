"""Removing spans of bytes from the texts of a batch, or taking them out. Cost: one copy of what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

if TYPE_CHECKING:
    from transforms.batch import Batch


class Cuts(NamedTuple):
    """Spans to remove: int64 start and end, in bytes of the document's own text, sorted and apart; those of document i
    are offsets[i]:offsets[i+1] (int64)."""

    start: np.ndarray
    end: np.ndarray
    offsets: np.ndarray

    def arrow(self) -> pa.LargeListArray:
        """list<struct<start, end>> per document, for a sidecar."""
        spans = pa.StructArray.from_arrays([pa.array(self.start), pa.array(self.end)], ["start", "end"])
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), spans)


def union(one: Cuts, other: Cuts) -> Cuts:
    """What either of them removes from the same documents; spans that touch are one."""
    return Cuts(*_union(*one, *other))


def cut(batch: Batch, cuts: Cuts) -> pa.LargeStringArray:
    """The texts without the spans, which must lie on character boundaries; texts that lose nothing are unchanged."""
    data, offsets = _cut(batch.bytes, batch.offsets, cuts.start, cuts.end, cuts.offsets)
    return pa.LargeStringArray.from_buffers(len(batch), pa.py_buffer(offsets), pa.py_buffer(data))


def slices(batch: Batch, start: np.ndarray, end: np.ndarray) -> pa.LargeStringArray:
    """The texts between start and end (int64, in bytes of `Batch.bytes`, on character boundaries)."""
    offsets = np.concatenate([[0], np.cumsum(end - start)]).astype(np.int64)
    data = _slices(batch.bytes, start, end, offsets)
    return pa.LargeStringArray.from_buffers(len(start), pa.py_buffer(offsets), pa.py_buffer(data))


@njit(cache=True, nogil=True)
def _union(start, end, offsets, other_start, other_end, other_offsets):  # type: ignore[no-untyped-def]
    most = len(start) + len(other_start)
    begin, finish, bounds = np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(len(offsets), np.int64)
    size = 0
    for d in range(len(offsets) - 1):
        i, j, first = offsets[d], other_offsets[d], size
        while i < offsets[d + 1] or j < other_offsets[d + 1]:
            if j == other_offsets[d + 1] or (i < offsets[d + 1] and start[i] <= other_start[j]):
                a, b = start[i], end[i]
                i += 1
            else:
                a, b = other_start[j], other_end[j]
                j += 1
            if size > first and a <= finish[size - 1]:
                finish[size - 1] = max(finish[size - 1], b)
            else:
                begin[size], finish[size] = a, b
                size += 1
        bounds[d + 1] = size
    return begin[:size].copy(), finish[:size].copy(), bounds


@njit(cache=True, nogil=True)
def _slices(text, start, end, offsets):  # type: ignore[no-untyped-def]
    data = np.empty(offsets[-1], np.uint8)
    for i in range(len(start)):
        data[offsets[i] : offsets[i + 1]] = text[start[i] : end[i]]
    return data


@njit(cache=True, nogil=True)
def _cut(text, offsets, start, end, pieces):  # type: ignore[no-untyped-def]
    data = np.empty(len(text) - (end - start).sum(), np.uint8)
    bounds = np.zeros(len(offsets), np.int64)
    size = 0
    for document in range(len(offsets) - 1):
        base = place = offsets[document]
        for piece in range(pieces[document], pieces[document + 1]):
            until = base + start[piece]
            data[size : size + until - place] = text[place:until]
            size += until - place
            place = base + end[piece]
        until = offsets[document + 1]
        data[size : size + until - place] = text[place:until]
        size += until - place
        bounds[document + 1] = size
    return data, bounds
