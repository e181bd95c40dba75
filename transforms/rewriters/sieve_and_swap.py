"""Sieve-&-Swap (arXiv 2311.15964): of noisy text, keep what a bank of clean sentences speaks of, in the bank's words.

The paper sieves transcripts of how-to videos by human-written recipes: a segment that is near no sentence of the bank
is dropped, and one that is near takes the text of the nearest. So no model writes anything. Its encoder and thresholds
were not at hand; a threshold holds for one encoder and one bank (`benchmarks/sieve_and_swap.py` measures some).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from transforms.rewriters import OK, REJECTED, Piece, Rewriter

if TYPE_CHECKING:
    from transforms.batch import Batch
    from transforms.nearest import Bank

REASONS = ("irrelevant", "not reciprocal", "numbers differ", "names differ", "repeated")
IRRELEVANT, FARTHER, NUMBERS, NAMES, REPEATED = REASONS
SWAP = pa.struct({"segment": pa.int32(), "similarity": pa.float64(), "id": pa.large_string()})
BETWEEN = {"lines": "\n", "sentences": " ", "paragraphs": "\n\n"}


class SieveAndSwap(Rewriter):
    """The segments of a document that a sentence of `bank` is near to, in order, each as that sentence.

    `bank`: Parquet file, or folder of such, with `text`, one clean sentence each, and perhaps `id`. `encoder`: folder
    of a transformers or sentence-transformers model; without one, sentences are compared by TF-IDF. `unit`: what a
    segment is. `threshold`: the least cosine of a segment and its sentence. `overlap`: a number or a name of the
    segment has to stand in the sentence too. `reciprocal`: no other segment of the document may be nearer to the
    sentence. `most_reuse`: how often a document may have one sentence, the nearest segments first.

    A document is one piece; where no segment is left it is rejected for what its nearest one was.
    """

    name: ClassVar[str] = "sieve_and_swap"
    bank: Path
    threshold: float = Field(gt=0, le=1)
    encoder: Path | None = None
    unit: Literal["lines", "sentences", "paragraphs"] = "lines"
    overlap: bool = True
    reciprocal: bool = False
    most_reuse: int | None = Field(None, ge=1)

    @field_validator("bank")
    @classmethod
    def _readable(cls, path: Path) -> Path:
        for file in _files(path):
            try:
                names = pq.read_schema(file).names
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
            if "text" not in names:
                raise ValueError(f"{file} has no column 'text', which holds the sentences; it has {', '.join(names)}")
        return path

    @field_validator("encoder")
    @classmethod
    def _usable(cls, folder: Path | None) -> Path | None:
        if folder is not None:
            from transforms.embedding import Embedding

            Embedding(encoder=folder)
        return folder

    def fields(self) -> Sequence[pa.Field]:
        counts = [pa.field(_column(name), pa.int32(), metadata={"unit": "segments"}) for name in ("segments", *REASONS)]
        return [pa.field("swaps", pa.struct([*counts, pa.field("kept", pa.list_(SWAP))]))]

    def setup(self) -> None:
        _ = self._bank

    @cached_property
    def _sentences(self) -> pa.Table:
        """`text` and `id`, which is the text where the bank has none. Raises ValueError: it holds no sentence."""
        from transforms.nearest import sorted_texts

        parts = []
        for file in _files(self.bank):
            with pq.ParquetFile(file) as held:
                there = [name for name in ("text", "id") if name in held.schema_arrow.names]
                table = held.read(columns=there)
            ids = table["id"].combine_chunks() if "id" in there else None
            parts.append(sorted_texts(table["text"].combine_chunks(), ids))
        joined = pa.concat_tables(parts)
        found = sorted_texts(joined["text"].combine_chunks(), joined["id"].combine_chunks()).combine_chunks()
        if not len(found):
            raise ValueError(f"bank: {self.bank} holds no sentence; every `text` is null or blank")
        return found.set_column(1, "id", pc.coalesce(found["id"], found["text"]))

    @cached_property
    def _bank(self) -> Bank:
        from transforms.nearest import Embedded, TfIdf

        texts = self._sentences["text"].combine_chunks()
        return Embedded(texts, self.encoder) if self.encoder else TfIdf(texts)

    def rewrite(self, batch: Batch) -> list[Piece]:
        segments = self._segments(batch)
        flat = pa.array([segment for own in segments for segment in own], pa.large_string())
        rows, cosines = self._bank.nearest(flat)
        bounds = np.concatenate([[0], np.cumsum([len(own) for own in segments], dtype=np.int64)])
        return [
            self._piece(document, segments[document], rows[a:b], cosines[a:b])
            for document, (a, b) in enumerate(pairwise(bounds.tolist()))
        ]

    def _segments(self, batch: Batch) -> list[list[str]]:
        """Those of each document, without white space around them."""
        if self.unit == "sentences":
            from transforms.sentences import sentences

            spans, text = sentences(batch), batch.bytes.tobytes()
            flat = [text[a:b].decode() for a, b in zip(spans.start.tolist(), spans.end.tolist(), strict=True)]
            cut = [flat[a:b] for a, b in pairwise(spans.offsets.tolist())]
        else:
            cut = [self._cut(text) for text in batch.text.to_pylist()]
        return [[segment.strip() for segment in own if segment.strip()] for own in cut]

    def _cut(self, text: str) -> list[str]:
        return text.split("\n") if self.unit == "lines" else re.split(r"\n[^\S\n]*\n", text)

    def _piece(self, document: int, segments: list[str], rows: np.ndarray, cosines: np.ndarray) -> Piece:
        sentences = self._sentences.take(pa.array(rows)).to_pydict()
        verdicts = self._verdicts(segments, sentences["text"], rows, cosines)
        kept = [i for i, verdict in enumerate(verdicts) if verdict is None]
        told = Counter(verdicts)
        swaps = {"segments": len(segments)} | {_column(reason): told[reason] for reason in REASONS}
        found = {"kept": [(i, float(cosines[i]), sentences["id"][i]) for i in kept]}
        extra = {"swaps": swaps | found}
        if not kept:
            reason = verdicts[int(np.argmax(cosines))] if segments else IRRELEVANT
            return Piece(document, 0, None, REJECTED, reason, extra=extra)
        text = BETWEEN[self.unit].join(sentences["text"][i] for i in kept)
        return Piece(document, 0, text, OK, extra=extra)

    def _verdicts(
        self, segments: list[str], sentences: list[str], rows: np.ndarray, cosines: np.ndarray
    ) -> list[str | None]:
        """Why each segment goes; null where it stays."""
        near = cosines >= self.threshold
        mutual = self._mutual(segments, rows, cosines) if self.reciprocal and near.any() else near
        verdicts: list[str | None] = [None] * len(segments)
        used = Counter[int]()
        for i in np.argsort(-cosines, kind="stable").tolist():  # the nearest first, the earlier of equals
            if not near[i]:
                verdicts[i] = IRRELEVANT
            elif not mutual[i]:
                verdicts[i] = FARTHER
            elif self.overlap and (lost := _lost(segments[i], sentences[i])):
                verdicts[i] = lost
            elif self.most_reuse is not None and used[rows[i]] >= self.most_reuse:
                verdicts[i] = REPEATED
            else:
                used[rows[i]] += 1
        return verdicts

    def _mutual(self, segments: list[str], rows: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """bool [segments]: whether no other segment is nearer to the sentence, the first of equals."""
        chosen, place = np.unique(rows, return_inverse=True)
        nearest = self._bank.cosines(pa.array(segments, pa.large_string()), chosen).argmax(axis=0)
        return nearest[place] == np.arange(len(segments))


def _lost(segment: str, sentence: str) -> str | None:
    from transforms.facts import names, numbers, words

    if numbers(segment) - numbers(sentence):
        return NUMBERS
    return NAMES if names(segment) - words(sentence) else None


def _column(reason: str) -> str:
    return reason.replace(" ", "_")


def _files(bank: Path) -> list[Path]:
    """Raises ValueError: there are none."""
    files = sorted(bank.rglob("*.parquet")) if bank.is_dir() else [bank]
    if not files or not files[0].is_file():
        raise ValueError(f"{bank} is no Parquet file of sentences, nor a folder with any")
    return files
