"""The scoring pass: every column beside its documents, whatever the batches; what fails leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_corpus import documents, write

import scorers
from pipelines import reading, shards, store
from pipelines.reading import Admission
from pipelines.score import Column, Pass, ScoreSplit
from pipelines.signatures import ExactSignature
from scorers import Scorer
from transforms.batch import Batch


class Length(Scorer):
    """Characters of the text, times a factor; counts how often it is set up and asked."""

    name: ClassVar[str] = "length"
    needs: ClassVar[tuple[str, ...]] = ("weight",)
    calls: ClassVar[list[str]] = []
    factor: int = 1
    lose: int = 0
    model: Path | None = None
    more: dict[str, list[Path]] | None = None

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field("value", pa.int64(), nullable=False), pa.field("weight", pa.float64())])

    def setup(self) -> None:
        self.calls.append("setup")

    def score(self, batch: Batch) -> pa.StructArray:
        self.calls.append("score")
        columns = [pa.array(batch.characters * self.factor), batch.records.column("weight")]
        return pa.StructArray.from_arrays([c.slice(self.lose) for c in columns], fields=list(self.fields()))


Length.__module__ = ExactSignature.__module__  # keys hold the code of the scorer's module, which must be in a package

TEXTS: list[str | None] = [*documents(30), None, "", "\t", "é" * 10]


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    Length.calls.clear()


@pytest.fixture
def split(tmp_path: Path) -> shards.Split:
    path = tmp_path / "corpus" / "web" / "a.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"id": [f"d{i}" for i in range(len(TEXTS))], "text": TEXTS, "weight": np.arange(len(TEXTS)) / 2})
    pq.write_table(table, path, row_group_size=10)
    return shards.splits([shards.scan(s, "text") for s in shards.expand({"web": str(path)})])[0]


def length(**parameters: Any) -> Column:
    return Column("length", "scores/length", Length(**parameters))


def scoring(run: Path, *columns: Column) -> ScoreSplit:
    return ScoreSplit(Pass.plan(str(run), "text", Admission(), columns))


def sidecar(run: Path, folder: str) -> pa.Table:
    return pq.ParquetFile(run / folder / "web" / "a.parquet").read()


def test_columns_lie_beside_their_documents(split: shards.Split, tmp_path: Path) -> None:
    columns = [
        length(factor=2),
        Column("exact", "signatures/exact", ExactSignature()),
        Column("rules", "scores/rules", scorers.make("fineweb")),
    ]
    records = {r["step"]: r for r in scoring(tmp_path, *columns).process(split)}
    assert records.keys() == {"index", "scores:length", "signatures:exact", "scores:rules"}
    assert (records["index"]["rows_in"], records["index"]["rows_out"]) == (37, 34)
    assert records["index"]["dropped"] == {"null": 1, "empty": 1, "blank": 1}
    assert {(r["rows_in"], r["rows_out"], r["reused"]) for step, r in records.items() if step != "index"} == {
        (34, 34, False)
    }
    admitted = [(i, t) for i, t in enumerate(TEXTS) if t and t.strip()]
    table = sidecar(tmp_path, "scores/length")
    assert table.column("row").to_pylist() == [i for i, _ in admitted]
    assert table.column("id").to_pylist() == [f"d{i}" for i, _ in admitted]
    assert table.column("length").to_pylist() == [{"value": 2 * len(t), "weight": i / 2} for i, t in admitted]
    index = sidecar(tmp_path, "index")
    assert index.column("row").to_pylist() == list(range(37))
    for folder in ("signatures/exact", "scores/rules"):
        assert sidecar(tmp_path, folder).column("id").equals(table.column("id"))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_batches_do_not_show(rows: int, split: shards.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        length(),
        Column("exact", "signatures/exact", ExactSignature()),
        Column("rules", "scores/rules", scorers.make("fineweb")),
    ]
    list(scoring(tmp_path / "whole", *columns).process(split))
    monkeypatch.setattr(reading, "BATCH_ROWS", rows)
    list(scoring(tmp_path / "parts", *columns).process(split))
    for folder in ("index", "scores/length", "signatures/exact", "scores/rules"):
        assert sidecar(tmp_path / "parts", folder).equals(sidecar(tmp_path / "whole", folder))


def test_only_what_is_missing_is_computed(split: shards.Split, tmp_path: Path) -> None:
    first = scoring(tmp_path, length())
    list(first.process(split))
    assert Length.calls == ["setup", "score"]
    again = {r["step"]: r["reused"] for r in first.process(split)}
    assert again == {"index": True, "scores:length": True} and len(Length.calls) == 2
    exact = Column("exact", "signatures/exact", ExactSignature())
    wider = {r["step"]: r["reused"] for r in scoring(tmp_path, length(), exact).process(split)}
    assert wider == {"index": True, "scores:length": True, "signatures:exact": False} and len(Length.calls) == 2
    edited = {r["step"]: r["reused"] for r in scoring(tmp_path, length(factor=3)).process(split)}
    assert edited == {"index": True, "scores:length": False} and len(Length.calls) == 4


def test_setup_happens_once_for_many_splits(
    split: shards.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SPLIT_BYTES", 1)
    found = shards.expand({"web": split.path})
    work = scoring(tmp_path, length())
    parts = shards.splits([shards.scan(s, "text") for s in found])
    assert len(parts) == 4
    for part in parts:
        list(work.process(part))
    assert Length.calls.count("setup") == 1 and Length.calls.count("score") == 4


def test_the_key_follows_code_parameters_and_files(split: shards.Split, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1")

    def key(column: Column) -> str:
        return Pass.plan("", "text", Admission(), [column]).key(column.folder, split)

    before = key(length(model=model))
    assert before == key(length(model=model)) != key(length())
    assert key(length(factor=2)) != key(length())
    moved = tmp_path / "moved"
    model.rename(moved)
    assert key(length(model=moved)) == before, "where a model lies is no part of the key"
    (moved / "weights").write_bytes(b"2")
    assert key(length(model=moved)) != before
    several = key(length(more={"a": [moved]}))
    (moved / "weights").write_bytes(b"3")
    assert key(length(more={"a": [moved]})) != several, "paths inside lists and mappings too"
    assert Pass.plan("", "text", Admission(nul="drop"), [length()]).key("scores/length", split) != key(length())


def test_a_scorer_that_loses_rows_is_refused(split: shards.Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'length' gave 33 rows for 34 documents"):
        list(scoring(tmp_path, length(lose=1)).process(split))
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "corpus" not in p.parts] == []


def test_a_corrupt_page_quarantines_its_split(split: shards.Split, tmp_path: Path) -> None:
    path = Path(split.path)
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(2).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    [record] = scoring(tmp_path, length()).process(split)
    assert record["step"] == "index" and record["quarantined"] == record["rows_in"] == 37 and record["rows_out"] == 0
    assert "a.parquet" in record["cause"]
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "corpus" not in p.parts] == []


def test_a_split_without_documents(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "web" / "a.parquet", [None, "", "  "])
    write(tmp_path / "corpus" / "web" / "b.parquet", [])
    found = [shards.scan(s, "text") for s in shards.expand({"web": f"{tmp_path}/corpus/web/*.parquet"})]
    exact = Column("exact", "signatures/exact", ExactSignature())
    for split in shards.splits(found):
        records = list(scoring(tmp_path, exact).process(split))
        assert [r["rows_out"] for r in records] == [0, 0]
        table = pq.ParquetFile(split.sidecar(f"{tmp_path}/signatures/exact")).read()
        assert table.num_rows == 0 and table.schema.field("exact").type == ExactSignature().fields()


def test_signatures_tell_texts_apart_but_for_white_space() -> None:
    batch = Batch(
        pa.record_batch({"text": pa.array(["a b", " a\u3000\n b ", "a  b", "ab", "A b", "a b."], pa.large_string())})
    )
    made = ExactSignature().score(batch)
    assert pc.count_distinct(made.field("high")).as_py() == pc.count_distinct(made.field("low")).as_py() == 4
    assert len(set(map(str, made.slice(0, 3)))) == 1


def test_sidecars_carry_key_and_record(split: shards.Split, tmp_path: Path) -> None:
    work = scoring(tmp_path, length())
    records = {r["step"]: r for r in work.process(split)}
    path = split.sidecar(f"{tmp_path}/scores/length")
    record = records["scores:length"] | {"reused": False, "seconds": 0.0}  # no seconds: equal work, equal bytes
    assert store.committed(path, work.plan.key("scores/length", split)) == record
    assert store.committed(path, "another key") is None
