"""A linear model on the words of a document: hashed words and word pairs, ridge regression, predictions.

Every different word and pair of neighbours goes to a place that its hash chooses, with the square root of its count and
a sign that its hash chooses (feature hashing, Weinberger et al. 2009, arXiv 0902.2206); a document's values have length
1. The regression is solved by conjugate gradients in the documents' own space, so that neither time nor memory grows
with the number of places.

Cost: 12 bytes per word and pair; 50 MB/s per core for features and predictions, words and their hashes apart. A round
of the regression reads the features twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from transforms.minhash import roll

if TYPE_CHECKING:
    from transforms.batch import Batch

BITS = 18  # of a place: a model is 1 MB


class Features(NamedTuple):
    """Those of document i are offsets[i]:offsets[i + 1]; one without words has none."""

    place: np.ndarray  # int32 [features], below 2 ** BITS, ascending in a document
    value: np.ndarray  # float64 [features]
    offsets: np.ndarray  # int64 [documents + 1]

    def take(self, documents: np.ndarray) -> Features:
        """Those of some documents (int [n]), in the order given."""
        sizes = np.diff(self.offsets)[documents]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        chosen = np.repeat(self.offsets[:-1][documents] - ends[:-1], sizes) + np.arange(ends[-1])
        return Features(self.place[chosen], self.value[chosen], ends)


def features(batch: Batch, words: int) -> Features:
    """Features of the first `words` words of each document."""
    return Features(*_features(batch.word_hashes, batch.words.offsets, words))


def ridge(given: Features, target: np.ndarray, penalty: float, tolerance: float = 1e-8) -> np.ndarray:
    """float64 [2 ** BITS]: the weights w with the least |X w - target|² + penalty |w|². No constant: centre the target.

    target: float64 [documents]. Stops when the residual of the equations is `tolerance` of the target.
    """
    solution = np.zeros(len(target))
    residual = target.astype(np.float64)
    direction, square = residual.copy(), float((residual**2).sum())
    goal = tolerance**2 * square
    for _ in range(2 * len(target)):
        if square <= goal:
            break
        image = dot(given, spread(given, direction)) + penalty * direction
        step = square / float((direction * image).sum())
        solution += step * direction
        residual -= step * image
        before, square = square, float((residual**2).sum())
        direction = residual + square / before * direction
    return spread(given, solution)


def dot(given: Features, weights: np.ndarray) -> np.ndarray:
    """float64 [documents]: each document's prediction, summed in the order of its own features alone."""
    found: np.ndarray = _dot(*given, weights)
    return found


def spread(given: Features, amounts: np.ndarray) -> np.ndarray:
    """float64 [2 ** BITS]: the documents' features, each document's times its amount (float64 [documents]), summed."""
    found: np.ndarray = _spread(*given, amounts)
    return found


@njit(cache=True, nogil=True)
def _features(hashes, offsets, words):  # type: ignore[no-untyped-def]
    documents = len(offsets) - 1
    read = np.zeros(documents + 1, np.int64)
    for d in range(documents):
        read[d] = min(words, offsets[d + 1] - offsets[d])
    grams = np.empty(2 * read.max(), np.uint64)
    place, value = np.empty(2 * read.sum(), np.int32), np.empty(2 * read.sum(), np.float64)
    bounds = np.zeros(documents + 1, np.int64)
    filled = 0
    for d in range(documents):
        own = hashes[offsets[d] : offsets[d] + read[d]]
        size = roll(own, len(own), 1, grams)
        size += roll(own, len(own), 2, grams[size:])
        filled = _counted(np.sort(grams[:size]), place, value, filled)
        bounds[d + 1] = filled
    return place[:filled].copy(), value[:filled].copy(), bounds


@njit(cache=True, nogil=True)
def _counted(grams, place, value, filled):  # type: ignore[no-untyped-def]
    """Writes the features of one document's sorted grams from `filled` on; returns where they end."""
    first = 0
    for i in range(1, len(grams) + 1):
        if i < len(grams) and grams[i] == grams[first]:
            continue
        weight = np.sqrt((i - first) / len(grams))  # squares of all weights sum up to 1
        place[filled] = grams[first] >> np.uint64(64 - BITS)
        value[filled] = weight if grams[first] & np.uint64(1) else -weight
        filled += 1
        first = i
    return filled


@njit(cache=True, nogil=True)
def _dot(place, value, offsets, weights):  # type: ignore[no-untyped-def]
    result = np.zeros(len(offsets) - 1, np.float64)
    for d in range(len(result)):
        total = 0.0
        for i in range(offsets[d], offsets[d + 1]):
            total += value[i] * weights[place[i]]
        result[d] = total
    return result


@njit(cache=True, nogil=True)
def _spread(place, value, offsets, amounts):  # type: ignore[no-untyped-def]
    result = np.zeros(1 << BITS, np.float64)
    for d in range(len(amounts)):
        for i in range(offsets[d], offsets[d + 1]):
            result[place[i]] += value[i] * amounts[d]
    return result
