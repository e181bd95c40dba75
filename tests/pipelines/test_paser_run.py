"""PASER through a recipe: a model lost one of four topics, and the budget goes there as the fit's walk says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score
from toy_corpus import write
from toy_damage import DAMAGED, TOPICS, document, models

from pipelines.recipe import RecipeError, parse
from pipelines.run import run

EACH, BUDGET = 70, 60
VALUE = "if(paser.consistent AND NOT holdout, divergence.ies, NULL)"
TAKE = f"top_k({VALUE}, 1e10, weight := paser.weight, by := paser.cluster)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and four topics in random order: as two shards, and the other way round as three."""
    folder = tmp_path_factory.mktemp("paser")
    models(folder)
    draw = np.random.default_rng(1)
    topic = draw.permutation(np.repeat(np.arange(TOPICS), EACH))
    texts = [document(int(t), draw, int(draw.integers(3, 9))) for t in topic]
    ids = [f"{t} {i * 7919 % 100_003}" for i, t in enumerate(topic)]
    for name, order, shards in (("two", np.arange(len(ids)), 2), ("three", np.arange(len(ids))[::-1], 3)):
        for k, part in enumerate(np.array_split(order, shards)):
            chosen = {
                "id": [ids[i] for i in part],
                "text": [texts[i] for i in part],
                "topic": [f"t{ids[i][0]}" for i in part],
            }
            write(folder / name / f"{k}.parquet", chosen)
    return folder


def recipe(folder: Path, shards: str = "two", **fit: Any) -> dict[str, Any]:
    pair = {"model": str(folder / "original"), "damaged": str(folder / "damaged"), "window": 128, "stride": 64}
    return {
        "name": "recovery",
        "sources": {"pool": f"{folder}/{shards}/*.parquet"},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.1, "clusters": "exact"},
        "fit": {"lost": {"method": "paser", "budget": BUDGET, "clusters": TOPICS, "concepts": 3, **fit}},
        "score": {"divergence": pair, "paser": {"model": "fit:lost"}},
        "select": {"recovers": TAKE},
    }


def column(out: Path, folder: str, name: str) -> dict[str, Any]:
    """A sidecar's structs by id."""
    rows = [row for p in sorted((out / folder).rglob("*.parquet")) for row in pq.ParquetFile(p).read().to_pylist()]
    return {row["id"]: row[name] for row in rows}


def test_the_budget_goes_to_what_was_lost(folder: Path, tmp_path: Path) -> None:
    summary = run(parse(recipe(folder)), str(tmp_path), until="select")
    assert summary["ledger_balanced"]
    scores, reasons = column(tmp_path, "scores/paser", "paser"), column(tmp_path, "selection", "selection")
    assert adjusted_rand_score([name[0] for name in scores], [row["cluster"] for row in scores.values()]) > 0.9
    card = json.loads((tmp_path / "models" / "lost" / "card.json").read_text())
    clusters = {row["cluster"]: row["degradation"] for row in scores.values()}
    damaged = max(clusters, key=lambda c: clusters[c])
    assert {name[0] for name, row in scores.items() if row["cluster"] == damaged} == {str(DAMAGED)}
    assert clusters[damaged] > 3 * max(d for c, d in clusters.items() if c != damaged)
    walk = pq.read_table(tmp_path / "models" / "lost" / "walk.parquet").to_pylist()
    kept = {name for name, row in reasons.items() if row["keep"]}
    assert kept == {row["id"] for row in walk if row["taken"]} and len(kept) == card["documents"]["taken"] == BUDGET
    assert sum(row["refused"] for row in walk) == card["documents"]["contradicting"] > 0
    held = {name for name, row in reasons.items() if row["reason"] == "holdout"}
    assert held and not held & {row["id"] for row in walk}
    assert np.mean([name[0] == str(DAMAGED) for name in kept]) > 0.5


def test_shards_and_their_order_change_no_bit(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("two", "three"):
        run(parse(recipe(folder, name)), str(tmp_path / name), until="select")
        bits = [
            (tmp_path / name / "models" / "lost" / f).read_bytes() for f in ("model.npz", "card.json", "walk.parquet")
        ]
        kept = {i for i, row in column(tmp_path / name, "selection", "selection").items() if row["keep"]}
        found[name] = (bits, column(tmp_path / name, "scores/divergence", "divergence"), kept)
    assert found["two"] == found["three"]


def test_classes_candidates_and_mistakes(folder: Path, tmp_path: Path) -> None:
    """Clusters by a column; candidates by a condition; what is wrong is told before any work."""
    given = recipe(folder, classes="topic", candidates="divergence.ies > 0.005")
    given["score"]["paser"]["classes"] = "topic"
    run(parse(given), str(tmp_path / "run"), until="select")
    card = json.loads((tmp_path / "run" / "models" / "lost" / "card.json").read_text())
    assert card["names"] == ["t0", "t1", "t2", "t3"] and card["clusters"][DAMAGED]["share"] > 0.5
    assert 0 < card["documents"]["candidates"] < card["documents"]["sample"]
    wrong = recipe(folder, candidates="divergence.eis > 0")
    del wrong["fit"]["lost"]["budget"]
    for change, message in (
        (wrong, "fit.lost.budget"),
        (recipe(folder, candidates="divergence.eis > 0"), "fit.lost.candidates"),
        (recipe(folder, jsd="perplexity.loss"), "fit.lost.jsd"),
    ):
        with pytest.raises(RecipeError) as error:
            run(parse(change), str(tmp_path / "other"))
        assert message in str(error.value)
