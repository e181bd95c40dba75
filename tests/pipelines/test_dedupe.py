"""Exact dedupe: every duplicate is found, the right one survives, whatever the splits; lost answers are noticed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpus import write

from pipelines import dedupe, shards, store
from pipelines.dedupe import Decide, Exact, KeyBlocks, WriteFlags, exact
from pipelines.reading import Admission
from pipelines.score import Pass, ScoreSplit
from pipelines.steps import Context
from pipelines.tables import MisalignedError, Struct, Tables

Row = dict[str, Any]  # source, split, row, id, cluster, size, keep


@dataclass
class Scored:
    """A run folder after the scoring pass, with the signatures of exact dedupe."""

    context: Context
    tables: Tables
    splits: list[shards.Split]
    documents: int

    def flags(self, prefer: str = "bytes") -> list[Row]:
        """Deduplicate; the flags of every document."""
        exact(self.context, self.tables, self.splits, Exact(prefer=prefer), self.documents)
        rows: list[Row] = []
        for split in self.splits:
            table = pq.ParquetFile(split.sidecar(f"{self.context.run}/dedupe/exact")).read()
            keys = {"source": split.source, "split": split.name}
            rows += [{**keys, "row": r["row"], "id": r["id"], **r["exact"]} for r in table.to_pylist()]
        return rows


def scored(folder: Path) -> Scored:
    """Score every shard below `folder/corpus/<source>`, in this process."""
    run = str(folder / "run")
    sources = {p.name: f"{p}/*.parquet" for p in (folder / "corpus").iterdir()}
    found = [shards.scan(shard, "text") for shard in shards.expand(sources)]
    splits = shards.splits(found)
    plan = Pass.plan(run, "text", Admission(), [Exact().column()])
    context = Context(run)
    records = context.run_splits("score", splits, beam.ParDo(ScoreSplit(plan)))
    structs = {
        "signatures/exact": Struct("signatures/exact", plan.columns[0].scorer.fields(), plan.bases["signatures/exact"])
    }
    raw = {name: kind for name, (kind, _) in shards.schema_of(found).items()}
    documents = sum(r.rows_out for r in records if r.step == "index")
    return Scored(context, Tables(run, "text", Admission(), 0, raw, structs), splits, documents)


def reference(texts: dict[tuple[str, str, int], tuple[str, str]]) -> dict[tuple[str, str, int], tuple[int, bool]]:
    """(source, split, row) -> (size of its cluster, whether it survives), of documents (id, text), with a dict."""
    groups: dict[str, list[tuple[int, str, tuple[str, str, int]]]] = {}
    for place, (name, text) in texts.items():
        if text.strip():
            groups.setdefault(" ".join(text.split()), []).append((-len(text.encode()), name, place))
    return {place: (len(group), place == min(group)[2]) for group in groups.values() for _, _, place in group}


def test_planted_duplicates_across_shards_and_sources(tmp_path: Path) -> None:
    write(tmp_path / "corpus/a/one.parquet", ["same text here", "only in a", "short  and\tlong"], ["b1", "b2", "b3"])
    write(tmp_path / "corpus/a/two.parquet", [None, "same text here", " "], ["b4", "a1", "b6"])
    write(
        tmp_path / "corpus/z/one.parquet",
        ["same text here", " short and  long \n", "Same text here"],
        ["a2", "z2", "z3"],
    )
    kept = {row["id"]: (row["size"], row["keep"]) for row in scored(tmp_path).flags()}
    assert kept == {
        "b1": (3, False),
        "b2": (1, True),
        "b3": (2, False),
        "a1": (3, True),  # equal length: the lowest id, though not the first in order
        "a2": (3, False),
        "z2": (2, True),  # the longest
        "z3": (1, True),  # case tells texts apart
    }


def test_prefer_decides_before_id_and_null_loses(tmp_path: Path) -> None:
    texts = ["one text"] * 4 + ["another text"] * 3
    path = tmp_path / "corpus/a/one.parquet"
    path.parent.mkdir(parents=True)
    rank = [1.0, None, 3.0, float("nan"), None, None, None]
    pq.write_table(pa.table({"id": list("abcdefg"), "text": texts, "rank": rank}), path)
    run = scored(tmp_path)
    assert [row["id"] for row in run.flags("rank") if row["keep"]] == ["c", "e"]
    assert [row["id"] for row in run.flags("-rank") if row["keep"]] == ["a", "e"], "an edited rule is computed again"


def test_hundred_thousand_identical_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cluster in one partition; the shuffle carries one candidate for each split and the smallest id survives."""
    monkeypatch.setattr(shards, "SPLIT_BYTES", 1)
    ids = [hashlib.sha1(str(i).encode()).hexdigest() for i in range(100_000)]
    for part in range(4):
        mine = ids[part::4]
        write(tmp_path / f"corpus/a/{part}.parquet", ["All of these are the same."] * len(mine), mine, group=5_000)
    run = scored(tmp_path)
    assert len(run.splits) == 20
    blocks = [block for n, s in enumerate(run.splits) for block in KeyBlocks(run.tables, "bytes", 8).process((n, s))]
    assert [block.num_rows for _, block in blocks] == [1] * 20 and len({p for p, _ in blocks}) == 1
    rows = run.flags()
    assert {row["size"] for row in rows} == {100_000} and len({row["cluster"] for row in rows}) == 1
    assert [row["id"] for row in rows if row["keep"]] == [min(ids)]


pieces = st.sampled_from(
    ["", " ", "\n", "a", "b c", "b  c", " b c", "à", "a", "\u2028b c", "x\x1fy", "x y", "long" * 9]
)
shard = st.lists(st.tuples(st.integers(0, 30), pieces), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpus=st.lists(shard, min_size=1, max_size=4), group=st.integers(1, 5), partitions=st.sampled_from([1, 1000]))
def test_equals_a_dict(corpus: list, group: int, partitions: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the shards and row groups hold, equal and repeated ids, empty shards and empty splits among them."""
    folder = tmp_path_factory.mktemp("dict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SPLIT_BYTES", 1)
        patch.setattr(dedupe, "PARTITION_DOCUMENTS", max(1, 20 // partitions))
        for n, rows in enumerate(corpus):
            write(folder / f"corpus/{n % 2}/{n}.parquet", [t for _, t in rows], [f"{i:02d}" for i, _ in rows], group)
        made = scored(folder)
        flags = {
            (row["source"], row["split"].split(".")[0], row["row"]): (row["size"], row["keep"]) for row in made.flags()
        }
    places = {
        (str(n % 2), str(n), r): (f"{i:02d}", t) for n, rows in enumerate(corpus) for r, (i, t) in enumerate(rows)
    }
    assert flags == reference(places)


@pytest.fixture
def pair(tmp_path: Path) -> Scored:
    write(tmp_path / "corpus/a/one.parquet", ["x", "y", "x "])
    write(tmp_path / "corpus/a/two.parquet", ["y", "z", None])
    return scored(tmp_path)


def answers(run: Scored) -> dict[int, list[pa.RecordBatch]]:
    """What the shuffle brings to each split, in two partitions."""
    partitions: dict[int, list[pa.RecordBatch]] = {}
    for element in enumerate(run.splits):
        for partition, block in KeyBlocks(run.tables, "bytes", 2).process(element):
            partitions.setdefault(partition, []).append(block)
    found: dict[int, list[pa.RecordBatch]] = {}
    for item in partitions.items():
        for number, block in Decide().process(item):
            found.setdefault(number, []).append(block)
    return found


@pytest.mark.parametrize("damage", ["lost", "doubled", "cut", "foreign"])
def test_answers_that_went_astray_are_noticed(pair: Scored, damage: str) -> None:
    found = answers(pair)
    given = {
        "lost": found[0][1:],
        "doubled": [*found[0], found[0][0]],
        "cut": [*found[0][:-1], found[0][-1].slice(0, found[0][-1].num_rows - 1)],
        "foreign": found[1],
    }[damage]
    given = given or [found[0][0].slice(0, 0)]
    struct = Struct("dedupe/exact", dedupe.FLAGS, "base")
    write_flags = WriteFlags(pair.context.run, struct, "dedupe:exact", pair.splits)
    with pytest.raises(MisalignedError, match=r"a/one: .* for 2 hashes"):
        list(write_flags.process((0, given)))
    assert not Path(pair.splits[0].sidecar(f"{pair.context.run}/dedupe/exact")).exists()
    assert next(write_flags.process((0, found[0])))["rows_out"] == 3


def test_a_signature_that_lost_rows_is_refused(pair: Scored) -> None:
    path = pair.splits[0].sidecar(f"{pair.context.run}/signatures/exact")
    table = pq.ParquetFile(path).read()
    pq.write_table(table.slice(1), path)
    with pytest.raises(MisalignedError, match="signatures/exact/a/one"):
        list(KeyBlocks(pair.tables, "bytes", 1).process((0, pair.splits[0])))


def test_committed_flags_are_reused_and_missing_ones_made_alone(pair: Scored) -> None:
    before = pair.flags()
    paths = [Path(s.sidecar(f"{pair.context.run}/dedupe/exact")) for s in pair.splits]
    paths[0].unlink()
    kept = paths[1].stat().st_ino, paths[1].stat().st_mtime_ns
    assert pair.flags() == before
    assert (paths[1].stat().st_ino, paths[1].stat().st_mtime_ns) == kept
    assert [r.reused for r in sorted(pair.context.records["dedupe:exact"], key=lambda r: r.split)] == [False, True]


def test_memory_of_a_partition(tmp_path: Path) -> None:
    """As stated: about 100 bytes for a candidate with ids of 40 characters, so 20 MB for a full partition."""
    rng = np.random.default_rng(0)
    write(tmp_path / "corpus/a/one.parquet", [f"text {n}" for n in rng.integers(0, 10**9, 5_000)], group=5_000)
    run = scored(tmp_path)
    blocks = [block for _, block in KeyBlocks(run.tables, "bytes", 1).process((0, run.splits[0]))]
    rows, size = sum(b.num_rows for b in blocks), sum(b.nbytes for b in blocks)
    assert 4_900 < rows <= 5_000 and size / rows * dedupe.PARTITION_DOCUMENTS < 20e6


def test_the_key_depends_on_rule_and_documents(pair: Scored) -> None:
    base = dedupe.base(pair.tables, Exact(), pair.splits)
    assert base == dedupe.base(pair.tables, Exact(), pair.splits[::-1])
    assert base != dedupe.base(pair.tables, Exact(prefer="-bytes"), pair.splits)
    assert base != dedupe.base(pair.tables, Exact(), pair.splits[:1])
    assert store.digest(base, pair.splits[0].identity()) != store.digest(base, pair.splits[1].identity())
