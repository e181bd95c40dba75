"""MinHash signatures and their bands (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of massive datasets", ch. 3).

Documents become sets of shingles (n-grams of words or characters, folded as `transforms.folding` says); a signature row
is the smallest value of one random permutation over the set, so two documents agree in a row with probability equal to
the Jaccard similarity s of their sets, and in a whole band of r rows at least once in b bands with 1 - (1 - s^r)^b.

- A document with fewer than n words (characters) is one shingle: all of it. One that folds to nothing
  (punctuation alone) is one shingle, its raw bytes: it meets documents of the same bytes and no others.
- Incremental: signatures and band hashes depend on the document and the parameters alone. Keep those of old runs,
  append the rows of new documents (`np.concatenate`) and give all to `transforms.components.edges_from_bands`: the
  result is that of one run over everything. Parameters must be the same.

Cost: 4 bytes per row and document of signature (448 for 14 bands of 8), 8 bytes per band; scratch of 1 MB however long
the document. About 200 MB/s per core with words, 130 with characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from transforms.folding import Table, fill_characters, fill_words, identity, table
from transforms.hashing import mix

if TYPE_CHECKING:
    from transforms.batch import Batch

_BASE = np.uint64(0xA0761D6478BD642F)  # of the polynomial over the hashes of a shingle's words; odd
_SHORT, _RAW, _BAND = np.uint64(0xE7037ED1A0B428DB), np.uint64(0x8EBC6AF09C88C6E3), np.uint64(0x589965CC75374CC3)
_S32 = np.uint64(32)
_HIGHEST = np.uint32(0xFFFFFFFF)
_UNITS = 4096  # words or characters hashed at a time, beside those carried over
_LANES = 32  # blocks of shingles are filled up to a multiple of this, which keeps the inner loop in vector registers


class MinHash(BaseModel):
    """Parameters. The defaults are those of FineWeb: 14 bands of 8 rows over 5-grams of folded words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ngram: int = Field(default=5, ge=1, le=1024, description="words or characters per shingle")
    unit: Literal["word", "character"] = "word"
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1, description="rows per band")
    seed: int = Field(default=1, ge=0, lt=2**64)
    normalise: bool = Field(default=True, description="fold case, accents, digits and punctuation")

    @classmethod
    def from_threshold(cls, threshold: float, permutations: int = 128, **parameters: object) -> MinHash:
        """Bands and rows by datasketch's optimiser: false positives and negatives about it weigh the same."""
        if not 0 < threshold < 1 or permutations < 2:
            raise ValueError(
                f"threshold={threshold}, permutations={permutations}: give 0 < threshold < 1 and 2 permutations or more"
            )
        from datasketch import MinHashLSH

        best = MinHashLSH(threshold=threshold, num_perm=permutations)
        return cls.model_validate({**parameters, "bands": best.b, "rows": best.r})

    @property
    def permutations(self) -> int:
        return self.bands * self.rows

    @property
    def threshold(self) -> float:
        """Similarity near which the chance to become a candidate rises most steeply: (1 / bands)^(1 / rows)."""
        return (1 / self.bands) ** (1 / self.rows)

    def recall(self, similarity: float) -> float:
        """Chance that two documents of this Jaccard similarity share a band."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def signatures(self, batch: Batch) -> np.ndarray:
        """uint32 [documents, bands * rows]."""
        return self._signed(batch)[0]

    def sketch(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(band hashes, content): uint64 [documents, bands] and uint64 [documents].

        content is the sum of a document's shingle hashes, repeats included, modulo 2^64: documents of the same shingles
        have the same, and others with a chance of 2^-64.
        """
        signatures, content = self._signed(batch)
        return _band_hashes(signatures, self.bands), content

    def _signed(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.arange(2 * self.permutations, dtype=np.uint64)
        multiplier, addend = _coefficients(np.uint64(self.seed), numbers).reshape(2, -1)
        words = self.unit == "word"
        return _signatures(batch.bytes, batch.offsets, *self._table(), words, self.ngram, multiplier, addend)

    def band_hashes(self, signatures: np.ndarray) -> np.ndarray:
        """uint64 [documents, bands]: hash of each band's rows and the band's number."""
        if signatures.shape[1:] != (self.permutations,) or signatures.dtype != np.uint32:
            raise ValueError(
                f"signatures are {signatures.dtype} {list(signatures.shape)}: {self.bands} bands of {self.rows} rows "
                f"need uint32 [documents, {self.permutations}]"
            )
        return _band_hashes(signatures, self.bands)

    def shingles(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(hashes, offsets): sorted distinct uint64 shingle hashes of document i at offsets[i]:offsets[i+1].

        At least one per document. Cost: 8 bytes per shingle, before repeats are dropped.
        """
        return _shingle_sets(batch.bytes, batch.offsets, *self._table(), self.unit == "word", self.ngram)

    def _table(self) -> Table:
        return table() if self.normalise else identity(self.unit == "word")


PRESETS = {
    "fineweb": MinHash(),  # Penedo et al. 2024, arXiv 2406.17557
    "curator": MinHash(ngram=24, unit="character", bands=20, rows=13, normalise=False),  # NeMo Curator's defaults
}


Sets = tuple[np.ndarray, np.ndarray]  # (hashes, offsets) as from `MinHash.shingles`


def jaccard(sets: Sets, u: np.ndarray, v: np.ndarray, others: Sets | None = None) -> np.ndarray:
    """Jaccard similarity, float64 [pairs], of the shingle sets of documents u and v; those of v may be in `others`.

    Meant for star edges to the smallest node of a bucket: one comparison per document and band however large the
    bucket. A pair costs the sum of both sizes, or far less if one is more than 16 times the other. A document unlike
    its bucket's smallest node is judged by its other buckets alone.
    """
    return _jaccard(*sets, u.astype(np.int64), *(others or sets), v.astype(np.int64))


@njit(cache=True, nogil=True)
def _coefficients(seed, numbers):  # type: ignore[no-untyped-def]
    """Odd multipliers, then addends, of the permutations x -> a * x + b modulo 2^32."""
    values = np.empty(len(numbers), np.uint32)
    for i in range(len(numbers)):
        values[i] = np.uint32(mix(mix(seed + _BASE) + numbers[i]) >> _S32)
        if i < len(numbers) // 2:
            values[i] |= np.uint32(1)
    return values


@njit(cache=True, nogil=True)
def roll(units, filled, n, out):  # type: ignore[no-untyped-def]
    """Hashes of the n-grams of units[:filled] into out; how many (0 if filled < n)."""
    count = max(0, filled - n + 1)
    if count == 0:
        return 0
    top = np.uint64(1)
    for _ in range(n - 1):
        top *= _BASE
    h = np.uint64(0)
    for j in range(n):
        h = h * _BASE + units[j]
    out[0] = mix(h)
    for i in range(1, count):
        h = (h - units[i - 1] * top) * _BASE + units[i + n - 1]
        out[i] = mix(h)
    return count


@njit(cache=True, nogil=True)
def _whole(text, begin, end, units, filled):  # type: ignore[no-untyped-def]
    """The one shingle of a document that is too short: of its units, or of its bytes where it folds to nothing."""
    if filled == 0:
        h = _RAW
        for i in range(begin, end):
            h = mix(h + np.uint64(text[i]))
        return mix(h)
    h = _SHORT
    for i in range(filled):
        h = h * _BASE + units[i]
    return mix(h)


@njit(cache=True, nogil=True)
def _block(text, begin, i, end, entries, pool, words, n, units, filled, owed, none_yet, out):  # type: ignore[no-untyped-def]
    """Hash the next block of shingles of text[begin:end], of which text[:i] is read, into out.

    Returns (next place, units carried over, whether a space is owed, shingles).
    """
    nowhere = np.empty(0, np.int64)
    if words:
        i, filled = fill_words(text, i, end, entries, pool, units, nowhere, nowhere, filled)
    else:
        i, filled, owed = fill_characters(text, i, end, entries, pool, units, filled, owed)
    count = roll(units, filled, n, out)
    if i >= end and none_yet and count == 0:
        out[0] = _whole(text, begin, end, units, filled)
        return i, filled, owed, 1
    if count:
        for j in range(n - 1):
            units[j] = units[count + j]
        filled = n - 1
    return i, filled, owed, count


@njit(cache=True, nogil=True)
def _signatures(text, offsets, entries, pool, words, n, multiplier, addend):  # type: ignore[no-untyped-def]
    result = np.full((len(offsets) - 1, len(multiplier)), _HIGHEST, np.uint32)
    content = np.zeros(len(offsets) - 1, np.uint64)
    units, shingles = np.empty(_UNITS + n, np.uint64), np.empty(_UNITS + n, np.uint64)
    keys = np.empty(_UNITS + n + _LANES, np.uint32)
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        i, filled, owed, none_yet = begin, 0, False, True
        while i < end or none_yet:
            i, filled, owed, count = _block(
                text, begin, i, end, entries, pool, words, n, units, filled, owed, none_yet, shingles
            )
            none_yet = none_yet and count == 0
            padded = (count + _LANES - 1) // _LANES * _LANES
            for j in range(count):
                content[document] += shingles[j]
            for j in range(padded):  # repeating the first shingle changes no minimum
                keys[j] = np.uint32(shingles[j if j < count else 0] >> _S32)
            _lower(result[document], keys, padded, multiplier, addend)
        content[document] = mix(content[document])
    return result, content


@njit(cache=True, nogil=True)
def _lower(row, keys, count, multiplier, addend):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        a, b, least = multiplier[j], addend[j], row[j]
        for i in range(count):
            least = min(least, np.uint32(np.uint32(a * keys[i]) + b))
        row[j] = least


@njit(cache=True, nogil=True)
def _band_hashes(signatures, bands):  # type: ignore[no-untyped-def]
    rows = signatures.shape[1] // bands
    result = np.empty((len(signatures), bands), np.uint64)
    for i in range(len(signatures)):
        for band in range(bands):
            h = mix(np.uint64(band) + _BAND)
            for j in range(band * rows, (band + 1) * rows):
                h = mix(h + np.uint64(signatures[i, j]))
            result[i, band] = h
    return result


@njit(cache=True, nogil=True)
def _shingle_sets(text, offsets, entries, pool, words, n):  # type: ignore[no-untyped-def]
    documents = len(offsets) - 1
    result = np.empty(len(text) + documents, np.uint64)  # untouched pages cost nothing
    bounds = np.zeros(documents + 1, np.int64)
    units, shingles = np.empty(_UNITS + n, np.uint64), np.empty(_UNITS + n, np.uint64)
    size = 0
    for document in range(documents):
        begin, end = offsets[document], offsets[document + 1]
        i, filled, owed, first = begin, 0, False, size
        while i < end or size == first:
            i, filled, owed, count = _block(
                text, begin, i, end, entries, pool, words, n, units, filled, owed, size == first, shingles
            )
            result[size : size + count] = shingles[:count]
            size += count
        size = first + _distinct(result[first:size])
        bounds[document + 1] = size
    return result[:size].copy(), bounds


@njit(cache=True, nogil=True)
def _distinct(values):  # type: ignore[no-untyped-def]
    """Sort in place and move the distinct values to the front; how many."""
    values.sort()
    size = 1
    for i in range(1, len(values)):
        if values[i] != values[i - 1]:
            values[size] = values[i]
            size += 1
    return size


@njit(cache=True, nogil=True)
def _jaccard(hashes, offsets, u, others, other_offsets, v):  # type: ignore[no-untyped-def]
    result = np.empty(len(u), np.float64)
    for i in range(len(u)):
        a, b = hashes[offsets[u[i]] : offsets[u[i] + 1]], others[other_offsets[v[i]] : other_offsets[v[i] + 1]]
        if len(a) > len(b):
            a, b = b, a
        if len(a) * 16 < len(b):
            common = 0
            for x in a:
                place = np.searchsorted(b, x)
                common += place < len(b) and b[place] == x
        else:
            common = _common(a, b)
        together = len(a) + len(b) - common
        result[i] = common / together if together else 1.0
    return result


@njit(cache=True, nogil=True)
def _common(a, b):  # type: ignore[no-untyped-def]
    i = j = common = 0
    while i < len(a) and j < len(b):
        common += a[i] == b[j]
        x, y = a[i], b[j]
        i += x <= y
        j += y <= x
    return common
