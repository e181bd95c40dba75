"""How Arrow batches cross a shuffle: one Arrow IPC stream per batch, about 0.1 µs per kilobyte each way.

Beam's default coder pickles, and a pickled slice of a batch carries all of its parent. Importing this module registers
the coder for `pa.RecordBatch`; Beam uses it only where a collection is typed. Write
`beam.ParDo(f).with_output_types(tuple[int, pa.RecordBatch])`: Beam also reads return annotations, but not in modules
with `from __future__ import annotations`, where it falls back to pickle without a word.
"""

from __future__ import annotations

import pyarrow as pa
from apache_beam import coders

__all__ = ["RecordBatchCoder", "register"]


class RecordBatchCoder(coders.Coder):
    """Arrow IPC stream of one record batch, schema and its metadata included.

    Batches that are equal give equal bytes unless they are empty or their null slots hide different values, which is
    why the coder does not claim to be deterministic: Beam then refuses batches as keys of a shuffle.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Raises pa.ArrowInvalid for a batch whose buffers are damaged."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The batch lies on `encoded`; nothing is copied."""
        with pa.ipc.open_stream(pa.py_buffer(encoded)) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Bytes that the rows refer to; Beam asks for a sample of the elements, and encoding them would cost more."""
        return value.nbytes

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def register() -> None:
    """Make Beam choose the coder wherever a collection is typed with `pa.RecordBatch`. Calling it twice is harmless."""
    coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


register()
