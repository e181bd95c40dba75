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
from pipelines.train import TrainingError, _jobs, compare, unread


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
            {"rewrite": {"w": {"rewriter": "wrap", "style": "easy", "engine": {"engine": "vllm", "model": "/gone"}}}},
            "rewrite.w.engine: needs the package vllm; pip install 'corpusmill[vllm]'",
        ),
        (
            {"rewrite": {"w": {"rewriter": "wrap", "style": "easy", "engine": {"model": "/gone"}}}},
            "rewrite.w.engine.model: no model folder at /gone",
        ),
        (
            {"rewrite": {"w": {"rewriter": "sieve_and_swap", "threshold": 2, "bank": "/gone"}}},
            "rewrite.w.bank: /gone is no Parquet file",
        ),
        (
            {
                "rewrite": {
                    "longwriter": {
                        "engine": {"engine": "openai", "base_url": "http://x/v1", "model": "m"},
                        "where": "top_k(characters, 5)",
                    }
                }
            },
            "rewrite.longwriter.where: 'top_k(characters, 5)' asks for a top_k, which only conditions under `select`",
        ),
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
        (
            {"train": {"mixtures": ["all"], "config": {"objective": {"kind": "asft", "wieght": 1}}}},
            "train.config.objective.wieght: no such key; did you mean 'weight'?",
        ),
        (
            {"train": {"mixtures": ["all"], "config": {"objective": {"kind": "cross_entropy", "x": 1}}}},
            "train.config.objective.x: no such key; there is kind",
        ),
        (
            {"fit": {"f": {"method": "doremi", "sources": ["web", "dcos"]}}},
            "fit.f.sources: no source 'dcos'; did you mean 'docs'?",
        ),
        (
            {"fit": {"f": {"method": "regmix", "sources": ["web", "docs"], "target": ["wbe"]}}},
            "fit.f.target: no source 'wbe'; did you mean 'web'?",
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
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("fasttext", "httpx", "torch") else find(name)
    )
    fit, server = {"f": {"method": "fasttext", "positives": "true"}}, {"engine": "openai", "model": "m"}
    for changes, line in [
        ({"fit": fit}, "fit.f: needs the package fasttext; pip install 'corpusmill[fasttext]'"),
        ({"fit": fit, "score": {"f": {"scorer": "fasttext", "model": "fit:f"}}}, "needs the package fasttext"),
        ({"clean": {"prox": {"documents": server}}}, "clean.prox.documents: needs the package httpx; pip install"),
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


def test_what_training_reads_is_looked_at_before_any_work(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """The model to go on from, its longest row, token weights, the columns of the format."""
    for seed in (0, 1):
        model = tmp_path / "training" / f"seed{seed}" / "model"
        model.mkdir(parents=True)
        (model.parent / "checkpoints").mkdir()
        (model / "config.json").write_text('{"max_position_embeddings": 256}')
    (tmp_path / "weights").mkdir()
    start = str(tmp_path / "training")

    def wanted(**config: Any) -> dict[str, Any]:
        return {"mixtures": ["all"], "seeds": [0, 1], "config": config}

    for config, line in [
        ({"start": "/nowhere"}, "train.config.start: no model at /nowhere; give a model folder, or RUN"),
        ({"start": start, "row_length": 257}, "train.config.row_length: 257, but .*seed0/model reads 256 tokens"),
        ({"format": {"weights": str(tmp_path / "weights")}}, "train.config.format.weights: .* holds no token weights"),
        ({"format": {"kind": "prompt_completion"}}, "format.kind: reads the column 'prompt', which no shard has"),
        ({"format": {"kind": "messages"}}, "format.kind: reads the column 'messages', which no shard has"),
        ({"format": {"document_weight": "lat"}}, "document_weight: reads the column 'lat', .* did you mean 'late'"),
    ]:
        with pytest.raises(RecipeError, match=line):
            check(folder, toy_tokenizer, train=wanted(**config))
    check(folder, toy_tokenizer, train=wanted(start=start, row_length=256, format={"document_weight": "n"}))
    with pytest.raises(RecipeError, match="reads the column 'late', which mixtures hold as `text`"):
        check(folder, toy_tokenizer, text="late", train=wanted(format={"document_weight": "late"}))
    (tmp_path / "training" / "seed1" / "model" / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"train\.config\.start: no model at .*seed1/model"):
        check(folder, toy_tokenizer, train=wanted(start=start))


def test_what_rows_are_too_short_for_is_told() -> None:
    phases = [{"sources": {"a": {"cut_off": 7}, "b": {"cut_off": 3}}}]
    data = {"phases": phases, "tokens_truncated": 10, "documents_dropped": 0, "tokens": 90}
    assert unread(data) is None, "where a phase ends documents are cut by design"
    assert "0 are left out, and 5 tokens cut off" in str(unread({**data, "tokens_truncated": 15}))
    assert "2 are left out" in str(unread({**data, "documents_dropped": 2}))


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


def test_how_a_model_is_trained_is_no_part_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "mixtures" / "m" / "tokenizer").mkdir(parents=True)

    def key(**config: Any) -> str:
        [job] = _jobs(str(tmp_path), Training(mixtures=["m"], seeds=[0], config=config), {"m": {"digest": "d"}}, None)
        assert job.arguments["config"].items() >= config.items()
        return job.key

    same = {key(), key(threads=3), key(part_tokens=512), key(checkpoint_every=7, compile=True)}
    assert len(same) == 1 and key(lr=0.1) not in same and key(evaluate_every=5) not in same


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
    held = {"m": {"digest": "d"}, "heldout": {"digest": "h", "sources": {"web": {}}}}
    with pytest.raises(TrainingError, match=r"they are of \['web'\]; name some of these"):  # before any training
        _jobs(str(tmp_path), Training(mixtures=["m"], seeds=[0], target=["docs"]), held, "heldout")


def test_columns_that_scorers_need(folder: Path, toy_tokenizer: Path) -> None:
    """A column that no shard has, or of no plain values, is a mistake; one that some shards lack is not."""
    missing = r"score\.url: reads the column 'lat', which no shard has; did you mean 'late'"
    for column, message in [("lat", missing), ("tags", r"score\.url: column 'tags' is list")]:
        with pytest.raises(RecipeError, match=message):
            check(folder, toy_tokenizer, score={"url": {"column": column}})
    check(folder, toy_tokenizer, score={"url": {"column": "late"}, "date": {"column": "n"}})
