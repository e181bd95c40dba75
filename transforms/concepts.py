"""What a document is about, and whether two documents may stand together: key phrases, and a graph of which of them
have been seen in one document.

Phrases are those of RAKE (Rose et al. 2010, "Automatic keyword extraction from individual documents"): runs of words
between function words, punctuation and line ends, each scored by the sum over its words of degree / frequency in the
document. The function words are English; in other languages only runs that punctuation ends are phrases.

The graph is PASER's (He et al. 2025, arXiv 2502.12594): a document contradicts it if two of its concepts are known and
were never seen in one document.

Cost: with the words 19 MB/s per core; 5 concepts are 40 bytes per document, and 120 in the graph for each that it takes
in.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.batch import Batch
from transforms.characters import ALPHABETIC, classes
from transforms.hashing import mix
from transforms.text import flags_at, hash_pieces, inner

LONGEST = 4  # words; longer runs are lists or another language
AT_ONCE = 1000  # documents
FUNCTION_WORDS = """
a about above across after again against all almost along already also although always am among an and another any
anybody anyone anything are around as at away back be became because become been before behind being below beside
besides between beyond both but by came can cannot come could did do does doing done down during each either else enough
etc even ever every everybody everyone everything except few first for from further gave get gets getting give given
gives go goes going gone got had has have having he hence her here hers herself him himself his how however i if in
indeed instead into is it its itself just keep kept last least less let like made make makes making many may maybe me
might mine more most much must my myself near need neither never next no nobody none nor not nothing now of off often on
once one only onto or other others otherwise ought our ours ourselves out over own per perhaps please put quite rather
really said same say says see seem seemed seems seen several shall she should since so some somebody someone something
somewhat soon still such take taken than that the their theirs them themselves then there therefore these they thing
things this those though three through throughout thus to together too took toward towards two under unless until up
upon us use used uses using usually very via was way we well went were what whatever when where whereas whether which
while who whoever whole whom whose why will with within without would yes yet you your yours yourself yourselves
n't 's 'd 'll 'm 're 've
"""


@functools.cache
def function_words() -> np.ndarray:
    """uint64, ascending: their hashes, as `Batch.word_hashes` has them."""
    words = [word.encode() for word in FUNCTION_WORDS.split()]
    ends = np.cumsum([len(word) for word in words])
    starts = np.concatenate([[0], ends[:-1]])
    return np.unique(hash_pieces(np.frombuffer(b"".join(words), np.uint8), starts, ends))


def concepts(texts: pa.Array | pa.ChunkedArray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of the key phrases of each text, its `most` best in order of score, then of place; and int64
    [texts + 1], where those of each text begin and end. Texts: strings, no nulls; case is folded.
    """
    parts, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for at in range(0, len(texts), AT_ONCE):
        lowered = pc.utf8_lower(texts.slice(at, AT_ONCE).cast(pa.large_string()))
        lowered = lowered.combine_chunks() if isinstance(lowered, pa.ChunkedArray) else lowered
        batch = Batch(pa.record_batch({"text": lowered}))
        spans = batch.words
        where = (batch.bytes, spans.start, spans.end, spans.offsets, batch.word_hashes)
        found, count = _concepts(*where, function_words(), classes(), most)
        parts.append(found)
        counts.append(count)
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)


class Graph:
    """The concepts of documents that were taken in, in the order of a walk, and which of them stood in one document.

    Args:
        concepts, offsets: of all documents that may be walked (see `concepts`).
        most: documents that may be taken in.
    """

    def __init__(self, concepts: np.ndarray, offsets: np.ndarray, most: int) -> None:
        self._concepts, self._offsets = concepts, offsets
        sizes = np.diff(offsets)
        entries = int(np.sort(sizes * (sizes + 1) // 2)[::-1][:most].sum())
        self._held = np.zeros(1 << max(4, (2 * entries).bit_length()), np.uint64)  # open-addressed, 0 where free

    def walk(self, start: int, stop: int, most: int, taken: np.ndarray) -> int:
        """Take in documents from `start` on, before `stop`, that contradict nothing, `most` at most; mark them in
        `taken` (bool [documents]). Returns the place after the last one looked at.
        """
        return int(_walk(self._concepts, self._offsets, start, stop, most, self._held, taken))

    def edges(self) -> np.ndarray:
        """uint64, ascending: hashes of the concepts, and of the pairs of those that stood in one document."""
        return np.sort(self._held[self._held != 0])


def agree(concepts: np.ndarray, offsets: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """bool [documents]: whether each contradicts nothing of a graph, given by its `Graph.edges`."""
    found: np.ndarray = _agree(concepts, offsets, edges)
    return found


@njit(cache=True, nogil=True)
def _concepts(data, start, end, offsets, hashes, function_words, flags, most):  # type: ignore[no-untyped-def]
    """Concepts of the documents end to end, and how many each has."""
    documents = len(offsets) - 1
    result, counts = np.empty(documents * most, np.uint64), np.zeros(documents, np.int64)
    filled = 0
    for d in range(documents):
        first, last = offsets[d], offsets[d + 1]
        words, sizes = np.empty(last - first, np.uint64), np.empty(last - first, np.int64)
        runs = _runs(data, start, end, hashes, first, last, function_words, flags, words, sizes)
        weight = _weights(words[: sizes[:runs].sum()], sizes[:runs])
        phrase, score = np.empty(runs, np.uint64), np.empty(runs, np.float64)
        at = 0
        for r in range(runs):
            phrase[r], score[r] = np.uint64(sizes[r]), 0.0
            for i in range(at, at + sizes[r]):
                phrase[r] = mix(phrase[r] ^ words[i])
                score[r] -= weight[i]
            at += sizes[r]
        for r in np.argsort(score, kind="mergesort"):  # stable: of equal scores the first
            if counts[d] == most:
                break
            known = False
            for i in range(filled, filled + counts[d]):
                known = known or result[i] == phrase[r]
            if not known:
                result[filled + counts[d]] = phrase[r]
                counts[d] += 1
        filled += counts[d]
    return result[:filled].copy(), counts


@njit(cache=True, nogil=True)
def _runs(data, start, end, hashes, first, last, function_words, flags, words, sizes):  # type: ignore[no-untyped-def]
    """Writes the hashes of the words of a document's runs, and the runs' sizes; returns how many runs there are."""
    runs, kept, size = 0, 0, 0
    for i in range(first, last + 1):
        inside = i < last and _speaks(data, start[i], end[i], hashes[i], function_words, flags)
        parted = not inside or (size and _breaks(data, end[i - 1], start[i]))
        if parted and size:
            if size <= LONGEST:
                sizes[runs] = size
                runs += 1
            else:
                kept -= size
            size = 0
        if inside:
            words[kept] = hashes[i]
            kept += 1
            size += 1
    return runs


@inner
def _speaks(data, start, end, key, function_words, flags):  # type: ignore[no-untyped-def]
    """Whether a word may stand in a phrase: of more than a byte, begun by a letter, and no function word."""
    if end - start < 2 or flags_at(data, start, end, flags)[0] & ALPHABETIC == 0:
        return False
    return not _among(function_words, key)


@inner
def _breaks(data, start, end):  # type: ignore[no-untyped-def]
    """Whether a line ends between two words."""
    while start < end and data[start] != 10 and data[start] != 13:
        start += 1
    return start < end


@njit(cache=True, nogil=True)
def _weights(words, sizes):  # type: ignore[no-untyped-def]
    """float64 [words]: degree / frequency of each word of the runs; its degree counts the words of all its runs."""
    degree, weight = np.repeat(sizes, sizes).astype(np.float64), np.empty(len(words), np.float64)
    order = np.argsort(words, kind="mergesort")
    a = 0
    for i in range(1, len(order) + 1):
        if i < len(order) and words[order[i]] == words[order[a]]:
            continue
        total = 0.0
        for j in range(a, i):
            total += degree[order[j]]
        for j in range(a, i):
            weight[order[j]] = total / (i - a)
        a = i
    return weight


@inner
def _among(ascending, key):  # type: ignore[no-untyped-def]
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low < len(ascending) and ascending[low] == key


@inner
def _pair(a, b):  # type: ignore[no-untyped-def]
    """The key of two concepts, whatever their order; of one concept with itself it is its own."""
    if a == b:
        return max(a, np.uint64(1))
    return max(mix(min(a, b) ^ mix(max(a, b))), np.uint64(1))


@inner
def _slot(held, key):  # type: ignore[no-untyped-def]
    """Where a key stands, or would."""
    slot = key & np.uint64(len(held) - 1)
    while held[slot] and held[slot] != key:
        slot = (slot + np.uint64(1)) & np.uint64(len(held) - 1)
    return slot


@njit(cache=True, nogil=True)
def _walk(concepts, offsets, start, stop, most, held, taken):  # type: ignore[no-untyped-def]
    count, d = 0, start
    while d < stop and count < most:
        own = concepts[offsets[d] : offsets[d + 1]]
        fits = True
        for i in range(len(own)):
            for j in range(i):
                if held[_slot(held, _pair(own[i], own[i]))] and held[_slot(held, _pair(own[j], own[j]))]:
                    fits = fits and held[_slot(held, _pair(own[i], own[j]))] != 0
        if fits:
            for i in range(len(own)):
                for j in range(i + 1):
                    key = _pair(own[i], own[j])
                    held[_slot(held, key)] = key
            taken[d] = True
            count += 1
        d += 1
    return d


@njit(cache=True, nogil=True)
def _agree(concepts, offsets, edges):  # type: ignore[no-untyped-def]
    result = np.ones(len(offsets) - 1, np.bool_)
    for d in range(len(result)):
        own = concepts[offsets[d] : offsets[d + 1]]
        for i in range(len(own)):
            for j in range(i):
                if _among(edges, _pair(own[i], own[i])) and _among(edges, _pair(own[j], own[j])):
                    result[d] = result[d] and _among(edges, _pair(own[i], own[j]))
    return result
