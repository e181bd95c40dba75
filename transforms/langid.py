"""langid: naive Bayes over byte n-grams that an automaton finds, for whole batches (Lui and Baldwin 2011, I11-1062;
2012, P12-3005). The model is the one of py3langid; the answers are the library's own, without its Python loop over
bytes.

Cost: bounded by `SAMPLE` bytes of a document, however long it is; about 13,000 documents/s and core of 1,000 characters
in 102 languages.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

PIECES = 3  # beginning, middle and end
SAMPLE = 1536  # bytes
SHORT = {"kik": "ki"}  # labels of the model that have a two-letter code


class Model(NamedTuple):
    """A multinomial naive Bayes model over the features that an automaton over bytes reports.

    rows: uint16 or uint32 [rows * 256], the next state for a row and a byte. row: [states], the row of a state.
    feature: int32 [states], what is seen on entering a state, or -1. weights: float32 [features, classes].
    prior: float32 [classes].
    """

    rows: np.ndarray
    row: np.ndarray
    feature: np.ndarray
    weights: np.ndarray
    prior: np.ndarray


@njit(cache=True, nogil=True)
def _samples(data: np.ndarray, offsets: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of at most `size` bytes whole; of longer ones PIECES pieces, spread evenly, a space between them."""
    documents, length = offsets.size - 1, size // PIECES
    out_offsets = np.zeros(documents + 1, np.int64)
    room = 0
    for d in range(documents):
        whole = offsets[d + 1] - offsets[d]
        room += whole if whole <= size else size + PIECES
    out, n = np.empty(room, np.uint8), 0
    for d in range(documents):
        start, stop = offsets[d], offsets[d + 1]
        pieces = 1 if stop - start <= size else PIECES
        for k in range(pieces):
            a = start + k * (stop - start - length) // (PIECES - 1)
            b = stop if pieces == 1 else a + length
            while a < b and data[a] & 0xC0 == 0x80:  # pieces begin and end between characters
                a += 1
            while a < b and b < stop and data[b] & 0xC0 == 0x80:
                b -= 1
            if k:
                out[n] = 32
                n += 1
            out[n : n + b - a] = data[a:b]
            n += b - a
        out_offsets[d + 1] = n
    return out[:n], out_offsets


def sample(data: np.ndarray, offsets: np.ndarray, size: int = SAMPLE) -> pa.LargeStringArray:
    """What the model sees of every document: at most about `size` bytes from its beginning, middle and end, in
    Unicode's NFC, and in lower case where all letters are capitals."""
    out, places = _samples(data, offsets, size)
    texts = pa.LargeStringArray.from_buffers(len(places) - 1, pa.py_buffer(places), pa.py_buffer(out))
    upper = pc.utf8_is_upper(texts)
    small = pl.Series(texts.filter(upper)).str.to_lowercase()  # knows the final sigma, as pyarrow does not
    texts = pc.replace_with_mask(texts, upper, small.to_arrow().cast(pa.large_string()))
    other = pc.invert(pc.string_is_ascii(texts))
    composed = pl.Series(texts.filter(other)).str.normalize("NFC")  # pyarrow's NFC does not compose
    return pc.replace_with_mask(texts, other, composed.to_arrow().cast(pa.large_string()))


@njit(cache=True, nogil=True)
def log_posteriors(
    data: np.ndarray,
    offsets: np.ndarray,
    rows: np.ndarray,
    row: np.ndarray,
    feature: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """float32 [documents, classes]: prior + Σ log(1 + count of a feature) * its weights; 0 where no feature is seen."""
    documents = offsets.size - 1
    out = np.zeros((documents, prior.size), np.float32)
    counts = np.zeros(len(weights), np.int32)
    seen = np.empty(len(weights), np.int32)
    for d in range(documents):
        state, n = 0, 0
        for i in range(offsets[d], offsets[d + 1]):
            state = rows[np.int64(row[state]) * 256 + data[i]]
            f = feature[state]
            if f >= 0:
                if counts[f] == 0:
                    seen[n] = f
                    n += 1
                counts[f] += 1
        scores = out[d]
        if n:
            scores[:] = prior
        for k in range(n):
            f = seen[k]
            factor, line = np.float32(np.log1p(counts[f])), weights[f]
            for c in range(prior.size):
                scores[c] += factor * line[c]
            counts[f] = 0
    return out


def probabilities(texts: pa.LargeStringArray, model: Model) -> np.ndarray:
    """float32 [documents, classes]: softmax of the posteriors over the square root of the text's bytes, as py3langid
    has it, so that long texts are not all certain. Uniform where no feature is seen."""
    places = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    scores = log_posteriors(data, places, *model)
    scores /= np.sqrt(np.maximum(np.diff(places), 1)).astype(np.float32)[:, None]
    np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
    return scores / scores.sum(axis=1, keepdims=True)


@cache
def load() -> tuple[list[str], Model]:
    """The codes of the model's classes and the model, from py3langid's wheel (0.4 s)."""
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model

    weights, prior, labels, rows, row, feature = load_model(MODEL_DIR / MODEL_FILE)
    arrays = (np.asarray(rows), np.asarray(row), np.asarray(feature, np.int32))
    given = np.ascontiguousarray(weights, np.float32), np.asarray(prior, np.float32)
    return [SHORT.get(label, label) for label in labels], Model(*arrays, *given)


def detect(texts: pa.LargeStringArray, labels: np.ndarray, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest label of every text and its probability; classes of one label (two scripts) are added up."""
    known, of_class = np.unique(labels, return_inverse=True)
    found = probabilities(texts, model)
    summed = np.zeros((len(texts), len(known)))
    for i, label in enumerate(of_class):
        summed[:, label] += found[:, i]
    best = summed.argmax(axis=1)
    return known[best], np.minimum(summed[np.arange(len(texts)), best], 1)
