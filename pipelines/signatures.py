"""What dedupe methods need of a document, computed in the scoring pass, so that text is read once."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from scorers import Scorer
from transforms.batch import Batch
from transforms.hashing import content_hash


class ExactSignature(Scorer):
    """128-bit hash of the normalised text (`transforms.hashing`)."""

    name: ClassVar[str] = "exact"

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field("high", pa.uint64(), nullable=False), pa.field("low", pa.uint64(), nullable=False)])

    def score(self, batch: Batch) -> pa.StructArray:
        halves = [pa.array(half) for half in content_hash(batch)]
        return pa.StructArray.from_arrays(halves, fields=list(self.fields()))
