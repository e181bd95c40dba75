"""MinHash dedupe through the whole pipeline: planted truth, union-find over all pairs, nothing depends on order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import write

from pipelines import clusters, near, shards, steps, store, survivors, verify
from pipelines.ledger import LedgerError
from pipelines.near import Near
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from transforms.batch import Batch
from transforms.minhash import MinHash, jaccard

WORDS = [
    a + b + c
    for a in ("ba", "ko", "mi", "re", "tu")
    for b in ("dun", "sel", "var", "lim")
    for c in ("", "en", "os", "a")
]
Flags = dict[str, tuple[int, int, bool]]  # id -> cluster, size, keep


def prose(draw: np.random.Generator, words: int) -> list[str]:
    return [WORDS[i] for i in draw.integers(0, len(WORDS), words)]


def edited(draw: np.random.Generator, words: list[str], share: float) -> list[str]:
    changed = draw.random(len(words)) < share
    return [
        f"x{draw.integers(1 << 30):x}".translate({48 + d: 103 + d for d in range(10)}) if c else w
        for w, c in zip(words, changed, strict=True)
    ]


def corpus(groups: int, seed: int, shares: tuple[float, ...] = (0.0, 0.005, 0.02, 0.05, 0.1)) -> list[str]:
    """Families of a document and its edits, from hardly changed to beyond recognition, in random order."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(groups):
        words = prose(draw, int(draw.integers(60, 300)))
        texts.append(" ".join(words))
        texts += [" ".join(edited(draw, words, share)) for share in shares[: draw.integers(0, len(shares) + 1)]]
    return [texts[i] for i in draw.permutation(len(texts))]


def place(folder: Path, texts: list[str], shards: int = 3, group: int = 25) -> dict[str, str]:
    """Texts dealt to shards of two sources; returns id -> text. Ids do not hash the place: shards may move."""
    ids = [f"{i * 7919 % 100_003:06d}" for i in range(len(texts))]
    for k in range(shards):
        write(folder / ("a" if k % 2 else "b") / f"{k}.parquet", texts[k::shards], ids[k::shards], group)
    return dict(zip(ids, texts, strict=True))


def recipe(folder: Path, **method: Any) -> dict[str, Any]:
    return {
        "name": "near",
        "sources": {n: f"{folder}/{n}/*.parquet" for n in ("a", "b")},
        "dedupe": {"minhash": method},
    }


def read(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def flags(out: Path) -> Flags:
    found = {}
    for path in sorted((out / "dedupe" / "minhash").rglob("*.parquet")):
        for row in read(path).to_pylist():
            assert row["id"] not in found
            found[row["id"]] = tuple(row["minhash"].values())
    return found


def dedupe(folder: Path, out: Path, workers: int = 1, **method: Any) -> Flags:
    summary = run(parse(recipe(folder, **method)), str(out), workers=workers, until="dedupe")
    assert summary["ledger_balanced"] and not (out / "scratch" / "minhash").exists()
    return flags(out)


def partition(found: Flags) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, (cluster, _, _) in found.items():
        groups.setdefault(cluster, set()).add(name)
    return {frozenset(g) for g in groups.values()}


def sketches(texts: dict[str, str], sketch: MinHash) -> tuple[Batch, np.ndarray]:
    batch = Batch(pa.record_batch({"text": pa.array(texts.values(), pa.large_string())}))
    return batch, sketch.band_hashes(sketch.signatures(batch))


def all_pairs(texts: dict[str, str], sketch: MinHash, least: float = 0) -> set[frozenset[str]]:
    """Union-find over every pair of documents that share a band and have at least this Jaccard similarity."""
    batch, bands = sketches(texts, sketch)
    u, v = np.triu_indices(len(texts), 1)
    near_by = (bands[u] == bands[v]).any(axis=1)
    u, v = u[near_by], v[near_by]
    alike = jaccard(sketch.shingles(batch), u, v) >= least
    parent = list(range(len(texts)))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in zip(u[alike], v[alike], strict=True):
        parent[root(a)] = root(b)
    names, groups = list(texts), {}
    for i, name in enumerate(names):
        groups.setdefault(root(i), set()).add(name)
    return {frozenset(g) for g in groups.values()}


def check_survivors(found: Flags, texts: dict[str, str]) -> None:
    """One of each cluster stays: the longest, then the lowest id. Sizes are those of the clusters."""
    for group in partition(found):
        best = min(group, key=lambda name: (-len(texts[name].encode()), name))
        assert {name for name in group if found[name][2]} == {best}
        assert {found[name][1] for name in group} == {len(group)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("planted")
    return folder, place(folder, corpus(80, 1))


@pytest.fixture(scope="module")
def plain(planted: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    dedupe(planted[0], out)
    return out


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every graph goes to the worker processes, be it ever so small."""
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    yield


def sidecars(out: Path) -> dict[str, Any]:
    """Rows, key and record (but for the seconds) of every flag and signature."""
    found = {}
    for path in sorted(p for part in ("signatures", "dedupe") for p in (out / part).rglob("*.parquet")):
        table, metadata = read(path), pq.read_metadata(path).metadata
        record = json.loads(metadata[store.RECORD])
        del record["seconds"]
        found[str(path.relative_to(out))] = (table.replace_schema_metadata(None), metadata[store.KEY], record)
    return found


def assert_equal(made: Path, expected: Path) -> None:
    ours, theirs = sidecars(made), sidecars(expected)
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for path in ours:
        assert ours[path][0].equals(theirs[path][0]) and ours[path][1:] == theirs[path][1:], path


def test_equals_union_find_over_all_pairs(planted: tuple[Path, dict[str, str]], plain: Path) -> None:
    found, texts = flags(plain), planted[1]
    assert found.keys() == texts.keys()
    expected = all_pairs(texts, MinHash())
    assert partition(found) == expected
    assert 80 < len(expected) < len(texts) and max(map(len, expected)) > 3
    check_survivors(found, texts)


def test_planted_families(tmp_path: Path) -> None:
    """Edits of half a percent of the words are found, other documents are left alone."""
    texts = corpus(60, 2, (0.0, 0.002, 0.002))
    found = dedupe(tmp_path / "in", tmp_path / "out") if (ids := place(tmp_path / "in", texts)) else {}
    family: dict[str, set[str]] = {}
    for name, text in ids.items():
        family.setdefault(" ".join(w for w in text.split()[:6]), set()).add(name)
    expected = {frozenset(g) for g in family.values()}
    agree = len(partition(found) & expected)
    assert agree > 0.9 * len(expected)  # a few lose a family member, or an edit falls on the first six words
    check_survivors(found, ids)


@pytest.mark.parametrize(
    "method",
    [
        {"preset": "curator"},
        {"ngram": 3, "bands": 4, "rows": 5},
        {"threshold": 0.5, "permutations": 64},
        {"unit": "character", "ngram": 9},
    ],
    ids=str,
)
def test_other_parameters(planted: tuple[Path, dict[str, str]], tmp_path: Path, method: dict[str, Any]) -> None:
    found = dedupe(planted[0], tmp_path, **method)
    assert partition(found) == all_pairs(planted[1], Near(**method).sketch())


def test_prefer(planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path) -> None:
    found = dedupe(planted[0], tmp_path, prefer="-characters")
    assert partition(found) == partition(flags(plain))
    for group in partition(found):
        best = min(group, key=lambda name: (len(planted[1][name]), name))
        assert {name for name in group if found[name][2]} == {best}


def test_small_partitions_and_rounds(
    planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ways of large corpora: many partitions, a graph for each few bands, components by the engine."""
    for module, name, value in (
        (near, "COLUMN_ROWS", 60), (near, "SHUFFLE_ROWS", 2_000), (clusters, "EDGE_ROWS", 80),
        (clusters, "IN_PROCESS", 10), (survivors, "PARTITION_DOCUMENTS", 30),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    dedupe(planted[0], tmp_path)
    assert_equal(tmp_path, plain)


def test_too_few_rounds_raise(
    planted: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "IN_PROCESS", 10)
    monkeypatch.setattr(clusters, "ROUNDS", 0)
    with pytest.raises(RuntimeError, match="still change after 0 rounds"):
        dedupe(planted[0], tmp_path)
    assert not (tmp_path / "dedupe").exists()


def test_other_splits_and_names(
    planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters, their names and survivors do not depend on how the documents are cut into shards and splits."""
    expected = flags(plain)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 20_000)
    assert dedupe(planted[0], tmp_path / "splits") == expected
    for path in planted[0].rglob("*.parquet"):
        renamed = tmp_path / "in" / ("b" if path.parent.name == "a" else "a") / f"{9 - int(path.stem)}.parquet"
        renamed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed)
    assert dedupe(tmp_path / "in", tmp_path / "renamed") == expected


def test_resume_computes_what_is_missing(planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(plain, out)
    lost = next((out / "dedupe").rglob("*.parquet"))
    lost.unlink()
    summary = run(parse(recipe(planted[0])), str(out), until="dedupe")
    assert (summary["ledger"]["dedupe:minhash"]["reused"], summary["ledger"]["signatures:minhash"]["reused"]) == (2, 3)
    assert_equal(out, plain)
    assert run(parse(recipe(planted[0])), str(out), until="dedupe")["ledger"]["dedupe:minhash"]["reused"] == 3


def test_a_new_shard_leaves_old_signatures_alone(
    planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(planted[0], folder)
    (folder / "a" / "1.parquet").rename(tmp_path / "later.parquet")
    (folder / "a" / "0.parquet").write_bytes((folder / "b" / "0.parquet").read_bytes())
    (folder / "b" / "0.parquet").unlink()
    out = tmp_path / "run"
    dedupe(folder, out)
    (tmp_path / "later.parquet").rename(folder / "a" / "1.parquet")
    summary = run(parse(recipe(folder)), str(out), until="dedupe")
    assert (summary["ledger"]["signatures:minhash"]["reused"], summary["ledger"]["dedupe:minhash"]["reused"]) == (2, 0)
    assert flags(out) == flags(plain)


def test_against_an_older_run(tmp_path: Path) -> None:
    """As everything at once, with the old documents preferred. New names of clusters are those of the old ones."""
    texts = corpus(70, 3)
    ids = place(tmp_path / "in", texts, shards=4)
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (tmp_path / "in").rglob("*.parquet"):
        target = (old if path.stem in "01" else new) / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    first = dedupe(old, tmp_path / "first")
    shutil.rmtree(old)  # of the old run only the signatures are read
    shutil.rmtree(tmp_path / "first" / "dedupe")
    found = dedupe(new, tmp_path / "second", against=str(tmp_path / "first"))

    expected = all_pairs(ids, MinHash())
    met = 0
    for group in expected:
        before, now = group & first.keys(), group & found.keys()
        assert {found[name][1] for name in now} <= {len(group)}
        assert len({found[name][0] for name in now}) <= 1
        if before and now:
            met += 1
            assert not any(found[name][2] for name in now)
            assert {found[name][0] for name in now} <= {first[name][0] for name in before}
        elif now:
            best = min(now, key=lambda name: (-len(ids[name].encode()), name))
            assert {name for name in now if found[name][2]} == {best}
    assert found.keys() | first.keys() == ids.keys() and met > 20


def test_against_must_fit(plain: Path, planted: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    for method, message in (
        ({"against": str(tmp_path)}, "is no run folder"),
        ({"against": str(plain), "bands": 13}, "they must be equal"),
        ({"against": str(plain), "verify": 0.8}, "give one of them"),
        ({"threshold": 0.8, "rows": 3}, "not both"),
        ({"permutations": 64}, "with threshold alone"),
        ({"preset": "finweb"}, "did you mean 'fineweb'"),
        ({"rows": 0}, "dedupe.minhash.rows: "),
    ):
        with pytest.raises(RecipeError, match=message):
            dedupe(planted[0], tmp_path / "out", **method)
    assert not (tmp_path / "out").exists()
    copied = tmp_path / "copied"
    shutil.copytree(plain, copied)
    with pytest.raises(RecipeError, match="is this run"):
        dedupe(planted[0], copied, against=str(copied))
    next((copied / "signatures").rglob("*.parquet")).unlink()
    with pytest.raises(RecipeError, match="no current signatures of"):
        dedupe(planted[0], tmp_path / "out", against=str(copied))


def test_verified_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Families of two: a bucket's star is all its pairs, so the union-find over all pairs is met exactly."""
    texts = corpus(150, 4, (0.015,)) + corpus(100, 5, (0.03,)) + corpus(100, 6, (0.06,))
    ids = place(tmp_path / "in", texts)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 60_000)
    out = tmp_path / "out"
    found = dedupe(tmp_path / "in", out, verify=0.8)
    assert partition(found) == all_pairs(ids, MinHash(), 0.8)
    assert len(all_pairs(ids, MinHash())) < len(partition(found)) < len(ids) - 50
    check_survivors(found, ids)


@pytest.mark.usefixtures("crossing")
def test_verified_clusters(planted: tuple[Path, dict[str, str]], plain: Path, tmp_path: Path) -> None:
    """Equal documents stay together; every cluster is one of those over all pairs, or a part of it."""
    found = dedupe(planted[0], tmp_path / "one", verify=0.9)
    groups, all_of_them = partition(found), all_pairs(planted[1], MinHash(), 0.9)
    assert all(any(g <= whole for whole in all_of_them) for g in groups)
    assert len(groups) < 1.03 * len(all_of_them) and len(groups) > len(partition(flags(plain)))
    where = {name: g for g in groups for name in g}
    for name, text in planted[1].items():
        assert {other for other, same in planted[1].items() if same == text} <= where[name]
    dedupe(planted[0], tmp_path / "two", workers=2, verify=0.9)
    assert_equal(tmp_path / "two", tmp_path / "one")


def test_lost_rows_are_noticed(
    planted: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = clusters.blocks

    def losing(*args: Any) -> Iterator[Any]:
        yield from list(whole(*args))[:-1]

    for module, least in ((near, None), (clusters, 0.5)):
        monkeypatch.setattr(module, "blocks", losing)
        with pytest.raises(LedgerError, match=r"rows were sent and|buckets were sent and"):
            dedupe(planted[0], tmp_path / "out", verify=least)
        monkeypatch.setattr(module, "blocks", whole)
    monkeypatch.setattr(survivors, "blocks", losing)
    with pytest.raises(LedgerError, match="candidates were sent and"):
        dedupe(planted[0], tmp_path / "out")
    assert not (tmp_path / "out" / "dedupe").exists()  # what is written is never wrong


def test_holdout_by_clusters(planted: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    given = recipe(planted[0]) | {
        "holdout": {"share": 0.3, "clusters": "minhash"},
        "select": {"unique": "minhash.keep"},
    }
    summary = run(parse(given), str(tmp_path), until="select")
    held: dict[int, set[bool]] = {}
    for path in (tmp_path / "selection").rglob("*.parquet"):
        marks = read(tmp_path / "dedupe" / "minhash" / path.relative_to(tmp_path / "selection"))
        for row, mark in zip(read(path).to_pylist(), marks.to_pylist(), strict=True):
            held.setdefault(mark["minhash"]["cluster"], set()).add(row["selection"]["holdout"])
    assert all(len(sides) == 1 for sides in held.values())
    assert 0.1 < sum(True in sides for sides in held.values()) / len(held) < 0.5
    assert summary["ledger"]["select"]["dropped"]["unique"] > 0


SCRIPTS = ["שלום עולם ", "مرحبا بالعالم ٣٫٥ ", "नमस्ते दुनिया ", "你好世界", "สวัสดีชาวโลก", "안녕 세상 ", "Γειά σου Κόσμε ",
           "ሰላም ልዑል ", "😀🎉👍🏽 ", "გამარჯობა ", "Привет, мир! "]  # fmt: skip
EDGES = ["...", "!?", "one", "one two three four", "word " * 1_000_000, "x" * 3_000_000, "a", *(s * 9 for s in SCRIPTS)]


@pytest.mark.parametrize("method", [{}, {"preset": "curator"}, {"verify": 0.8}], ids=str)
def test_edge_documents(tmp_path: Path, method: dict[str, Any]) -> None:
    """Each is found again in its copy and in nothing else; rows that are no documents are counted."""
    ids = [f"{k}{i:03d}" for k in "pq" for i in range(len(EDGES))]
    write(
        tmp_path / "in" / "a" / "0.parquet", [None, "", " \n", *EDGES], ["n1", "n2", "n3", *ids[: len(EDGES)]], group=3
    )
    write(tmp_path / "in" / "b" / "0.parquet", EDGES, ids[len(EDGES) :])
    found = dedupe(tmp_path / "in", tmp_path / "out", **method)
    assert partition(found) == {frozenset((f"p{i:03d}", f"q{i:03d}")) for i in range(len(EDGES))}
    assert {name for name in found if found[name][2]} == {f"p{i:03d}" for i in range(len(EDGES))}


def test_no_documents(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "0.parquet", [None, " "])
    write(tmp_path / "in" / "b" / "0.parquet", [])
    assert dedupe(tmp_path / "in", tmp_path / "out") == {} == dedupe(tmp_path / "in", tmp_path / "verified", verify=0.5)
    assert len(list((tmp_path / "out" / "dedupe").rglob("*.parquet"))) == 2


@pytest.mark.parametrize("least", [None, 0.8])
def test_one_cluster_of_all_documents(tmp_path: Path, least: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """10^5 equal documents: the shuffle gets a row per split and band, and one document stays."""
    sent = []
    whole = near.blocks

    def counted(partition: np.ndarray, columns: Any) -> Iterator[Any]:
        sent.append(len(partition))
        yield from whole(partition, columns)

    monkeypatch.setattr(near, "blocks", counted)
    ids = [f"{i:06d}" for i in range(100_000)]
    text = "the very same words in each and every one of them"
    write(tmp_path / "in" / "a" / "0.parquet", [text] * 60_000, ids[:60_000], group=20_000)
    write(tmp_path / "in" / "b" / "0.parquet", [text] * 40_000, ids[60_000:], group=20_000)
    run(parse(recipe(tmp_path / "in", verify=least)), str(tmp_path / "out"), until="dedupe")
    table = pa.concat_tables([read(p) for p in sorted((tmp_path / "out" / "dedupe").rglob("*.parquet"))])
    struct = table.column("minhash").combine_chunks()
    assert np.unique(struct.field("cluster")).size == 1 and set(struct.field("size").to_pylist()) == {100_000}
    assert table.filter(struct.field("keep")).column("id").to_pylist() == ["000000"]
    assert sum(sent) == 2 * (14 + (least is not None))


def test_a_document_of_100_mb(tmp_path: Path) -> None:
    text = "a sentence that is said a million times and more. " * 2_000_000
    write(tmp_path / "in" / "a" / "0.parquet", ["something else", text], ["x", "y"])
    write(tmp_path / "in" / "b" / "0.parquet", [text[: len(text) // 2]], ["z"])
    assert partition(dedupe(tmp_path / "in", tmp_path / "out")) == {frozenset("x"), frozenset("yz")}


def test_verify_reads_only_candidates(
    planted: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    whole = verify.Batch

    def counted(records: pa.RecordBatch, text: str) -> Batch:
        hashed.append(records.num_rows)
        return whole(records, text)

    monkeypatch.setattr(verify, "Batch", counted)
    dedupe(planted[0], tmp_path, verify=0.5)
    _, bands = sketches(planted[1], MinHash())
    u, v = np.triu_indices(len(bands), 1)
    pairs = (bands[u] == bands[v]).any(axis=1)
    assert 0 < sum(hashed) <= 2 * len(np.union1d(u[pairs], v[pairs])) < 2 * len(bands)
