"""Semantic duplicates: embeddings, spherical k-means, and a cosine threshold inside each cluster.

The method is SemDeDup (Abbas et al. 2023, arXiv 2303.09540).

Vectors are worked on as 16-bit integers (`quantise`), whose products BLAS adds up exactly in float64. So neither the
order of the documents nor the way they are cut into blocks can change a bit of the result.

Cost, of the hashing encoder: about 45 MB/s per core. Of a k-means round over n documents: 512 n k operations, 512 bytes
per document (the vectors may be a memory map) and 128 MB. Of `duplicates`: 512 operations per pair of different vectors
inside a cluster, 2 KB per document of the largest one; clusters should stay near 10,000 documents: k = n / 10,000.
"""

from __future__ import annotations

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from transforms.folding import folded_words
from transforms.hashing import mix
from transforms.minhash import roll
from transforms.model_folder import ENCODER, check_model_folder, files_state, load_model

if TYPE_CHECKING:
    from transforms.batch import Batch

SCALE = 32767
_SEGMENTS, _WIDTH = 8, 32  # a feature moves one coordinate in each segment
_ROWS, _COLUMNS = 1024, 8192  # of one block of similarities: 64 MB


class HashingEncoder(BaseModel):
    """Words and word pairs, weighted by the square root of their count, in a sparse random projection to 256 numbers.

    Every feature adds or subtracts its weight at 8 places that its hash chooses (Kane and Nelson 2014, "Sparser
    Johnson-Lindenstrauss transforms"). Needs no model; tells texts on the same matter apart by their wording only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = Field(default=0, ge=0, lt=2**64)

    def encode(self, batch: Batch) -> np.ndarray:
        """float32 [documents, 256], of length 1; zeros for documents without words."""
        words = folded_words(batch)
        return _encode(words.hash, words.offsets, np.uint64(self.seed))


@njit(cache=True, nogil=True)
def _encode(words, offsets, seed):  # type: ignore[no-untyped-def]
    result = np.zeros((len(offsets) - 1, _SEGMENTS * _WIDTH), np.float32)
    total = np.empty(_SEGMENTS * _WIDTH, np.float64)
    for d in range(len(offsets) - 1):
        own = words[offsets[d] : offsets[d + 1]]
        features = np.empty(2 * len(own), np.uint64)
        size = roll(own, len(own), 1, features)
        size += roll(own, len(own), 2, features[size:])
        features[:size].sort()
        total[:] = 0
        first = 0
        for i in range(1, size + 1):
            if i < size and features[i] == features[first]:
                continue
            places, weight = mix(features[first] ^ mix(seed + np.uint64(1))), np.sqrt(i - first)
            for segment in range(_SEGMENTS):
                at = segment * _WIDTH + np.int64(places & np.uint64(_WIDTH - 1))
                total[at] += weight if places & np.uint64(128) else -weight
                places >>= np.uint64(8)
            first = i
        length = 0.0
        for value in total:
            length += value * value
        if length > 0:
            result[d] = total / np.sqrt(length)
    return result


class TransformerEncoder(BaseModel):
    """A transformers or sentence-transformers encoder from a local folder, safetensors only, no remote code.

    Mean over tokens, or the first token where the folder's `1_Pooling` says so. Texts are cut at `max_tokens`. Raises
    ValueError for a pooling that is neither, and if the folder holds no whole model (see `check_model_folder`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path
    max_tokens: int = Field(default=512, ge=1)
    device: str = "cpu"

    def pooling(self) -> str:
        file = self.folder / "1_Pooling" / "config.json"
        if not file.exists():
            return "mean"
        config = json.loads(file.read_text())
        chosen = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
        chosen |= {config["pooling_mode"]} if "pooling_mode" in config else set()
        known = {"mean_tokens": "mean", "mean": "mean", "cls_token": "first", "cls": "first"}
        chosen = {known.get(name, name) for name in chosen & known.keys() or chosen - {"include_prompt"}}
        if len(chosen) != 1 or not chosen <= {"mean", "first"}:
            raise ValueError(f"{file} asks for pooling {sorted(chosen)}: expected the mean of tokens or the first one")
        return chosen.pop()

    def encode(self, batch: Batch) -> np.ndarray:
        """float32 [documents, hidden size], of length 1; zeros for documents without tokens."""
        import torch

        tokenizer, model = _load(self.folder, self.device, files_state(self.folder))
        limit = min(self.max_tokens, tokenizer.model_max_length, model.config.max_position_embeddings)
        texts = batch.text.to_pylist()  # the tokenizer takes no other form
        rows = tokenizer(texts, truncation=True, max_length=limit)["input_ids"] if texts else []
        result = np.zeros((len(batch), model.config.hidden_size), np.float32)
        mean = self.pooling() == "mean"
        for some in _alike([len(row) for row in rows]):
            tokens = torch.zeros((len(some), len(rows[some[-1]])), dtype=torch.long, device=self.device)
            mask = torch.zeros_like(tokens)
            for i, document in enumerate(some):
                tokens[i, : len(rows[document])] = torch.tensor(rows[document])
                mask[i, : len(rows[document])] = 1
            with torch.inference_mode():
                hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            pooled = (hidden * mask[:, :, None]).sum(1) if mean else hidden[:, 0]
            result[some] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return result


@functools.lru_cache(maxsize=1)
def _load(folder: Path, device: str, files: tuple[Any, ...]) -> tuple[Any, Any]:
    """Tokenizer and model, once per process and state of the folder's files."""
    from transformers import AutoTokenizer

    check_model_folder(folder, ENCODER)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, _ = load_model("AutoModel", folder, new_head=True)  # poolers are not asked
    return tokenizer, model.to(device).eval()


def _alike(lengths: list[int], budget: int = 16_384) -> list[np.ndarray]:
    """Documents with tokens, in groups of like length whose padded size is within the budget, the longest last."""
    order = np.argsort(lengths, kind="stable")
    order = order[np.array(lengths, np.int64)[order] > 0]
    groups, first = [], 0
    for i in range(len(order)):
        if i + 1 == len(order) or (i + 2 - first) * lengths[order[i + 1]] > budget:
            groups.append(order[first : i + 1])
            first = i + 1
    return groups


def quantise(vectors: np.ndarray) -> np.ndarray:
    """int16 [documents, dimensions] of vectors of length 1 (or 0): cosines are then off by less than 0.0002."""
    return np.rint(vectors * SCALE).astype(np.int16)


def initial_centroids(vectors: np.ndarray, draw: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(vectors, draws) of the k different non-zero vectors of lowest draw, fewer if there are no more.

    vectors: int16 [documents, dimensions]; draw: uint64 [documents], uniform and all different (a hash of the seed and
    the document's name). Results of several shards, concatenated, go through it again: the outcome is that of all
    documents at once.
    """
    chosen: dict[bytes, int] = {}
    for i in np.argsort(draw, kind="stable"):
        if len(chosen) == k:
            break
        if vectors[i].any():
            chosen.setdefault(vectors[i].tobytes(), int(i))
    some = np.fromiter(chosen.values(), np.int64, len(chosen))
    return vectors[some], draw[some]


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Number of each vector's most similar centroid, the lowest among equals: int64 [documents]."""
    result = np.zeros(len(vectors), np.int64)
    columns = centroids.astype(np.float64).T
    rows = max(1, _ROWS * _COLUMNS // max(1, len(centroids)))
    for start in range(0, len(vectors), rows):
        result[start : start + rows] = (vectors[start : start + rows].astype(np.float64) @ columns).argmax(axis=1)
    return result


def cluster_sums(vectors: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """int64 [k, dimensions]: sums of each cluster's vectors. Those of shards add up."""
    sums = np.zeros((k, vectors.shape[1]), np.int64)
    order = np.argsort(labels, kind="stable")
    for start in range(0, len(order), _COLUMNS):
        some = order[start : start + _COLUMNS]
        label = labels[some]
        first = np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]]))
        sums[label[first]] += np.add.reduceat(vectors[some].astype(np.int64), first, axis=0)
    return sums


def move(centroids: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Centroids (int16) in the direction of the sums; those without documents stay."""
    length = np.sqrt((sums.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.where(length > 0, quantise(sums / np.maximum(length, 1)), centroids)


def kmeans(vectors: np.ndarray, draw: np.ndarray, k: int, rounds: int = 20) -> np.ndarray:
    """Centroids, int16 [k or fewer, dimensions], by Lloyd's rounds until nothing moves or `rounds` are done.

    vectors: int16 [documents, dimensions]; draw: uint64 [documents]. Over shards: `initial_centroids`, then rounds of
    `nearest`, `cluster_sums`, added up, and `move`.
    """
    if k < 1 or rounds < 1:
        raise ValueError(f"k={k}, rounds={rounds}: both must be 1 or more")
    centroids, _ = initial_centroids(vectors, draw, k)
    for _ in range(rounds if len(centroids) else 0):
        moved = move(centroids, cluster_sums(vectors, nearest(vectors, centroids), len(centroids)))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def duplicates(vectors: np.ndarray, labels: np.ndarray, rank: np.ndarray, threshold: float) -> np.ndarray:
    """The document that stands for each: int64 [documents]. It is its own where it stays.

    vectors: int16 [documents, dimensions]; labels: integers [documents], from `nearest`; rank: int64 [documents], all
    different, the best document lowest (`transforms.components.ranks` of minus the priority, id, …). A document goes if
    a better one of its cluster has a cosine of at least `threshold` to it, whether that one stays or not, as in the
    paper; it joins the best such one's group. Documents whose vector is zero stay.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: give a cosine above 0 and at most 1")
    result = np.arange(len(vectors))
    order = np.lexsort((rank, labels))
    bounds = np.flatnonzero(np.diff(labels[order], prepend=-1, append=-1))
    for first, last in pairwise(bounds):
        members = order[first:last]
        result[members] = members[_representatives(vectors[members], threshold)]
    return result


def _representatives(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Of vectors from best to worst: the place of the one that stands for each."""
    rows = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.itemsize * vectors.shape[1]))).ravel()
    _, first, same = np.unique(rows, return_index=True, return_inverse=True)
    different = np.sort(first)  # equal vectors are dealt with here, so that a crowd of copies costs nothing
    best = np.arange(len(different))
    values = vectors[different].astype(np.float64)
    length = np.sqrt((values**2).sum(axis=1))
    for start in range(0, len(different), _ROWS):
        block = np.arange(start, min(start + _ROWS, len(different)))
        for column in range(0, block[-1] + 1, _COLUMNS):
            others = np.arange(column, min(column + _COLUMNS, block[-1] + 1))
            near = values[block] @ values[others].T >= threshold * np.outer(length[block], length[others])
            near &= (others < block[:, None]) & (length[block, None] > 0) & (length[others] > 0)
            found = near.any(axis=1) & (best[block] == block)
            best[block[found]] = others[near[found].argmax(axis=1)]
    while not np.array_equal(best[best], best):
        best = best[best]
    group = np.where(length > 0, different[best], -1)[np.searchsorted(different, first[same])]
    return np.where(group >= 0, group, np.arange(len(vectors)))
