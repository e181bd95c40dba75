"""Admission: which rows are documents, what is repaired, in batches of bounded bytes whatever a shard holds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import reading, shards
from pipelines.reading import Admission, CorruptSplitError, read

REPAIR, DROP = Admission(), Admission(invalid_utf8="drop", nul="drop")
BAD = [
    b"plain",
    b"\xed\xa0\x80 lone surrogate",
    b"cut \xe2\x82",
    b"\xff\xfe",
    b"a\0b",
    b"\0",
    b"\xff\0",
    b"",
    b" \n",
    None,
]


def split_of(path: Path, text: str = "text") -> shards.Split:
    [shard] = shards.expand({"s": str(path)})
    [split] = shards.splits([shards.scan(shard, text)])
    return split


def write(path: Path, columns: Any, **options: Any) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def everything(path: Path, policy: Admission = REPAIR, text: str = "text") -> tuple[pa.Table, pa.Table]:
    parts = list(read(split_of(path, text), text, policy))
    return pa.Table.from_batches([p.documents for p in parts]), pa.Table.from_batches([p.index for p in parts])


def slow(value: bytes | None, policy: Admission) -> tuple[str, str, str]:
    """Status, repair and text of one value, one step after the other."""
    if value is None:
        return "null", "", ""
    text, done = value.decode("utf-8", "replace"), []
    try:
        value.decode()
    except UnicodeDecodeError:
        if policy.invalid_utf8 == "drop":
            return "invalid_utf8", "", text
        done.append("invalid_utf8")
    if "\0" in text:
        if policy.nul == "drop":
            return "nul", "", text
        done.append("nul")
        text = text.replace("\0", "")
    if not text:
        return "empty", "", text
    return ("ok", "+".join(done), text) if text.strip() else ("blank", "", text)


@pytest.mark.parametrize("policy", [REPAIR, DROP, Admission(invalid_utf8="drop"), Admission(nul="drop")])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary"])
def test_each_kind_of_bad_text_has_its_reason(tmp_path: Path, policy: Admission, kind: Any) -> None:
    column = pa.array(BAD, pa.binary())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    documents, index = everything(write(tmp_path / "a.parquet", {"text": column}), policy)
    expected = [slow(value, policy) for value in BAD]
    assert list(zip(index["status"].to_pylist(), index["repaired"].to_pylist(), strict=True)) == [
        e[:2] for e in expected
    ]
    assert documents["text"].to_pylist() == [text for status, _, text in expected if status == "ok"]
    admitted = index.filter(pa.compute.equal(index["status"], "ok"))
    assert admitted["bytes"].to_pylist() == [len(text.encode()) for status, _, text in expected if status == "ok"]
    assert admitted["characters"].to_pylist() == [len(text) for status, _, text in expected if status == "ok"]


def test_invalid_bytes_hidden_in_a_string_column(tmp_path: Path) -> None:
    """Parquet does not check what a writer calls a string."""
    raw = pa.array(BAD, pa.binary())
    for kind in (pa.string(), pa.large_string()):
        column = (raw if kind == pa.string() else raw.cast(pa.large_binary())).view(kind)
        path = write(tmp_path / "a.parquet", {"text": column, "id": column})
        documents, index = everything(path)
        documents.validate(full=True), index.validate(full=True)
        assert index["status"].to_pylist() == [slow(value, REPAIR)[0] for value in BAD]
        assert index["id"].to_pylist()[1] == "\ufffd\ufffd\ufffd lone surrogate"


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.none() | st.binary(max_size=12) | st.text(max_size=12).map(str.encode), max_size=30),
    data=st.data(),
)
def test_admission_equals_the_slow_way(values: list[bytes | None], data: st.DataObject) -> None:
    policy = data.draw(st.sampled_from([REPAIR, DROP]))
    raw = pa.array(values, pa.binary())
    at = data.draw(st.integers(0, len(values)))  # slices: offsets that do not start at 0
    text, _, _ = reading._text(raw[at:], policy)
    batch = pa.record_batch({"text": raw[at:]})
    split = shards.Split("s", "a", "a", "", "", 0, (), 0, 0)
    index = reading._admit(split, batch, 0, "text", policy).index
    expected = [slow(value, policy) for value in values[at:]]
    assert index["status"].to_pylist() == [e[0] for e in expected]
    assert index["repaired"].to_pylist() == [e[1] for e in expected]
    for found, (reason, _, wanted) in zip(text.to_pylist(), expected, strict=True):
        assert found == wanted or reason in ("invalid_utf8", "nul")


def test_ids_are_those_given_or_made(tmp_path: Path) -> None:
    text = {"text": ["a", "b", "c"]}
    for column, expected in [
        (pa.array(["x", None, "x"]), ["x", None, "x"]),
        (pa.array([7, None, 9]), ["7", None, "9"]),
        (pa.array(["x", None, "z"]).dictionary_encode(), ["x", None, "z"]),
        (pa.array([b"x", None, b"\xff"]), ["x", None, "\ufffd"]),
    ]:
        documents, _ = everything(write(tmp_path / "a.parquet", {**text, "id": column}))
        found = documents["id"].to_pylist()
        assert [i for i, e in zip(found, expected, strict=True) if e] == [e for e in expected if e]
        assert (
            len(found[1]) == 32 and found[1] != everything(write(tmp_path / "b.parquet", text))[0]["id"].to_pylist()[1]
        )
    made = everything(write(tmp_path / "a.parquet", text))[0]["id"].to_pylist()
    assert len(set(made)) == 3 and made == everything(write(tmp_path / "a.parquet", text))[0]["id"].to_pylist()


def test_a_column_named_row_is_carried_under_another_name(tmp_path: Path) -> None:
    documents, _ = everything(write(tmp_path / "a.parquet", {"text": ["a", "b"], "row": ["x", "y"]}))
    assert documents["row"].to_pylist() == [0, 1]
    assert documents["row_original"].to_pylist() == ["x", "y"]


def test_rows_are_numbered_through_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SPLIT_BYTES", 100)
    path = write(
        tmp_path / "a.parquet",
        {"text": [None if i % 3 == 0 else f"text {i} " * 5 for i in range(50)]},
        row_group_size=7,
    )
    parts = shards.splits([shards.scan(s, "text") for s in shards.expand({"s": str(path)})])
    assert len(parts) > 3
    batches = [part.documents for p in parts for part in read(p, "text", REPAIR)]
    found = [(row["row"], row["text"]) for batch in batches for row in batch.to_pylist()]
    assert found == [(i, f"text {i} " * 5) for i in range(50) if i % 3]


@pytest.mark.parametrize("dictionary", [True, False])
def test_batches_are_bounded_whatever_the_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 1 << 16)
    draw = np.random.default_rng(0)
    texts = ["x" * int(n) for n in [*draw.integers(0, 10, 20_000), *draw.integers(0, 40_000, 60), 300_000, 1, 300_000]]
    column = pa.array(texts)
    path = write(
        tmp_path / "a.parquet", {"text": column.dictionary_encode() if dictionary else column, "n": range(len(texts))}
    )
    parts = list(read(split_of(path), "text", REPAIR))
    for part in parts:
        assert part.index.num_rows <= reading.BATCH_ROWS
        assert sum(part.index["bytes"].to_pylist()) <= 1 << 16 or part.index.num_rows == 1
    assert [r for part in parts for r in part.index["row"].to_pylist()] == list(range(len(texts)))
    assert [n for part in parts for n in part.documents["n"].to_pylist()] == [i for i, t in enumerate(texts) if t]
    sizes = [(part.index.num_rows, sum(part.index["bytes"].to_pylist())) for part in parts]
    for (rows, size), (more_rows, more_size) in pairwise(sizes):
        assert rows + more_rows > reading.BATCH_ROWS or size + more_size > 1 << 15, "a batch is needlessly small"


def test_a_dictionary_of_long_texts_is_not_unfolded_at_once(tmp_path: Path) -> None:
    """A page that stands a thousand times costs a shard once and memory a thousand times, if one is not careful."""
    path = write(tmp_path / "a.parquet", {"text": pa.array(["z" * 200_000] * 1000)})
    assert path.stat().st_size < 100_000
    before, most = pa.total_allocated_bytes(), 0
    for part in read(split_of(path), "text", REPAIR):
        most = max(most, pa.total_allocated_bytes() - before)
        assert part.documents.num_rows <= 83
    assert most < 150e6


def test_only_wanted_columns_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"], "url": ["u"], "id": ["i"], "n": [1]})
    [part] = read(split_of(path), "text", REPAIR, columns=["n", "missing"])
    assert part.documents.schema.names == ["row", "id", "text", "n"]


def test_a_page_whose_checksum_is_wrong_is_corrupt(tmp_path: Path) -> None:
    """One bit in a text changes nothing that a decoder would notice."""
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    path = write(tmp_path / "a.parquet", {"text": ["find me here " * 50, "b"]}, **plain)
    data = bytearray(path.read_bytes())
    data[data.index(b"find me here")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptSplitError, match=r"a\.parquet, rows from 0.*CRC"):
        list(read(split_of(path), "text", REPAIR))


def test_a_shard_that_changed_under_the_run_is_corrupt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b", "c"]})
    split = split_of(path)
    write(path, {"text": ["a", "b"]})
    with pytest.raises(CorruptSplitError, match="promises 3 rows, 2 could be read"):
        list(read(split, "text", REPAIR))
    path.unlink()
    with pytest.raises(CorruptSplitError, match=r"a\.parquet"):
        list(read(split, "text", REPAIR))


def test_our_own_mistakes_are_no_corrupt_shards(tmp_path: Path) -> None:
    split = split_of(write(tmp_path / "a.parquet", {"text": ["a"]}))
    with pytest.raises(KeyError):
        list(read(split, "no such column", REPAIR))
