"""Token sequences of at least k tokens that stand in the corpus more than once (Lee et al. 2022, arXiv 2107.06499).

Which tokens go: a window of k tokens goes if an equal window comes earlier, in the order of documents (by id, say)
and then of places, without overlapping it. What is removed is the union of those windows, hence every repeat of k
tokens or more whatever its length, and no token outside one. The first occurrence stays unless it lies in another
repeat itself.

Equal windows are found by a rolling 64-bit hash and then compared token by token, so that the result is exact; should
two different windows ever share a hash, everything is done again with another seed.

Cost: 10 bytes per token (8 for the token), and 80 per token where a window begins that occurs twice or nearly so;
about 20 million tokens per second and core where little repeats. The corpus (or the part to be compared) must fit one
process: 1 GB per 100 million tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from transforms.cut import Cuts
from transforms.hashing import mix

if TYPE_CHECKING:
    from transforms.batch import Batch

_BASE, _ONE, _SIX, _LOW6 = np.uint64(0xA0761D6478BD642F), np.uint64(1), np.uint64(6), np.uint64(63)
_SEEDS = 4


class TokenSpans(NamedTuple):
    """Sorted spans of places in the token array, int64; those of document i are offsets[i]:offsets[i+1]."""

    start: np.ndarray
    end: np.ndarray
    offsets: np.ndarray


def repeated_spans(tokens: np.ndarray, offsets: np.ndarray, rank: np.ndarray, k: int) -> TokenSpans:
    """Spans of tokens that repeat k earlier ones or more.

    tokens: integers [tokens], the documents end to end (token ids, or `Batch.word_hashes`); offsets: int64
    [documents + 1]; rank: int64 [documents], all different, which document comes first (`transforms.components.ranks`).
    The result does not depend on the order of the documents. Raises ValueError if k < 1 or the shapes do not fit.
    """
    if k < 1 or len(rank) != len(offsets) - 1 or offsets[-1] != len(tokens):
        raise ValueError(
            f"k={k}, {len(rank)} ranks, offsets of {len(offsets) - 1} documents and {offsets[-1]} tokens, "
            f"{len(tokens)} tokens: k must be 1 or more and the others must agree"
        )
    words = tokens.astype(np.uint64, copy=False)
    for seed in range(_SEEDS):
        place, document, first = _candidates(words, offsets, rank, k, np.uint64(seed))
        if _verified(words, place, first, k):
            elsewhere = (first < offsets[document]) | (first >= offsets[document + 1])
            later = elsewhere | (first + k <= place)
            return TokenSpans(*_join(place[later], document[later], k, len(rank)))
    raise RuntimeError(f"different windows of {k} tokens shared a 64-bit hash for {_SEEDS} seeds")


def cuts_of(spans: TokenSpans, batch: Batch) -> Cuts:
    """The spans of a batch whose tokens were its words, in bytes; white space after a span goes with it."""
    words = batch.words
    document = np.repeat(np.arange(len(batch)), np.diff(spans.offsets))
    inside = spans.end < words.offsets[document + 1]
    end = batch.offsets[document + 1].copy()
    end[inside] = words.start[spans.end[inside]]
    base = batch.offsets[document]
    return Cuts(words.start[spans.start] - base, end - base, spans.offsets)


def _candidates(
    tokens: np.ndarray, offsets: np.ndarray, rank: np.ndarray, k: int, seed: np.uint64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(place, document, place of the first window of equal hash) of windows whose hash may occur twice, by place."""
    bits = max(6, (8 * len(tokens)).bit_length())
    shift = np.uint64(64 - bits)
    seen, twice = np.zeros(1 << (bits - 6), np.uint64), np.zeros(1 << (bits - 6), np.uint64)
    empty = np.empty(0, np.int64)
    count = _scan(tokens, offsets, k, seed, shift, seen, twice, empty.view(np.uint64), empty, empty)
    del seen
    key, place, document = np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int64)
    _scan(tokens, offsets, k, seed, shift, twice, twice, key, place, document)
    del twice
    order = np.lexsort((place, rank[document], key))
    ordered = key[order]
    new = np.ones(count, bool)
    new[1:] = ordered[1:] != ordered[:-1]
    begin = np.flatnonzero(new)
    first = np.empty(count, np.int64)
    first[order] = np.repeat(place[order[begin]], np.diff(begin, append=count))
    return place, document, first


@njit(cache=True, nogil=True)
def _scan(tokens, offsets, k, seed, shift, seen, twice, key, place, document):  # type: ignore[no-untyped-def]
    """Without room in `key`: mark hash slots that windows meet, and meet again; how many windows lie in the latter.
    With room: write the hash, place and document of those windows."""
    top = np.uint64(1)
    for _ in range(k):
        top *= _BASE
    found = 0
    for d in range(len(offsets) - 1):
        h = np.uint64(0)
        for i in range(offsets[d], offsets[d + 1]):
            h = h * _BASE + mix(np.uint64(tokens[i]) + seed)
            if i - offsets[d] >= k:
                h -= mix(np.uint64(tokens[i - k]) + seed) * top
            if i - offsets[d] < k - 1:
                continue
            value = mix(h)
            slot = value >> shift
            word, bit = slot >> _SIX, _ONE << (slot & _LOW6)
            if len(key):
                if twice[word] & bit:
                    key[found], place[found], document[found] = value, i - k + 1, d
                    found += 1
            elif seen[word] & bit:
                found += 1 if twice[word] & bit else 2
                twice[word] |= bit
            else:
                seen[word] |= bit
    return found


@njit(cache=True, nogil=True)
def _verified(tokens, place, first, k):  # type: ignore[no-untyped-def]
    """Whether every window equals the first one of its hash. Runs of windows are compared a token at a time."""
    for i in range(len(place)):
        p, f = place[i], first[i]
        at = k - 1 if i and place[i - 1] == p - 1 and first[i - 1] == f - 1 else 0
        for j in range(at, k):
            if tokens[p + j] != tokens[f + j]:
                return False
    return True


@njit(cache=True, nogil=True)
def _join(place, document, k, documents):  # type: ignore[no-untyped-def]
    """Union of the windows at `place` (ascending), per document."""
    start, end = np.empty(len(place), np.int64), np.empty(len(place), np.int64)
    offsets = np.zeros(documents + 1, np.int64)
    size = 0
    for i in range(len(place)):
        if i and document[i] == document[i - 1] and place[i] <= end[size - 1]:
            end[size - 1] = place[i] + k
            continue
        start[size], end[size] = place[i], place[i] + k
        size += 1
        offsets[document[i] + 1] += 1
    return start[:size], end[:size], offsets.cumsum()
