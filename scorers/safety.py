"""Filtering a topic out in stages, a list of terms before a classifier, as Deep Ignorance does (arXiv 2508.06601).

The terms cost about 10 ms per MB; the classifier's cost falls on the documents that they let through to it.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from scorers import Scorer
from scorers._chunk_scores import finite, pooled
from transforms.batch import Batch
from transforms.chunks import Chunks, Sections
from transforms.model_folder import check_device
from transforms.sequence_classifier import ClassifierFolder, SequenceClassifier, check_classifier, load

if TYPE_CHECKING:
    from transforms.terms import Automaton, Found

log = logging.getLogger("corpusmill")
WHOLE: Sections = "whole"
ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 is less than 1

FIELDS = {
    "passed": (pa.bool_(), "not flagged"),
    "reason": (pa.string(), "terms, classifier, failed or unread: why it is flagged; null where passed"),
    "flagged": (pa.bool_(), "by the last stage that looked at it"),
    "stage": (pa.int8(), "stage that decided: 1 the terms, 2 the classifier"),
    "terms": (pa.int32(), "distinct terms found; null without a list"),
    "weight": (pa.float64(), "sum of the weights of distinct terms; null without a list"),
    "matched": (pa.list_(pa.string()), "the first of the terms found, in the order of the text"),
    "highest": (pa.float64(), "highest score of a chunk; null where stage 2 did not look or failed"),
    "lowest": (pa.float64(), "lowest score of a chunk"),
    "mean": (pa.float64(), "mean score of chunks"),
    "chunks": (pa.int32(), "chunks read by stage 2"),
    "unread": (pa.int64(), "characters of an escalated document that no chunk holds"),
    "failed": (pa.bool_(), "stage 2 raised an error or gave no finite score"),
}

AT_FAULT = 8  # documents of a batch: a model that fails on all of so many is at fault, not they


class Safety(Scorer):
    """Stage 1 escalates documents whose distinct terms have a summed weight of at least `escalate_at`; each term weighs
    1 where the list says nothing else. Stage 2, a classifier folder (see `scorers.classifier`), flags those of which
    any chunk scores above `threshold`. Without `model` stage 1 decides. Without `terms` every document goes to stage 2,
    as for toxicity, which is this scorer with another model.

    `terms`: a text file of one term per line, its weight after a tab, or a folder with such a `terms.txt`.
    `boundaries`: `word`, or `substring`, which is how Deep Ignorance matches and what terms in Chinese, Japanese or
    Thai need. Terms must be in the texts' Unicode form (NFC or NFD). `threshold` has no default: where what is
    sought is rare, good thresholds are far from 0.5 (Deep Ignorance takes 0.0105); take it from the scores of a sample.

    What stage 2 cannot judge is flagged: a document on which the model raises an error or gives no finite score
    (`failed`), and one of more than `most_chunks` chunks of which those read score below the threshold (`unread`).
    Where memory or the accelerator fails, or the model on all of 8 or more documents, the error is raised.
    """

    name: ClassVar[str] = "safety"
    terms: Path | None = None
    boundaries: Literal["word", "substring"] = "word"
    escalate_at: float = Field(2, gt=0)
    model: Path | None = None
    label: str | int | None = None
    threshold: float | None = None
    most_chunks: int = Field(64, ge=1)
    keep_terms: int = Field(5, ge=0, description="terms that `matched` names at most")
    device: Annotated[str, AfterValidator(check_device)] = "cpu"

    @model_validator(mode="after")
    def _usable(self) -> Safety:
        if self.terms is None and self.model is None:
            raise ValueError("neither `terms` nor `model` is given; give a list of terms, a classifier folder, or both")
        if (self.model is None) != (self.threshold is None):
            raise ValueError(
                "`model` and `threshold` go together: documents with a chunk that scores above the threshold are "
                "flagged. Take it from the model's scores of a sample; 0.5 is rarely right where positives are rare"
            )
        if self.terms is not None:
            _ = self._automaton
        if self.model is not None:
            self._checked.output(self.label)
            if importlib.util.find_spec("torch") is None:
                raise ValueError("`model` needs the package torch; pip install 'corpusmill[trainer]'")
        return self

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field(name, kind, metadata={"unit": unit}) for name, (kind, unit) in FIELDS.items()])

    @cached_property
    def _automaton(self) -> Automaton:
        from transforms.terms import Automaton, read_terms

        assert self.terms is not None
        return Automaton(read_terms(self.terms), self.boundaries)

    @cached_property
    def _checked(self) -> ClassifierFolder:
        assert self.model is not None
        return check_classifier(self.model)

    @cached_property
    def _loaded(self) -> SequenceClassifier:
        return load(self._checked, self.device)

    def setup(self) -> None:
        if self.model is not None:
            _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        """Stage 2 sees the documents of stage 1 alone, so whatever it finds, the rest passes."""
        documents = len(batch)
        found = self._automaton.find(batch.text, self.keep_terms) if self.terms is not None else None
        escalated = found.weights >= self.escalate_at - ROUNDING if found else np.ones(documents, bool)
        columns, second = self._first_stage(found, documents), _Second(documents)
        rules = {"terms": escalated}
        if self.model is not None:
            chosen = np.flatnonzero(escalated)
            self._classify(batch.text.take(pa.array(chosen)), second, chosen)
            above = second.pools["highest"] > np.float64(self.threshold)
            rules = {"classifier": above, "failed": second.failed, "unread": second.unread > 0}
        masks = np.stack(list(rules.values()))
        flagged = masks.any(axis=0)
        reason = pa.array(list(rules)).take(pa.array(masks.argmax(axis=0), mask=~flagged))
        stage = np.where(escalated & (self.model is not None), 2, 1).astype(np.int8)
        columns |= {name: finite(second.pools[name]) for name in ("highest", "lowest", "mean")}
        columns |= {"chunks": pa.array(second.chunks), "unread": pa.array(second.unread)}
        columns |= {"failed": pa.array(second.failed), "stage": pa.array(stage), "flagged": pa.array(flagged)}
        columns |= {"passed": pa.array(~flagged), "reason": reason}
        return pa.StructArray.from_arrays([columns[name] for name in FIELDS], fields=list(self.fields()))

    def _first_stage(self, found: Found | None, documents: int) -> dict[str, pa.Array]:
        if found is None:
            return {name: pa.nulls(documents, FIELDS[name][0]) for name in ("terms", "weight", "matched")}
        held = found.first >= 0
        offsets = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int32)
        names = self._automaton.terms.terms.take(pa.array(found.first[held])).cast(pa.string())
        matched = pa.ListArray.from_arrays(pa.array(offsets), names, type=FIELDS["matched"][0])
        return {"terms": pa.array(found.counts), "weight": pa.array(found.weights), "matched": matched}

    def _classify(self, texts: pa.LargeStringArray, into: _Second, places: np.ndarray) -> None:
        """Fill in stage 2's findings; where it fails on many documents, find out on which by taking them one by one."""
        if not len(texts):
            return
        try:
            chunks = self._loaded.chunker.cut(texts, WHOLE, self.most_chunks)
            scores = self._loaded.scores(chunks, self._checked.output(self.label))
        except Exception as error:  # whatever the model raises: the document is flagged
            if _of_machine(error):
                raise
            if len(texts) == 1:
                log.warning("safety: the classifier failed on a document, which is flagged: %s", error)
                into.failed[places] = True
                return
            for at in range(len(texts)):
                self._classify(texts.slice(at, 1), into, places[at : at + 1])
            if len(texts) >= AT_FAULT and into.failed[places].all():
                raise RuntimeError(
                    f"the classifier {self.model} failed on each of {len(texts)} documents, so it is at fault: {error}"
                ) from error
            return
        into.put(places, chunks, scores)


def _of_machine(error: Exception) -> bool:
    """Whether memory or the accelerator failed, which says nothing of the document."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # of torch, out of main memory


class _Second:
    """What stage 2 finds, [documents]; documents it does not see keep what stands here."""

    def __init__(self, documents: int) -> None:
        self.pools = {name: np.full(documents, np.nan) for name in ("highest", "lowest", "mean")}
        self.chunks, self.unread = np.zeros(documents, np.int32), np.zeros(documents, np.int64)
        self.failed = np.zeros(documents, bool)

    def put(self, places: np.ndarray, chunks: Chunks, scores: np.ndarray) -> None:
        for name, values in pooled(scores, chunks.counts).items():
            self.pools[name][places] = values
        self.chunks[places], self.unread[places] = chunks.counts, chunks.unread
        self.failed[places] = ~np.isfinite(self.pools["mean"][places])
