"""Finding shards, naming them, scanning footers, cutting splits, and the union of columns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import shards
from pipelines.shards import Shard, expand, scan, schema_of, splits, type_of, type_text

TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.null(),
    pa.date32(),
    pa.timestamp("us"),
    pa.timestamp("ns", "Europe/Athens"),
    pa.decimal128(12, 3),
    pa.list_(pa.string()),
    pa.large_list(pa.int8()),
    pa.struct([("a, b: c", pa.int64()), ("d", pa.list_(pa.float32()))]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int8(), pa.string()),
    pa.list_(pa.float32(), 3),
    pa.binary(16),
]


def write(path: Path, columns: Any, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return str(path)


def scanned(path: str, text: str = "text") -> Shard:
    [shard] = expand({"s": path})
    return scan(shard, text)


def test_a_shard_is_named_by_its_path_below_the_fixed_part(tmp_path: Path) -> None:
    for name in ("a.parquet", "deep/er/b.parquet", "c.PARQUET", "d"):
        write(tmp_path / name, {"text": ["x"]})
    found = expand({"one": f"{tmp_path}/**", "two": [f"{tmp_path}/a.parquet", f"{tmp_path}/deep/*/*.parquet"]})
    assert [(s.source, s.name) for s in found] == [
        ("one", "a"),
        ("one", "c.PARQUET"),
        ("one", "d"),
        ("one", "deep/er/b"),
        ("two", "a"),
        ("two", "er/b"),
    ]


def test_one_file_is_read_once_for_a_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "deep" / "a.parquet", {"text": ["x"]})
    wide, close = f"{tmp_path}/*/*.parquet", f"{tmp_path}/deep/*.parquet"
    with pytest.raises(ValueError) as error:
        expand({"s": [wide, close]})
    assert all(word in str(error.value) for word in ("sources.s", path, wide, close, "read twice"))
    assert len(expand({"s": [close, f"{tmp_path}/deep/a*"]})) == 1, "one name, one shard"
    assert not caplog.records
    assert len(expand({"s": wide, "t": close})) == 2
    assert f"{path} is in 's' and in 't'" in caplog.text


def test_a_glob_without_files_says_what_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "a.parquet", {"text": ["x"]})
    monkeypatch.chdir(tmp_path)
    for folder in ("d", "d/"):
        with pytest.raises(ValueError, match=r"did you mean 'd/\*\.parquet'\?"):
            expand({"d": folder})
    with pytest.raises(ValueError, match="make a corpus with `corpusmill sample-corpus --out corpus`"):
        expand({"code": "corpus/code/*.parquet"})
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ValueError, match=r"no file matches 'corpus/code/\*\.parquet'$"):
        expand({"code": "corpus/code/*.parquet"})


def test_brackets_and_question_marks_are_wildcards(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"part{i}" / "x.parquet", {"text": ["x"]})
    assert [s.name for s in expand({"s": f"{tmp_path}/part[01]/x.parquet"})] == ["part0/x", "part1/x"]
    assert [s.name for s in expand({"s": f"{tmp_path}/part?/x.parquet"})] == ["part0/x", "part1/x", "part2/x"]


def test_a_glob_without_files_and_names_that_clash_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x"]})
    write(tmp_path / "a", {"text": ["x"]})
    with pytest.raises(ValueError, match=r"sources\.s: no file matches '.*nothing\*'"):
        expand({"s": f"{tmp_path}/nothing*"})
    with pytest.raises(ValueError, match="would both be shard 'a'; give each its own source"):
        expand({"s": f"{tmp_path}/a*"})
    assert len(expand({"s": [f"{tmp_path}/a", f"{tmp_path}/a"]})) == 1, "the same file twice is one shard"


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"body": ["x"]}, "no column 'text'; there are body"),
        ({"text": [1]}, "column 'text' is int64, not text"),
        ({"text": [["x"]]}, "column 'text' is list<"),
        ({"text": pa.array([1, 2]).dictionary_encode()}, "column 'text' is int64, not text"),
        ({"text": ["x"], "id": [{"a": 1}]}, "column 'id' is struct<a: int64>, neither text nor a number"),
        (
            pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]),
            "several columns are named 'text'",
        ),
        (
            pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([1])], ["u", "u", "text"]),
            "several columns are named 'u'",
        ),
    ],
)
def test_a_shard_that_cannot_be_read_says_why(tmp_path: Path, columns: Any, cause: str) -> None:
    shard = scanned(write(tmp_path / "a.parquet", columns))
    assert cause in str(shard.cause)
    assert splits([shard]) == [] and shard.rows == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1PAR1", b"text\nline\n" * 100, b"\x1f\x8b" + os.urandom(500), b"PAR1" + b"\xff" * 40 + b"PAR1"],
)
def test_what_is_no_parquet_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    shard = scanned(str(tmp_path / "a.parquet"))
    assert shard.cause and "\n" not in shard.cause


def test_every_truncation_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = Path(write(path, {"text": [f"text {i}" for i in range(200)]}, row_group_size=50)).read_bytes()
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        assert scanned(str(path)).cause


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
)
def test_every_type_of_text_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    for column in (pa.array(["a", None]).cast(kind), pa.array(["a", None]).dictionary_encode()):
        shard = scanned(write(tmp_path / "a.parquet", {"text": column}))
        assert (shard.cause, shard.rows) == (None, 2)


def test_splits_are_whole_row_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SPLIT_BYTES", 3000)
    path = write(
        tmp_path / "a.parquet",
        {"text": ["x" * 99 + str(i) for i in range(100)], "u.v": ["y" * 500] * 100},
        row_group_size=10,
        use_dictionary=False,
    )
    shard = scanned(path)
    parts = splits([shard])
    assert sum(len(p.groups) for p in parts) == 10 and sum(p.rows for p in parts) == 100
    assert [p.first_row for p in parts] == [sum(q.rows for q in parts[:i]) for i in range(len(parts))]
    assert all(2000 < p.text_bytes <= 3000 for p in parts[:-1])
    assert parts[0].name == "a.00000-00001" and len({p.name for p in parts}) == len(parts)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 1)
    assert len(splits([shard])) == 10, "a row group is never cut"


def test_size_of_text_counts_the_text_column_alone(tmp_path: Path) -> None:
    columns = {"body.text": ["x" * 1000 + str(i) for i in range(50)], "body": [{"markup": "y" * 9000}] * 50}
    [(_, size)] = scanned(write(tmp_path / "a.parquet", columns, use_dictionary=False), "body.text").groups
    assert 50_000 < size < 60_000


def test_shards_without_rows(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    one_group = scanned(write(tmp_path / "a.parquet", empty))
    with pq.ParquetWriter(tmp_path / "b.parquet", empty.schema):
        pass
    no_group = scanned(str(tmp_path / "b.parquet"))
    assert ([rows for rows, _ in one_group.groups], no_group.groups) == ([0], ())
    assert [(s.cause, s.rows) for s in (one_group, no_group)] == [(None, 0)] * 2
    assert [(p.name, p.rows) for p in splits([one_group, no_group])] == [("a", 0), ("b", 0)]


def test_content_decides_the_digest_and_json_keeps_all(tmp_path: Path) -> None:
    one = scanned(write(tmp_path / "a.parquet", {"text": ["x"], "tags": [["t"]]}))
    other = scanned(write(tmp_path / "b.parquet", {"text": ["y"], "tags": [["t"]]}))
    assert one.digest != other.digest
    assert shards.from_json(json.loads(json.dumps(shards.to_json([one, other])))) == [one, other]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_types_survive_as_text(kind: pa.DataType) -> None:
    assert type_of(type_text(kind)) == kind


def with_columns(path: str, **kinds: pa.DataType) -> Shard:
    return Shard("s", path, path, 1, 1, columns=tuple((name, type_text(kind)) for name, kind in kinds.items()))


def test_union_of_columns() -> None:
    one = with_columns("one", text=pa.string(), url=pa.null(), n=pa.int64())
    two = with_columns("two", text=pa.large_binary(), url=pa.large_string(), tags=pa.list_(pa.string()), id=pa.int64())
    three = with_columns(
        "three", url=pa.dictionary(pa.int32(), pa.string()), tags=pa.large_list(pa.large_string()), id=pa.string()
    )
    union = schema_of([one, two, three])
    assert {n: type_of(k) for n, (k, _) in union.items()} == {
        "text": pa.string(),
        "url": pa.large_string(),
        "n": pa.int64(),
        "tags": pa.list_(pa.string()),
        "id": pa.int64(),
    }
    assert union["url"][1] == "two"
    body = [with_columns("one", body=pa.string()), with_columns("two", body=pa.binary())]
    assert schema_of(body, text="body")
    with pytest.raises(ValueError, match="column 'body' is string in one but binary in two; make the shards agree"):
        schema_of(body)


@given(st.permutations([("a", pa.int64()), ("b", pa.int32()), ("c", pa.null())]))
def test_conflicts_name_both_shards_in_any_order(order: list[tuple[str, pa.DataType]]) -> None:
    with pytest.raises(ValueError) as error:
        schema_of([with_columns(path, n=kind) for path, kind in order])
    assert "int64 in a" in str(error.value) and "int32 in b" in str(error.value)
