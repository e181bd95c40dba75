"""A language model writes for days: what a killed run was answered is not asked again, and nothing is missing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_server import ToyServer

from sql.views import query

ROOT = Path(__file__).parents[2]
WORDS = "the cat sat on a red mat and saw one old dog near house while rain fell over quiet hills".split()  # noqa: SIM905
DOCUMENTS = 300
MARK = "Passage:"  # stands before the text in the prompt


def text(k: int) -> str:
    draw = random.Random(k)
    said = (" ".join(draw.choices(WORDS, k=draw.randint(6, 14))).capitalize() for _ in range(draw.randint(1, 8)))
    return f"Number {k} begins here. " + ". ".join(said) + "."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for shard in range(3):
        some = range(shard, DOCUMENTS, 3)
        (tmp_path / "corpus").mkdir(exist_ok=True)
        table = pa.table({"id": [f"d{k}" for k in some], "text": [text(k) for k in some]})
        pq.write_table(table, tmp_path / "corpus" / f"{shard}.parquet")
    return tmp_path / "corpus"


def reply(prompt: str) -> tuple[str, str]:
    """The words of each sentence in another order; nothing of some of them."""
    said = prompt[prompt.index(MARK) + len(MARK) :].split(". ")
    turned = (" ".join(reversed(sentence.strip(" .\n").lower().split())).capitalize() for sentence in said)
    return ". ".join(turned) + ".", "length" if "hills" in said[-1] else "stop"


def command(corpus: Path, folder: Path, server: ToyServer, tokenizer: Path) -> list[str]:
    engine = {"engine": "openai", "base_url": server.url, "model": "toy", "concurrency": "8"}
    given = {f"engine.{key}": value for key, value in engine.items()}
    given |= {"style": "easy", "tokenizer": str(tokenizer), "chunk_tokens": "120", "acceptance.language": "false"}
    sets = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    start = [sys.executable, "-m", "pipelines.cli", "rewrite", f"{corpus}/*.parquet", "--run", str(folder)]
    return [*start, "--rewriter", "wrap", "--name", "easy", *sets]


def texts(folder: Path) -> list[tuple[str, str]]:
    found = query(str(folder), "SELECT id, text FROM documents WHERE source = 'easy' ORDER BY id")
    return list(zip(*found.to_pydict().values(), strict=True))


def answered(folder: Path) -> set[bytes]:
    """Keys of the answers that are on disk."""
    try:
        with sqlite3.connect(f"file:{folder}/answers.sqlite?mode=ro", uri=True) as database:
            return {key for (key,) in database.execute("SELECT key FROM answers")}
    except sqlite3.Error:  # not there yet
        return set()


def test_a_run_killed_while_it_writes_asks_for_nothing_twice(corpus: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ToyServer(seconds=0.02, reply=reply) as server:
        line = command(corpus, tmp_path / "killed", server, toy_tokenizer)
        process = subprocess.Popen(line, start_new_session=True, **quiet)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and len(answered(tmp_path / "killed")) < 200:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        before, first = answered(tmp_path / "killed"), len(server.seen)
        assert len(before) >= 200 and not list((tmp_path / "killed" / "rewritten").rglob("2.parquet")), (
            "killed too late"
        )
        subprocess.run(line, check=True, **quiet)
        again = server.seen[first:]
        subprocess.run(line, check=True, **quiet)
        assert len(server.seen) == first + len(again), "a finished run asked again"
    folder = str(tmp_path / "killed")
    pieces = query(folder, "SELECT id, unnest(easy.pieces) AS p FROM documents WHERE source = 'documents'").to_pylist()
    assert len(pieces) > DOCUMENTS and len(again) == len(pieces) - len(before), "an answer on disk was asked for again"
    assert len({seen.prompt for seen in again}) == len(again)
    query_ledger = "SELECT sum(\"in\") AS pieces, sum(out) AS documents FROM ledger WHERE step = 'pieces:easy'"
    (counted,) = query(folder, query_ledger).to_pylist()
    ok = sum(d["p"]["status"] == "ok" for d in pieces)
    assert counted == {"pieces": len(pieces), "documents": ok} and ok > 0
    straight = tmp_path / "straight"
    with ToyServer(reply=reply) as server:
        subprocess.run(command(corpus, straight, server, toy_tokenizer), check=True, **quiet)
    assert texts(straight) == texts(Path(folder))
