"""Batches of packed rows whose content is a pure function of (corpus, seed, step): the only state is the step.

A pass goes through the phases of the mixture and takes every document as often as they say. The k copies of a document
in a phase are spread evenly: copy c has the place (c + u) / k of the phase, u a hash of (seed, pass, document, copy),
and documents go in order of their places. So each stretch of a phase has the proportions of the whole and a repeat
comes about an epoch later. Documents longer than a row are split into pieces, unless the format says to truncate or to
drop them; besides, the one of each source is truncated with which a phase has given the tokens asked of it. Windows of
WINDOW consecutive pieces are packed best-fit (fill about 99.8 %) and their rows shuffled; a document moves within its
window at most. A row holds pieces of one phase, a batch may hold rows of two.

Cost: 60 bytes of memory and about 1 µs per document and pass; a batch is one gather from the mapped tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from trainers.mixture import Corpus
from trainers.phases import Phase
from transforms.draws import mix64, seeded
from transforms.packing import Pieces, pack, split_lengths

WINDOW = 4096


@dataclass(frozen=True)
class Batch:
    """Pieces of documents end to end, longest first, without padding."""

    inputs: np.ndarray  # int64 [tokens]
    targets: np.ndarray  # int64 [tokens], the token that follows each input in its document
    lengths: np.ndarray  # int64 [pieces]
    documents: np.ndarray  # int64 [pieces], place in the corpus
    weights: np.ndarray | None = None  # float32 [tokens], loss weight of each target; None: ones

    @classmethod
    def nothing(cls) -> Batch:
        """One token that weighs nothing."""
        one = np.zeros(1, np.int64)
        return cls(one, one, one + 1, one, np.zeros(1, np.float32))

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

    def equal(self) -> Batch:
        """The batch with the weights of each piece divided by their sum: a piece weighs 1, or nothing as before.

        So LongWriter (arXiv 2408.07055) weighs what it packs: a target of an answer of n tokens weighs 1 / n.
        """
        before = np.ones(len(self.targets)) if self.weights is None else self.weights.astype(np.float64)
        piece = np.repeat(np.arange(len(self.lengths)), self.lengths)
        total = np.bincount(piece, before, len(self.lengths))[piece]
        weights = np.divide(before, total, out=before, where=total > 0)
        return replace(self, weights=weights.astype(np.float32))


@dataclass(frozen=True)
class Plan:
    """The rows of one pass. Row r holds the pieces offsets[r]:offsets[r + 1]."""

    document: np.ndarray  # int64 [pieces]
    start: np.ndarray  # int64 [pieces], place in the corpus's tokens
    length: np.ndarray  # int32 [pieces]
    offsets: np.ndarray  # int64 [rows + 1]
    phases: np.ndarray  # int64 [phases + 1]; phase p has the rows phases[p]:phases[p + 1]

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

    def batch(self, step: int, most: int | None = None) -> Batch:
        """The batch of a step (0, 1, …): rows `step * rows` up to the next step's, counted through all passes.

        most: tokens that are left to read; the batch is cut after so many, the last piece too. A rest of less than a
        row, which might be a prompt alone, is no step of its own: the batch takes it too.
        """
        row = (step + 1) * self.rows
        parts = self._rows(step * self.rows, row)
        while most is not None and 0 < most - sum(int(part[2].sum()) for part in parts) < self.row_length:
            parts, row = parts + self._rows(row, row + 1), row + 1
        document, start, length = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        length = first_tokens(length, most)
        return gather(self.corpus, document[: len(length)], start[: len(length)], length)

    def _rows(self, row: int, stop: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Documents, starts and lengths of the pieces of some rows, in one part for each pass they lie in."""
        parts = []
        while row < stop:
            number = self._pass_of(row)
            plan, first = self._plan(number), self._first_row[number]
            last = min(stop - first, plan.rows)
            a, b = plan.offsets[row - first], plan.offsets[last]
            parts.append((plan.document[a:b], plan.start[a:b], plan.length[a:b]))
            row = first + last
        return parts

    def plan_report(self) -> dict[str, Any]:
        """Of the first pass: pieces, rows, fill (share of the rows that holds tokens), what became of long documents
        (`cut_report`); for each phase the tokens asked of each source and those that it gives.
        """
        plan = self._plan(0)
        tokens = int(plan.length.sum())
        fill = tokens / (plan.rows * self.row_length)
        return {"tokens": tokens, "pieces": len(plan.length), "rows": plan.rows, "fill": fill} | {
            **cut_report(self.corpus, self.row_length),
            "phases": self._phases(realised(self.corpus, plan)),
        }

    def realised(self, tokens: int) -> list[dict[str, Any]]:
        """What a run of this budget reads of each phase, through all passes it takes."""
        first = self._plan(0)
        whole, rest = divmod(tokens, int(first.length.sum()))  # every pass takes as much of each source
        found = whole * realised(self.corpus, first)
        if rest:
            found += realised(self.corpus, plan_pass(self.corpus, self.row_length, self.seed, whole), rest)
        return self._phases(found)

    def _phases(self, found: np.ndarray) -> list[dict[str, Any]]:
        """int [phases, sources] as JSON, with what one pass is asked for and the tokens that are cut off its ends."""
        told = []
        for phase, tokens in zip(self.corpus.phases, found, strict=True):
            cut = np.bincount(
                self.corpus.source[phase.cut], self.corpus.length[phase.cut] - phase.kept, minlength=len(tokens)
            ).astype(np.int64)
            numbers = zip(phase.asked.tolist(), tokens.tolist(), cut.tolist(), strict=True)
            sources = dict(zip(self.corpus.sources, numbers, strict=True))
            told.append(
                {
                    "asked": int(phase.asked.sum()),
                    "tokens": int(tokens.sum()),
                    "sources": {
                        name: {"asked": asked, "tokens": n, "cut_off": off}
                        for name, (asked, n, off) in sources.items()
                        if asked or n
                    },
                }
            )
        return told

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


def cut_report(corpus: Corpus, row_length: int) -> dict[str, int]:
    """Documents of a pass, each counted once: split into pieces, truncated (with the tokens that are not read of them)
    by `corpus.long` or where a phase ends, dropped; and those of the corpus that have no targets.
    """
    taken = np.flatnonzero(corpus.copies)
    length = corpus.length[taken]
    pieces = cut_to_rows(corpus, taken, length, row_length)
    read = np.bincount(pieces.document, pieces.length, minlength=len(taken)).astype(np.int64)
    cut = (read > 0) & (read < length)
    ends = [(corpus.length[phase.cut] - phase.kept).sum() for phase in corpus.phases]
    return {
        "documents_split": int((np.bincount(pieces.document, minlength=len(taken)) > 1).sum()),
        "documents_truncated": int(cut.sum()) + sum(len(phase.cut) for phase in corpus.phases),
        "tokens_truncated": int((length - read)[cut].sum() + sum(ends)),
        "documents_dropped": int((read == 0).sum()),
        "documents_without_targets": int((corpus.targets == 0).sum()),
    }


def realised(corpus: Corpus, plan: Plan, tokens: int | None = None) -> np.ndarray:
    """int64 [phases, sources]: tokens in a plan, or in its first `tokens` tokens."""
    length = first_tokens(plan.length, tokens)
    rows = np.repeat(np.arange(plan.rows), np.diff(plan.offsets))[: len(length)]
    phase = np.searchsorted(plan.phases, rows, side="right") - 1
    shape = len(corpus.phases), len(corpus.sources)
    place = phase * shape[1] + corpus.source[plan.document[: len(length)]]
    found = np.bincount(place, length, minlength=shape[0] * shape[1])
    return found.astype(np.int64).reshape(shape)


def first_tokens(lengths: np.ndarray, most: int | None) -> np.ndarray:
    """Lengths (int [pieces]) of the pieces that hold the first `most` tokens, the last one cut."""
    if most is None:
        return lengths
    before = np.cumsum(lengths) - lengths
    return np.minimum(lengths, most - before)[before < most]


def plan_pass(corpus: Corpus, row_length: int, seed: int, number: int) -> Plan:
    """The rows of pass `number`: a pure function of its arguments and of the documents' keys, not of their order."""
    salt = seeded(seed % 2**64, np.array([number], np.uint64))
    parts, rows = [], []
    before = np.zeros(len(corpus), np.int64)
    for phase in corpus.phases:
        documents, tokens = _order(corpus, phase, before, salt)
        before += phase.copies
        pieces = cut_to_rows(corpus, documents, tokens, row_length)
        owner = documents[pieces.document]
        start = corpus.start[owner] + pieces.start
        own = [
            _pack_window(owner[a : a + WINDOW], start[a : a + WINDOW], pieces.length[a : a + WINDOW], row_length, salt)
            for a in range(0, len(pieces), WINDOW)
        ]
        rows.append(sum(len(sizes) for *_, sizes in own))
        parts += own
    if not parts:
        raise ValueError(f"no document has anything to learn within {row_length} tokens; raise row_length")
    sizes = np.concatenate([size for *_, size in parts])
    document, start, length = (np.concatenate([part[i] for part in parts]) for i in range(3))
    offsets, phases = (np.concatenate([[0], np.cumsum(counts)]) for counts in (sizes, rows))
    return Plan(document, start, length.astype(np.int32), offsets, phases)


def cut_to_rows(corpus: Corpus, documents: np.ndarray, tokens: np.ndarray, row_length: int) -> Pieces:
    """Pieces of at most `row_length` of the first `tokens` (int [n]) tokens of documents (int [n]), as `corpus.long`
    says; those without a weight above 0 are left out.
    """
    if corpus.long == "drop":
        tokens = np.where(corpus.length[documents] > row_length, 0, tokens)
    elif corpus.long == "truncate":
        tokens = np.minimum(tokens, row_length)
    pieces = split_lengths(tokens, row_length)
    if corpus.weights is None:
        return pieces
    owner = documents[pieces.document]
    partial = np.flatnonzero(pieces.length < corpus.length[owner])  # whole documents have targets
    learned = np.ones(len(pieces), bool)
    for a in range(0, len(partial), WINDOW):
        own = partial[a : a + WINDOW]
        length = pieces.length[own]
        first = np.cumsum(length) - length
        place = np.repeat(corpus.start[owner[own]] + pieces.start[own] - first, length) + np.arange(length.sum())
        learned[own] = np.add.reduceat(corpus.weights[place] > 0, first, dtype=np.int64) > 0
    return Pieces(pieces.document[learned], pieces.start[learned], pieces.length[learned])


def _order(corpus: Corpus, phase: Phase, before: np.ndarray, salt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents of a phase, each as often as it is taken, in the order of the phase; and the tokens taken of each.

    before: int64 [documents], how often earlier phases of the pass take them.
    """
    document = np.repeat(np.arange(len(corpus)), phase.copies)
    first = np.cumsum(phase.copies) - phase.copies
    copy = np.arange(len(document)) - first[document]
    tokens = corpus.length[document]
    tokens[(first + phase.copies - 1)[phase.cut]] = phase.kept
    noise = mix64(corpus.key[document] ^ mix64(salt + (before[document] + copy).astype(np.uint64)))
    place = (copy + noise / 2.0**64) / phase.copies[document]
    order = np.lexsort((corpus.key[document], noise, place))
    return document[order], tokens[order]


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
