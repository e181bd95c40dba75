"""What near-duplicate removal needs of a document, computed in the scoring pass and kept for later runs.

In a module of its own: the key of signatures depends on their kernels and on nothing of the graph that uses them.
"""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from scorers import Scorer
from transforms.batch import Batch
from transforms.minhash import MinHash


class MinHashSignature(Scorer):
    """Band hashes of the MinHash signature, 8 bytes each, and one hash of all shingles (`MinHash.sketch`)."""

    name: ClassVar[str] = "minhash"
    parameters: MinHash = MinHash()

    def fields(self) -> pa.StructType:
        bands = pa.field(
            "bands",
            pa.binary(8 * self.parameters.bands),
            nullable=False,
            metadata={"meaning": "little-endian uint64 each"},
        )
        return pa.struct([bands, pa.field("content", pa.uint64(), nullable=False)])

    def score(self, batch: Batch) -> pa.StructArray:
        bands, content = self.parameters.sketch(batch)
        fields = self.fields()
        packed = pa.FixedSizeBinaryArray.from_buffers(
            fields[0].type, len(batch), [None, pa.py_buffer(bands.astype("<u8", copy=False))]
        )
        return pa.StructArray.from_arrays([packed, pa.array(content)], fields=list(fields))
