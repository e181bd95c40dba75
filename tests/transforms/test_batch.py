"""Batch: accepted types, slices, errors, and pieces equal to Python's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch, Spans

TEXTS = ["one two\nthree", "", "  ", "naïve – 北京 🙂\n\n", "\n", "שלום, עולם!"]
EVERY_TEXT = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=6)


def make(texts: list[str], type: pa.DataType | None = None) -> Batch:
    return Batch(pa.record_batch({"id": pa.array(range(len(texts))), "text": pa.array(texts, type or pa.string())}))


def pieces(batch: Batch, spans: Spans) -> list[list[str]]:
    data = batch.bytes.tobytes()
    found = [data[a:b].decode() for a, b in zip(spans.start, spans.end, strict=True)]
    return [found[a:b] for a, b in zip(spans.offsets[:-1], spans.offsets[1:], strict=True)]


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view()])
def test_string_types(type: pa.DataType) -> None:
    batch = make(TEXTS, type)
    assert batch.text.type == pa.large_string()
    assert batch.text.to_pylist() == TEXTS
    assert len(batch) == len(TEXTS)
    assert batch.bytes.tobytes() == "".join(TEXTS).encode()
    assert batch.offsets.tolist() == np.cumsum([0] + [len(t.encode()) for t in TEXTS]).tolist()
    assert batch.characters.tolist() == [len(t) for t in TEXTS]


@settings(deadline=None)
@given(EVERY_TEXT)
def test_pieces_equal_pythons(texts: list[str]) -> None:
    batch = make(texts)
    assert batch.characters.tolist() == [len(t) for t in texts]
    assert pieces(batch, batch.lines) == [t.split("\n") for t in texts]
    assert ["".join(words) for words in pieces(batch, batch.words)] == ["".join(t.split()) for t in texts]
    for spans, hashes in ((batch.lines, batch.line_hashes), (batch.words, batch.word_hashes)):
        assert spans.start.dtype == spans.end.dtype == np.int32
        assert spans.offsets.dtype == np.int64
        assert hashes.dtype == np.uint64
        flat = [piece for document in pieces(batch, spans) for piece in document]
        assert len(set(flat)) == len(set(hashes.tolist()))
        assert len(set(zip(flat, hashes.tolist(), strict=True))) == len(set(flat))


@pytest.mark.parametrize("type", [pa.string(), pa.large_string()])
def test_slice_equals_copy(type: pa.DataType) -> None:
    records = make(TEXTS * 3, type).records
    part, whole = Batch(records.slice(4, 7)), make((TEXTS * 3)[4:11], type)
    for name in ("bytes", "offsets", "characters", "line_hashes", "word_hashes"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    for name in ("lines", "words"):
        for field in ("start", "end", "offsets"):
            np.testing.assert_array_equal(getattr(getattr(part, name), field), getattr(getattr(whole, name), field))
    assert part.records.column("id").to_pylist() == list(range(4, 11))


@pytest.mark.parametrize("records", [make([]).records, make(TEXTS).records.slice(3, 0)])
def test_no_documents(records: pa.RecordBatch) -> None:
    batch = Batch(records)
    assert len(batch) == len(batch.bytes) == len(batch.characters) == 0
    assert batch.offsets.tolist() == batch.lines.offsets.tolist() == batch.words.offsets.tolist() == [0]
    assert len(batch.line_hashes) == len(batch.word_hashes) == 0


def test_everything_is_computed_once_and_bytes_are_a_view() -> None:
    batch = make(TEXTS, pa.large_string())
    assert batch.words is batch.words
    assert batch.lines is batch.lines
    assert batch.bytes.ctypes.data == batch.text.buffers()[2].address


def test_other_column_name() -> None:
    assert Batch(pa.record_batch({"body": ["a b"]}), text="body").words.offsets.tolist() == [0, 2]


def test_refusals() -> None:
    with pytest.raises(KeyError, match=r"0 columns are named 'text'.*\['body'\]"):
        Batch(pa.record_batch({"body": ["a"]}))
    with pytest.raises(KeyError, match="2 columns"):
        Batch(pa.RecordBatch.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]))
    with pytest.raises(TypeError, match="'text' is int64"):
        Batch(pa.record_batch({"text": [1]}))
    with pytest.raises(ValueError, match="1 nulls"):
        Batch(pa.record_batch({"text": ["a", None]}))


def test_import_needs_no_compiler() -> None:
    code = "import sys, transforms.batch, scorers.fineweb, scorers.c4; print('numba' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "False\n"
