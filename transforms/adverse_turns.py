"""Turns of an assistant that called a tool and failed: left out of training (TL-Training, arXiv 2412.15495).

What the tool answered tells: a turn is adverse where one of the tool messages that follow it holds the marker of an
error. Cost: a pass of RE2 over the tool messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ERRORS = (  # what common tool servers say; of letters and digits only, whatever their case
    "is not defined",
    "positional argument",
    "unexpected keyword argument",
    "connection error",
    "invalid api call",
    "400 client error",
    "not json serializable",
)


def trained_turns(
    roles: pa.Array,
    contents: pa.Array,
    offsets: np.ndarray,
    errors: Sequence[str] = ERRORS,
    tools: Sequence[str] = ("tool", "function"),
) -> np.ndarray:
    """bool [messages]: the assistant's turns that are to be learned.

    Not learned are those whose tool messages hold an error; what comes later in the conversation still sees them. The
    last turn of an assistant in a conversation is always learned.

    Args:
        roles, contents: strings [messages], conversations end to end; a null content is empty.
        offsets: int [conversations + 1], conversation i has the messages `offsets[i]:offsets[i + 1]`.
        errors: markers; those without a letter or digit are refused.
        tools: roles of messages in which tools answer.

    Raises:
        ValueError: a marker that would match everything.
    """
    markers = [_letters(pa.array([error], pa.string()))[0].as_py() for error in errors]
    if not all(markers):
        raise ValueError(f"error markers {list(errors)}: each needs a letter or digit")
    place = np.arange(len(roles))
    conversation = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    assistant = pc.fill_null(pc.equal(roles, "assistant"), False).to_numpy(zero_copy_only=False)
    answer = pc.is_in(roles, value_set=pa.array(tools, roles.type)).to_numpy(zero_copy_only=False)
    failed = answer.copy()
    failed[answer] = _holds(contents.filter(pa.array(answer)), markers)
    caller = np.maximum.accumulate(np.where(answer, -1, place)) if len(place) else place  # the last message before
    adverse = np.zeros(len(roles), bool)
    callers = caller[failed]
    callers = callers[(callers >= 0) & (conversation[callers] == conversation[place[failed]])]
    adverse[callers] = True
    turns = np.flatnonzero(assistant)
    last = np.append(np.diff(conversation[turns]) > 0, True)[: len(turns)]
    adverse[turns[last]] = False
    return assistant & ~adverse


def _letters(texts: pa.Array) -> pa.Array:
    """Letters and digits alone, in lower case."""
    return pc.utf8_lower(pc.replace_substring_regex(texts, r"[^\p{L}\p{N}]+", ""))


def _holds(texts: pa.Array, markers: list[str]) -> np.ndarray:
    """bool [texts]: whether a text holds one of the markers."""
    bare = _letters(pc.fill_null(texts, ""))
    found = np.zeros(len(bare), bool)
    for marker in markers:
        found |= pc.match_substring(bare, marker).to_numpy(zero_copy_only=False)
    return found
