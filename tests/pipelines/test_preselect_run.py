"""PreSelect through a recipe and by one command: of grammar, shuffled words and boilerplate the grammar is selected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_grammar
import yaml
from toy_corpus import write
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from sql.views import query

COUNT = 140  # documents of each kind
SITES = 7
SMALL = {"domain": "split_part(url, '/', 3)", "domains": SITES - 1, "per_domain": 60, "window": 128, "stride": 64}
FASTTEXT = {"dim": 16, "bucket": 5000, "epoch": 20, "lr": 0.2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 420 documents on seven sites, the last of which has the fewest; some have no URL."""
    folder = tmp_path_factory.mktemp("web")
    draw = np.random.default_rng(5)
    kinds = (toy_grammar.grammar, toy_grammar.shuffled, toy_grammar.boilerplate)
    texts = [kind(draw) for kind in kinds for _ in range(COUNT)]
    ids = [f"{kind.__name__[0]}{i}" for kind in kinds for i in range(COUNT)]
    odds = np.array([*[10] * (SITES - 1), 2]) / (10 * SITES - 8)
    urls = [
        f"https://site{draw.choice(SITES, p=odds)}.example/{name}" if draw.random() > 0.05 else None for name in ids
    ]
    order = draw.permutation(len(texts))
    for k in range(2):
        columns = {"id": ids, "text": texts, "url": urls}
        write(folder / f"{k}.parquet", {name: [held[i] for i in order[k::2]] for name, held in columns.items()})
    return folder


def models(family: list[tuple[Path, float]]) -> list[dict[str, Any]]:
    return [{"model": str(model), "ability": ability} for model, ability in family]


def recipe(corpus: Path, family: list[tuple[Path, float]], **fit: Any) -> dict[str, Any]:
    given = {"method": "preselect", "models": models(family), "parameters": FASTTEXT, **SMALL, **fit}
    return {
        "name": "predictive",
        "sources": {"web": f"{corpus}/*.parquet"},
        "fit": {"strength": given},
        "score": {"preselect": {"scorer": "fasttext", "model": "fit:strength"}},
        "select": {"best": "preselect.score >= quantile(preselect.score, 0.8, characters)"},
    }


def test_what_is_selected_is_the_grammar(corpus: Path, toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    summary = run(parse(recipe(corpus, toy_family)), str(tmp_path), until="select")
    assert summary["ledger_balanced"]
    kept = query(str(tmp_path), "SELECT id, characters FROM documents WHERE selection.keep").to_pylist()
    assert np.mean([row["id"].startswith("g") for row in kept]) > 0.9
    sizes = query(str(tmp_path), "SELECT characters FROM documents").column("characters").to_numpy()
    held = sum(row["characters"] for row in kept)
    assert 0.2 * sizes.sum() <= held <= 0.2 * sizes.sum() + sizes.max()
    card = json.loads((tmp_path / "models" / "strength" / "card.json").read_text())
    losses = pq.read_table(tmp_path / "models" / "strength" / "losses.parquet")
    counts = losses["domain"].value_counts().to_pylist()
    assert {row["values"] for row in counts} == {f"site{i}.example" for i in range(SITES - 1)}, "the least is left out"
    assert max(row["counts"] for row in counts) == 60, "and of each site no more than asked for"
    web = [row for k in range(2) for row in pq.read_table(corpus / f"{k}.parquet")["url"].to_pylist()]
    lacking = sum(url is None for url in web)
    expected = {"drawn": 3 * COUNT, "without_domain": lacking, "domains": SITES - 1, "seeds": losses.num_rows}
    assert lacking > 5 and card["sample"] == expected
    again = run(parse(recipe(corpus, toy_family)), str(tmp_path), until="select")
    assert again["fits"]["strength"]["reused"]


def test_one_command_fits_it(corpus: Path, toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    """A list of models is given as YAML; three of them are enough, with strengths from 0 to 3."""
    given = {"models": models(toy_family[3:]), **SMALL, "domain": "source", "per_domain": 300}
    texts = {
        key: value if key == "domain" else yaml.safe_dump(value, default_flow_style=True)
        for key, value in given.items()
    }
    texts |= {f"parameters.{key}": str(value) for key, value in FASTTEXT.items()}
    sets = [part for key, value in texts.items() for part in ("--set", f"{key}={value}")]
    where = ("--run", str(tmp_path / "run"), "--out", str(tmp_path / "model"), "--json")
    result = CliRunner().invoke(app, ["fit", "preselect", f"{corpus}/*.parquet", *sets, *where])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout.splitlines()[-1])["fit"]
    told = made["card"]["strength"]
    assert told["scored"] == 300 and sum(told["histogram"]) == 300 and len(told["histogram"]) == 4
    assert f"documents: good {told['positives']}, other" in result.output
    assert (tmp_path / "model" / "model.bin").is_file()


def test_models_that_changed_are_read_again(corpus: Path, toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    changing = Path(shutil.copytree(toy_family[3][0], tmp_path / "changing"))
    family = [(changing, 0.1), *toy_family[4:]]
    first = run(parse(recipe(corpus, family)), str(tmp_path / "run"), until="fit")["fits"]["strength"]
    shutil.copyfile(toy_family[0][0] / "model.safetensors", changing / "model.safetensors")
    second = run(parse(recipe(corpus, family)), str(tmp_path / "run"), until="fit")["fits"]["strength"]
    assert not second["reused"] and first["digest"] != second["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "uri"}, "fit.strength.domain: "),
        ({"where": "source"}, "fit.strength.where: "),
        ({"models": []}, "fit.strength.models: "),
        (
            {"models": [{"model": "nowhere", "ability": 1}, {"model": "there", "ability": 2}]},
            "no model folder at nowhere",
        ),
        ({"models": [{"modell": "nowhere", "ability": 1}]}, "fit.strength.models.0.modell: no such key"),
        ({"domains": 0}, "fit.strength.domains: "),
    ],
)
def test_mistakes_are_told_before_any_work(
    corpus: Path, toy_family: list[tuple[Path, float]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        run(parse(recipe(corpus, toy_family, **change)), str(tmp_path / "run"))
    assert message in str(error.value)
    assert not (tmp_path / "run" / "models").exists()
