"""The command line: exit codes, one JSON object as the last line, messages that help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from toy_corpus import Toy
from typer.testing import CliRunner

from pipelines import store
from pipelines.cli import app

ROOT = Path(store.__file__).parents[1]


def corpusmill(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def finished(toy: Toy, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of the toy corpus through every step that needs no training, as one process."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = {
        "name": "toy",
        "sources": toy.sources,
        "score": {"fineweb": {}},
        "dedupe": {"exact": {}},
        "select": {"unique": "exact.keep", "clean": "fineweb.passed"},
        "tokenizer": str(toy_tokenizer),
        "mix": {"curated": {"tokens": 6000, "weights": {"books": 2, "forum": 1}}},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        f"{folder}/toy.yaml",
        "--run",
        f"{folder}/run",
        "--json",
        "--until",
        "mix",
    ]
    return folder, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_planted_truth_comes_out(toy: Toy, finished: tuple[Path, Any]) -> None:
    folder, process = finished
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout.splitlines()[-1])
    assert (summary["exit_code"], summary["ledger_balanced"], summary["documents_in"]) == (0, True, 168)
    assert summary["ledger"]["index"]["dropped"] == {"blank": 1, "null": 1}
    assert summary["ledger"]["select"]["dropped"] == {"unique": 8, "clean": 30}
    assert set(summary["tokens_by_source"]) == set(toy.documents) and summary["tokens_by_source"]["junk"]["after"] == 0
    assert summary == {
        **json.loads((folder / "run/summary.json").read_text()),
        "exit_code": 0,
        "seconds": summary["seconds"],
    }
    rows = pq.read_table(folder / "run/mixtures/curated/books").to_pylist()
    texts = [" ".join(row["text"].split()) for row in rows]
    assert len(set(texts)) == len(texts), "of each document repeated, one stays"
    longest = {r["id"] for r in pq.read_table(folder / "run/mixtures/curated/books", columns=["id"]).to_pylist()}
    assert not {f"book {i}" for i in range(8)} & longest, "the variant with more white space has more bytes"
    assert pq.read_table(folder / "run/mixtures/curated/forum").schema.field("votes").type == "int64"


def test_progress_goes_to_standard_error(finished: tuple[Path, Any]) -> None:
    _, process = finished
    for step in ("scan", "score", "dedupe exact", "select", "mix curated"):
        assert f"{step}: " in process.stderr
    assert "docs/s" in process.stderr and "Traceback" not in process.stderr


def test_sql_over_the_run(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    query = "SELECT count(*) AS n FROM documents WHERE fineweb.passed AND exact.keep"
    result = corpusmill("sql", f"{folder}/run", query, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["data"] == [{"n": 128}]
    assert corpusmill("sql", f"{folder}/run", "SELECT nothing FROM documents").exit_code == 2
    assert corpusmill("sql", f"{folder}/nothing", "SELECT 1").exit_code == 2


def test_sql_json_keeps_every_column_and_is_valid(finished: tuple[Path, Any]) -> None:
    query = "SELECT 1 AS a, 2 AS a, 3 AS a_1, 'nan'::DOUBLE AS x, [1.0, 'inf'::DOUBLE] AS l, '\\xAB'::BLOB AS b"
    result = corpusmill("sql", f"{finished[0]}/run", query, "--json")

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    found = json.loads(result.stdout.splitlines()[-1], parse_constant=refuse)
    assert found["columns"] == ["a", "a_2", "a_1", "x", "l", "b"]
    assert list(found["data"][0].values()) == [1, 2, 3, None, [1.0, None], "ab"]


def test_sql_prints_columns_of_one_name_and_wide_rows(finished: tuple[Path, Any]) -> None:
    query = "SELECT 11 AS a, 22 AS a, repeat('w', 150) AS wide"
    printed = corpusmill("sql", f"{finished[0]}/run", query).stdout
    assert any("11" in line and "22" in line and "w" * 150 in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quikstart"], "did you mean 'quickstart'?"),
        (["run", "nowhere/recipe.yaml"], "no recipe at nowhere/recipe.yaml"),
        (["run", "TOY", "--until", "scor"], "--until: no step 'scor'; did you mean 'score'?"),
        (["run", "TOY", "--", "--runnr=FlinkRunner"], "--runner"),
        (["run", "TOY", "--", "--runner=DirectRunner"], "--runner=DirectRunner is not one engine"),
    ],
)
def test_mistakes_exit_2_with_one_line_of_json(finished: tuple[Path, Any], arguments: list[str], said: str) -> None:
    folder, _ = finished
    result = corpusmill(arguments[0], "--json", *[f"{folder}/toy.yaml" if a == "TOY" else a for a in arguments[1:]])
    assert result.exit_code == 2
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["exit_code"] == 2 and said in last["error"] and said in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["run"], ["run", "x", "--worker", "2"], ["run", "x", "--workers", "0"], ["rn"]])
def test_wrong_commands_exit_2(arguments: list[str]) -> None:
    assert corpusmill(*arguments).exit_code == 2


def test_without_mixture_the_selection_is_the_end(toy: Toy, tmp_path: Path) -> None:
    recipe = {"name": "t", "sources": toy.sources, "score": {"fineweb": {}}, "select": {"clean": "fineweb.passed"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    result = corpusmill("run", f"{tmp_path}/r.yaml", "--run", f"{tmp_path}/run", "--until", "select", "--json")
    summary = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 0 and summary["ledger"]["select"]["out"] == 136 and summary["mixtures"] == {}


def test_one_step_keeps_the_parameters_that_are_not_given(finished: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    result = corpusmill("mix", f"{tmp_path}/run", "--name", "curated", "--tokens", "5k")
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert result.exit_code == 0, result.output
    assert recipe["mix"]["curated"] == {"tokens": "5k", "weights": {"books": 2, "forum": 1}}


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = ("torch", "numba", "apache_beam", "transformers")
    code = f"import sys, pipelines.cli, scorers, transforms; print([m for m in {heavy} if m in sys.modules])"
    started = time.monotonic()
    found: Callable[..., Any] = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]" and time.monotonic() - started < 30
    assert "sample-corpus" in corpusmill("--help").stdout
