"""Copies of shards with text that DuckDB reads: it refuses invalid UTF-8."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.conversations import is_conversation


def repaired(path: str, text: str, copy: Path) -> str:
    """A copy of a shard whose text has U+FFFD for invalid bytes, in batches; rare, so it may go value by value."""
    source = pq.ParquetFile(path)
    at = source.schema_arrow.get_field_index(text)
    schema = source.schema_arrow.set(at, pa.field(text, _fixed(pa.nulls(0, source.schema_arrow.types[at])).type))
    with pq.ParquetWriter(copy, schema, compression="zstd") as sink:
        for batch in source.iter_batches(batch_size=1024):
            sink.write_batch(batch.set_column(at, schema.field(at), _fixed(batch.column(at))))
    return str(copy)


def _fixed(column: pa.Array) -> pa.Array:
    """Texts, or conversations with their contents, repaired."""
    if not is_conversation(column.type):
        values = column.cast(pa.large_binary()).to_pylist()
        return pa.array([v if v is None else v.decode("utf-8", "replace") for v in values], pa.large_string())
    turns = column.values
    names = [turns.type.field(i).name for i in range(turns.type.num_fields)]
    fields = [_fixed(turns.field(name)) if name == "content" else turns.field(name) for name in names]
    made = pa.StructArray.from_arrays(fields, names, mask=turns.is_null())
    return pa.LargeListArray.from_arrays(column.offsets.cast(pa.int64()), made, mask=column.is_null())
