"""Columns of the shards beside text and id, as the scorers that need one read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from transforms.batch import Batch


def column(batch: Batch, name: str) -> pa.Array:
    """The column without its dictionary; all nulls where the shard lacks it."""
    at = batch.records.schema.get_field_index(name)
    if at < 0:
        return pa.nulls(len(batch), pa.large_string())
    found = batch.records.column(at)
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def texts(batch: Batch, name: str) -> pa.LargeStringArray:
    """The column as large_string: numbers as they are written, bytes that are no UTF-8 as U+FFFD."""
    found = column(batch, name)
    if pa.types.is_binary(found.type) or pa.types.is_large_binary(found.type):
        try:
            return found.cast(pa.large_string())
        except pa.ArrowInvalid:
            values = (None if v is None else v.decode("utf-8", "replace") for v in found.to_pylist())
            return pa.array(values, pa.large_string())
    return found.cast(pa.large_string())
