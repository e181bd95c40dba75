import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.conversations import contents, is_conversation

TEXT = st.none() | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5)
TURN = st.none() | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT})
KINDS = {
    "list": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    "large_list": pa.large_list(pa.struct({"content": pa.large_binary(), "role": pa.large_string(), "x": pa.int64()})),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(st.lists(st.none() | st.lists(TURN, max_size=4), max_size=8), st.integers(0, 3))
def test_contents_are_joined(kind, conversations, skipped):
    column = pa.array(conversations, kind).slice(skipped)
    expected = [
        None if turns is None else "\n\n".join(t["content"] for t in turns if t and t["content"] is not None)
        for turns in conversations[skipped:]
    ]
    assert is_conversation(kind)
    assert contents(column).cast(pa.large_string()).to_pylist() == expected


def test_invalid_bytes_pass_through():
    turn = pa.struct({"role": pa.string(), "content": pa.binary()})
    column = pa.array([[{"role": "a", "content": b"\xff"}, {"role": "b", "content": b"x"}]], pa.list_(turn))
    assert contents(column).to_pylist() == [b"\xff\n\nx"]


def test_other_types_are_none():
    text = pa.string()
    others = [
        text,
        pa.list_(text),
        pa.list_(pa.struct({"role": text})),
        pa.struct({"role": text, "content": text}),
        pa.list_(pa.struct({"role": text, "content": pa.list_(text)})),
        pa.list_(pa.struct([("role", text), ("content", text), ("content", text)])),
    ]
    assert not any(map(is_conversation, others))
