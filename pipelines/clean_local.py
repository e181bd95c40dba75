"""Cleaning that looks at one document at a time: the line rules of C4, placeholders for personal data.

No pass over the corpus comes before; each document is read once, at the speed of `transforms.c4_lines` (about 100 MB/s)
and `transforms.pii` (150 MB/s). All documents are cleaned, also those that a dedupe method drops.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from scorers.pii import PII, known_region
from transforms.batch import Batch
from transforms.c4_lines import judge_lines, removed_spans
from transforms.cut import Cuts
from transforms.parameters import Parameters
from transforms.pii import KINDS, Kind, find, masks


class Told(NamedTuple):
    """Cuts, and what else a method says of each document: its columns, and names that the ledger counts."""

    cuts: Cuts
    columns: tuple[pa.Array, ...] = ()
    counted: pa.Array | None = None


class Local(Parameters):
    """`where`: SQL; the documents that are cleaned, all unless given. `package`: what must be installed.

    `fields`: columns that the method adds to those of its cuts.
    """

    package: ClassVar[str | None] = None
    fields: ClassVar[tuple[pa.Field, ...]] = ()
    where: str | None = None

    def cuts(self, batch: Batch) -> Cuts | Told:
        """What goes from each document, and what stands in its place."""
        raise NotImplementedError


class C4Lines(Local):
    """Lines that C4 drops, and citations, are cut (see `transforms.c4_lines`; Raffel et al. 2020)."""

    min_words: int = Field(3, ge=0)
    max_word_length: int = Field(1000, ge=1)

    def cuts(self, batch: Batch) -> Cuts:
        gone = removed_spans(batch, judge_lines(batch, self.min_words, self.max_word_length))
        base = np.repeat(batch.offsets[:-1], np.diff(gone.offsets))
        return Cuts(gone.start - base, gone.end - base, gone.offsets)


class MaskPII(Local):
    """Placeholders such as `<EMAIL>` stand for personal data of the `kinds` (see `transforms.pii`).

    `region`: as of the scorer `pii`.
    """

    package: ClassVar[str | None] = PII.package
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    region: str | None = "US"

    _region = field_validator("region")(known_region)

    def cuts(self, batch: Batch) -> Cuts:
        return masks(batch, find(batch, self.kinds, self.region))
