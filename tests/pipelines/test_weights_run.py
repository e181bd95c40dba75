"""Mixture weights that fits find, through a recipe: proxies learn from what is not held out, mixtures take them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_corpus import junk, prose, write
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import RecipeError, parse
from pipelines.run import run

MODEL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
PROXY = {"model": MODEL, "tokens": 4000, "row_length": 64, "batch_tokens": 128, "lr": 1e-2}
FITS: dict[str, dict[str, Any]] = {
    "dro": {"method": "doremi", "rounds": 1},
    "searched": {"method": "regmix", "target": ["forum"], "mixtures": 16},
    "merged": {"method": "merging", "target": ["forum"], "seed_tokens": 4000, "units": 1, "drawn": 5, "checked": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of prose and one of menus."""
    folder = tmp_path_factory.mktemp("weights")
    draw = np.random.default_rng(0)
    for name, count in (("books", 120), ("forum", 60), ("junk", 80)):
        texts = [junk(draw, 6) if name == "junk" else prose(draw, 3) for _ in range(count)]
        write(folder / name / "0.parquet", {"id": [f"{name}{i}" for i in range(count)], "text": texts})
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> dict[str, Any]:
    common = {"sources": ["books", "junk", "forum"], "where": "exact.keep", "proxy": PROXY}
    return {
        "name": "weighed",
        "sources": {name: f"{folder}/{name}/*.parquet" for name in ("books", "forum", "junk")},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.1, "clusters": "exact"},
        "fit": {**{name: {**fit, **common} for name, fit in FITS.items()}, "tok": {"method": "tokenizer"}},
        "select": {"unique": "exact.keep"},
        "tokenizer": "fit:tok",
        "mix": {name: {"weights": f"fit:{name}", "tokens": 3000} for name in FITS},
    }


@pytest.fixture(scope="module")
def out(recipe: dict[str, Any], folder: Path) -> Path:
    summary = run(parse(recipe), str(folder / "run"))
    assert summary["ledger_balanced"]
    return folder / "run"


@pytest.mark.parametrize("name", FITS)
def test_mixtures_have_the_weights_that_were_found(out: Path, name: str) -> None:
    found = json.loads((out / "models" / name / "weights.json").read_text())
    assert found["method"] == FITS[name]["method"]
    manifest = json.loads((out / "mixtures" / name / "manifest.json").read_text())
    given = {source: manifest["sources"][source]["weight"] for source in manifest["sources"]}
    assert given == pytest.approx({s: w for s, w in found["weights"].items() if round(3000 * w)}, abs=1e-3)
    card = json.loads((out / "models" / name / "card.json").read_text())
    assert card["weights"] == found["weights"]
    told = re.findall(r"weight of junk</td>\s*<td[^>]*>([0-9.]+)<", (out / "report.html").read_text())
    assert f"{found['weights']['junk']:.4f}" in told


def test_prose_is_found_to_help_prose(out: Path) -> None:
    for name in ("searched", "merged"):
        weights = json.loads((out / "models" / name / "weights.json").read_text())["weights"]
        assert weights["junk"] < 0.3


def test_sizes_are_those_of_the_sources(out: Path) -> None:
    """All documents that are not held out were drawn, so the estimate is a count."""
    card = json.loads((out / "models" / "dro" / "card.json").read_text())
    held = dict.fromkeys(card["documents"], 0)
    for path in (out / "selection").rglob("*.parquet"):
        reasons = pq.read_table(path)["selection"].combine_chunks().field("reason").to_pylist()
        held[path.parent.name] += reasons.count("holdout")
    assert card["documents"] == {"books": 120 - held["books"], "forum": 60 - held["forum"], "junk": 80 - held["junk"]}


def test_nothing_is_fitted_twice_and_the_command_tells_the_card(recipe: dict[str, Any], out: Path) -> None:
    again = run(parse(recipe), str(out))
    assert all(again["fits"][name]["reused"] for name in FITS)
    settings = ["sources=[books, junk]", "rounds=1", *(f"proxy.{key}={value}" for key, value in PROXY.items())]
    arguments = [part for text in settings for part in ("--set", text)]
    result = CliRunner().invoke(app, ["fit", "doremi", str(out), "--name", "two", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout.splitlines()[-1])["fit"]["card"]
    assert f"weights: books {card['weights']['books']:.4f}, junk {card['weights']['junk']:.4f}" in result.stdout
    assert card["weights"].keys() == {"books", "junk"}


def test_only_weights_are_taken_as_weights(recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"mix\.dro\.weights"):
        parse({**recipe, "mix": {"dro": {"weights": "fit:tok"}}})
    with pytest.raises(RecipeError, match="for mix, not for tokens"):
        parse({**recipe, "tokenizer": "fit:dro"})
