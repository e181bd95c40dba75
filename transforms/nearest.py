"""The nearest of many sentences, exactly, and how near it is: by TF-IDF, or by the vectors of an encoder.

A bank's rows are unique texts in an order of their own (`sorted_texts`); of equally near ones the first is taken, so
that nothing depends on the order in which they were given, nor on what else is asked with a text.

TF-IDF: words and pairs of neighbouring words in lower case, without punctuation; a feature that stands c times weighs
√c · log(1 + (n - d + ½) / (d + ½)), for d of the bank's n rows that have it (Robertson and Zaragoza 2009, "The
probabilistic relevance framework", for the logarithm); those the bank lacks count in a text's length, so that a text
is far from all rows the more it speaks of other things. Cost: 36 bytes for each feature of the bank; for a text, a
multiplication for each row that shares a feature with it. With an encoder: `transforms.semantic.nearest`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.batch import Batch
from transforms.minhash import roll

_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"


class Bank(Protocol):
    """Sentences that texts are compared with. Cosines are from -1 to 1; 0 where a text has no words."""

    def nearest(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """(row, cosine) of the nearest sentence of each text: int64 [texts], float64 [texts]."""

    def cosines(self, texts: pa.LargeStringArray, rows: np.ndarray) -> np.ndarray:
        """float64 [texts, rows] with some rows (int64 [rows]), bit for bit as `nearest` has them."""


class Embedded:
    """A bank by the vectors of an encoder (see `transforms.embedding`)."""

    def __init__(self, texts: pa.LargeStringArray, encoder: Path) -> None:
        """texts: `sorted_texts`. encoder: folder of a transformers or sentence-transformers model."""
        from transforms.embedding import Embedding

        self.encoder = Embedding(encoder=encoder)
        self.vectors = self.encoder.vectors(texts)

    def nearest(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        from transforms.semantic import nearest

        vectors = self.encoder.vectors(texts)
        rows = nearest(vectors, self.vectors)
        products = vectors.astype(np.int64) * self.vectors[rows]
        return rows, _cosine(products.sum(axis=1))

    def cosines(self, texts: pa.LargeStringArray, rows: np.ndarray) -> np.ndarray:
        return _cosine(self.encoder.vectors(texts).astype(np.int64) @ self.vectors[rows].T.astype(np.int64))


def _cosine(products: np.ndarray) -> np.ndarray:
    from transforms.semantic import SCALE

    found: np.ndarray = products / SCALE**2
    return found


class TfIdf:
    """A bank by TF-IDF."""

    def __init__(self, texts: pa.LargeStringArray) -> None:
        """texts: `sorted_texts`, one at least."""
        found = grams(texts)
        self.size = len(texts)
        self.known, place = np.unique(found.gram, return_inverse=True)
        frequency = np.bincount(place, minlength=len(self.known))
        self.weight = _rarity(frequency, self.size)
        order = np.argsort(place, kind="stable")
        row = np.repeat(np.arange(self.size, dtype=np.int32), np.diff(found.offsets))
        starts = np.concatenate([[0], np.cumsum(frequency)])
        self.postings = row[order], found.scaled(self.weight[place])[order], starts  # of each feature, by row

    def _asked(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, ...]:
        found = grams(texts)
        place = np.minimum(np.searchsorted(self.known, found.gram), len(self.known) - 1)
        there = self.known[place] == found.gram if len(self.known) else np.zeros(len(place), bool)
        weight = np.full(len(place), _rarity(np.zeros(1), self.size)[0])
        weight[there] = self.weight[place[there]]
        return np.where(there, place, -1), found.scaled(weight), found.offsets

    def nearest(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        rows, cosines = _nearest(*self._asked(texts), *self.postings, self.size)
        return rows, cosines

    def cosines(self, texts: pa.LargeStringArray, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = _cosines(*self._asked(texts), *self.postings, self.size, rows.astype(np.int64))
        return found


def _rarity(frequency: np.ndarray, size: int) -> np.ndarray:
    return np.log1p((size - frequency + 0.5) / (frequency + 0.5))


class Grams(NamedTuple):
    """Different words and word pairs of texts, those of text i are offsets[i]:offsets[i + 1]."""

    gram: np.ndarray  # uint64, ascending in a text
    times: np.ndarray  # int32, how often each stands in its text
    offsets: np.ndarray  # int64 [texts + 1]

    def scaled(self, weight: np.ndarray) -> np.ndarray:
        """float64 [grams]: √times multiplied by the weights (float [grams]), of length 1 in each text."""
        values = np.sqrt(self.times) * weight
        text = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        length = np.sqrt(np.bincount(text, values**2, len(self.offsets) - 1))
        return np.divide(values, length[text], out=np.zeros_like(values), where=length[text] > 0)


def grams(texts: pa.LargeStringArray) -> Grams:
    """The features of TF-IDF with their counts. texts: no nulls."""
    plain = pc.replace_substring_regex(pc.utf8_lower(texts), _BETWEEN_WORDS, " ")
    batch = Batch(pa.record_batch({"text": plain}))
    return Grams(*_grams(batch.word_hashes, batch.words.offsets))


def sorted_texts(texts: pa.Array, ids: pa.Array | None = None) -> pa.Table:
    """`text` and `id` of unique texts by text, white space around them removed and blank ones left out.

    texts, ids: strings. Of the ids of a text that stands several times the first in the order of strings is kept, "10"
    before "9"; without ids they are null.
    """
    given = pc.utf8_trim_whitespace(texts.cast(pa.large_string()))
    named = pa.nulls(len(given), pa.large_string()) if ids is None else ids.cast(pa.large_string())
    table = pa.table({"text": given, "id": named}).filter(pc.greater(pc.binary_length(given), 0))
    return table.group_by("text").aggregate([("id", "min")]).rename_columns(["text", "id"]).sort_by("text")


@njit(cache=True, nogil=True)
def _grams(words, offsets):  # type: ignore[no-untyped-def]
    gram, count = np.empty(2 * len(words), np.uint64), np.empty(2 * len(words), np.int32)
    bounds = np.zeros(len(offsets), np.int64)
    filled = 0
    for d in range(len(offsets) - 1):
        own = words[offsets[d] : offsets[d + 1]]
        all_ = np.empty(2 * len(own), np.uint64)
        size = roll(own, len(own), 1, all_)
        size += roll(own, len(own), 2, all_[size:])
        all_[:size].sort()
        for i in range(size):
            if i and all_[i] == all_[i - 1]:
                count[filled - 1] += 1
                continue
            gram[filled], count[filled] = all_[i], 1
            filled += 1
        bounds[d + 1] = filled
    return gram[:filled].copy(), count[:filled].copy(), bounds


@njit(cache=True, nogil=True)
def _score(places, values, row, value, offsets, scores, met):  # type: ignore[no-untyped-def]
    """Adds up products into scores [bank]; writes the rows it met and returns how many. `scores` must be 0."""
    size = 0
    for k in range(len(places)):
        if places[k] < 0:
            continue
        for p in range(offsets[places[k]], offsets[places[k] + 1]):
            if scores[row[p]] == 0:
                met[size] = row[p]
                size += 1
            scores[row[p]] += values[k] * value[p]
    return size


@njit(cache=True, nogil=True)
def _nearest(places, values, bounds, row, value, offsets, size):  # type: ignore[no-untyped-def]
    scores, met = np.zeros(size, np.float64), np.empty(size, np.int32)
    best, cosine = np.zeros(len(bounds) - 1, np.int64), np.zeros(len(bounds) - 1, np.float64)
    for t in range(len(bounds) - 1):
        own = slice(bounds[t], bounds[t + 1])
        for r in met[: _score(places[own], values[own], row, value, offsets, scores, met)]:
            if scores[r] > cosine[t] or (scores[r] == cosine[t] and r < best[t]):
                best[t], cosine[t] = r, scores[r]
            scores[r] = 0
    return best, cosine


@njit(cache=True, nogil=True)
def _cosines(places, values, bounds, row, value, offsets, size, rows):  # type: ignore[no-untyped-def]
    scores, met = np.zeros(size, np.float64), np.empty(size, np.int32)
    found = np.empty((len(bounds) - 1, len(rows)), np.float64)
    for t in range(len(bounds) - 1):
        own = slice(bounds[t], bounds[t + 1])
        count = _score(places[own], values[own], row, value, offsets, scores, met)
        for k in range(len(rows)):
            found[t, k] = scores[rows[k]]
        for r in met[:count]:
            scores[r] = 0
    return found
