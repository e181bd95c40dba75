"""A fitted DP4TL model tells a document's cluster as the fit does, and is the same bytes each time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import scorers
from pipelines.recipe import parse
from pipelines.run import run
from trainers.fit_dp4tl import FitDp4tl
from transforms.batch import Batch
from transforms.draws import draws
from transforms.feature_mapping import kmeans, nearest, votes

TOPICS = 20


def about(topic: int, count: int, seed: int) -> list[str]:
    """Documents of 120 words, three in four of them from the topic's own fifteen."""
    draw = np.random.default_rng([seed, topic])
    own = [f"{a}{b}{chr(97 + topic)}" for a in "bcdfg" for b in "aei"]
    common = [f"{a}{b}zz" for a in "bcdfg" for b in "aeiou"]
    return [
        " ".join(np.where(draw.random(120) < 0.75, draw.choice(own, 120), draw.choice(common, 120)))
        for _ in range(count)
    ]


def sample(texts: list[str]) -> pa.Table:
    ids = pa.array([f"{i:05d}" for i in range(len(texts))])
    return pa.table({"id": ids, "draw": draws(0, ids), "text": texts}).sort_by("draw")


@pytest.fixture(scope="module")
def samples() -> dict[str, pa.Table]:
    """A pool of all topics and a target of four, with some noise and a document without words."""
    pool = [text for topic in range(TOPICS) for text in about(topic, 30, 1)]
    target = [text for topic in (2, 5, 11, 17) for text in about(topic, 68, 2)]
    noise = [text for topic in range(TOPICS) for text in about(topic, 1, 3)]
    return {"target": sample([*target, *noise]), "pool": sample([*pool, "..."])}


FIT = FitDp4tl(target="true", clusters=50)


@pytest.fixture(scope="module")
def fitted(samples: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("fit") / "model"
    return out, FIT.fit(samples, out, seed=5)


def scores(model: Path, texts: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        scorers.make("dp4tl", {"model": model}).score(Batch(pa.record_batch({"text": texts}))).to_pylist()
    )
    return found


def test_documents_of_the_pool_are_in_their_cluster(fitted: Any, samples: dict[str, pa.Table]) -> None:
    out, card = fitted
    sides = FIT.embedded(samples, 5)
    centroids = kmeans(sides.pool, sides.draw, 50, 20)
    labels, counted = nearest(sides.pool, centroids), votes(sides.target, centroids)
    texts = [text for text in samples["pool"].column("text").to_pylist() if text != "..."]
    found = scores(out, texts)
    assert [row["cluster"] for row in found] == labels.tolist()
    assert [row["share"] for row in found] == (counted / 292)[labels].tolist()
    assert [entry["votes"] for entry in card["clusters"]] == sorted(counted.tolist(), reverse=True)
    for row in found:
        entry = card["clusters"][row["rank"] - 1]
        assert entry["votes"] == counted[row["cluster"]] and entry["documents"] == (labels == row["cluster"]).sum()


def test_unseen_documents_of_the_targets_topics_rank_first(fitted: Any) -> None:
    out, card = fitted
    kept = sum(entry["votes"] > 5 for entry in card["clusters"])
    ranks = {topic: [row["rank"] for row in scores(out, about(topic, 10, 9))] for topic in range(TOPICS)}
    for topic, found in ranks.items():
        assert np.mean([rank <= kept for rank in found]) == (topic in (2, 5, 11, 17))


def test_the_card_and_the_bytes(fitted: Any, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    out, card = fitted
    assert json.loads((out / "card.json").read_text()) == card
    assert card["documents"] == {"target": 292, "pool": 600, "without words": 1}
    assert sum(entry["votes"] for entry in card["clusters"]) == 292
    assert sum(entry["documents"] for entry in card["clusters"]) == 600
    FIT.fit(samples, tmp_path, seed=5)
    for file in ("card.json", "model.npz"):
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes()
    assert scores(out, ["?", ""]) == [{"cluster": None, "rank": None, "share": None}] * 2


def test_models_that_do_not_serve(fitted: Any, tmp_path: Path) -> None:
    shutil.copytree(fitted[0], tmp_path / "model")
    held = dict(np.load(fitted[0] / "model.npz"))
    for change, message in (
        ({"rank": held["votes"]}, "rank is int64"),
        ({"votes": held["votes"][:-1]}, "votes is int64 (49,), expected int64 [k], d = 256, k = 50"),
        ({"rank": held["rank"] * 0}, "votes and ranks are not those of clusters"),
        ({"votes": held["votes"] * 0}, "votes and ranks are not those of clusters"),
    ):
        np.savez(tmp_path / "model" / "model.npz", **{**held, **change})
        with pytest.raises(ValidationError) as error:
            scorers.make("dp4tl", {"model": tmp_path / "model"})
        assert message in str(error.value)


def sidecars(folder: Path, column: str) -> dict[str, Any]:
    rows = pa.concat_tables(pq.read_table(p) for p in folder.rglob("*.parquet")).to_pylist()
    return {row["id"]: row[column] for row in rows}


def kept(run_folder: Path) -> set[str]:
    return {name for name, row in sidecars(run_folder / "selection", "selection").items() if row["keep"]}


def test_a_recipe_keeps_the_clusters_of_the_target(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    for name, table in samples.items():
        pq.write_table(table.select(["id", "text"]), tmp_path / f"{name}.parquet")
    given = {
        "name": "topics",
        "sources": {"web": str(tmp_path / "pool.parquet")},
        "fit": {"topics": {"method": "dp4tl", "files": str(tmp_path / "target.parquet"), "clusters": 50}},
        "score": {"dp4tl": {"model": "fit:topics"}},
        "select": {"served": "dp4tl.share > 0.005"},
    }
    run(parse(given), str(tmp_path / "run"), until="select")
    found = kept(tmp_path / "run")
    wanted = {f"{30 * topic + i:05d}" for topic in (2, 5, 11, 17) for i in range(30)}
    assert found <= wanted and len(found) > 0.85 * len(wanted), "tiny clusters inside a topic may get no vote"


def test_a_recipe_spends_a_budget_by_cluster(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    """PASER's budgets as bounds on draws: of one cluster all, of one a part, of one nothing."""
    pool = samples["pool"].select(["id", "text"])
    pq.write_table(pool, tmp_path / "pool.parquet")
    given: dict[str, Any] = {
        "name": "budget",
        "sources": {"web": str(tmp_path / "pool.parquet")},
        "fit": {"topics": {"method": "dp4tl", "target": "true", "target_documents": 20, "clusters": 3}},
        "score": {"dp4tl": {"model": "fit:topics"}},
    }
    run(parse(given), str(tmp_path / "run"), until="select")
    clusters = {n: row["cluster"] for n, row in sidecars(tmp_path / "run" / "scores" / "dp4tl", "dp4tl").items()}
    sizes = np.bincount([c for c in clusters.values() if c is not None], minlength=3)
    bounds = np.array([2**64 - 1, 0, 2**63], np.uint64)  # draws are uniform
    given["select"] = {"budget": f"draw <= list_extract({bounds.tolist()}::UBIGINT[], dp4tl.cluster + 1)"}
    run(parse(given), str(tmp_path / "run"), until="select")
    draw = dict(zip(pool.column("id").to_pylist(), draws(0, pool.column("id").combine_chunks()), strict=True))
    found = kept(tmp_path / "run")
    assert found == {name for name, c in clusters.items() if c is not None and draw[name] <= bounds[c]}
    assert {clusters[name] for name in found} == {0, 2} and sum(c == 0 for c in map(clusters.get, found)) == sizes[0]
