"""The recipes that come along: each says what it lacks, and runs on models made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from toy_corpus import Toy, write
from typer.testing import CliRunner

from pipelines import recipe as recipes
from pipelines.cli import app
from pipelines.recipe import RecipeError, load
from sql.views import query

MODELS = {
    "toxicity": "TOXICITY_MODEL",
    "edu": "EDU_MODEL",
    "quality": "QUALITY_MODEL",
    "perplexity": "PERPLEXITY_MODEL",
}
BUNDLED = sorted(path.stem for path in (Path(recipes.__file__).parent / "recipes").glob("*.yaml"))


def corpusmill(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CORPUS", "TOXICITY_LABEL", "QUALITY_LABEL", *MODELS.values()):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def classifier_of(
    toy_tokenizer: Path, toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str], float], Path]:
    """A folder of a one-layer BERT with random weights whose last output is `middle` on the middle document."""

    def made(labels: list[str], middle: float) -> Path:
        import torch
        from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: k for k, label in enumerate(labels)}}
        config = BertConfig(**size, **names, vocab_size=400, max_position_embeddings=128, initializer_range=0.5)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(toy_tokenizer / "tokenizer.json"))
        texts = [text for source in toy_texts.values() for text in source[:20]]
        with torch.inference_mode():
            ids = [torch.tensor([tokenizer.encode(text)[:126]]) for text in texts]
            logits = torch.cat([model(i).logits for i in ids])
            last = logits[:, -1] - (logits[:, 0] if len(labels) > 1 else 0)
            model.classifier.bias[-1] += middle - last.median()
        out = tmp_path_factory.mktemp("classifier")
        model.save_pretrained(out)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (out / file).write_bytes((toy_tokenizer / file).read_bytes())
        return out

    return made


@pytest.fixture
def run(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, dict[str, set[str]]]]:
    """Run a bundled recipe on the toy corpus to its mixtures; returns the run and the ids of each mixture."""
    monkeypatch.setenv("CORPUS", f"{toy.folder}/**/*.parquet")

    def go(name: str, **variables: str) -> tuple[Path, dict[str, set[str]]]:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        folder = tmp_path / name
        code, result = corpusmill("run", name, "--run", str(folder), "--until", "mix")
        assert code == 0 and result["ledger_balanced"], result
        mixtures = {m: folder / "mixtures" / m / "corpus" for m in result["mixtures"]}
        return folder, {m: set(pq.read_table(path).column("id").to_pylist()) for m, path in mixtures.items()}

    return go


def ids(folder: Path, where: str) -> set[str]:
    return set(query(str(folder), f"SELECT id FROM documents WHERE {where}").column("id").to_pylist())


def test_toxicity_and_its_inverse_part_the_documents(run: Any, classifier_of: Any) -> None:
    model = str(classifier_of(["civil", "toxic"], 0.0))
    folder, found = run("toxicity", TOXICITY_MODEL=model, TOXICITY_LABEL="toxic")
    assert found["below"] == ids(folder, "exact.keep AND toxicity.highest <= 0.5")
    assert found["above"] == ids(folder, "exact.keep AND toxicity.highest > 0.5")
    assert min(len(found["below"]), len(found["above"])) > 10 and not found["below"] & found["above"]
    assert len(found["below"] | found["above"]) == 158, "all but the eight that repeat others"


def test_educational_documents_are_those_of_three_and_more(run: Any, classifier_of: Any) -> None:
    folder, found = run("edu", EDU_MODEL=str(classifier_of(["LABEL_0"], 3.0)))
    assert found["educational"] == ids(folder, "exact.keep AND edu.score >= 3")
    assert found["rest"] == ids(folder, "exact.keep AND edu.score < 3")
    assert min(len(found["educational"]), len(found["rest"])) > 10
    spread = query(str(folder), "SELECT min(edu.score) AS low, max(edu.score) AS high FROM documents").to_pylist()[0]
    assert spread["low"] < 3 < spread["high"], "a value, not a probability"


def test_the_fifth_of_lowest_perplexity(run: Any, toy_causal: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(toy_causal, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    folder, found = run("perplexity", PERPLEXITY_MODEL=str(model))
    scores = query(str(folder), "SELECT id, perplexity.perplexity AS p FROM documents ORDER BY p, id").to_pylist()
    at = scores[-(-len(scores) // 5) - 1]["p"]
    assert found["lowest"] == ids(folder, "exact.keep") & {row["id"] for row in scores if row["p"] <= at}
    assert found["rest"] == ids(folder, "exact.keep") & {row["id"] for row in scores if row["p"] > at}
    assert 20 < len(found["lowest"]) <= len(scores) / 5 + 1 and len(found["lowest"] | found["rest"]) == 158


def test_the_best_tenth_and_the_rest(run: Any, toy_fasttext: Path) -> None:
    folder, found = run("quality", QUALITY_MODEL=str(toy_fasttext))
    scores = query(str(folder), "SELECT quality.score AS s FROM documents ORDER BY s").column("s").to_pylist()
    at = query(str(folder), "SELECT quantile_disc(quality.score, 0.9) AS q FROM documents").column("q").to_pylist()[0]
    assert 0.08 < sum(s >= at for s in scores) / len(scores) < 0.13
    assert found["best"] == ids(folder, f"exact.keep AND quality.score >= {at!r}")
    assert found["rest"] == ids(folder, f"exact.keep AND quality.score < {at!r}")
    assert not any(i.startswith("junk") for i in found["best"])


def test_a_bare_fasttext_file_and_its_label(run: Any, toy_fasttext: Path, tmp_path: Path) -> None:
    (tmp_path / "published.bin").write_bytes((toy_fasttext / "model.bin").read_bytes())
    folder, found = run("quality", QUALITY_MODEL=f"{tmp_path}/published.bin", QUALITY_LABEL="__label__other")
    assert all(i.startswith("junk") for i in found["best"]), "the label of menus was asked for"
    held = load(f"{folder}/recipe.yaml").score["quality"]
    assert held == {"scorer": "fasttext", "model": f"{tmp_path}/published.bin", "positive": "__label__other"}


def test_the_cut_off_that_is_commented_out(
    toy_fasttext: Path, toy_texts: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the number signs the recipe drops what was written later, and what has no date."""
    text = (Path(recipes.__file__).parent / "recipes" / "quality.yaml").read_text()
    for line in ("  date: {cutoff", "  early: date.before "):
        assert f"\n#{line}" in text
        text = text.replace(f"\n#{line}", f"\n{line}")
    (tmp_path / "mine.yaml").write_text(text)
    dates = ["2021-05-01", "2022-12-31", "2023-01-01", None] * 10
    write(tmp_path / "in" / "a.parquet", {"text": toy_texts["books"][:40], "date": dates})
    monkeypatch.setenv("CORPUS", f"{tmp_path}/in/*.parquet")
    monkeypatch.setenv("QUALITY_MODEL", str(toy_fasttext))
    code, result = corpusmill("run", f"{tmp_path}/mine.yaml", "--run", f"{tmp_path}/run", "--until", "select")
    assert code == 0 and result["ledger"]["select"]["dropped"]["early"] == 20
    assert result["ledger"]["select"]["out"] < 20, "and of the rest the best"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_is_missing_is_said(name: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", f"{toy.folder}/**/*.parquet")
    where = ("--run", str(tmp_path / "run"))
    code, result = corpusmill("run", name, *where)
    field = f"score.{name}.model: set the environment variable {MODELS[name]} to "
    assert code == 2 and field in result["error"] and f"`{MODELS[name]}=… corpusmill run …`" in result["error"]
    monkeypatch.setenv(MODELS[name], "models/nowhere")
    code, result = corpusmill("run", name, *where)
    assert code == 2 and f"score.{name}: no " in result["error"] and "at models/nowhere; give a" in result["error"]
    assert not (tmp_path / "run").exists(), "found before any work"


def test_variables_are_filled_in_as_shells_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        name: t
        sources: {a: ["${HERE}/x/*.parquet", "${THERE:-y}/*.parquet"]}
        score: {q: {scorer: fasttext, model: "${HERE:?what}", positive: "${THERE:-}"}}
        select: {a: "id ~ '^${2}$' AND '${here}' != '$HERE'"}
    """
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml: sources\.a: set the environment variable HERE, as in `HERE=… "):
        load(f"{tmp_path}/r.yaml")
    monkeypatch.setenv("HERE", "/data")
    monkeypatch.setenv("THERE", "")
    found = load(f"{tmp_path}/r.yaml")
    assert found.sources == {"a": ["/data/x/*.parquet", "y/*.parquet"]}
    assert found.score["q"] == {"scorer": "fasttext", "model": "/data", "positive": None}
    assert found.select["a"] == "id ~ '^${2}$' AND '${here}' != '$HERE'", "what is no variable stays"


@pytest.mark.parametrize("name", BUNDLED)
def test_every_recipe_parses_once_its_variables_are_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(recipes.__file__).parent / "recipes" / f"{name}.yaml").read_text()
    for variable, mark, _ in recipes.SET.findall(text):
        if mark != "-":
            monkeypatch.setenv(variable, "models/some")
    assert load(name).name == name and load(name).mix
