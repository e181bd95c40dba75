"""`corpusmill evaluate` on a model folder: tables and JSON agree with the losses, mistakes end with 2 at once."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines import store
from pipelines.cli import app


def corpusmill(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two sources, whose tokenizer is another one than the model's, and a task of each kind."""
    from trainers.fit_tokenizer import fit_tokenizer

    root = tmp_path_factory.mktemp("evaluate")
    own = fit_tokenizer(toy_texts["forum"], root / "mixture" / "tokenizer", 300)
    sources = {}
    for name in ("books", "forum"):
        texts = toy_texts[name][:12]
        rows = np.arange(len(texts))
        table = {"id": [f"{name}{k}" for k in rows], "text": texts, "source": [name] * len(texts)}
        table |= {"shard": ["0"] * len(texts), "row": rows, "tokens": rows, "draw": rows.astype(np.uint64)}
        path = root / "mixture" / name / "0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table), path)
        file = {
            "path": f"{name}/0.parquet",
            "documents": len(texts),
            "tokens": 1,
            "digest": store.file_digest(str(path)),
        }
        sources[name] = {"documents": len(texts), "tokens": 1, "asked": 1, "epochs": 1.0, "files": [file]}
    tokenizer = {"path": "tokenizer", "digest": store.file_digest(f"{own}/tokenizer.json")}
    store.write_json(f"{root}/mixture/manifest.json", {"digest": "0", "tokenizer": tokenizer, "sources": sources})
    items = {"context": ["It was", "a ship"], "continuation": [" the", " of old"]}
    pq.write_table(pa.table(items), root / "next.parquet")
    choices = {"question": ["It was"] * 3, "choices": [["the", "a long one", "b"]] * 3, "answer": [0, 1, 2]}
    pq.write_table(pa.table(choices), root / "quiz.parquet")
    return root


def test_a_model_on_a_mixture_and_tasks(
    toy_causal: Path, files: Path, toy_texts: dict[str, list[str]], tmp_path: Path
) -> None:
    tasks = ["--tasks", files / "next.parquet", "--tasks", files / "quiz.parquet"]
    made = corpusmill(toy_causal, "--mixture", files / "mixture", *tasks, "--out", tmp_path / "out", "--json")
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout.splitlines()[-1])
    assert found["row_length"] == 256 and found["model"] == str(toy_causal)
    losses = pq.read_table(tmp_path / "out" / "heldout.parquet")
    size = {name: sum(len(text.encode()) for text in toy_texts[name][:12]) for name in ("books", "forum")}
    for name, entry in found["heldout"]["sources"].items():
        own = [row for row in losses.to_pylist() if row["source"] == name]
        nats = sum(row["nats"] for row in own)
        assert entry["bits_per_byte"] == pytest.approx(nats / math.log(2) / size[name])
        assert entry["nats_per_token"] == pytest.approx(nats / sum(row["tokens"] for row in own))
        low, high = entry["bits_per_byte_interval"]
        assert f"{entry['bits_per_byte']:.4f} [{low:.4f}, {high:.4f}]" in made.stdout
    from trainers.tokenise import load_tokenizer

    tokenizer, _ = load_tokenizer(toy_causal)  # not the mixture's own
    expected = [1 + len(tokenizer.encode(text, add_special_tokens=False).ids) for text in toy_texts["books"][:12]]
    assert [row["tokens"] for row in losses.to_pylist() if row["source"] == "books"] == expected
    assert found["tasks"]["quiz"]["accuracy"] == pytest.approx(1 / 3) == found["tasks"]["quiz"]["chance"]
    assert found["tasks"]["next"]["items"] == 2
    assert pq.read_table(tmp_path / "out" / "tasks" / "quiz.parquet")["accuracy"].to_pylist().count(1) == 1


def test_a_run_of_the_trainer_stands_for_its_model(toy_causal: Path, files: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_causal, tmp_path / "run" / "model")
    one = corpusmill(tmp_path / "run", "--tasks", files / "next.parquet", "--json")
    two = corpusmill(toy_causal, "--tasks", files / "next.parquet", "--row-length", 100, "--json")
    results = [json.loads(made.stdout.splitlines()[-1]) for made in (one, two)]
    assert results[0]["model"] == str(tmp_path / "run" / "model") and results[1]["row_length"] == 100
    scores = [result["tasks"]["next"]["log_probability"] for result in results]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to measure by; give --mixture, --tasks or --harness"),
        (("--tasks", "{files}/none.parquet"), "no file at"),
        (("--tasks", "{files}/mixture/books/0.parquet"), "has no column 'context'"),
        (("--tasks", "{files}/next.parquet", "--tasks", "{files}/mixture/../next.parquet"), "two files have one name"),
        (("--mixture", "{files}"), "is no mixture: it has no manifest.json"),
        (("--tasks", "{files}/next.parquet", "--row-length", "257"), "a window of 257 tokens"),
        (("--tasks", "{files}/next.parquet", "--device", "gpu"), "'gpu' is no device of torch"),
        (("--mixture", "{files}/mixture", "--format", "txt"), "'text', 'prompt_completion' or 'messages'"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], words: str, toy_causal: Path, files: Path) -> None:
    made = corpusmill(toy_causal, *(a.format(files=files) for a in arguments))
    assert made.exit_code == 2 and words in made.stderr


def test_a_folder_without_a_model(files: Path) -> None:
    made = corpusmill(files, "--tasks", files / "next.parquet")
    assert made.exit_code == 2 and "no model folder at" in made.stderr
