"""A run and its folder: what it takes over, what it refuses, what it finds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ledger, shards, store
from pipelines.recipe import Recipe, RecipeError, parse
from pipelines.run import Run, run
from pipelines.steps import Context
from pipelines.tables import MisalignedError

TEXTS = [f"Document number {i} says something of its own, and ends well." for i in range(12)]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": TEXTS, "body": TEXTS}), tmp_path / "in" / "a.parquet")
    return parse({"name": "small", "sources": {"s": f"{tmp_path}/in/*.parquet"}, "score": {"fineweb": {}}})


def other(recipe: Recipe, **changes: Any) -> Recipe:
    return parse(recipe.model_dump(mode="json") | changes)


def test_only_its_own_temporary_files_are_removed(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(recipe, str(folder), until="score")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.tmp").write_text("mine")
    left = folder / "scores" / f"x.parquet.{'0' * 32}.tmp"
    left.write_text("half")
    run(recipe, str(folder), until="score")
    assert (folder / "notes" / "thesis.tmp").read_text() == "mine" and not left.exists()


def test_a_folder_that_is_no_run_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(RecipeError, match=r"is no run folder .*letter\.txt"):
        run(recipe, str(tmp_path / "home"), until="score")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_run_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, str(tmp_path / "run"), until="score")
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(RecipeError, match="holds a run of recipe 'small', not of 'large'"):
        run(other(recipe, name="large"), str(tmp_path / "run"), until="score")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


def test_a_corrected_text_column_is_scanned_again(recipe: Recipe, tmp_path: Path) -> None:
    wrong = run(other(recipe, text="txt", quarantine=1.0), str(tmp_path / "run"), until="score")
    assert wrong["shards"]["read"] == 0
    right = run(other(recipe, text="body"), str(tmp_path / "run"), until="score")
    assert right["shards"]["read"] == 1 and right["ledger"]["index"]["out"] == len(TEXTS)
    again = run(other(recipe, text="txt", quarantine=1.0), str(tmp_path / "run"), until="score")
    assert again["shards"]["read"] == 0


def test_a_shard_that_can_be_read_again_is_read(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> Any:
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shards.store, "file_digest", broken)
        assert run(recipe, str(tmp_path / "run"), until="score")["shards"]["read"] == 0
    assert run(recipe, str(tmp_path / "run"), until="score")["shards"]["read"] == 1


class Loses(beam.DoFn):
    """A step that says nothing of every second split, or of all."""

    steps = ("loses",)

    def __init__(self, every: int) -> None:
        self.every = every

    def held(self, split: shards.Split) -> None:
        return None

    def process(self, split: shards.Split) -> Any:
        if int(split.name) % self.every:
            yield ledger.Record.of("loses", split, split.rows, split.rows).json()


class Shrinks(Loses):
    """A step that loses a document of each split and does not say so."""

    def process(self, split: shards.Split) -> Any:
        yield ledger.Record.of("loses", split, split.rows, split.rows - 1).json()


@pytest.mark.parametrize(
    ("step", "words"),
    [(Loses(2), "2 splits did not come back"), (Loses(1), "4 splits"), (Shrinks(1), "5 in, but 4 out")],
)
def test_a_step_that_loses_rows_stops_the_run(step: beam.DoFn, words: str, tmp_path: Path) -> None:
    splits = [shards.Split("s", str(i), str(i), "-", "-", 0, (5,), 0, 100) for i in range(4)]
    with pytest.raises(ledger.LedgerError, match=words):
        Context(str(tmp_path / "run")).run_splits("loses", splits, beam.ParDo(step))


def test_a_sidecar_of_another_recipe_is_not_joined(recipe: Recipe, tmp_path: Path) -> None:
    job = Run(recipe, str(tmp_path / "run"))
    job.start()
    job.score()
    split = job.splits[0]
    path = split.sidecar(f"{job.folder}/scores/fineweb")
    assert job.tables.load(split, {"fineweb"}).num_rows == len(TEXTS)
    store.write_sidecar(path, "another key", store.read_table(path), {})
    with pytest.raises(MisalignedError, match="of another recipe"):
        job.tables.load(split, {"fineweb"})
