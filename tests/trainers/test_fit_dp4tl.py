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
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from trainers.fit_dp4tl import FitDp4tl, label_votes
from trainers.targets import Embedded
from transforms.batch import Batch
from transforms.draws import draws
from transforms.feature_mapping import kmeans, means, nearest, votes
from transforms.semantic import quantise

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


WANTED = (2, 5, 11, 17)


def with_classes(given: dict[str, pa.Table], order: np.ndarray | None = None) -> dict[str, pa.Table]:
    """The pool with its topics as numbers; those of the first topic and of the wordless document are missing."""
    pool = given["pool"]
    number = np.array([int(name) // 30 for name in pool.column("id").to_pylist()])
    topics = pa.array([int(n) if 0 < n < TOPICS else None for n in number])
    pool = pool.append_column("classes", topics)
    return {**given, "pool": pool if order is None else pool.take(pa.array(order)).sort_by("draw")}


@pytest.mark.parametrize("mapping", ["feature", "label"])
def test_classes_of_the_target_rank_first(mapping: str, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    """By the nearest mean of a class, and by the class that a classifier of the pool gives."""
    fit = FitDp4tl(target="true", classes="topic", mapping=mapping)  # type: ignore[arg-type]
    assert fit.samples()["pool"].columns == {"classes": '"topic"'} and not fit.samples()["target"].columns
    card = fit.fit(with_classes(samples), tmp_path / "one", seed=5)
    assert {entry["name"] for entry in card["clusters"][:4]} == {str(topic) for topic in WANTED}
    votes = {entry["name"]: entry["votes"] for entry in card["clusters"]}
    assert sum(votes.values()) == 292 and min(votes[str(topic)] for topic in WANTED) > 60
    assert sorted(votes.values(), reverse=True) == list(votes.values()) and len(votes) == TOPICS - 1
    assert all(entry["documents"] == 30 for entry in card["clusters"])
    assert ("holdout" in card) == (mapping == "label") and card.get("holdout", {"accuracy": 1})["accuracy"] > 0.9
    shuffled = np.random.default_rng(0).permutation(601)
    fit.fit(with_classes(samples, shuffled), tmp_path / "two", seed=5)
    for file in ("card.json", "model.npz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_label_votes_are_those_of_the_classifier(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    """And not of the nearest mean: of two classes the wider one reaches beyond the middle."""
    draw = np.random.default_rng(3)
    angle = np.concatenate([draw.uniform(-0.2, 0.0, 200), draw.uniform(0.0, 1.4, 200)])
    side = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.repeat([0, 1], 200)
    target = quantise(np.stack([np.cos([0.1, 0.15, 0.2]), np.sin([0.1, 0.15, 0.2])], axis=1))
    sides = Embedded(target, quantise(side), draws(0, pa.array(map(str, range(400)))), np.arange(400), 0)
    counted, told = label_votes(sides, labels, 2)
    assert counted.tolist() == [0, 3] and told["holdout"]["accuracy"] > 0.95
    assert votes(target, means(sides.pool, labels, 2)).tolist() == [3, 0]


def test_the_scorer_reads_the_column(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    fit = FitDp4tl(target="true", classes="topic", mapping="label")
    card = fit.fit(with_classes(samples), tmp_path, seed=5)
    assert scorers.make("dp4tl", {"model": tmp_path, "classes": "topic"}).needs == ("topic",)
    for kind in (pa.int8(), pa.string()):
        topic = pa.array([5, 1, 0, None, 99], pa.int8()).cast(kind)
        records = pa.record_batch({"text": ["any", "text", "will", "do", ""], "topic": topic})
        found = scorers.make("dp4tl", {"model": tmp_path, "classes": "topic"}).score(Batch(records)).to_pylist()
        entry = card["clusters"][found[0]["rank"] - 1]
        assert entry["name"] == "5" and found[0]["share"] == entry["votes"] / 292 and found[0]["rank"] <= 4
        assert found[1]["rank"] > 4 and card["names"][found[1]["cluster"]] == "1"
        assert found[2:] == [{"cluster": None, "rank": None, "share": None}] * 3, "no class that the fit has seen"
    for given, message in (
        ({}, "`classes: topic`, here it is `classes: None`"),
        ({"classes": "kind"}, "classes: kind"),
    ):
        with pytest.raises(ValidationError) as error:
            scorers.make("dp4tl", {"model": tmp_path, **given})
        assert message in str(error.value)


def test_classes_that_do_not_serve(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="mapping: label needs `classes`"):
        FitDp4tl(target="true", mapping="label")
    pool = samples["pool"]
    for values, message in (
        (pa.array(["one"] * len(pool)), "600 documents with words have 1 different values"),
        (pa.array([[1]] * len(pool)), "expected text or numbers"),
    ):
        given = {**samples, "pool": pool.append_column("classes", values)}
        with pytest.raises(ValueError, match=message):
            FitDp4tl(target="true", classes="topic").fit(given, tmp_path, 0)


@pytest.mark.parametrize("mapping", ["feature", "label"])
def test_a_recipe_keeps_whole_classes(mapping: str, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    pool = samples["pool"].select(["id", "text"])
    topic = [f"topic {int(name) // 30}" for name in pool.column("id").to_pylist()]
    pq.write_table(pool.append_column("topic", pa.array(topic)), tmp_path / "pool.parquet")
    pq.write_table(samples["target"].select(["id", "text"]), tmp_path / "target.parquet")
    files = str(tmp_path / "target.parquet")
    given: dict[str, Any] = {
        "name": "topics",
        "sources": {"web": str(tmp_path / "pool.parquet")},
        "fit": {"topics": {"method": "dp4tl", "files": files, "classes": "topic", "mapping": mapping}},
        "score": {"dp4tl": {"model": "fit:topics", "classes": "topic"}},
        "select": {"served": "dp4tl.rank <= 4"},
    }
    run(parse(given), str(tmp_path / "run"), until="select")
    assert kept(tmp_path / "run") == {f"{30 * topic + i:05d}" for topic in WANTED for i in range(30)}
    for part, field in (("fit", "fit.topics.classes"), ("score", "score.dp4tl: reads the column 'subject'")):
        wrong = {**given, part: {k: {**v, "classes": "subject"} for k, v in given[part].items()}}
        with pytest.raises(RecipeError) as error:
            run(parse(wrong), str(tmp_path / "other"), until="select")
        assert field in str(error.value)
