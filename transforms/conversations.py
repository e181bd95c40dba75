"""Conversations as columns: lists of turns, structs with role and content. Costs a copy of the contents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FIELDS = ("role", "content")
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def is_conversation(kind: pa.DataType) -> bool:
    """Whether a type is a list of structs with `role` and `content` as text, and whatever else."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    turn = kind.value_type
    names = [turn.field(i).name for i in range(turn.num_fields)]
    return all(names.count(name) == 1 and any(test(turn.field(name).type) for test in _TEXT) for name in _FIELDS)


def contents(conversations: pa.Array) -> pa.LargeBinaryArray:
    """What is said in each conversation, whoever says it, with a blank line between turns; null stays null.

    Turns without content, such as calls of tools, are passed over.
    """
    said = pc.struct_field(conversations.flatten(), "content").cast(pa.large_binary())
    there = said.is_valid()
    turns = pc.list_parent_indices(conversations).filter(there).to_numpy()
    n = len(conversations)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(turns, minlength=n))]).astype(np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), said.filter(there))
    joined = pc.binary_join(lists, pa.scalar(b"\n\n", pa.large_binary()))
    return pc.if_else(conversations.is_null(), pa.scalar(None, pa.large_binary()), joined)
