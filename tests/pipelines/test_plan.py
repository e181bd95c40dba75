"""What can be known before any work is known before any work: parameters, models, packages, SQL, weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import shards
from pipelines.plan import Plan
from pipelines.recipe import RecipeError, Training, parse
from pipelines.train import TrainingError, _jobs, compare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of one source whose columns differ, one of another, and one that cannot be opened."""
    for name, more in {"web/a": {"n": [1]}, "web/b": {"late": ["x"]}, "docs/c": {"tags": [["t"]]}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": ["x"], **more}), tmp_path / f"{name}.parquet")
    (tmp_path / "docs" / "broken.parquet").write_text("no")
    return tmp_path


def check(folder: Path, made: Path, **changes: Any) -> None:
    sources = {"web": f"{folder}/web/*.parquet", "docs": f"{folder}/docs/*.parquet"}
    base = {"name": "r", "sources": sources, "score": {"fineweb": {}}, "tokenizer": str(made), "dedupe": {"exact": {}}}
    recipe = parse({**base, "mix": {"all": {}}, **changes})
    Plan(recipe, f"{folder}/run").check(shards.expand(recipe.sources))


def test_every_part_may_use_what_is_there_by_then(folder: Path, toy_tokenizer: Path, toy_fasttext: Path) -> None:
    check(
        folder,
        toy_tokenizer,
        score={
            "fineweb": {},
            "q": {"scorer": "fasttext", "model": str(toy_fasttext)},
            "f": {"scorer": "fasttext", "model": "fit:f"},
        },
        dedupe={"exact": {"prefer": "q.score + n"}},
        fit={"f": {"method": "fasttext", "positives": "exact.keep AND q.score > 0.5 AND late IS NULL AND NOT holdout"}},
        select={"a": "f.score >= quantile(f.score, 0.5)", "b": "list_contains(tags, 't') OR tokens.count > 3"},
        holdout={"share": 0.1, "where": "exact.keep"},
        mix={"all": {"where": "selection.reason IS NULL AND n > 1", "weights": {"web": 1, "docs": 2}}},
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"score": {"fineweb": {"min_lines": 3}}}, "score.fineweb.min_lines: no such key"),
        (
            {"score": {"fasttext": {"model": "/nowhere"}}},
            "score.fasttext: no fastText model at /nowhere; give a .bin file",
        ),
        ({"score": {"fasttext": {}}}, "score.fasttext.model: must be given"),
        (
            {"tokenizer": "/nowhere/tok.json"},
            "tokenizer: no tokenizer at /nowhere/tok.json; give a tokenizer.json or a folder",
        ),
        ({"dedupe": {"exact": {"prefr": "n"}}}, "dedupe.exact.prefr: no such key; did you mean 'prefer'?"),
        ({"dedupe": {"exact": {"prefer": "text"}}}, "dedupe.exact.prefer: 'text' is string, expected a number"),
        (
            {"dedupe": {"exact": {"prefer": "quantile(n, 0.5)"}}},
            "asks for a quantile, which only conditions under `select` can",
        ),
        ({"dedupe": {"exact": {"prefer": "CAST(holdout AS INT)"}}}, "dedupe.exact.prefer: "),
        ({"select": {"x": "finweb.passed"}}, "select.x: "),
        ({"select": {"x": "fineweb.pased"}}, "select.x: "),
        ({"select": {"x": "tokens.count"}}, "select.x: 'tokens.count' is int64, expected true or false"),
        (
            {"select": {"x": "tokens.count > quantile(tokens.count, 9)"}},
            "quantile takes an expression and a number from 0 to 1",
        ),
        ({"select": {"x": "selection.keep"}}, "select.x: "),
        (
            {"mix": {"all": {"where": "n > quantile(n, 0.5)"}}},
            "mix.all.where: 'n > quantile(n, 0.5)' asks for a quantile",
        ),
        ({"mix": {"all": {"wheer": "true"}}}, "mix.all.wheer: no such key; did you mean 'where'?"),
        (
            {"mix": {"all": {"tokens": "many"}}},
            "mix.all.tokens: 'many' is no number of tokens; write 300000, 300k, 5M or 2B",
        ),
        ({"mix": {"all": {"tokens": 0}}}, "mix.all.tokens: Input should be greater than 0 (given: 0)"),
        ({"mix": {"all": {"weights": {"wbe": 1}}}}, "mix.all.weights: no source 'wbe'; did you mean 'web'?"),
        ({"mix": {"all": {"weights": {"web": -1}}}}, "mix.all.weights: {'web': -1.0} are no weights"),
        ({"mix": {"all": {"weights": {"web": float("nan")}}}}, "mix.all.weights: {'web': nan} are no weights"),
        ({"mix": {"all": {"weights": {}}}}, "mix.all.weights: {} are no weights"),
        ({"mix": {"all": {"weights": "naturel"}}}, "did you mean 'natural'?"),
        (
            {"fit": {"f": {"method": "fasttext", "positives": "late"}}},
            "fit.f.positives: 'late' is string, expected true or false",
        ),
        (
            {"fit": {"f": {"method": "tokenizer", "vocabulry": 5}}},
            "fit.f.vocabulry: no such key; did you mean 'vocabulary'?",
        ),
        (
            {"fit": {"f": {"method": "tokenizer", "vocabulary": 5}}},
            "fit.f.vocabulary: Input should be greater than or equal to 257",
        ),
        ({"fit": {"f": {"method": "fasttext"}}}, "fit.f.positives: must be given"),
        ({"fit": {"f": {"method": "fasttext", "positives": None}}}, "fit.f.positives: Input should be a valid string"),
        (
            {"fit": {"f": {"method": "fasttext", "positives": "true", "parameters": {"dims": 3}}}},
            "fit.f.parameters.dims: no such key; did you mean 'dim'?",
        ),
        (
            {
                "score": {"f": {"scorer": "fasttext", "model": "fit:f", "positiv": "x"}},
                "fit": {"f": {"method": "fasttext", "positives": "true"}},
            },
            "score.f.positiv: no such key; did you mean 'positive'?",
        ),
        ({"holdout": {"share": 0.1, "where": "nothing"}}, "holdout.where: "),
        ({"train": {"mixtures": ["all"], "config": {"lerning_rate": 1}}}, "train.config.lerning_rate: no such key"),
        (
            {"train": {"mixtures": ["all"], "target": ["wbe"]}},
            "train.target: no source 'wbe'; did you mean 'web'?",
        ),
    ],
)
def test_each_mistake_is_found_without_work(
    folder: Path, toy_tokenizer: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(RecipeError) as error:
        check(folder, toy_tokenizer, **changes)
    assert line in str(error.value)
    assert not (folder / "run").exists()


def test_a_missing_package_is_named_with_its_extra(
    folder: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("fasttext", "torch") else find(name))
    fit = {"f": {"method": "fasttext", "positives": "true"}}
    for changes, line in [
        ({"fit": fit}, "fit.f: needs the package fasttext; pip install 'corpusmill[fasttext]'"),
        ({"fit": fit, "score": {"f": {"scorer": "fasttext", "model": "fit:f"}}}, "needs the package fasttext"),
        ({"train": {"mixtures": ["all"]}}, r"train: needs the package torch; pip install 'corpusmill[trainer]'"),
    ]:
        with pytest.raises(RecipeError) as error:
            check(folder, toy_tokenizer, **changes)
        assert line in str(error.value)


def test_a_tokenizer_without_end_token_cannot_be_trained_with(
    folder: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    made = tmp_path / "tk"
    made.mkdir()
    (made / "mine.json").write_text((toy_tokenizer / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>"))
    with pytest.raises(RecipeError, match=r"tokenizer: .*mine\.json.* has no token <\|endoftext\|>"):
        check(folder, made / "mine.json", train={"mixtures": ["all"]})
    check(folder, made / "mine.json")
    (made / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    check(folder, made / "mine.json", train={"mixtures": ["all"]})
    (made / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    with pytest.raises(RecipeError, match="has no token <eos>"):
        check(folder, made / "mine.json", train={"mixtures": ["all"]})


def test_training_keys_follow_the_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "mixtures" / "m" / "tokenizer").mkdir(parents=True)
    spec = Training(mixtures=["m"], seeds=[0], config={"start": str(tmp_path / "start")})

    def key() -> str:
        [job] = _jobs(str(tmp_path), spec, {"m": {"digest": "d"}}, None)
        assert job.arguments["config"]["start"] == str(tmp_path / "start")
        return job.key

    (tmp_path / "start" / "model").write_text("1")
    before = key()
    assert key() == before
    (tmp_path / "start" / "model").write_text("2")
    assert key() != before
    (tmp_path / "start").rename(tmp_path / "gone")
    with pytest.raises(TrainingError, match=r"train\.config\.start: no model at"):
        key()


def test_a_target_without_held_out_documents_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "training" / "m" / "seed0"
    out.mkdir(parents=True)
    row = {"source": "web", "shard": "s", "row": 0, "nats": 2.0, "tokens": 4}
    pq.write_table(pa.Table.from_pylist([row]), out / "evaluation.parquet")
    found = compare(str(tmp_path), Training(mixtures=["m"], seeds=[0], target=["web"]))
    assert found["heldout_loss"]["m"]["mean"] == 0.5
    with pytest.raises(TrainingError, match=r"no held-out document is of \['docs'\]; they are of \['web'\]") as error:
        compare(str(tmp_path), Training(mixtures=["m"], seeds=[0], target=["docs"]))
    assert error.value.exit_code == 2


def test_columns_that_scorers_need(folder: Path, toy_tokenizer: Path) -> None:
    """A column that no shard has, or of no plain values, is a mistake; one that some shards lack is not."""
    missing = r"score\.url: reads the column 'lat', which no shard has; did you mean 'late'"
    for column, message in [("lat", missing), ("tags", r"score\.url: column 'tags' is list")]:
        with pytest.raises(RecipeError, match=message):
            check(folder, toy_tokenizer, score={"url": {"column": column}})
    check(folder, toy_tokenizer, score={"url": {"column": "late"}, "date": {"column": "n"}})
