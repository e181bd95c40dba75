"""The Arrow coder: what goes in comes out, a slice travels alone, and shuffles use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import coders as beam_coders
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from pipelines import coders, engine

CODER = coders.RecordBatchCoder()

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | st.integers(0, 2**64 - 1),
            "text": texts,
            "label": texts,
            "kept": st.none() | st.booleans(),
            "hashes": st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5),
            "score": st.none()
            | st.fixed_dictionaries({"value": st.none() | st.floats(), "reasons": st.lists(texts, max_size=3)}),
        }
    ),
    max_size=30,
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.uint64()),
        pa.field("text", pa.large_string()),
        pa.field("label", pa.dictionary(pa.int32(), pa.string())),
        pa.field("kept", pa.bool_()),
        pa.field("hashes", pa.list_(pa.int64())),
        pa.field("score", pa.struct([("value", pa.float64()), ("reasons", pa.large_list(pa.string()))])),
    ],
    metadata={"source": "web"},
)


def same(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    """Equality that takes NaN for equal to NaN, which `equals` does not."""
    return repr(left.to_pylist()) == repr(right.to_pylist()) and left.schema.equals(right.schema, check_metadata=True)


@given(rows, st.data())
def test_round_trip_of_any_slice(rows: list[dict[str, object]], data: st.DataObject) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    start = data.draw(st.integers(0, len(rows)))
    piece = batch.slice(start, data.draw(st.integers(0, len(rows))))
    back = CODER.decode(CODER.encode(piece))
    back.validate(full=True)
    assert same(back, piece)


@given(rows, st.data())
def test_bytes_do_not_depend_on_what_a_batch_was_cut_from(rows: list[dict[str, object]], data: st.DataObject) -> None:
    # What hides under a null struct is written too, so structs are left out; dictionaries travel whole.
    whole = pa.RecordBatch.from_pylist(rows, SCHEMA).drop_columns(["label", "score"])
    start = data.draw(st.integers(0, max(0, len(rows) - 1)))
    alone = pa.RecordBatch.from_pylist(rows[start:], whole.schema)
    assert CODER.encode(whole.slice(start)) == CODER.encode(alone)


def test_a_slice_leaves_its_parent_behind() -> None:
    batch = pa.record_batch({"id": range(1000), "text": ["x" * 500] * 1000})
    piece = batch.slice(10, 5)
    assert len(CODER.encode(piece)) < 4_000 < 500_000 < len(CODER.encode(batch))
    assert 2_500 <= CODER.estimate_size(piece) < 4_000


def test_batches_are_no_keys() -> None:
    def by_batch(number: int) -> tuple[pa.RecordBatch, int]:
        return pa.record_batch({"id": [number]}), number

    keyed = beam.Map(by_batch).with_output_types(tuple[pa.RecordBatch, int])
    with pytest.raises(engine.JobFailed, match="cannot be made deterministic"):
        engine.run_graph(lambda p: p | beam.Create([1]) | keyed | beam.GroupByKey())


def blocks(first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    batch = pa.record_batch({"id": range(first, first + 100), "text": ["y" * 100] * 100})
    for start in range(0, 100, 10):
        yield start // 10 % 3, batch.slice(start, 10)


def sums(group: tuple[int, Iterable[pa.RecordBatch]]) -> tuple[int, int, int]:
    key, batches = group
    ids = pa.chunked_array([batch["id"] for batch in batches])
    return key, len(ids), sum(ids.to_pylist())


def test_grouped_batches_use_the_coder() -> None:
    def build(pipeline: beam.Pipeline) -> None:
        typed = beam.FlatMap(blocks).with_output_types(tuple[int, pa.RecordBatch])
        keyed = pipeline | beam.Create([0, 1000]) | typed
        assert beam_coders.registry.get_coder(keyed.element_type).value_coder() == CODER
        expected = []
        for key in range(3):
            ids = [i for first in (0, 1000) for i in range(first, first + 100) if (i - first) // 10 % 3 == key]
            expected.append((key, len(ids), sum(ids)))
        assert_that(keyed | beam.GroupByKey() | beam.Map(sums), equal_to(expected))

    engine.run_graph(build)
