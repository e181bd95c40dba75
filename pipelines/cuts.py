"""Documents without the spans that the methods of `clean` cut from them, and with what these put in their place.

Shards stay as they are: spans are sidecars. Whatever reads text after the step `clean` reads it here. The spans of one
split are held, 16 bytes each and what stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipelines import store
from pipelines.ledger import LedgerError
from pipelines.reading import Admission, Read, read
from pipelines.shards import Split
from transforms.batch import Batch

SPAN = pa.struct(
    [
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("put", pa.large_string(), metadata={"unit": "stands in its place; null: nothing"}),
    ]
)
CUTS = pa.struct(
    [
        pa.field("spans", pa.large_list(SPAN), nullable=False, metadata={"unit": "bytes of the admitted text"}),
        pa.field("removed", pa.int64(), nullable=False, metadata={"unit": "bytes in whose place nothing stands"}),
    ]
)


class Spans:
    """The spans of one split in all the folders, united, taken in order of its documents."""

    def __init__(self, run: str, split: Split, folders: Sequence[str]) -> None:
        self.split, self.seen = split, 0
        self.tables = [store.read_table(split.sidecar(f"{run}/{folder}")).combine_chunks() for folder in folders]

    def take(self, documents: pa.RecordBatch):  # type: ignore[no-untyped-def]  # Cuts; numba loads only where it is used
        """Those of the next documents.

        Raises:
            LedgerError: the sidecar is of other documents.
        """
        from transforms.cut import Cuts, union

        n = documents.num_rows
        nothing = np.empty(0, np.int64)
        cuts = Cuts(nothing, nothing, np.zeros(n + 1, np.int64))
        for table in self.tables:
            mine = table.slice(self.seen, n)
            if not mine.column("row").combine_chunks().equals(documents.column("row")):
                where = f"{self.split.source}/{self.split.name}"
                raise LedgerError(f"{where}: cuts and documents are not of the same rows; remove RUN/cuts, run again")
            cuts = union(cuts, Cuts(*_arrays(mine.column(2))))
        self.seen += n
        return cuts


def _arrays(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.LargeStringArray | None]:
    """start, end, offsets and put of a column of CUTS."""
    if not len(column):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(1, np.int64), None
    spans = column.combine_chunks().field("spans")
    offsets = spans.offsets.to_numpy()
    values = spans.values.slice(offsets[0], offsets[-1] - offsets[0])
    put = values.field("put")
    some = None if put.null_count == len(put) else put
    return values.field("start").to_numpy(), values.field("end").to_numpy(), offsets - offsets[0], some


def read_cut(
    run: str, split: Split, text: str, policy: Admission, folders: Sequence[str], columns: list[str] | None = None
) -> Iterator[Read]:
    """`reading.read` without the spans that the sidecars in the folders name. Documents may be empty then."""
    if not folders:
        yield from read(split, text, policy, columns)
        return
    from transforms.cut import cut

    spans = Spans(run, split, folders)
    for part in read(split, text, policy, columns):
        documents = part.documents
        cuts = spans.take(documents)
        if len(cuts.start):
            at = documents.schema.get_field_index(text)
            documents = documents.set_column(at, text, cut(Batch(documents, text=text), cuts))
        yield Read(documents, part.index)
