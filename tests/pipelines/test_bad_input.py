"""Every row of the table of bad input, from the command line to the mixture: nothing of it is an exception."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from toy_corpus import prose, write
from typer.testing import CliRunner

from pipelines import shards, store
from pipelines.cli import app
from sql.views import query

ROOT = Path(store.__file__).parents[1]
Go = Callable[..., tuple[int, dict[str, Any], str]]
PROSE = [prose(np.random.default_rng(i), 6) for i in range(40)]


@pytest.fixture
def go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Go:
    """`corpusmill run RECIPE --json`: exit code, the last line of standard output, and what was said besides."""

    def run(
        recipe: dict[str, Any], *options: str, until: str = "mix", name: str = "run"
    ) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        arguments = ["run", str(file), "--run", f"{tmp_path}/{name}", "--json", "--until", until, *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 2, 3), f"{result.exception!r}\n{result.output}"
        last = json.loads(result.stdout.strip().splitlines()[-1])
        assert last["exit_code"] == result.exit_code
        return result.exit_code, last, result.stderr + caplog.text  # pytest takes what goes to standard error as log

    return run


def documents(folder: Path, mixture: str = "all") -> list[dict[str, Any]]:
    """Rows of the files that a mixture's manifest names."""
    root = folder / "mixtures" / mixture
    parts = json.loads((root / "manifest.json").read_text())["sources"].values()
    return [row for part in parts for file in part["files"] for row in pq.read_table(root / file["path"]).to_pylist()]


def corrupt(path: Path, column: str, group: int = 1) -> None:
    """Overwrite a page in the middle of a shard: the footer is whole, the page cannot be decoded."""
    metadata = pq.read_metadata(path).row_group(group)
    chunk = next(metadata.column(i) for i in range(metadata.num_columns) if metadata.column(i).path_in_schema == column)
    data = bytearray(path.read_bytes())
    start = (chunk.dictionary_page_offset or chunk.data_page_offset) + 30
    data[start : start + chunk.total_compressed_size // 2] = b"\xff" * (chunk.total_compressed_size // 2)
    path.write_bytes(data)


# Shards that cannot be read


def unreadable(folder: Path) -> dict[str, str]:
    """Two good shards among bad ones; the cause that each bad one must give."""
    good = {"id": [f"g{i}" for i in range(40)], "text": PROSE}
    for name in ("good1", "good2"):
        write(folder / f"{name}.parquet", good, group=10)
    write(folder / "page.parquet", good, group=10, compression="zstd")
    corrupt(folder / "page.parquet", "text")
    (folder / "truncated.parquet").write_bytes((folder / "good1.parquet").read_bytes()[:-100])
    (folder / "zero.parquet").write_bytes(b"")
    (folder / "words.parquet").write_text("this is no table\n" * 100)
    write(folder / "missing.parquet", {"body": ["x"]})
    write(folder / "type.parquet", {"text": [1, 2]})
    write(folder / "nested.parquet", {"text": [["x"]]})
    return {
        "page": "ZSTD decompression failed",
        "truncated": "magic bytes",
        "zero": "size is 0 bytes",
        "words": "magic bytes",
        "missing": "no column 'text'; there are body",
        "type": "column 'text' is int64, not text",
        "nested": "column 'text' is list<",
    }


def test_shards_that_cannot_be_read_are_set_aside(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    causes = unreadable(tmp_path / "in")
    recipe = recipe_of({"s": f"{tmp_path}/in/*.parquet"}, quarantine=0.95)
    code, summary, words = go(recipe)
    assert code == 0 and summary["ledger_balanced"]
    found = {Path(q["path"]).stem: q["cause"] for q in summary["shards"]["quarantined"]}
    assert found.keys() == causes.keys()
    for name, cause in causes.items():
        assert cause in found[name], name
        assert name in words, "each is named"
    assert summary["documents_out"] == 80, "the run goes on with what can be read"
    index = summary["ledger"]["index"]
    assert (index["in"], index["out"], index["quarantined"]) == (120, 80, 40)
    code, summary, words = go({**recipe, "quarantine": 0.5}, until="score")
    assert code == 3 and "77.8% of the shards could not be read whole; the recipe allows 50.0%" in words
    again = go({**recipe, "quarantine": 0.95})[1]
    assert again["mixture_digest"] and again["ledger"]["mix:all"]["reused"] == 2


def test_a_run_that_can_read_nothing_exits_3(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    write(tmp_path / "in" / "a.parquet", {"body": ["x"]})
    code, summary, words = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}, quarantine=1.0))
    assert code == 3 and summary["shards"]["read"] == 0 and "no shard can be read" in words


@pytest.mark.parametrize(("allowed", "expected"), [(0.5, 0), (0.49, 3)])
def test_the_share_of_a_shard_with_a_corrupt_page(
    tmp_path: Path,
    go: Go,
    recipe_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    allowed: float,
    expected: int,
) -> None:
    """One of two shards: a half, in however many splits it breaks; its other splits are kept."""
    monkeypatch.setattr(shards, "SPLIT_BYTES", 1)
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.parquet", {"text": PROSE}, group=10)
    for group in (0, 2, 3):
        corrupt(tmp_path / "in" / "b.parquet", "text", group)
    code, summary, _ = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}, quarantine=allowed), until="score")
    assert summary["ledger"]["index"]["out"] == 50
    assert code == expected


def test_a_corrupt_page_of_another_column_is_found_in_time(
    tmp_path: Path, go: Go, recipe_of: Callable[..., Any]
) -> None:
    """The mixture carries every column, so all of them must be readable before a document is let in."""
    for name in ("a", "b"):
        write(
            tmp_path / "in" / f"{name}.parquet",
            {"text": PROSE, "url": [f"https://a.example/{os.urandom(90).hex()}" for _ in PROSE]},
            group=10,
        )
    corrupt(tmp_path / "in" / "b.parquet", "url")
    code, summary, _ = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}, quarantine=0.5))
    assert code == 0 and summary["documents_out"] == 40
    assert [Path(q["path"]).stem for q in summary["shards"]["quarantined"]] == ["b"]


# Text that is not clean

DIRTY = {
    "null": None,
    "empty": b"",
    "blank": b" \n\t\xe2\x80\x83",
    "cut": b"cut short \xe2\x82",
    "surrogate": b"lone \xed\xa0\x80 half",
    "latin": b"caf\xe9",
    "nul": b"a\0b",
    "both": b"\xff\0",
    "nuls": b"\0\0",
    "clean": "καθαρό 🎉".encode(),
}


@pytest.mark.parametrize(
    ("policy", "dropped", "repaired", "texts"),
    [
        (
            {},
            {"null": 1, "empty": 2, "blank": 1},
            {"invalid_utf8": 3, "nul": 1, "invalid_utf8+nul": 1},
            {
                "cut": "cut short \ufffd",
                "surrogate": "lone \ufffd\ufffd\ufffd half",
                "latin": "caf\ufffd",
                "nul": "ab",
                "both": "\ufffd",
                "clean": "καθαρό 🎉",
            },
        ),
        (
            {"invalid_utf8": "drop", "nul": "drop"},
            {"null": 1, "empty": 1, "blank": 1, "invalid_utf8": 4, "nul": 2},
            {},
            {"clean": "καθαρό 🎉"},
        ),
    ],
)
def test_text_that_is_not_clean(
    tmp_path: Path, go: Go, recipe_of: Callable[..., Any], policy: Any, dropped: Any, repaired: Any, texts: Any
) -> None:
    raw = pa.array(list(DIRTY.values()), pa.binary())
    write(tmp_path / "in" / "binary.parquet", {"id": list(DIRTY), "text": raw})
    write(
        tmp_path / "in" / "string.parquet", {"id": list(DIRTY), "text": raw.view(pa.string())}
    )  # Parquet takes a writer's word
    recipe = recipe_of(
        {"s": f"{tmp_path}/in/*.parquet"}, admission=policy, dedupe={"exact": {}}, select={"one": "exact.size = 2"}
    )
    code, summary, _ = go(recipe)
    assert code == 0
    index = summary["ledger"]["index"]
    assert index["dropped"] == {reason: 2 * n for reason, n in sorted(dropped.items())}
    assert index["repaired"] == {reason: 2 * n for reason, n in repaired.items()}
    found = documents(tmp_path / "run")
    assert sorted((row["id"], row["text"]) for row in found) == sorted([*texts.items(), *texts.items()])
    assert summary["duplicate_ids"] == len(texts), "equal ids are told, and both live on"
    assert summary["ledger"]["select"]["out"] == 2 * len(texts)


def test_documents_of_one_id_survive_as_two(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        write(
            tmp_path / "in" / f"{name}.parquet",
            {"id": ["same", "same", name], "text": [f"{name} one", f"{name} two", "three"]},
        )
    code, summary, _ = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}))
    assert code == 0 and summary["duplicate_ids"] == 3
    found = documents(tmp_path / "run")
    assert sorted(row["text"] for row in found if row["id"] == "same") == ["a one", "a two", "b one", "b two"]


# Odd documents, in bounded memory


def test_odd_documents_in_bounded_memory(tmp_path: Path, recipe_of: Callable[..., Any]) -> None:
    """One of 30 MB, a million empty ones, one line repeated, no spaces, only emoji, right to left, one character."""
    folder = tmp_path / "in"
    lines = [prose(np.random.default_rng(0), 20), prose(np.random.default_rng(1), 20)]
    write(
        folder / "large.parquet",
        {"text": ["\n".join(lines * (30_000_000 // len("\n".join(lines)))), "x"]},
        compression="zstd",
    )
    write(folder / "empty.parquet", {"text": pa.array(["", None] * 500_000 + ["x"])})
    odd = [
        "same line again\n" * 200_000,
        "x" * 3_000_000,
        "🎉" * 300_000,
        "שלום עולם. مرحبا بالعالم. " * 20_000,
        "é" * 1_000_000,
        ".",
    ]
    write(folder / "odd.parquet", {"text": [*odd, *odd]})
    rules = {"fineweb": {}, "gopher_quality": {}, "gopher_repetition": {}}  # tokens: tests/scorers/test_tokens.py
    recipe = recipe_of({"s": f"{folder}/*.parquet"}, score=rules, dedupe={"exact": {}}, tokenizer=None, mix={})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "few").mkdir()
    write(tmp_path / "few" / "a.parquet", {"text": lines})
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({**recipe, "sources": {"s": f"{tmp_path}/few/*.parquet"}}))
    corpusmill = [sys.executable, "-m", "pipelines.cli", "run", "--json", "--until", "select"]
    warm = [
        *corpusmill,
        f"{tmp_path}/few.yaml",
        "--run",
        f"{tmp_path}/warm",
    ]  # compiling kernels takes memory of its own
    subprocess.run(warm, cwd=ROOT, check=True, capture_output=True)
    peak = "import os, re, sys; from pipelines.cli import main\ntry:\n main()\nfinally:\n print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=open(os.environ['PEAK'], 'w'))"  # noqa: E501
    command = [sys.executable, "-c", peak, *corpusmill[3:], f"{tmp_path}/r.yaml", "--run", f"{tmp_path}/run"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=err, env={**os.environ, "PEAK": f"{tmp_path}/peak"}
        )
        process.wait()
    used = int((tmp_path / "peak").read_text())  # kB; a child's rusage would start from its parent's
    assert process.returncode == 0, (tmp_path / "err").read_text()[-2000:]
    summary = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    index = summary["ledger"]["index"]
    assert (index["in"], index["out"], index["dropped"]) == (1_000_015, 15, {"empty": 500_000, "null": 500_000})
    assert used < 1_500_000, f"{used / 1e6:.2f} GB"
    sidecars = [pq.read_table(f"{tmp_path}/run/dedupe/exact/s/{name}.parquet") for name in ("large", "empty", "odd")]
    flags = [flag["exact"] for table in sidecars for flag in table.to_pylist()]
    assert sorted(f["size"] for f in flags) == [1] + [2] * 14, "short documents are hashed as all others"
    assert sum(f["keep"] for f in flags) == 8


# Shards of several kinds


def test_columns_of_all_shards_and_text_of_every_type(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    folder = tmp_path / "in"
    text = pa.array(["one", "two", None])
    empty = pa.table({"text": pa.array([], pa.string()), "tags": pa.array([], pa.list_(pa.string()))})
    write(folder / "a.parquet", {"text": text, "url": ["u1", "u2", "u3"], "n": [1, 2, 3]})
    write(folder / "b.parquet", {"text": text.dictionary_encode(), "url": pa.nulls(3)})
    write(folder / "c.parquet", {"text": text.cast(pa.string_view()), "tags": [["t"], None, []]})
    write(folder / "d.parquet", {"text": text.cast(pa.binary()), "url": pa.array(["v"] * 3).dictionary_encode()})
    write(folder / "e.parquet", {"text": text.cast(pa.large_string()), "id": [1, 2, 3]})
    write(folder / "norows.parquet", empty)
    with pq.ParquetWriter(folder / "nogroups.parquet", empty.schema):
        pass
    select = {
        "a": "url IS NULL OR url LIKE '_%'",
        "b": "tags IS NULL OR list_contains(tags, 't')",
        "c": "n IS NULL OR n < 2",
    }
    recipe = recipe_of(
        {"s": f"{folder}/*.parquet"}, select=select, dedupe={"exact": {}}, mix={"all": {"where": "selection.keep"}}
    )
    code, summary, _ = go(recipe)
    assert code == 0 and summary["shards"]["read"] == 7
    assert summary["ledger"]["select"]["dropped"] == {"c": 1} and summary["documents_out"] == 9
    found = {(row["shard"], row["text"]): row for row in documents(tmp_path / "run")}
    assert found["a", "one"]["url"] == "u1" and found["c", "one"]["tags"] == ["t"] and found["d", "two"]["url"] == "v"
    assert found["e", "two"]["id"] == "2" and len({row["id"] for row in found.values()}) == 9


def test_types_that_conflict_name_both_shards(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    write(tmp_path / "in" / "a.parquet", {"text": ["x"], "n": [1]})
    write(tmp_path / "in" / "b.parquet", {"text": ["x"], "n": ["1"]})
    code, said, _ = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}))
    assert code == 2
    for part in ("column 'n' is int64 in", "a.parquet but string in", "b.parquet; make the shards agree"):
        assert part in said["error"]


# Mistakes of the user


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": {"finweb": {}}}, "score.finweb: no scorer 'finweb'; did you mean 'fineweb'?"),
        ({"scores": {}}, "scores: no such key; did you mean 'score'?"),
        (
            {"score": {"fineweb": {"max_list_rato": 1}}},
            "score.fineweb.max_list_rato: no such key; did you mean 'max_list_ratio'?",
        ),
        ({"select": {"q": "fineweb.list_rato > 0"}}, '"list_ratio"'),
        ({"select": {"q": "fineweb.list_ratio > quantile(fineweb.list_ratio, 90)"}}, "a number from 0 to 1"),
        ({"quarantine": 30}, "quarantine: Input should be less than or equal to 1 (given: 30)"),
        ({"score": {"fasttext": {"model": "models/none"}}}, "score.fasttext: no fastText model at models/none"),
        ({"tokenizer": "models/none"}, "tokenizer: no tokenizer at models/none"),
        ({"sources": {"s": "nowhere/*.parquet"}}, "sources.s: no file matches 'nowhere/*.parquet'"),
        ({"mix": {"all": {"weights": {"z": 1}}}}, "mix.all.weights: no source 'z'; there is s"),
    ],
)
def test_mistakes_are_found_before_any_work(
    tmp_path: Path, go: Go, recipe_of: Callable[..., Any], changes: Any, said: str
) -> None:
    write(tmp_path / "in" / "a.parquet", {"text": ["x"]})
    code, last, words = go({**recipe_of({"s": f"{tmp_path}/in/*.parquet"}), **changes})
    assert code == 2 and said in last["error"] and said in words
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    write(tmp_path / "in" / "a.parquet", {"text": ["x"]})
    (tmp_path / "file").write_text("")
    for folder in ("/proc/corpusmill", f"{tmp_path}/file", f"{tmp_path}/file/run"):
        code, last, _ = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}), "--run", folder)
        assert (
            code == 2
            and f"cannot write to the run folder {folder}" in last["error"]
            and "choose another --run" in last["error"]
        )


# Full disks, killed processes, half-written files


def test_a_full_disk_and_the_run_after_it(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    noise = [os.urandom(2000).hex() for _ in range(400)]
    write(tmp_path / "in" / "a.parquet", {"text": noise[:30]})
    write(tmp_path / "in" / "b.parquet", {"text": noise})
    recipe = recipe_of({"s": f"{tmp_path}/in/*.parquet"})
    expected = go(recipe, name="whole")[1]["mixture_digest"]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        str(file),
        "--run",
        f"{tmp_path}/run",
        "--json",
        "--until",
        "mix",
    ]

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=small_disk)
    assert full.returncode not in (0, 3) and "File too large" in full.stderr
    assert not list((tmp_path / "run").rglob("*.tmp")) and not (tmp_path / "run/mixtures/all/manifest.json").exists()
    assert (
        not (tmp_path / "run/mixtures/all/s/b.parquet").exists()
        and (tmp_path / "run/scores/fineweb/s/b.parquet").exists()
    )
    code, summary, _ = go(recipe)
    assert code == 0 and summary["mixture_digest"] == expected
    assert summary["ledger"]["index"]["reused"] == 2, "what was written before is kept"


def test_half_written_files_are_never_read_as_whole(tmp_path: Path, go: Go, recipe_of: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.parquet", {"text": [f"{name} {text}" for text in PROSE]})
    recipe = recipe_of({"s": f"{tmp_path}/in/*.parquet"}, dedupe={"exact": {}})
    expected = go(recipe)[1]["mixture_digest"]
    run = tmp_path / "run"
    for folder in ("index", "scores/fineweb", "signatures/exact", "dedupe/exact", "mixtures/all"):
        path = run / folder / "s" / "a.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        shutil.copy(path, f"{path}.{'0' * 32}.tmp")
    (run / "scores/tokens/s/b.parquet").write_bytes(b"")
    code, summary, _ = go(recipe)
    assert code == 0 and summary["mixture_digest"] == expected and not list(run.rglob("*.tmp"))
    reused = {step: part["reused"] for step, part in summary["ledger"].items()}
    assert reused == {
        "index": 1,
        "scores:fineweb": 1,
        "signatures:exact": 1,
        "dedupe:exact": 1,
        "scores:tokens": 1,
        "select": 2,
        "mix:all": 1,
    }


def test_where_nothing_can_be_read_the_ledger_tells_of_no_run_before(
    tmp_path: Path, go: Go, recipe_of: Callable[..., Any]
) -> None:
    write(tmp_path / "in" / "a.parquet", {"text": PROSE}, group=10)
    recipe = recipe_of({"s": f"{tmp_path}/in/*.parquet"}, quarantine=1.0)
    go(recipe, until="select")
    corrupt(tmp_path / "in" / "a.parquet", "text")
    go(recipe, until="select")
    told = query(str(tmp_path / "run"), 'SELECT step, "in", quarantined FROM ledger').to_pylist()
    assert told == [{"step": "index", "in": 40, "quarantined": 40}]


def test_what_a_first_pass_sets_aside_a_second_one_does_not_forget(
    tmp_path: Path, go: Go, recipe_of: Callable[..., Any]
) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.parquet", {"text": PROSE}, group=10)
    corrupt(tmp_path / "in" / "b.parquet", "text")
    fit = {"words": {"method": "tokenizer", "vocabulary": 300, "megabytes": 0.01}}
    code, summary, words = go(recipe_of({"s": f"{tmp_path}/in/*.parquet"}, fit=fit, tokenizer="fit:words"), until="fit")
    assert code == 3 and "50.0% of the shards could not be read whole" in words
    index = summary["ledger"]["index"]
    assert (index["in"], index["out"], index["quarantined"]) == (80, 40, 40)
