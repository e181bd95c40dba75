"""The bundled recipes of Sieve-&-Swap and LongWriter, from the command line to a trained model."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_server import ToyServer
from toy_writer import paragraph, said, wish
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import load
from sql.views import query
from trainers.config import TrainConfig
from trainers.mixture import open_mixture

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sieve_and_swap as planted


def corpusmill(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def rows(folder: Path, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = query(str(folder), sql).to_pylist()
    return found


def test_sieve_and_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of a new document is a sentence of the bank; segments are accounted for one by one."""
    draw = random.Random(5)
    sentences = planted.bank(120, draw)
    talk = planted.transcript(sentences, 600, 0.15, draw)
    texts = ["\n".join(segment.text for segment in talk[a : a + 10]) for a in range(0, 600, 10)]
    texts += ["welcome back everyone\nsee you again", "my kids say hello", texts[0]]
    pq.write_table(pa.table({"text": sentences}), tmp_path / "bank.parquet")
    for number in range(3):
        part = [f"v{k}" for k in range(number, len(texts), 3)], texts[number::3]
        pq.write_table(pa.table({"id": part[0], "text": part[1]}), tmp_path / f"in{number}.parquet")
    monkeypatch.setenv("CORPUS", f"{tmp_path}/in*.parquet")
    monkeypatch.setenv("BANK", f"{tmp_path}/bank.parquet")
    code, result = corpusmill("run", "sieve_and_swap", "--run", f"{tmp_path}/run")
    assert code == 0 and result["ledger_balanced"], result
    pieces = rows(tmp_path / "run", "SELECT id, unnest(swapped.pieces) AS p FROM documents WHERE source = 'corpus'")
    assert len(pieces) == 62, "once of the two alike"
    refused = [p for p in pieces if p["p"]["status"] == "rejected"]
    assert {p["id"] for p in refused} >= {"v60", "v61"} and {p["p"]["reason"] for p in refused} == {"irrelevant"}
    told = [p["p"]["own"]["swaps"] for p in pieces]
    gone = ("irrelevant", "not_reciprocal", "numbers_differ", "names_differ", "repeated")
    assert sum(t["segments"] for t in told) == 603 == sum(len(t["kept"]) + sum(t[g] for g in gone) for t in told)
    folder = tmp_path / "run" / "mixtures"
    sources = {"swapped": "swapped", "originals": "corpus"}
    mixed = {name: pq.read_table(folder / name / source).to_pylist() for name, source in sources.items()}
    assert len(mixed["swapped"]) == len(mixed["originals"]) == 62 - len(refused)
    assert all(line in sentences for d in mixed["swapped"] for line in d["text"].split("\n"))
    assert {d["rewrite"]["parent"] for d in mixed["swapped"]} == {d["id"] for d in mixed["originals"]}
    assert all(d["swaps"]["segments"] for d in mixed["swapped"])


def test_longwriter(tmp_path: Path, toy_causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions become answers, each learned after its instruction and counting alike."""
    asked = [wish(f"t{n}x", 2 + n % 3, 12) for n in range(12)]
    asked += [wish("long", 51), wish("empty", 3, 12, "empty@2"), wish("wordy", 2, 12, "ignores@3"), asked[0]]
    pq.write_table(pa.table({"id": [f"i{n}" for n in range(16)], "text": asked}), tmp_path / "asked.parquet")
    settings = {"INSTRUCTIONS": f"{tmp_path}/asked.parquet", "WRITER_MODEL": "toy", "START": str(toy_causal)}
    settings |= {"ROW_LENGTH": "256", "BATCH_TOKENS": "1024"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with ToyServer(reply=said) as server:
        monkeypatch.setenv("WRITER", server.url)
        code, result = corpusmill("run", "longwriter", "--run", f"{tmp_path}/run", "--until", "mix")
        assert code == 0 and result["ledger_balanced"], result
        sent = len(server.seen)
        assert sent == 15 + sum(2 + n % 3 for n in range(12)) + 2 + 2
        left_out = {"failed: too many steps": 1, "failed: empty paragraph": 1, "rejected: length": 1}
        assert result["rewrites"]["long"] == {"pieces": 15, "documents": 12, "left_out": left_out}
    with closing(sqlite3.connect(tmp_path / "run" / "answers.sqlite")) as answers:
        assert answers.execute("SELECT count(*) FROM answers").fetchone() == (sent,)
    mixed = pq.read_table(tmp_path / "run" / "mixtures" / "long" / "long").to_pylist()
    found = {d["id"]: (d["prompt"], d["text"]) for d in mixed}
    assert found == {
        f"i{n}:long:0": (asked[n], "\n\n".join(paragraph(f"t{n}x", k, 12) for k in range(1, 3 + n % 3)))
        for n in range(12)
    }
    assert {d["length_score"] for d in mixed} == {100} and {len(d["plan"]) for d in mixed} == {2, 3, 4}
    assert {d["rewrite"]["prompt"] for d in mixed} == {"longwriter/plan@1 longwriter/write@1"}
    asked_for = load(f"{tmp_path}/run/recipe.yaml").train
    assert asked_for is not None and asked_for.mixtures == ["long"]
    config = TrainConfig.model_validate(asked_for.config)
    corpus = open_mixture(tmp_path / "run" / "mixtures" / "long", tmp_path, config.format)
    assert config.format.equal and config.row_length == 256
    assert len(corpus) == 12 and (corpus.targets > 24).all() and (corpus.targets < corpus.length - 20).all()


@pytest.mark.parametrize(
    ("name", "missing"),
    [("sieve_and_swap", "BANK"), ("longwriter", "INSTRUCTIONS"), ("longwriter", "WRITER"), ("longwriter", "START")],
)
def test_what_is_missing_is_said(name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BANK", "INSTRUCTIONS", "WRITER", "WRITER_MODEL", "START"):
        monkeypatch.delenv(variable, raising=False)
        if variable != missing:
            monkeypatch.setenv(variable, "x")
    code, result = corpusmill("run", name, "--run", str(tmp_path / "run"))
    assert code == 2 and f"set the environment variable {missing} to " in result["error"]
    assert not (tmp_path / "run").exists()
