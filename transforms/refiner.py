"""A refiner without a language model: which lines of a page go, by what can be told of them and the lines around.

Two stages. A linear model of the words of a line (hashed words and pairs) gives every line a score; gradient-boosted
trees read that score, its means and peaks among the neighbours, and the features of `transforms.line_features`. Above a
threshold the line goes. What comes out are the edits of `transforms.programs`, as if a program had been written.

Cost: 19 MB/s of web pages per core (50 bytes to a line), half of it in 120 trees; about 700 bytes per line at work.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from transforms.batch import Batch
from transforms.line_features import (
    BITS,
    CONTEXT,
    SHAPES,
    Grams,
    Lines,
    filled_lines,
    line_context,
    line_grams,
    line_shapes,
)
from transforms.model_folder import read_card
from transforms.programs import Edits, no_edits
from transforms.text import inner

FILE = "model.npz"
WORDS = (
    "words", *(f"words, mean of {w} lines to each side" for w in (1, 3, 8, 20)), "words, most of 8 lines before",
    "words, most of 8 lines after", "words, running sum above its least",
)  # fmt: skip
FEATURES = (*SHAPES, *CONTEXT, *WORDS)
_MEANS, _PEAK = (1, 3, 8, 20), 8
NOWHERE = -9.0  # the most of no lines
_BLOCK = 64  # rows: their features stay in the cache while all trees read them


class Trees(NamedTuple):
    """Trees end to end; a leaf has feature -1. Up to the threshold a value goes to `first`, above to the node after."""

    feature: np.ndarray  # int32 [nodes]
    threshold: np.ndarray  # float64 [nodes]
    first: np.ndarray  # int32 [nodes]
    value: np.ndarray  # float64 [nodes], of a leaf
    roots: np.ndarray  # int32 [trees]


class Refiner(NamedTuple):
    """`words`: float64 [2 ** BITS], weight of each word or pair. `thresholds`: share of what must stay that does (text
    of a number, of the pages left out when it was fitted) -> score above which lines go."""

    words: np.ndarray
    trees: Trees
    thresholds: dict[str, float]

    def threshold(self, keep: float) -> float:
        """That of the least known share of at least `keep`."""
        known = sorted((float(share), value) for share, value in self.thresholds.items())
        return next((value for share, value in known if share >= keep - 1e-9), np.inf)

    def scores(self, batch: Batch) -> tuple[Lines, np.ndarray]:
        """The lines that are not blank and their scores, float64: log-odds that a line goes, higher for noise."""
        lines = filled_lines(batch)
        grams = line_grams(batch, lines)
        values = features(batch, lines, grams, word_scores(grams, self.words))
        return lines, tree_scores(self.trees, values)

    def edits(self, batch: Batch, threshold: float) -> Edits:
        """What goes (see `every_line`)."""
        lines, scores = self.scores(batch)
        gone = every_line(batch, lines, scores > threshold)
        return no_edits(batch)._replace(gone=gone)


def every_line(batch: Batch, lines: Lines, gone: np.ndarray) -> np.ndarray:
    """bool [lines of Batch.lines] of bool [lines that are not blank]: a blank line goes with the line before it, at the
    beginning with the one after."""
    found: np.ndarray = _every_line(gone, lines.number, lines.offsets, batch.lines.offsets)
    return found


def features(batch: Batch, lines: Lines, grams: Grams, words: np.ndarray) -> np.ndarray:
    """float32 [lines, len(FEATURES)]. words: float64 [lines], score of each line's words."""
    shapes = line_shapes(batch, lines)
    return np.hstack([shapes, line_context(shapes, lines, grams), word_context(words, lines)])


def word_scores(grams: Grams, weights: np.ndarray) -> np.ndarray:
    """float64 [lines]: sum of the weights of a line's words and pairs, over the root of their number."""
    found: np.ndarray = _word_scores(grams.place, grams.offsets, weights)
    return found


def word_context(words: np.ndarray, lines: Lines) -> np.ndarray:
    """float32 [lines, len(WORDS)]."""
    found: np.ndarray = _word_context(words, lines.offsets, np.array(_MEANS), len(WORDS))
    return found


def tree_scores(trees: Trees, values: np.ndarray) -> np.ndarray:
    """float64 [rows]: sum of the leaves that each row of float32 [rows, features] falls into, in the order of trees."""
    leaf, places = trees.feature < 0, np.arange(len(trees.feature), dtype=np.int32)
    feature, threshold = np.where(leaf, 0, trees.feature), np.where(leaf, np.inf, trees.threshold)
    first = np.where(leaf, places, trees.first)  # who has come to a leaf stays there
    levels = _levels(trees.feature, trees.first, trees.roots)
    found: np.ndarray = _tree_scores(feature, threshold, first, trees.value, trees.roots, levels, values)
    return found


def save(refiner: Refiner, folder: Path) -> None:
    """Write FILE; card.json is the fit's. Equal refiners give equal bytes."""
    thresholds = sorted((float(share), value) for share, value in refiner.thresholds.items())
    np.savez(
        folder / FILE,
        words=refiner.words.astype(np.float32),
        features=np.array(FEATURES),
        thresholds=np.array(thresholds, np.float64).reshape(-1, 2),
        **refiner.trees._asdict(),
    )


def load(folder: Path) -> Refiner:
    """Read a refiner.

    Raises:
        ValueError: there is none, it is damaged, or it is of other features than these.
    """
    try:
        read_card(folder)
        with np.load(folder / FILE, allow_pickle=False) as held:
            words, named, pairs = held["words"].astype(np.float64), held["features"].tolist(), held["thresholds"]
            trees = Trees(*(held[name] for name in Trees._fields))
        thresholds = {f"{share:g}": float(value) for share, value in pairs.tolist()}
    except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
        wanted = f"give a folder that the fit refiner made, with card.json and {FILE}"
        raise ValueError(f"no refiner at {folder} ({error!r}); {wanted}") from error
    if named != list(FEATURES):
        raise ValueError(f"{folder} is a refiner of other features than this version computes; fit it anew")
    _check(words, trees, folder)
    return Refiner(words, trees, thresholds)


def _check(words: np.ndarray, trees: Trees, folder: Path) -> None:
    """Every walk down a tree stays within it and ends: children come after their parent."""
    nodes = len(trees.feature)
    places = np.arange(nodes)
    whole = all(len(part) == nodes for part in trees[:4]) and len(trees.roots) > 0
    whole = whole and all(part.dtype == np.int32 for part in (trees.feature, trees.first, trees.roots))
    whole = whole and words.shape == (1 << BITS,) and bool(np.isfinite(words).all())
    whole = whole and bool((np.diff(trees.roots) > 0).all())
    whole = whole and bool(np.isfinite(trees.threshold).all() and np.isfinite(trees.value).all())
    if whole:
        inner_nodes = trees.feature >= 0
        first = trees.first[inner_nodes]
        whole = bool((first > places[inner_nodes]).all() and (first + 1 < nodes).all())
        whole = whole and bool((trees.feature < len(FEATURES)).all())
        whole = whole and bool(((trees.roots >= 0) & (trees.roots < nodes)).all())
    if not whole:
        raise ValueError(f"{folder / FILE} is damaged: its arrays do not make trees; fit it anew")


@njit(cache=True, nogil=True)
def _word_scores(place, offsets, weights):  # type: ignore[no-untyped-def]
    out = np.zeros(len(offsets) - 1)
    for i in range(len(out)):
        total = 0.0
        for k in range(offsets[i], offsets[i + 1]):
            total += weights[place[k]]
        out[i] = total / np.sqrt(max(1, offsets[i + 1] - offsets[i]))
    return out


@njit(cache=True, nogil=True)
def _word_context(words, offsets, means, width):  # type: ignore[no-untyped-def]
    out = np.zeros((len(words), width), np.float32)
    for d in range(len(offsets) - 1):
        _word_windows(words, offsets[d], offsets[d + 1], means, out)
    return out


@njit(cache=True, nogil=True)
def _word_windows(words, a, b, means, out):  # type: ignore[no-untyped-def]
    sums = np.zeros(b - a + 1)
    least = np.inf
    for i in range(a, b):
        sums[i - a + 1] = sums[i - a] + words[i]
        least = min(least, sums[i - a + 1])
        out[i, len(means) + 3] = sums[i - a + 1] - least
    for i in range(a, b):
        out[i, 0] = words[i]
        for w in range(len(means)):
            first, last = max(a, i - means[w]) - a, min(b, i + means[w] + 1) - a
            out[i, 1 + w] = (sums[last] - sums[first]) / (last - first)
        out[i, len(means) + 1] = _most(words, max(a, i - _PEAK), i)
        out[i, len(means) + 2] = _most(words, i + 1, min(b, i + 1 + _PEAK))


@inner
def _most(words, first, last):  # type: ignore[no-untyped-def]
    most = NOWHERE
    for i in range(first, last):
        most = max(most, words[i])
    return most


@njit(cache=True, nogil=True)
def _levels(feature, first, roots):  # type: ignore[no-untyped-def]
    """int64 [trees]: steps from a root to its lowest leaf."""
    level, out = np.zeros(len(feature), np.int64), np.zeros(len(roots), np.int64)
    tree = 0
    for node in range(len(feature)):
        while tree + 1 < len(roots) and roots[tree + 1] <= node:
            tree += 1
        out[tree] = max(out[tree], level[node])
        if feature[node] >= 0:
            level[first[node]] = level[first[node] + 1] = level[node] + 1
    return out


@njit(cache=True, nogil=True)
def _tree_scores(feature, threshold, first, value, roots, levels, rows):  # type: ignore[no-untyped-def]
    """All rows of a block go down a tree in step: no branch to guess, and rows do not wait for each other."""
    out, node = np.zeros(len(rows)), np.empty(_BLOCK, np.int32)
    for start in range(0, len(rows), _BLOCK):
        size = min(_BLOCK, len(rows) - start)
        for t in range(len(roots)):
            node[:] = roots[t]
            for _ in range(levels[t]):
                for i in range(size):
                    k = node[i]
                    node[i] = first[k] + (rows[start + i, feature[k]] > threshold[k])
            for i in range(size):
                out[start + i] += value[node[i]]
    return out


@njit(cache=True, nogil=True)
def _every_line(gone, number, offsets, every):  # type: ignore[no-untyped-def]
    out = np.zeros(every[-1], np.bool_)
    for d in range(len(every) - 1):
        k, now = offsets[d], False
        if k < offsets[d + 1]:
            now = gone[k]
        for i in range(every[d], every[d + 1]):
            if k < offsets[d + 1] and number[k] == i:
                now = gone[k]
                k += 1
            out[i] = now
    return out
