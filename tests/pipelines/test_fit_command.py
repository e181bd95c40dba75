"""`corpusmill fit`: a model from labelled shards by one command, its card told, and nothing fitted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from toy_corpus import junk, prose, write
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import RecipeError
from pipelines.steps_alone import settings
from scorers.fasttext import FastText
from trainers import fits
from transforms.batch import Batch

SETTINGS = ("--set", "positives=good", "--set", "negatives=NOT good", "--set", "parameters.dim=44")


def corpusmill(*arguments: str) -> tuple[int, Any, str]:
    """Exit code, last line as JSON if asked for, and all that was printed."""
    result = CliRunner().invoke(app, list(arguments))
    last = json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else None
    return result.exit_code, last, " ".join(result.output.split())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 good and 90 other documents in two shards; the good ones are prose, the others menus."""
    folder = tmp_path_factory.mktemp("labels")
    draw = np.random.default_rng(4)
    texts = [prose(draw, 6) for _ in range(60)] + [junk(draw, 9) for _ in range(90)]
    good = [True] * 60 + [False] * 90
    ids = [f"d{i}" for i in range(150)]
    write(folder / "a.parquet", {"id": ids[:100], "text": texts[:100], "good": good[:100]})
    write(folder / "b.parquet", {"id": ids[100:], "text": texts[100:], "good": good[100:]})
    return folder


@pytest.fixture(scope="module")
def fitted(labelled: Path) -> tuple[Path, Any, str]:
    """A run folder, the JSON of the command and what it printed."""
    run = labelled / "run"
    out = ("--run", str(run), "--name", "quality", "--out", str(labelled / "models" / "quality"))
    code, result, said = corpusmill("fit", "fasttext", f"{labelled}/*.parquet", *SETTINGS, *out, "--json")
    assert code == 0, said
    return run, result, said


def test_the_card_tells_what_was_fitted(labelled: Path, fitted: tuple[Path, Any, str]) -> None:
    run, result, said = fitted
    made = result["fit"]
    assert (made["method"], made["name"], made["reused"]) == ("fasttext", "quality", False)
    card = made["card"]
    assert card["documents"] == {"good": 60, "other": 90}, "both classes whole"
    assert card["holdout"]["documents"] == 15 and card["holdout"]["auc"] > 0.95, "menus are told from prose"
    assert card["parameters"]["dim"] == 44 and card["newline"] == " "
    assert made["model"] == str(labelled / "models" / "quality")
    for folder in (Path(made["model"]), run / "models" / "quality"):
        assert json.loads((folder / "card.json").read_text()) == card
    assert "documents: good 60, other 90" in said
    assert f"hold-out AUC: {card['holdout']['auc']:.4f} ± {card['holdout']['auc_standard_error']:.4f} (15 doc" in said
    assert f"model: {made['model']}" in said and result["ledger_balanced"]


def test_the_model_serves(labelled: Path, fitted: tuple[Path, Any, str]) -> None:
    """It tells documents apart that it never saw, as the card says."""
    draw = np.random.default_rng(5)
    texts = [prose(draw, 6) for _ in range(30)] + [junk(draw, 9) for _ in range(30)]
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    scores = FastText(model=Path(fitted[1]["fit"]["model"])).score(batch).field("score").to_numpy()
    assert roc_auc_score([1] * 30 + [0] * 30, scores) > 0.95


def test_a_second_call_fits_nothing(fitted: tuple[Path, Any, str]) -> None:
    run, first, _ = fitted
    before = (run / "models" / "quality" / "model.bin").stat().st_mtime_ns
    code, again, said = corpusmill("fit", "fasttext", str(run), "--name", "quality", *SETTINGS, "--json")
    assert code == 0 and again["fit"]["reused"] and "nothing has changed" in said
    assert again["fits"]["quality"]["digest"] == first["fits"]["quality"]["digest"]
    assert (run / "models" / "quality" / "model.bin").stat().st_mtime_ns == before
    assert again["fit"]["model"] == str(run / "models" / "quality"), "without --out it lies in the run"


def test_other_settings_fit_again(labelled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ("fit", "fasttext", f"{labelled}/*.parquet", "--run", str(run), *SETTINGS, "--json")
    cards = []
    for epoch in ("2", "3"):
        code, result, said = corpusmill(*fit, "--set", f"parameters.epoch={epoch}")
        assert code == 0 and not result["fit"]["reused"], said
        cards.append(result["fit"]["card"]["parameters"])
    assert cards[0] | {"epoch": 3} == cards[1], "what was not given again stays"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["fit"]["fasttext"]["parameters"]["epoch"] == 3


def test_conditions_over_scores_of_a_run(labelled: Path, tmp_path: Path) -> None:
    """On a run folder, its columns serve as labels; no positive is among the random documents."""
    run = str(tmp_path / "run")
    assert corpusmill("score", f"{labelled}/*.parquet", "--run", run, "--scorer", "fineweb")[0] == 0
    given = ("--set", "positives=fineweb.passed", "--set", "parameters.dim=44")
    code, result, said = corpusmill("fit", "fasttext", run, "--name", "rules", *given, "--json")
    assert code == 0, said
    assert result["fit"]["card"]["documents"] == {"good": 60, "other": 90}


def test_documents_without_a_label_are_among_the_others(labelled: Path, tmp_path: Path) -> None:
    """A condition that is null for them is not one that holds."""
    given = ("--set", "positives=CASE WHEN good THEN true END", "--set", "parameters.dim=44")
    code, result, said = corpusmill(
        "fit", "fasttext", f"{labelled}/*.parquet", "--run", str(tmp_path), *given, "--json"
    )
    assert code == 0, said
    assert result["fit"]["card"]["documents"] == {"good": 60, "other": 90}


def test_any_method_there_is(labelled: Path, tmp_path: Path) -> None:
    given = ("--set", "vocabulary=300", "--set", "where=NOT good", "--set", "megabytes=1")
    out = ("--out", str(tmp_path / "tokenizer"), "--run", str(tmp_path / "run"))
    for _ in range(2):  # also over the one that lies there
        code, result, said = corpusmill("fit", "tokenizer", f"{labelled}/*.parquet", *given, *out, "--json")
        assert code == 0, said
    assert result["fit"]["name"] == "tokenizer" and (tmp_path / "tokenizer" / "tokenizer.json").is_file()


def test_help_lists_the_methods() -> None:
    said = corpusmill("fit", "--help")[2]
    assert all(method in said for method in fits.names()) and "fasttext" in fits.names()


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("fastext", (), "no fit named 'fastext'; did you mean 'fasttext'?"),
        ("fasttext", (), "fit.quality.positives: must be given"),
        ("fasttext", ("--set", "positivs=good"), "fit.quality.positivs: no such key; did you mean 'positives'?"),
        ("fasttext", ("--set", "positives"), "--set 'positives': write KEY=VALUE"),
        ("fasttext", ("--set", "positives=god"), "fit.quality.positives: "),
        ("fasttext", (*SETTINGS, "--set", "parameters.epoch=[1"), "--set 'parameters.epoch=[1': a VALUE cannot be"),
        ("fasttext", (*SETTINGS, "--set", "parameters.epoch=0"), "fit.quality.parameters.epoch: "),
        ("fasttext", ("--set", "positives=good AND id < 'd05'"), "at least 20 documents on each side; given "),
        ("fasttext", ("--set", "positives=good AND NOT good"), "no document satisfies"),
    ],
)
def test_mistakes_exit_2(labelled: Path, tmp_path: Path, method: str, given: tuple[str, ...], expected: str) -> None:
    where = ("--run", str(tmp_path / "run"), "--name", "quality", "--json")
    code, result, said = corpusmill("fit", method, f"{labelled}/*.parquet", *given, *where)
    assert code == 2 and expected in result["error"] and "Traceback" not in said
    assert not (tmp_path / "run" / "models").exists()


def test_a_folder_of_something_else_is_left_alone(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("dear")
    where = ("--run", str(tmp_path / "run"), "--json")
    for out, why in (("letters", "holds to_mother.txt and no model"), ("letters/to_mother.txt", "is a file")):
        code, result, _ = corpusmill(
            "fit", "fasttext", f"{labelled}/*.parquet", *SETTINGS, *where, "--out", f"{tmp_path}/{out}"
        )
        assert code == 2 and why in result["error"]
    assert not (tmp_path / "run").exists(), "found before any work"


def test_a_copy_is_of_one_model(labelled: Path, fitted: tuple[Path, Any, str], tmp_path: Path) -> None:
    arguments = ("fit", "tokenizer", f"{labelled}/*.parquet", "--set", "vocabulary=300", "--run", str(tmp_path / "run"))
    code, _, said = corpusmill(*arguments, "--out", fitted[1]["fit"]["model"])
    assert code == 2 and "model.bin, no part of this model" in said


def test_another_method_under_a_name_leaves_nothing_of_the_first(labelled: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "a run")
    arguments = (f"{labelled}/*.parquet", "--name", "x", "--run", run)
    assert corpusmill("fit", "fasttext", *arguments, *SETTINGS)[0] == 0
    code, _, said = corpusmill("fit", "tokenizer", *arguments, "--set", "vocabulary=300")
    assert code == 2 and "the run has a fasttext fit named 'x'; choose another --name" in said
    given = yaml.safe_load((Path(run) / "recipe.yaml").read_text())
    given["fit"]["x"] = {"method": "tokenizer", "vocabulary": 300}
    (Path(run) / "recipe.yaml").write_text(yaml.safe_dump(given))
    assert corpusmill("run", f"{run}/recipe.yaml", "--run", run, "--until", "fit")[0] == 0
    names = {path.name for path in (Path(run) / "models" / "x").iterdir()}
    assert names == {"card.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_failed_step_does_not_stand_in_the_way_of_others(labelled: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    code, _, said = corpusmill("fit", "fasttext", f"{labelled}/*.parquet", "--set", "positives=id = 'd1'", "--run", run)
    assert code == 2 and "at least 20 documents" in said
    code, _, said = corpusmill("fit", "tokenizer", f"{labelled}/*.parquet", "--set", "vocabulary=300", "--run", run)
    assert code == 0, said


def test_texts_that_share_an_id_are_told_apart(tmp_path: Path) -> None:
    """Only what is drawn changes: another of two texts of one id."""
    made = []
    for prefer in ("bytes", "-bytes"):
        texts = [f"{i} " + "many words are here " * 9 for i in range(40)]
        write(tmp_path / "a.parquet", {"id": [f"d{i}" for i in range(40)], "text": texts})
        write(
            tmp_path / "b.parquet", {"id": [f"d{i}" for i in range(40)], "text": [t.replace(" ", "  ") for t in texts]}
        )
        fit = {"t": {"method": "tokenizer", "vocabulary": 300, "where": "exact.keep"}}
        sources = {name: f"{tmp_path}/{name}.parquet" for name in "ab"}
        given = {"name": "r", "sources": sources, "dedupe": {"exact": {"prefer": prefer}}, "fit": fit}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(given))
        assert corpusmill("run", f"{tmp_path}/r.yaml", "--run", f"{tmp_path}/run", "--until", "fit")[0] == 0
        made.append((tmp_path / "run" / "models" / "t" / "tokenizer.json").read_bytes())
    assert made[0] != made[1]


def test_settings_are_read_by_what_the_field_wants() -> None:
    given = [
        "positives=true",
        "negatives='a' = source  # b",
        "documents=200",
        "parameters.lr=0.5",
        "parameters.dim = 3",
    ]
    assert settings("fasttext", given) == {
        "method": "fasttext",
        "positives": "true",
        "negatives": "'a' = source  # b",
        "documents": 200,
        "parameters": {"lr": 0.5, "dim": 3},
    }
    with pytest.raises(RecipeError, match="'parameters' was given a value before"):
        settings("fasttext", ["parameters=3", "parameters.dim=4"])
