"""A list of terms that tell documents about a topic, for the first stage of `safety`.

Terms are kept by the share of their documents that are positives, as in Deep Ignorance (arXiv 2508.06601), which has a
language model propose them; here they are the words and phrases of the positives. About 3 MB/s. Memory: the sample,
at most 80 bytes for each different phrase of the positives, and 150 for each phrase of AT_ONCE documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from trainers.fits import Fit, Wanted
from transforms.batch import Batch

if TYPE_CHECKING:
    from transforms.terms import Terms

AT_ONCE = 500  # documents whose phrases are held at a time
SPACE = 32
OFTEN = 2.0  # weight of distinct terms at which the card says what `safety` would do


class FitTerms(Fit):
    """Words and phrases of up to `words` words that stand in at least `min_documents` documents where `positives`
    holds, and of whose documents more than `ratio` are positives.

    Counts are of documents as drawn, so `ratio` means little beside the share of positives in the sample: with 2,000
    against 20,000 a word as frequent in both has 0.09, and 0.4 asks for 7 times its frequency. A phrase that holds a
    kept word or phrase is left out, else one mention would count as two terms. Every tenth document is held out.
    """

    method: ClassVar[str] = "terms"
    readers: ClassVar[tuple[str, ...]] = ("safety",)
    positives: str
    negatives: str = "true"
    documents: int = Field(2000, ge=20, description="positives at most")
    negative_documents: int = Field(20_000, ge=20, description="at most")
    ratio: float = Field(0.4, gt=0, lt=1)
    min_documents: int = Field(5, ge=1)
    words: int = Field(3, ge=1, le=5)
    most: int = Field(10_000, ge=1, description="terms; those of the highest ratio")

    def samples(self) -> dict[str, Wanted]:
        positives = Wanted(self.positives, documents=self.documents)
        return {
            "positives": positives,
            "negatives": Wanted(self.negatives, documents=self.negative_documents, without="positives"),
        }

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms.terms import read_terms

        good, other = (
            samples[name].column("text").cast(pa.large_string()).combine_chunks() for name in ("positives", "negatives")
        )
        prior = len(good) / max(1, len(good) + len(other))
        if min(len(good), len(other)) < 20 or prior >= self.ratio:
            raise ValueError(
                f"{len(good)} positives and {len(other)} negatives: needs at least 20 of each, and a share of "
                f"positives ({prior:.2f}) below the ratio ({self.ratio}), or words that tell nothing are kept too"
            )
        held = [np.arange(len(texts)) % 10 == 0 for texts in (good, other)]
        learned = [t.filter(pa.array(~h)) for t, h in zip((good, other), held, strict=True)]
        terms = self._terms(*learned)
        if not terms:
            raise ValueError(f"no term of {len(good)} positives passes; lower `ratio` or `min_documents`")
        out.mkdir(parents=True, exist_ok=True)
        (out / "terms.txt").write_text("".join(f"{term}\n" for term in sorted(terms)), encoding="utf-8")
        kept = read_terms(out)
        shares = [_escalated(kept, t.filter(pa.array(h))) for t, h in zip((good, other), held, strict=True)]
        measured = dict(zip(("positives_escalated", "negatives_escalated"), shares, strict=True))
        card = {
            "terms": len(terms),
            "parameters": self.model_dump(mode="json"),
            "documents": {"positives": len(good), "negatives": len(other)},
            "holdout": {"documents": int(sum(h.sum() for h in held)), "escalate_at": OFTEN, **measured},
        }
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def _terms(self, good: pa.LargeStringArray, other: pa.LargeStringArray) -> list[str]:
        hashes, counts = _frequencies(good, self.words)
        often, counts = hashes[counts >= self.min_documents], counts[counts >= self.min_documents]
        against = np.zeros(len(often), np.int64)
        found, times = _frequencies(other, self.words, often)
        against[np.searchsorted(often, found)] = times
        rates = counts / (counts + against)
        high = rates > self.ratio
        names = _names(good, self.words, often[high])
        rated = zip(names, rates[high].tolist(), counts[high].tolist(), strict=True)
        kept: dict[str, tuple[float, int]] = {}
        for _, rate, count, name in sorted((len(name.split(" ")), -rate, -count, name) for name, rate, count in rated):
            parts = name.split(" ")  # short ones first
            inner = (" ".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))
            if not any(part in kept for part in inner):
                kept[name] = (rate, count)
        return sorted(kept, key=lambda name: (*kept[name], name))[: self.most]


def _batches(texts: pa.LargeStringArray) -> Iterator[Batch]:
    for at in range(0, len(texts), AT_ONCE):
        yield Batch(pa.record_batch({"text": pc.utf8_lower(texts.slice(at, AT_ONCE))}))


def _frequencies(
    texts: pa.LargeStringArray, words: int, only: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """uint64 hashes of the phrases, ascending, and in how many documents each stands, int64.

    Args:
        only: hashes to count, ascending; None for all.
    """
    held, new = (np.zeros(0, np.uint64), np.zeros(0, np.int64)), []
    for batch in _batches(texts):
        pairs = []
        for document, _, _, hashes in _phrases(batch, words):
            known = _among(hashes, only) if only is not None else np.ones(len(hashes), bool)
            pairs.append(np.stack([hashes[known], document[known].astype(np.uint64)], axis=1))
        seen = np.unique(np.concatenate(pairs), axis=0)[:, 0]
        new.append(np.unique(seen, return_counts=True))
        if sum(len(hashes) for hashes, _ in new) > len(held[0]):  # seldom, as what is held grows
            held, new = _added([held, *new]), []
    return _added([held, *new])


def _added(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Counts by hash, added up."""
    hashes, place = np.unique(np.concatenate([hashes for hashes, _ in parts]), return_inverse=True)
    counts = np.zeros(len(hashes), np.int64)
    np.add.at(counts, place, np.concatenate([counts for _, counts in parts]))
    return hashes, counts


def _names(texts: pa.LargeStringArray, words: int, wanted: np.ndarray) -> list[str]:
    """The phrases whose hashes (uint64, ascending) are wanted."""
    names = [""] * len(wanted)
    for batch in _batches(texts):
        for _, start, end, hashes in _phrases(batch, words):
            known = np.flatnonzero(_among(hashes, wanted))
            distinct, first = np.unique(hashes[known], return_index=True)
            for place, k in zip(np.searchsorted(wanted, distinct).tolist(), known[first].tolist(), strict=True):
                names[place] = names[place] or batch.bytes[start[k] : end[k]].tobytes().decode()
    return names


def _among(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool [hashes]: which are among the wanted, ascending ones."""
    if not len(wanted):
        return np.zeros(len(hashes), bool)
    return wanted[np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)] == hashes


def _phrases(batch: Batch, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each number of words: document, start, end and hash of every phrase.

    A phrase begins and ends as terms do that `safety` finds as words, and has one space between words, or nothing, as
    beside a hyphen. No mark stands before a space, so phrases do not run over commas and full stops.
    """
    from transforms.characters import classes
    from transforms.terms import word_edges
    from transforms.text import hash_pieces

    spans, data = batch.words, np.append(batch.bytes, np.uint8(SPACE))
    document = np.repeat(np.arange(len(batch)), np.diff(spans.offsets))
    first, last = batch.offsets[document], batch.offsets[document + 1]
    opens, closes = word_edges(batch.bytes, spans.start, spans.end, first, last, classes())
    gap = spans.start[1:] - spans.end[:-1]
    near = (gap == 0) | ((gap == 1) & (data[spans.end[:-1]] == SPACE) & closes[:-1] & opens[1:])
    near &= document[1:] == document[:-1]
    joined = np.ones(len(spans), bool)
    for n in range(1, most + 1):
        count = max(0, len(spans) - n + 1)
        if n > 1:
            joined = joined[:count] & near[n - 2 : n - 2 + count]
        wanted = np.flatnonzero(joined & opens[:count] & closes[n - 1 :])
        start, end = spans.start[wanted], spans.end[wanted + n - 1]
        yield document[wanted], start, end, hash_pieces(batch.bytes, start, end)


def _escalated(terms: Terms, texts: pa.LargeStringArray) -> float:
    """Share of the texts whose distinct terms reach OFTEN."""
    from transforms.terms import Automaton

    return float((Automaton(terms, "word").find(texts, 0).weights >= OFTEN).mean())
