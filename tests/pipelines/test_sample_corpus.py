"""The sample corpus: planted trees in which every source, skip and share is known, and this machine itself."""

from __future__ import annotations

import gzip
import hashlib
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample_corpus import DOCUMENT_BYTES, SHARES, Roots, build, docstrings, find, manual_text

LONG = "Says at some length what it is for, so that the docstring counts as one of real length, and more than that."
MODULE = f'"""{LONG}"""\n\n\nclass Thing:\n    """{LONG}\n\n    More.\n    """\n    def act(self):\n        "short"\n'
MANUAL = f".TH LS 1\n.SH NAME\nls \\- list files\n.SH DESCRIPTION\n{LONG}\n.TP\n.B \\-a\nshow \\fIall\\fR files\n"
TREE: dict[str, bytes] = {
    "stdlib/json/decoder.py": MODULE.encode(),
    "stdlib/site-packages/other.py": MODULE.encode(),  # a folder of packages has its own root
    "stdlib/json/__pycache__/decoder.py": MODULE.encode(),
    "stdlib/_sysconfigdata_x.py": MODULE.encode(),
    "packages/pkg/core.py": MODULE.encode(),
    "packages/pkg/plain.py": b"x = 1\n",
    "packages/pkg/latin.py": "# na\xefve\n".encode("latin-1"),
    "packages/pkg/old.py": f"print '{LONG}'\n".encode(),
    "packages/pkg/guide.md": b"# Guide\n",
    "packages/pkg/data/table.txt": b"1 2 3\n",
    "packages/~kg/core.py": MODULE.encode(),
    "packages/pkg-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: pkg\n\n# pkg\n\nA package.\n",
    "packages/pkg-1.0.dist-info/top_level.txt": b"pkg\n",
    "packages/pkg-1.0.dist-info/licenses/LICENSE": b"Do as you like.\n",
    "packages/corpusmill-0.1.0.dist-info/METADATA": b"Name: corpusmill\n\nOurs.\n",
    "packages/pkg/CHANGES.rst": b"1.0: first\n",
    "man/man1/ls.1.gz": gzip.compress(MANUAL.encode()),
    "man/de/man1/ls.1": MANUAL.encode(),
    "man/man1/empty.1": b".so man1/ls.1\n",
    "man/man1/broken.1.gz": gzip.compress(MANUAL.encode())[:-20],
    "man/index.db": b"\0\0",
    "doc/ls/copyright": b"Copyright the authors.\n",
    "doc/ls/changelog.gz": gzip.compress(b"1.0 first\n"),
    "doc/ls/README": b"Read me.\n",
    "doc/git/RelNotes/1.0.txt": b"Git 1.0\n",
    "doc/ls/NEWS.gz": b"no gzip",
    "licences/GPL-3": b"General Public License\n",
}
EXPECTED = {
    "docstrings": {"stdlib/json/decoder.py", "site-packages/pkg/core.py"},
    "code": {"stdlib/json/decoder.py", "site-packages/pkg/core.py", "site-packages/pkg/plain.py",
             "site-packages/pkg/old.py"},
    "readme": {"site-packages/pkg/guide.md", "site-packages/pkg-1.0.dist-info/METADATA", "doc/ls/README"},
    "manuals": {"man/man1/ls.1.gz", "man/de/man1/ls.1"},
    "licences": {"site-packages/pkg-1.0.dist-info/licenses/LICENSE", "doc/ls/copyright", "common-licenses/GPL-3"},
    "changelogs": {"site-packages/pkg/CHANGES.rst", "doc/ls/changelog.gz", "doc/git/RelNotes/1.0.txt"},
}  # fmt: skip


def plant(root: Path, tree: dict[str, bytes]) -> Roots:
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return roots_of(root)


def roots_of(root: Path) -> Roots:
    return Roots((root / "stdlib",), (root / "packages",), (root / "man",), (root / "doc",), (root / "licences",))


def digests(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(out: Path) -> list[dict]:
    return [row for path in sorted(out.glob("*/*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def prose(count: int, size: int = 2000) -> dict[str, bytes]:
    """`count` distinct documents of about `size` bytes for every source but docstrings."""
    names = ["packages/p{}/m.py", "packages/p{}/a.md", "man/man1/p{}.1", "doc/p{}/copyright", "doc/p{}/changelog"]
    line = b"# some words of text to fill it up\n"
    return {name.format(i): f"# {i}\n".encode() + line * (size // len(line)) for name in names for i in range(count)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    plant(root / "machine", TREE)
    return root


def test_every_source_is_found_and_the_rest_is_left_out(planted: Path) -> None:
    out = planted / "out"
    summary = build(out, 1, roots=roots_of(planted / "machine"))
    got: dict[str, set[str]] = {source: set() for source in SHARES}
    for row in rows(out):
        got[row["source"]].add(row["file_path"])
    assert got == EXPECTED
    assert summary.documents == {source: len(paths) for source, paths in EXPECTED.items()}
    # latin.py twice, as code and docstrings; old.py is no Python 3; plain.py has no docstring, empty.1 only `.so`
    assert summary.skipped == {"undecodable": 4, "not Python": 1, "empty": 2}
    assert summary.absent == [] and summary.cut == 0
    assert digests(out).keys() == set(summary.shards)


def test_columns_say_what_they_should(planted: Path) -> None:
    out = planted / "columns"
    summary = build(out, 1, roots=roots_of(planted / "machine"))
    found = {(row["source"], row["file_path"]): row for row in rows(out)}
    page = found["manuals", "man/de/man1/ls.1"]
    assert page["text"].startswith("LS(1)\n\nNAME\nls - list files\n")
    assert (page["language"], page["language_score"], page["date"], page["dump"]) == ("de", None, None, "machine")
    assert found["manuals", "man/man1/ls.1.gz"]["language"] is None
    assert found["readme", "site-packages/pkg-1.0.dist-info/METADATA"]["text"] == "# pkg\n\nA package.\n"
    code, docs = (found[source, "site-packages/pkg/core.py"] for source in ("code", "docstrings"))
    assert code["text"] == MODULE
    assert docs["text"] == f"{LONG}\n\nThing\n{LONG}\n\nMore."
    assert (code["url"], docs["url"]) == tuple("file:///site-packages/pkg/core.py" + end for end in ("", "#docstrings"))
    for row in found.values():
        assert row["id"] == f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, row['url'])}>"
        assert row["token_count"] == len(row["text"].encode()) // 4
        assert str(planted) not in "".join(str(value) for value in row.values())
    assert summary.bytes["code"] == sum(len(r["text"].encode()) for k, r in found.items() if k[0] == "code")


def test_bytes_depend_on_names_and_contents_alone(tmp_path: Path) -> None:
    tree = {**TREE, **prose(30)}
    one = plant(tmp_path / "a", tree)
    other = plant(tmp_path / "b", dict(reversed(tree.items())))
    build(tmp_path / "first", 0.1, roots=one)
    (tmp_path / "b/packages/p1/__pycache__").mkdir()
    (tmp_path / "b/packages/p1/__pycache__/m.cpython-311.pyc").write_bytes(b"\0")
    plant(tmp_path / "b", {"packages/p1/.cache/x.py": b"y = 1\n", "packages/__editable___x_finder.py": b"z = 1\n"})
    build(tmp_path / "second", 0.1, roots=other)
    build(tmp_path / "first", 0.1, roots=one)  # again, over the old one
    assert digests(tmp_path / "first") == digests(tmp_path / "second") != {}


def test_files_are_drawn_by_hash_and_a_larger_target_only_adds(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", prose(60))
    small, large = (
        {(row["source"], row["file_path"]) for row in rows(out)}
        for out, target in ((tmp_path / "s", 0.1), (tmp_path / "l", 0.2))
        if build(out, target, roots=roots)
    )
    assert small < large
    numbers = sorted(int(path.split("/")[1][1:]) for source, path in small if source == "code")
    assert numbers != list(range(len(numbers)))  # not the first of a walk


def test_target_and_shares_hold(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", {**prose(200), "packages/long/__init__.py": f'"""{LONG}"""\n'.encode()})
    summary = build(tmp_path / "out", 0.5, shards=9, roots=roots)
    total = sum(summary.bytes.values())
    assert 0.5e6 <= total < 0.5e6 + 2 * 2000 * len(SHARES)
    assert summary.bytes["docstrings"] == len(LONG)  # lacks its 20 %, which go to the others
    for source in ("code", "readme", "licences", "changelogs"):
        assert summary.bytes[source] / total == pytest.approx(SHARES[source] / 80, abs=0.02)
    assert len(summary.shards) == 9
    counts = Counter(shard.split("/")[0] for shard in summary.shards)
    assert counts == {**dict.fromkeys(SHARES, 1), "code": 3, "manuals": 2}  # 219 kB and 94 kB: most bytes a shard


def test_shards_are_balanced_and_row_groups_small(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", {k: v for k, v in prose(200, 100_000).items() if k.endswith(".py")})
    build(tmp_path / "out", 15, shards=2, roots=roots)
    files = [pq.ParquetFile(path) for path in sorted((tmp_path / "out/code").iterdir())]
    counts = [file.metadata.num_rows for file in files]
    assert len(files) == 2 and abs(counts[0] - counts[1]) <= 1
    for file in files:
        texts = [file.read_row_group(i, ["text"])["text"].nbytes for i in range(file.num_row_groups)]
        assert len(texts) == 4 and max(texts) < 2.2e6
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_long_documents_are_cut_at_a_line(tmp_path: Path) -> None:
    line = "é" * 50 + "\n"
    tree = {"doc/a/README": (line * 5000).encode(), "doc/b/README": ("é" * DOCUMENT_BYTES).encode()}
    summary = build(tmp_path / "out", 1, roots=plant(tmp_path / "machine", tree))
    texts = {row["file_path"]: row["text"] for row in rows(tmp_path / "out")}
    assert summary.cut == 2
    assert texts["doc/a/README"] == line * (DOCUMENT_BYTES // len(line.encode()))
    assert texts["doc/b/README"] == "é" * (DOCUMENT_BYTES // 2)


def test_absent_roots_and_sources_are_reported(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", {"packages/a.py": b"x = 1\n"})
    summary = build(tmp_path / "out", 1, roots=roots)
    assert summary.documents == {"code": 1} and summary.shards == ["code/00000.parquet"]
    assert summary.absent == [source for source in SHARES if source != "code"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["code"]
    with pytest.raises(FileNotFoundError, match="no text found"):
        build(tmp_path / "none", 1, roots=roots_of(tmp_path / "nowhere"))


def test_links_are_counted_not_followed(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", {"packages/a/m.py": b"x = 1\n"})
    (tmp_path / "machine/packages/loop").symlink_to(tmp_path / "machine/packages")
    assert build(tmp_path / "out", 1, roots=roots).skipped == {"empty": 1, "link": 1}


def test_the_projects_own_files_are_left_out(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    found = find(Roots(packages=(checkout.parent / checkout.name,)), Counter())
    assert not any(path.startswith(("site-packages/pipelines", "site-packages/tests")) for path in found["code"])


def test_only_own_shards_are_replaced(tmp_path: Path) -> None:
    roots = plant(tmp_path / "machine", prose(20))
    build(tmp_path / "out", 1, shards=12, roots=roots)
    fewer = build(tmp_path / "out", 1, shards=5, roots=roots).shards
    assert digests(tmp_path / "out").keys() == set(fewer)
    for data in (None, b"no parquet"):
        foreign = tmp_path / "out/code/mine.parquet"
        pq.write_table(pa.table({"text": ["mine"]}), foreign) if data is None else foreign.write_bytes(data)
        with pytest.raises(FileExistsError, match=r"mine\.parquet is no shard"):
            build(tmp_path / "out", 1, roots=roots)
        assert foreign.exists()


@pytest.mark.parametrize(("target", "shards"), [(0, 12), (-1, 12), (float("nan"), 12), (1, 0)])
def test_impossible_sizes_are_refused(tmp_path: Path, target: float, shards: int) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        build(tmp_path / "out", target, shards, Roots())


def test_this_machine(tmp_path: Path) -> None:
    """The standard library and the packages that run this test are text enough for all twelve shards."""
    summary = build(tmp_path / "out", target_mb=2)
    assert {"docstrings", "code", "readme", "licences"} <= summary.documents.keys()
    assert len(summary.shards) == 12
    assert 2e6 <= sum(summary.bytes.values()) <= 2e6 + len(SHARES) * 2 * DOCUMENT_BYTES
    string, wanted = pa.string(), ["text", "id", "dump", "url", "date", "file_path", "language"]
    schema = pa.schema([*((name, string) for name in wanted), ("language_score", pa.float64()),
                        ("token_count", pa.int64()), ("source", string)])  # fmt: skip
    for shard in summary.shards:
        assert pq.read_schema(tmp_path / "out" / shard).equals(schema)
    found = rows(tmp_path / "out")
    assert len({row["id"] for row in found}) == len(found) == sum(summary.documents.values())
    roots = ("stdlib/", "site-packages/", "man/", "doc/", "common-licenses/")
    assert all(row["file_path"].startswith(roots) and row["text"].strip() for row in found)


def test_the_standard_library_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    roots = Roots(stdlib=Roots.here().stdlib)  # packages may be installed meanwhile
    one, two = (build(tmp_path / name, 1, roots=roots) for name in ("one", "two"))
    assert digests(tmp_path / "one") == digests(tmp_path / "two") != {}
    assert (one.documents, one.skipped) == (two.documents, two.skipped)


def test_docstrings_keep_order_and_names() -> None:
    method = f'async def f(self):\n      """{LONG}2"""'
    source = f'if True:\n  class A:\n    """{LONG}"""\n    {method}\n\ndef g():\n  """{LONG}3"""\n'
    assert docstrings(source) == f"A\n{LONG}\n\nA.f()\n{LONG}2\n\ng()\n{LONG}3"


@pytest.mark.parametrize(
    ("troff", "text"),
    [
        ('.\\" comment\n.SH NAME\nls \\- list\nfiles', "NAME\nls - list files\n"),
        (".SH A\n.BR ls (1),\n.B bold text\nend \\(bu \\[u20AC] \\*(L\"x\\*(R\"", "A\nls(1), bold text end • € “x”\n"),
        (".SH A\n.nf\nx = 1\n  y\n.fi\nz", "A\n    x = 1\n      y\nz\n"),
        (".TP\n.B \\-a\nall\nof it\n.PP\nNext", "-a\n    all of it\n\nNext\n"),
        (".IP \\(bu 2\nitem", "    • item\n"),
        (".de X\nhidden\n..\n.if t \\{\\\nhidden\n.\\}\nshown\n.ie n .SH \"A B\"\n.el .SH HIDDEN", "shown\n\nA B\n"),
        (".TS\nl l.\nA\tB\n.TE", "    A  B\n"),
        (".Sh NAME\n.Nm ls\n.Nd list", "NAME\nls - list\n"),
        (".Nm ls\n.Op Fl a Ar file ...\n.Xr cat 1 ,\n.Nm .", "ls [-a file ...] cat(1), ls.\n"),
        ("a\\fBb\\fR\\s-1C\\s0\\&d\\ e\\ef \\f(CWg\\fP\\h'2n'\\\" gone", "abCd e\\f g\n"),
        (".so man1/ls.1", "\n"),
    ],
)  # fmt: skip
def test_manual_text(troff: str, text: str) -> None:
    assert manual_text(troff) == text


@given(
    st.text(
        alphabet=st.one_of(st.sampled_from(".'\\\"{}()[]* \tSHTPBnIf-\n"), st.characters(exclude_categories=["Cs"]))
    )
)
def test_manual_text_takes_anything(troff: str) -> None:
    manual_text(troff).encode()


@given(st.lists(st.text(alphabet="abc de,f", min_size=1).filter(str.strip), min_size=1))
def test_plain_lines_keep_every_word(lines: list[str]) -> None:
    assert manual_text("\n".join(lines)).split() == " ".join(lines).split()
