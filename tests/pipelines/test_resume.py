"""A run goes on from what is committed: after kill -9, after an edit of the recipe, after a new shard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_corpus import corpus, documents, recipe, write

from pipelines.recipe import parse
from pipelines.run import run

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]
EVERYTHING = {
    "index", "signatures:exact", "scores:fineweb", "scores:gopher_quality", "dedupe:exact",
    "sample:tokenizer", "scores:tokens", "select", "mix:curated", "mix:heldout",
}  # fmt: skip


def test_killed_runs_go_on(tmp_path: Path) -> None:
    """Three kills at random moments, of launcher and workers; benchmarks/kill.py does ten."""
    corpus(tmp_path / "corpus", 60)
    command = [
        sys.executable,
        "benchmarks/kill.py",
        str(tmp_path / "corpus"),
        "--kills=3",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["digest_equal"] and result["kills"] == 3
    assert result["rewritten"] == [] and result["temporaries"] == []
    assert result["files"] == result["files_after_kills"]
    assert any(0 < kill["committed"] < result["files"] for kill in result["moments"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a run of it."""
    folder = tmp_path_factory.mktemp("finished")
    corpus(folder / "corpus", 60)
    run(parse(small(folder)), str(folder / "run"), until="mix")
    return folder


def small(folder: Path) -> dict[str, Any]:
    """As in the equality tests, with a second rule set, and without the classifier."""
    given = recipe(folder / "corpus", score={"fineweb": {}, "gopher_quality": {}})
    given["fit"].pop("quality")
    given["select"] = {
        "unique": "exact.keep",
        "ends": "fineweb.line_punct_ratio >= quantile(fineweb.line_punct_ratio, 0.2)",
    }
    given["mix"] = {"curated": {"weights": "natural"}}
    return given


def computed(folder: Path, given: dict[str, Any]) -> dict[str, int]:
    """Run again; how many splits of which steps were computed."""
    ledger = run(parse(given), str(folder / "run"), until="mix")["ledger"]
    return {step: row["splits"] - row["reused"] for step, row in ledger.items() if row["splits"] > row["reused"]}


def test_nothing_changed(finished: Path) -> None:
    assert computed(finished, small(finished)) == {}


SELECTION = {"select": 5, "mix:curated": 5, "mix:heldout": 5}


def change_scorer(given: dict[str, Any]) -> None:
    given["score"]["fineweb"]["min_line_punct_ratio"] = 0.5


def change_other_scorer(given: dict[str, Any]) -> None:
    given["score"]["gopher_quality"]["min_words"] = 10


def add_scorer(given: dict[str, Any]) -> None:
    given["score"]["c4"] = {}


def change_threshold(given: dict[str, Any]) -> None:
    given["select"]["ends"] = given["select"]["ends"].replace("0.2", "0.6")


def change_survivor(given: dict[str, Any]) -> None:
    given["dedupe"]["exact"]["prefer"] = "-bytes"


def change_budget(given: dict[str, Any]) -> None:
    given["mix"]["curated"]["tokens"] = 3_000


@pytest.mark.parametrize(
    ("edit", "again"),
    [
        (change_scorer, {"scores:fineweb": 5, **SELECTION}),
        (change_other_scorer, {"scores:gopher_quality": 5}),
        (add_scorer, {"scores:c4": 5}),
        (change_threshold, SELECTION),
        (change_budget, {"mix:curated": 5}),
        (change_survivor, {"dedupe:exact": 5, "sample:tokenizer": 5, **SELECTION}),
    ],
)
def test_an_edit_computes_what_depends_on_it_alone(edit: Edit, again: dict[str, int], finished: Path) -> None:
    given = small(finished)
    edit(given)
    assert computed(finished, given) == again
    back = computed(finished, small(finished))
    assert back == {step: n for step, n in again.items() if step != "scores:c4"}, "and so does going back"


def test_a_new_shard_is_scored_alone(finished: Path) -> None:
    added = finished / "corpus" / "web" / "d.parquet"
    write(added, documents(20, seed=77))
    try:
        made = computed(finished, small(finished))
        per_split = {"index": 1, "signatures:exact": 1, "scores:fineweb": 1, "scores:gopher_quality": 1}
        assert made == per_split | dict.fromkeys(EVERYTHING - per_split.keys(), 6)
    finally:
        added.unlink()


def test_a_damaged_sidecar_is_computed_again(finished: Path) -> None:
    computed(finished, small(finished))
    path = finished / "run" / "scores" / "fineweb" / "web" / "b.parquet"
    path.write_bytes(path.read_bytes()[:100])
    (finished / "run" / "selection" / "code" / "k.parquet").unlink()
    assert computed(finished, small(finished)) == {"scores:fineweb": 1, "select": 1}
