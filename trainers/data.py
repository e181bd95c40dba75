"""Batches of packed rows whose content is a pure function of (corpus, seed, step): the only state is the step.

A pass takes every document as often as the mixture says. The k copies of a document are spread evenly: copy c has the
place (c + u) / k of the pass, u a hash of (seed, pass, document, copy), and documents go in order of their places. So
each stretch of a pass has the proportions of the whole and a repeat comes about an epoch later. Documents longer than
a row are split into pieces, none is truncated. Windows of WINDOW consecutive pieces are packed best-fit (fill about
99.8 %) and their rows shuffled; a document moves within its window at most.

Cost: 60 bytes of memory and about 1 µs per document and pass; a batch is one gather from the mapped tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainers.mixture import Corpus
from transforms.draws import mix64, seeded
from transforms.packing import pack, split_lengths

WINDOW = 4096


@dataclass(frozen=True)
class Batch:
    """Pieces of documents end to end, longest first, without padding."""

    inputs: np.ndarray  # int64 [tokens]
    targets: np.ndarray  # int64 [tokens], the token that follows each input in its document
    lengths: np.ndarray  # int64 [pieces]
    documents: np.ndarray  # int64 [pieces], place in the corpus
    weights: np.ndarray | None = None  # float32 [tokens], loss weight of each target; None: ones

    @property
    def weight(self) -> float:
        """Sum of the weights of all targets, by which the batch's loss is divided."""
        return float(len(self.targets) if self.weights is None else self.weights.sum(dtype=np.float64))

    @property
    def positions(self) -> np.ndarray:
        """int64 [tokens], 0 at the start of every piece."""
        first = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.inputs)) - np.repeat(first, self.lengths)

    def parts(self, tokens: int) -> list[Batch]:
        """The batch cut between pieces into parts of at most about `tokens` tokens, for gradient accumulation."""
        end = np.cumsum(self.lengths)
        part = (end - 1) // max(tokens, int(self.lengths.max(initial=1)))
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(end)]
        return [self.pieces(np.arange(a, b)) for a, b in pairwise(cuts) if b > a]

    def pieces(self, chosen: np.ndarray) -> Batch:
        """The batch of some of the pieces (int [n], their places), in the order given."""
        first = np.cumsum(self.lengths) - self.lengths
        length = self.lengths[chosen]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        place = np.repeat(first[chosen], length) + within
        weights = None if self.weights is None else self.weights[place]
        return Batch(self.inputs[place], self.targets[place], length, self.documents[chosen], weights)

    def share(self, rank: int, ranks: int) -> Batch:
        """What one of `ranks` processes takes: every so many-th piece. Pieces fall in length, so shares are alike."""
        return self if ranks == 1 else self.pieces(np.arange(rank, len(self.lengths), ranks))

    def trained(self) -> Batch:
        """The batch without the pieces whose targets all weigh nothing."""
        if self.weights is None:
            return self
        first = np.cumsum(self.lengths) - self.lengths
        return self.pieces(np.flatnonzero(np.add.reduceat(self.weights, first) > 0)) if len(first) else self


@dataclass(frozen=True)
class Plan:
    """The rows of one pass. Row r holds the pieces offsets[r]:offsets[r + 1]."""

    document: np.ndarray  # int64 [pieces]
    start: np.ndarray  # int64 [pieces], place in the corpus's tokens
    length: np.ndarray  # int32 [pieces]
    offsets: np.ndarray  # int64 [rows + 1]

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1


class Batches:
    """`batch(step)` for any step, in any order; passes follow each other without a seam.

    corpus: what to draw from. row_length: tokens of a row, the longest context. rows: rows of a batch.
    """

    def __init__(self, corpus: Corpus, row_length: int, rows: int, seed: int) -> None:
        if row_length < 2 or rows < 1:
            raise ValueError(f"row_length {row_length} and rows {rows}: give at least 2 and 1")
        self.corpus, self.row_length, self.rows, self.seed = corpus, row_length, rows, seed
        self._first_row = [0]  # of each pass that was planned so far, and of the next
        self._plans: dict[int, Plan] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, …): rows `step * rows` up to the next step's, counted through all passes."""
        row, stop = step * self.rows, (step + 1) * self.rows
        parts = []
        while row < stop:
            number = self._pass_of(row)
            plan, first = self._plan(number), self._first_row[number]
            last = min(stop - first, plan.rows)
            parts.append((plan, plan.offsets[row - first], plan.offsets[last]))
            row = first + last
        document, start, length = (
            np.concatenate([getattr(plan, field)[a:b] for plan, a, b in parts])
            for field in ("document", "start", "length")
        )
        return gather(self.corpus, document, start, length)

    def plan_report(self) -> dict[str, float | int]:
        """Of the first pass: pieces, rows, fill (share of the rows that holds tokens), documents split, truncated."""
        plan = self._plan(0)
        tokens = int(plan.length.sum())
        split = int(((self.corpus.length > self.row_length) & (self.corpus.copies > 0)).sum())
        fill = tokens / (plan.rows * self.row_length)
        return {"tokens": tokens, "pieces": len(plan.length), "rows": plan.rows, "fill": fill} | {
            "documents_split": split,
            "documents_truncated": 0,
        }

    def _pass_of(self, row: int) -> int:
        while self._first_row[-1] <= row:
            self._plan(len(self._first_row) - 1)
        return int(np.searchsorted(self._first_row, row, side="right")) - 1

    def _plan(self, number: int) -> Plan:
        if number not in self._plans:
            plan = plan_pass(self.corpus, self.row_length, self.seed, number)
            self._plans = {n: p for n, p in self._plans.items() if n == number - 1} | {number: plan}
            if number == len(self._first_row) - 1:
                self._first_row.append(self._first_row[-1] + plan.rows)
        return self._plans[number]


def gather(corpus: Corpus, document: np.ndarray, start: np.ndarray, length: np.ndarray) -> Batch:
    """Batch of the pieces `corpus.tokens[start:start + length]`, longest first (equal ones keep their order)."""
    order = np.argsort(-length.astype(np.int64), kind="stable")  # equal lengths side by side share one attention call
    document, start, length = document[order], start[order], length[order].astype(np.int64)
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    place = np.repeat(start, length) + within
    tokens = corpus.tokens
    weights = None if corpus.weights is None else corpus.weights[place].astype(np.float32)
    return Batch(tokens[place - 1].astype(np.int64), tokens[place].astype(np.int64), length, document, weights)


def plan_pass(corpus: Corpus, row_length: int, seed: int, number: int) -> Plan:
    """The rows of pass `number`: a pure function of its arguments and of the documents' keys, not of their order."""
    salt = seeded(seed % 2**64, np.array([number], np.uint64))
    parts = []
    for phase in np.unique(corpus.phase):
        documents = _order(corpus, np.flatnonzero(corpus.phase[corpus.source] == phase), salt)
        pieces = split_lengths(corpus.length[documents], row_length)
        owner = documents[pieces.document]
        start = corpus.start[owner] + pieces.start
        for a in range(0, len(pieces), WINDOW):
            window = slice(a, a + WINDOW)
            parts.append(_pack_window(owner[window], start[window], pieces.length[window], row_length, salt))
    sizes = np.concatenate([size for *_, size in parts])
    document, start, length = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Plan(document, start, length.astype(np.int32), np.concatenate([[0], np.cumsum(sizes)]))


def _order(corpus: Corpus, documents: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """The given documents, each as often as a pass takes it, in the order of the pass."""
    copies = corpus.copies[documents]
    document = np.repeat(documents, copies)
    copy = np.arange(len(document)) - np.repeat(np.cumsum(copies) - copies, copies)
    noise = mix64(corpus.key[document] ^ mix64(salt + copy.astype(np.uint64)))
    place = (copy + noise / 2.0**64) / np.repeat(copies, copies)
    return document[np.lexsort((corpus.key[document], noise, place))]


def _pack_window(
    document: np.ndarray, start: np.ndarray, length: np.ndarray, row_length: int, salt: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pieces in packed and shuffled order, and the number of pieces of each row."""
    packed = pack(length, row_length)
    sizes = np.diff(packed.offsets)
    shuffled = np.argsort(mix64(mix64(salt) + np.arange(len(sizes), dtype=np.uint64)), kind="stable")
    before = np.repeat(packed.offsets[:-1][shuffled], sizes[shuffled])
    within = np.arange(len(length)) - np.repeat(np.cumsum(sizes[shuffled]) - sizes[shuffled], sizes[shuffled])
    order = packed.order[before + within]
    return document[order], start[order], length[order], sizes[shuffled]
