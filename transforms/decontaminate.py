"""Evaluation items that stand in training documents, found by n-grams of folded words (Brown et al. 2020, appendix C).

Words are those of `transforms.folding`, so case, punctuation, accents and the digits of numbers do not hide a match. An
item of n words or more is looked for by all its n-grams; one of fewer, down to `shortest`, as a whole; a shorter one is
not looked for, since common phrases would match it, and is listed in `Index.too_short`. The defaults, 13 and 8 words,
are the bounds of the paper.

Cost: 16 bytes per n-gram of the items and 2 for the filter; about 50 MB/s of documents per core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numba import njit

from transforms.cut import slices
from transforms.folding import Words, folded_words
from transforms.minhash import roll

if TYPE_CHECKING:
    from transforms.batch import Batch

MATCH = pa.struct([("item", pa.large_string()), ("share", pa.float64()), ("ngram", pa.large_string())])
FIELDS = pa.struct([("overlap", pa.float64()), ("matches", pa.list_(MATCH))])
_ONE, _SIX, _LOW6 = np.uint64(1), np.uint64(6), np.uint64(63)


@dataclass(frozen=True)
class Index:
    """N-grams of evaluation items; make it with `build`."""

    ids: pa.Array  # of the items
    too_short: pa.Array  # ids of the items that are not looked for
    lengths: tuple[int, ...]  # words per n-gram
    gram: np.ndarray  # uint64 [n-grams], sorted, distinct
    offsets: np.ndarray  # int64 [n-grams + 1]: the items that hold n-gram i are item[offsets[i]:offsets[i + 1]]
    item: np.ndarray  # int64
    grams_of_item: np.ndarray  # int64 [items]: distinct n-grams
    filter: np.ndarray  # uint64, one bit per slot of hashes: whether an n-gram falls into it

    def match(self, batch: Batch) -> pa.StructArray:
        """`FIELDS` per document. overlap: share of its words inside matched n-grams. matches: one entry per item found,
        ordered as the items are: its id, the share of its distinct n-grams that the document holds, and the text of the
        first of them in the document."""
        words = folded_words(batch)
        document, place, gram, length = self._hits(words)
        covered = _covered(place, place + length, len(words.hash))
        total = np.add.reduceat(np.append(covered, 0), words.offsets[:-1]) if len(batch) else np.empty(0)
        count = np.diff(words.offsets)
        overlap = np.where(count > 0, total, 0) / np.maximum(count, 1)
        owner, matches = self._matches(batch, words, document, place, gram, length)
        bounds = np.searchsorted(owner, np.arange(len(batch) + 1)).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(bounds), matches)
        return pa.StructArray.from_arrays([pa.array(overlap), lists], fields=list(FIELDS))

    def _hits(self, words: Words) -> tuple[np.ndarray, ...]:
        """(document, place of the first word, number of the n-gram, words) of every matched n-gram."""
        found = []
        for length in self.lengths:
            key, document, place = _grams(words.hash, words.offsets, length, self.filter)
            at = np.searchsorted(self.gram, key)
            true = np.flatnonzero(self.gram[np.minimum(at, len(self.gram) - 1)] == key)
            found.append((document[true], place[true], at[true], np.full(len(true), length)))
        if not found:
            return (np.empty(0, np.int64),) * 4
        return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))

    def _matches(
        self, batch: Batch, words: Words, document: np.ndarray, place: np.ndarray, gram: np.ndarray, length: np.ndarray
    ) -> tuple[np.ndarray, pa.StructArray]:
        """Documents, and a `MATCH` for each, of every (document, item) pair, sorted."""
        fan = self.offsets[gram + 1] - self.offsets[gram]
        hit = np.repeat(np.arange(len(gram)), fan)
        within = np.arange(len(hit)) - np.repeat(np.cumsum(fan) - fan, fan)
        item = self.item[self.offsets[gram[hit]] + within]
        order = np.lexsort((place[hit], gram[hit], item, document[hit]))
        hit, item = hit[order], item[order]
        new_pair = _changes(document[hit], item)
        pair = np.cumsum(new_pair) - 1
        distinct = np.bincount(pair[_changes(document[hit], item, gram[hit])], minlength=new_pair.sum())
        begin = np.flatnonzero(new_pair)
        share = distinct / self.grams_of_item[item[begin]]
        first = hit[np.lexsort((place[hit], pair))][begin]
        text = slices(batch, words.start[place[first]], words.end[place[first] + length[first] - 1])
        ids = self.ids.take(pa.array(item[begin])).cast(pa.large_string())
        return document[hit[begin]], pa.StructArray.from_arrays([ids, pa.array(share), text], fields=list(MATCH))


def build(items: Batch, ids: pa.Array, n: int = 13, shortest: int = 8) -> Index:
    """Index of evaluation items: their texts as a batch, and one id (string) for each.

    Raises ValueError unless 1 <= shortest <= n and every item has an id.
    """
    if not 1 <= shortest <= n or len(ids) != len(items) or ids.null_count:
        raise ValueError(
            f"n={n}, shortest={shortest}, {len(items)} items, {len(ids)} ids of which {ids.null_count} null: give "
            "1 <= shortest <= n and an id for every item"
        )
    words = folded_words(items)
    count = np.diff(words.offsets)
    keys, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    lengths = [length for length in range(shortest, n) if (count == length).any()] + [n] * bool((count >= n).any())
    for length in lengths:
        key, item, _ = _grams(words.hash, words.offsets, length, np.empty(0, np.uint64))
        whole = (count[item] == length) | (length == n)
        keys.append(key[whole])
        owners.append(item[whole])
    key, item = np.concatenate(keys), np.concatenate(owners)
    order = np.lexsort((item, key))
    key, item = key[order], item[order]
    distinct = _changes(key, item)
    key, item = key[distinct], item[distinct]
    first = np.flatnonzero(_changes(key))
    return Index(
        ids=ids,
        too_short=ids.filter(pa.array(count < shortest)),
        lengths=tuple(lengths),
        gram=key[first],
        offsets=np.append(first, len(key)),
        item=item,
        grams_of_item=np.bincount(item, minlength=len(items)),
        filter=_filter(key[first]),
    )


def _changes(*columns: np.ndarray) -> np.ndarray:
    """bool [rows]: rows that differ from the one before in any column."""
    result = np.zeros(len(columns[0]), bool)
    result[:1] = True
    for column in columns:
        result[1:] |= column[1:] != column[:-1]
    return result


def _covered(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """bool [size]: places inside any of the spans."""
    change = np.bincount(start, minlength=size + 1) - np.bincount(end, minlength=size + 1)
    return np.cumsum(change)[:size] > 0


def _filter(grams: np.ndarray) -> np.ndarray:
    """One bit per slot, 16 slots or more per n-gram."""
    bits = max(6, (16 * len(grams)).bit_length())
    result = np.zeros(1 << (bits - 6), np.uint64)
    slot = grams >> np.uint64(64 - bits)
    np.bitwise_or.at(result, slot >> _SIX, _ONE << (slot & _LOW6))
    return result


@njit(cache=True, nogil=True)
def _grams(words, offsets, n, allowed):  # type: ignore[no-untyped-def]
    """(hash, document, place) of the n-grams that pass the filter, or of all of them if it is empty."""
    longest = 0
    for d in range(len(offsets) - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    scratch = np.empty(longest, np.uint64)
    key, document, place = np.empty(1024, np.uint64), np.empty(1024, np.int64), np.empty(1024, np.int64)
    bits = 6
    while (len(allowed) << 6) > (1 << bits):
        bits += 1
    shift = np.uint64(64 - bits)
    size = 0
    for d in range(len(offsets) - 1):
        count = roll(words[offsets[d] : offsets[d + 1]], offsets[d + 1] - offsets[d], n, scratch)
        for i in range(count):
            slot = scratch[i] >> shift
            if len(allowed) and not allowed[slot >> _SIX] & (_ONE << (slot & _LOW6)):
                continue
            if size == len(key):
                key = np.append(key, np.empty(size, np.uint64))
                document = np.append(document, np.empty(size, np.int64))
                place = np.append(place, np.empty(size, np.int64))
            key[size], document[size], place[size] = scratch[i], d, offsets[d] + i
            size += 1
    return key[:size], document[:size], place[:size]
