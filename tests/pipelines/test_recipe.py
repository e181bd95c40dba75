"""Recipes: every mistake is one line that names the field, what was given and the nearest valid name."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.command import guarded
from pipelines.ledger import LedgerError
from pipelines.recipe import Recipe, RecipeError, load, nearest, parse
from pipelines.steps_alone import parameters

GOOD: dict[str, Any] = {
    "name": "r",
    "sources": {"web": "web/*.parquet", "books": ["a/*.parquet", "b/*.parquet"]},
    "score": {"fineweb": None, "quality": {"scorer": "fasttext", "model": "fit:quality"}},
    "dedupe": {"exact": None},
    "holdout": {"share": 0.1},
    "fit": {
        "quality": {"method": "fasttext", "positives": "true"},
        "tokenizer": {"method": "tokenizer", "vocabulary": 1000},
    },
    "select": {"good": "fineweb.passed"},
    "tokenizer": "fit:tokenizer",
    "mix": {"all": None},
    "train": {"mixtures": ["all"]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced."""

    def at(node: Any, parts: list[str]) -> Any:
        return {**(node or {}), parts[0]: at((node or {}).get(parts[0]), parts[1:])} if parts else value

    return at(GOOD, path.split("."))


def mistake(given: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        parse(given)
    return str(error.value)


def test_a_good_recipe_and_its_defaults() -> None:
    recipe = parse(GOOD)
    assert recipe.score["fineweb"] == {} and recipe.train and recipe.train.seeds == [0, 1, 2]
    assert recipe.fit["tokenizer"]["method"] == "tokenizer"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe, "RUN/recipe.yaml can be run again"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("nam", "x", "nam: no such key; did you mean 'name'?"),
        ("admission", {"null": "drop"}, "admission.null: no such key; did you mean 'nul'?"),
        (
            "admission",
            {"nul": "dorp"},
            "admission.nul: expected 'repair' or 'drop' (given: 'dorp'); did you mean 'drop'?",
        ),
        ("holdout.shar", 0.1, "holdout.shar: no such key; did you mean 'share'?"),
        ("holdout.share", 1.5, "holdout.share: Input should be less than 1 (given: 1.5)"),
        ("holdout.clusters", "exakt", "holdout.clusters: 'exakt' is not under dedupe; did you mean 'exact'?"),
        (
            "fit.tokenizer.method",
            "tokenzier",
            "fit.tokenizer: no method 'tokenzier'; did you mean 'tokenizer'?",
        ),
        ("score.finweb", {}, "score.finweb: no scorer 'finweb'; did you mean 'fineweb'?"),
        ("score.quality.scorer", "fastext", "score.quality: no scorer 'fastext'; did you mean 'fasttext'?"),
        ("score.quality.scorer", 7, "score.quality: no scorer 7; there is c4, "),
        (
            "score.quality.model",
            "fit:qualty",
            "score.quality.model: 'fit:qualty' is not under fit; did you mean 'quality'?",
        ),
        (
            "score.quality.model",
            "fit:tokenizer",
            "score.quality.model: 'fit:tokenizer' makes a model for tokens or statistics, not for fasttext",
        ),
        (
            "rewrite.w",
            {"rewriter": "wrap", "engine": {"model": "fit:qualty"}},
            "rewrite.w.engine.model: 'fit:qualty' is not under fit; did you mean 'quality'?",
        ),
        (
            "rewrite.w",
            {"rewriter": "wrap", "engine": {"model": "fit:quality"}},
            "rewrite.w.engine.model: 'fit:quality' makes a model for fasttext, not for rewrite",
        ),
        (
            "score.source",
            {"scorer": "fineweb"},
            "score: 'source' is the name of another column; choose one and give `scorer`",
        ),
        ("score.Exact", {"scorer": "fineweb"}, "score: 'Exact' is "),
        ("score.FineWeb", {"scorer": "fineweb"}, "score: 'FineWeb' is the name of another column"),
        ("score.tokens", {"tokenizer": "x"}, "score: 'tokens' is the name of another column"),
        ("score.a/b", {"scorer": "fineweb"}, "score: 'a/b' cannot name a folder; use no '/' and no '.' at its start"),
        ("sources.", "x", "sources: '' cannot name a folder"),
        ("sources", {"..": "x"}, "sources: '..' cannot name a folder"),
        (
            "sources.web",
            5,
            "sources.web: Input should be a valid string (given: 5) or Input should be a valid list (given: 5)",
        ),
        ("sources", {}, "sources: Dictionary should have at least 1 item after validation, not 0 (given: {})"),
        ("dedupe.exakt", {}, "dedupe.exakt: no such method; did you mean 'exact'?"),
        ("tokenizer", None, "tokenizer: mixtures are weighed in tokens; give a tokenizer.json"),
        ("tokenizer", "fit:quality", "tokenizer: 'fit:quality' makes a model for fasttext, not for tokens"),
        ("text", "id", "text: 'id' is a column that corpusmill adds itself"),
        ("mix.a - b", {}, "mix: 'a - b' holds ' - ', which parts two mixtures in differences"),
        ("mix.heldout", {}, "mix: 'heldout' means the documents held out; choose another name"),
        ("select.holdout", "true", "select: 'holdout' means the documents held out"),
        ("train.mixtures", ["al"], "train.mixtures: 'al' is not under mix; did you mean 'all'?"),
        ("train.seeds", [0, "one"], "train.seeds.1: Input should be a valid integer"),
        ("train.seeds", [0, -1], "train.seeds.1: Input should be greater than or equal to 0"),
        ("train.seeds", [0, 1, 0], "train.seeds: 0 stands twice; two models would lie in one folder"),
        ("train.mixtures", ["all", "all"], "train.mixtures: 'all' stands twice"),
        ("quarantine", 2, "quarantine: Input should be less than or equal to 1 (given: 2)"),
        ("name", "a/b", "name: String should match pattern"),
        ("name", "..", "name: '..' cannot name a folder"),
        ("seed", -1, "seed: Input should be greater than or equal to 0 (given: -1)"),
        ("seed", 2**63, "seed: Input should be less than 9223372036854775808"),
        ("sources", "a/*.parquet", "sources: expected `sources: {NAME: GLOB}` (given: 'a/*.parquet')"),
        ("score", ["fineweb"], "score: expected `score: {NAME: {KEY: VALUE}}` (given: ['fineweb'])"),
        ("score.fineweb", 5, "score.fineweb: expected `fineweb: {KEY: VALUE}` (given: 5)"),
        ("fit.quality", "x", "fit.quality: expected `quality: {KEY: VALUE}` (given: 'x')"),
        ("holdout", 0.1, "holdout: expected `holdout: {KEY: VALUE}` (given: 0.1)"),
        ("train.config", {"seed": 3}, "train.config.seed: each model has one of train.seeds"),
    ],
)
def test_each_mistake_is_one_line(path: str, value: Any, line: str) -> None:
    found = mistake(changed(path, value))
    assert found.startswith(f"recipe: {line}"), found
    assert "\n" not in found


def test_several_mistakes_are_several_lines() -> None:
    given = changed("score.finweb", {}) | {"dedupe": {"exat": {}}, "holdout": None, "train": {"mixtures": ["x"]}}
    assert [line.split(":")[1].strip() for line in mistake(given).split("\n")] == [
        "score.finweb",
        "dedupe.exat",
        "train.mixtures",
    ]
    given = {"nam": "x", "sources": {"a": "b"}, "seed": "x"}
    assert {line.split(": ")[1] for line in mistake(given).split("\n")} == {"nam", "name", "seed"}


def test_files(tmp_path: Path) -> None:
    assert load("quickstart").name == "quickstart"
    cases = {
        "name: [": "is not YAML",
        "just words": "a recipe is a mapping with name, sources, …; found str",
        "": "found NoneType",
        "name: a\nselect:\n  x: a\n  x: b\n": "'x' stands twice",
        "\xff\xfe": "is not YAML",
    }
    for content, reason in cases.items():
        (tmp_path / "r.yaml").write_bytes(content.encode("latin-1") if content.startswith("\xff") else content.encode())
        with pytest.raises(RecipeError) as error:
            load(str(tmp_path / "r.yaml"))
        assert reason in str(error.value) and "r.yaml" in str(error.value)
    with pytest.raises(
        RecipeError, match=r"no recipe at quikstart; bundled: .*quickstart.*; did you mean 'quickstart'\?"
    ):
        load("quikstart")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder; a recipe is wanted"):
        load(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("name: r\n")
    with pytest.raises(RecipeError, match=f"is a run folder; a recipe is wanted, as its own: {tmp_path}/recipe.yaml"):
        load(str(tmp_path))


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(RecipeError, match=r"--scorer 'fineweb:short_line_length=\[1': a VALUE cannot be read as YAML"):
        parameters(["fineweb:short_line_length=[1"])
    assert parameters(["fineweb:short_line_length=[1]"]) == {"fineweb": {"short_line_length": [1]}}


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, True),
        (LedgerError("rows went missing"), 1, True),
        (FileNotFoundError(errno.ENOENT, "No such file", "runs/r/index/a.parquet"), 1, True),
        (FileNotFoundError("no model at m.bin"), 2, True),
        (RecipeError("a mistake"), 2, True),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, True),
        (KeyError("a bug"), 1, False),
    ],
)
def test_failures_and_mistakes_are_one_line_and_bugs_are_not(error: Exception, code: int, shown: bool) -> None:
    command = typer.Typer()

    @command.command()
    def work() -> None:
        def fail() -> dict[str, Any]:
            raise error

        guarded(fail, False)

    done = CliRunner().invoke(command)
    assert done.exit_code == code
    assert done.stderr == (f"error: {error}\n" if shown else "")
    assert isinstance(done.exception, SystemExit) == shown


def test_nothing_readable_is_not_a_share(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    recipe = {"name": "r", "sources": {"s": f"{tmp_path}/a.parquet"}, "quarantine": 1}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(app, ["run", f"{tmp_path}/r.yaml", "--run", f"{tmp_path}/run"])
    assert done.exit_code == 3
    assert "no shard can be read; nothing was done" in done.stderr and "the recipe allows" not in done.stderr


def test_nearest_lists_what_there_is() -> None:
    assert nearest("exat", ["exact"]) == "; did you mean 'exact'?"
    assert nearest("zzz", ["a", "b"]) == "; there is a, b"
    assert nearest("zzz", []) == "; there is none"
