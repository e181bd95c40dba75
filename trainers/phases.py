"""Phases of a pass: which documents each takes, how often, and where the last one is cut so that its tokens are exact.

The documents of a source form one cycle in order of draw. Each phase goes on where the one before it stopped, so a
document repeats only after all others that qualify have been taken. Tokens are those that the trainer counts: targets,
the end token of each document included. Cost: a sort of the documents, then a few passes over their lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Phase:
    """What one phase takes of the documents of a corpus."""

    copies: np.ndarray  # int64 [documents], how often it takes each
    cut: np.ndarray  # int64 [cuts], documents of whose last copy it takes the beginning alone; one of a source at most
    kept: np.ndarray  # int64 [cuts], tokens of that beginning
    asked: np.ndarray  # int64 [sources], tokens that it is to take

    def among(self, chosen: np.ndarray, documents: int) -> Phase:
        """The same phase of a corpus of which its documents are those `chosen` (int [n], their places)."""
        copies = np.zeros(documents, np.int64)
        copies[chosen] = self.copies
        return Phase(copies, chosen[self.cut], self.kept, self.asked)


@dataclass(frozen=True)
class Documents:
    """What decides who is taken, of all documents of a corpus."""

    length: np.ndarray  # int64 [documents], tokens with the end token
    draw: np.ndarray  # uint64 [documents]
    key: np.ndarray  # uint64 [documents], settles equal draws whatever the order of files
    source: np.ndarray  # int [documents], place in `names`
    names: Sequence[str]  # of the sources


def phases(manifest: Mapping[str, Any], documents: Documents, qualifies: np.ndarray | None) -> list[Phase]:
    """The phases of a manifest; of one without them, its sources' epochs as whole documents (see `take`).

    qualifies: uint64 [documents], bit k is set where the document may be taken by phase k; None: all by all.
    Raises ValueError for a source of a phase without documents.
    """
    if "phases" not in manifest:
        return _by_epochs(manifest["sources"], documents)
    order = np.lexsort((documents.key, documents.draw))
    uses = np.zeros(len(documents.length), np.int64)
    made = []
    for number, phase in enumerate(manifest["phases"]):
        within = order if qualifies is None else order[(qualifies[order] >> np.uint64(number)) & np.uint64(1) > 0]
        asked = {name: int(part["asked"]) for name, part in phase["sources"].items()}
        made.append(_phase(documents, within, uses, asked, number))
        uses += made[-1].copies
    return made


def _phase(documents: Documents, order: np.ndarray, uses: np.ndarray, asked: Mapping[str, int], number: int) -> Phase:
    copies = np.zeros(len(uses), np.int64)
    cut, kept = [], []
    for name, tokens in asked.items():
        own = order[documents.source[order] == documents.names.index(name)]
        if tokens and not len(own):
            raise ValueError(f"phase {number} is to take {tokens:,} tokens of {name!r} and no document of it qualifies")
        copies[own], last, rest = take_next(documents.length[own], uses[own], tokens)
        if last >= 0:
            cut.append(own[last])
            kept.append(rest)
    of_each = np.array([asked.get(name, 0) for name in documents.names], np.int64)
    return Phase(copies, np.array(cut, np.int64), np.array(kept, np.int64), of_each)


def take_next(length: np.ndarray, uses: np.ndarray, tokens: int) -> tuple[np.ndarray, int, int]:
    """Take exactly `tokens` tokens of documents in their order, those used least first.

    Args:
        length: int [documents], at least 1. uses: int [documents], how often each was taken before.

    Returns:
        int64 [documents], how often each is taken; the place of the document whose last copy is cut, and the tokens
        that are taken of that copy (-1 and 0 where none is cut).
    """
    copies, total = np.zeros(len(length), np.int64), int(length.sum())
    while tokens > 0:
        level = uses + copies
        least = np.flatnonzero(level == level.min())
        if len(least) == len(length) and tokens >= total:
            copies += tokens // total
            tokens %= total
            continue
        end = np.cumsum(length[least])
        last = int(np.searchsorted(end, tokens))  # the first whose end reaches what is asked for
        copies[least[: last + 1]] += 1
        if last < len(least):
            kept = tokens - int(end[last] - length[least[last]])
            return (copies, int(least[last]), kept) if kept < length[least[last]] else (copies, -1, 0)
        tokens -= int(end[-1])
    return copies, -1, 0


def take(tokens: np.ndarray, draw: np.ndarray, epochs: float) -> np.ndarray:
    """int64 [documents]: how often one pass takes each document of a source that it repeats `epochs` times.

    Everyone is taken floor(epochs) times. The rest of the tokens comes from the documents in order of `draw`
    (uint64 [documents]), each once more, until their `tokens` (int [documents], without end tokens) reach the fraction.
    """
    whole = int(np.floor(epochs))
    copies = np.full(len(tokens), whole, np.int64)
    order = np.argsort(draw, kind="stable")
    before = np.cumsum(tokens[order]) - tokens[order]
    copies[order[before < np.rint((epochs - whole) * tokens.sum())]] += 1
    return copies


def _by_epochs(sources: Mapping[str, Any], documents: Documents) -> list[Phase]:
    """Of a manifest without `phases`: each source has `epochs` and may have the number of its `phase`."""
    copies = np.zeros(len(documents.length), np.int64)
    asked = np.zeros(len(documents.names), np.int64)
    for place, name in enumerate(documents.names):
        own = np.flatnonzero(documents.source == place)
        own = own[np.argsort(documents.key[own])]  # equal draws (equal ids) are settled by the key
        epochs = float(sources[name]["epochs"])
        copies[own] = take(documents.length[own] - 1, documents.draw[own], epochs)
        asked[place] = np.rint(epochs * documents.length[own].sum())
    number = np.array([sources[name].get("phase", 0) for name in documents.names], np.int64)
    none = np.zeros(0, np.int64)
    return [
        Phase(np.where(number[documents.source] == n, copies, 0), none, none, np.where(number == n, asked, 0))
        for n in np.unique(number)
    ]
