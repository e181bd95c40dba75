"""Failing calls planted in conversations are left out, all others are learned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from transforms.adverse_turns import ERRORS, trained_turns

Message = tuple[str | None, str | None]


def flat(conversations: list[list[Message]]) -> tuple[pa.Array, pa.Array, np.ndarray]:
    messages = [m for c in conversations for m in c]
    roles, contents = (pa.array([m[i] for m in messages], pa.string()) for i in range(2))
    return roles, contents, np.cumsum([0, *map(len, conversations)])


def test_masking_recall_and_precision_against_planted_failures() -> None:
    draw = np.random.default_rng(0)
    conversations, truth = [], []
    for _ in range(200):
        messages: list[Message] = [("user", "do it")]
        learned = [False]
        calls = int(draw.integers(1, 6))
        for call in range(calls):
            fails = bool(draw.random() < 0.3) and call + 1 < calls
            said = f"TypeError: {draw.choice(ERRORS).title()}!" if fails else '{"result": "400 clients, no error"}'
            messages += [("assistant", "get_user(1)"), ("tool", said)]
            learned += [not fails, False]
        conversations.append([*messages, ("assistant", "done")])
        truth += [*learned, True]
    found = trained_turns(*flat(conversations))
    assert found.tolist() == truth and len(truth) - sum(truth) > 100


def test_markers_are_compared_by_letters_and_digits() -> None:
    calls: list[Message] = [
        ("assistant", "f()"),
        ("function", "NameError: name 'f' IS-NOT  Defined."),
        ("assistant", ""),
    ]
    assert trained_turns(*flat([calls])).tolist() == [False, False, True]
    assert trained_turns(*flat([calls]), errors=["timed out"]).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="letter or digit"):
        trained_turns(*flat([calls]), errors=["fine", "!?"])


def test_any_of_several_tool_messages_counts_and_none_of_another_turn() -> None:
    bad = "connection error"
    conversation: list[Message] = [
        ("assistant", "a()"), ("tool", "fine"), ("tool", bad),
        ("assistant", bad), ("user", bad),
        ("assistant", "c()"), ("user", "wait"), ("tool", bad),
        ("assistant", "last()"), ("tool", bad),
    ]  # fmt: skip
    found = trained_turns(*flat([conversation]))
    assert np.flatnonzero(found).tolist() == [3, 5, 8], "the last turn is learned whatever became of it"


def test_conversations_do_not_touch() -> None:
    bad = "connection error"
    conversations: list[list[Message]] = [
        [("assistant", "a()")],
        [("tool", bad), ("assistant", "b")],
        [],
        [("tool", bad)],
    ]
    assert trained_turns(*flat(conversations)).tolist() == [True, False, True, False]
    assert trained_turns(*flat([])).tolist() == []
    odd: list[Message] = [(None, None), ("tool", None), ("assistant", None)]
    assert trained_turns(*flat([odd])).tolist() == [False, False, True]
