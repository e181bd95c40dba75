"""A fitted PASER model finds the planted topics, spends its budget on the damaged one and refuses contradictions."""

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
from sklearn.metrics import adjusted_rand_score
from toy_damage import DAMAGED, TOPICS, document, phrase

import scorers
from trainers.fit_paser import FitPaser
from transforms.batch import Batch
from transforms.draws import draws

EACH = 60
FIT = FitPaser(budget=100, clusters=TOPICS, concepts=4)


def samples(order: np.ndarray | None = None) -> dict[str, pa.Table]:
    """The same documents as sample and candidates: damaged topic 0.4 nats, others 0.1, a little noise."""
    draw = np.random.default_rng(0)
    topic = np.repeat(np.arange(TOPICS), EACH)
    texts = [document(int(t), draw) for t in topic] + ["...", "no number"]
    jsd = [*np.where(topic == DAMAGED, 0.4, 0.1) * draw.uniform(0.8, 1.2, len(topic)), 0.3, None]
    ids = pa.array([f"{t} {i}" for i, t in enumerate(topic)] + ["wordless", "unknown"])
    given = {"id": ids, "draw": draws(0, ids), "text": texts, "jsd": pa.array(jsd, pa.float64())}
    table = pa.table(given).take(pa.array(np.arange(len(ids)) if order is None else order))
    table = table.sort_by("draw").append_column("topic", pa.array(["?"] * len(ids)))
    return {"sample": table, "candidates": table.rename_columns(["id", "draw", "text", "ies", "topic"])}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("paser")
    return out, FIT.fit(samples(), out, seed=0)


def scored(model: Path, texts: list[str], **more: Any) -> dict[str, list[Any]]:
    records = pa.record_batch({"text": pa.array(texts, pa.large_string()), **more})
    given = {"model": model, **({"classes": next(iter(more))} if more else {})}
    found = scorers.make("paser", given).score(Batch(records))
    return {field.name: found.field(field.name).to_pylist() for field in found.type}


def test_clusters_are_the_topics_and_the_damaged_one_gets_most(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    table = samples()["sample"].filter(pa.compute.match_substring_regex(samples()["sample"].column("id"), "^[0-9]"))
    topic = np.array([int(name.split()[0]) for name in table.column("id").to_pylist()])
    found = scored(out, table.column("text").to_pylist())
    assert adjusted_rand_score(topic, found["cluster"]) > 0.95
    damaged = found["cluster"][int(np.flatnonzero(topic == DAMAGED)[0])]
    clusters = card["clusters"]
    assert max(range(TOPICS), key=lambda c: clusters[c]["degradation"]) == damaged
    assert clusters[damaged]["degradation"] == pytest.approx(0.4, rel=0.1)
    assert sum(c["budget"] for c in clusters) == 100 == card["documents"]["taken"]
    assert clusters[damaged]["share"] == pytest.approx(4 / 7, abs=0.03)
    for c, k in zip(found["cluster"], found["degradation"], strict=True):
        assert k == clusters[c]["degradation"]
    unseen = scored(out, [document(DAMAGED, np.random.default_rng(9), 5)])
    assert unseen["cluster"] == [damaged]


def test_without_contradictions_budgets_are_in_proportion(tmp_path: Path) -> None:
    """One concept contradicts none."""
    card = FIT.model_copy(update={"concepts": 1}).fit(samples(), tmp_path, 0)
    shares = np.array([c["share"] for c in card["clusters"]])
    spent = np.array([c["budget"] for c in card["clusters"]])
    assert card["documents"]["contradicting"] == 0 and (np.abs(spent - 100 * shares) <= 1).all()
    more = FIT.model_copy(update={"concepts": 1, "budget": 10_000}).fit(samples(), tmp_path, 0)
    assert more["documents"]["taken"] == TOPICS * EACH, "all there is"


def test_the_scores_select_what_the_walk_took(fitted: tuple[Path, dict[str, Any]]) -> None:
    """The first of each cluster that are consistent, until they weigh 1e10."""
    out, card = fitted
    walk = pq.read_table(out / "walk.parquet")
    text = dict(zip(*(samples()["sample"].column(name).to_pylist() for name in ("id", "text")), strict=True))
    found = scored(out, [text[name] for name in walk.column("id").to_pylist()])
    assert found["cluster"] == walk.column("cluster").to_pylist()
    taken, refused = (np.array(walk.column(name)) for name in ("taken", "refused"))
    fits, weight = np.array(found["consistent"]), np.array(found["weight"])
    assert fits[taken].all() and not fits[refused].any() and card["documents"]["contradicting"] == refused.sum() > 0
    for cluster in range(TOPICS):
        own = np.flatnonzero((np.array(found["cluster"]) == cluster) & fits)  # in order of falling ies
        before = np.cumsum(weight[own]) - weight[own]
        assert own[before < 1e10].tolist() == [i for i in own if taken[i]]
    ies = np.array(walk.column("ies"))
    assert (np.diff(ies)[np.diff(walk.column("cluster")) == 0] <= 0).all()


def test_a_planted_contradiction_is_refused(tmp_path: Path) -> None:
    """It holds a phrase of each of two documents that come before it; its twin of two unknown phrases is taken."""
    given, draw = samples(), np.random.default_rng(77)
    known = [phrase(DAMAGED, draw) for _ in range(4)]
    texts = [f"the {known[0]} of the {known[1]}", f"the {known[2]} and a {known[3]}"]
    texts += [f"the {known[0]} with {known[2]}", f"the {phrase(DAMAGED, draw)} with {phrase(DAMAGED, draw)}"]
    ids = pa.array(["one", "other", "contradiction", "twin"])
    row = pa.table({"id": ids, "draw": draws(0, ids), "text": texts, "ies": [9.0, 8.0, 7.0, 7.0], "topic": ["?"] * 4})
    candidates = pa.concat_tables([given["candidates"], row])
    FIT.fit({**given, "candidates": candidates}, tmp_path, 0)
    walk = pq.read_table(tmp_path / "walk.parquet").to_pylist()
    found = {row["id"]: (row["taken"], row["refused"]) for row in walk}
    assert [found[name] for name in ids.to_pylist()] == [(True, False), (True, False), (False, True), (True, False)]
    assert scored(tmp_path, texts)["consistent"] == [True, True, False, True]


def test_the_order_of_documents_changes_no_byte(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    FIT.fit(samples(np.random.default_rng(5).permutation(TOPICS * EACH + 2)), tmp_path, seed=0)
    for file in ("card.json", "model.npz", "walk.parquet"):
        assert (tmp_path / file).read_bytes() == (fitted[0] / file).read_bytes()
    assert json.loads((tmp_path / "card.json").read_text()) == fitted[1]


def test_classes_of_a_column_may_be_the_clusters(tmp_path: Path) -> None:
    """Documents without one are left out, and so are candidates of a class that the sample lacks."""
    given = samples()
    topic = [int(name[0]) if name[0].isdigit() else None for name in given["sample"].column("id").to_pylist()]
    sample = given["sample"].append_column("classes", pa.array(topic))
    other = [9 if t == 0 else t for t in topic]
    candidates = given["candidates"].append_column("classes", pa.array(other))
    fit = FIT.model_copy(update={"classes": "topic", "concepts": 1})
    assert fit.samples()["sample"].columns == {"jsd": "divergence.jsd", "classes": '"topic"'}
    card = fit.fit({"sample": sample, "candidates": candidates}, tmp_path, 0)
    assert card["names"] == ["0", "1", "2", "3"] and card["classes"] == "topic"
    assert [c["documents"] for c in card["clusters"]] == [EACH] * 4
    assert card["clusters"][0]["budget"] == 0 and card["clusters"][DAMAGED]["budget"] > 50
    found = scored(tmp_path, ["any text"] * 4, topic=pa.array([2, 0, 9, None]))
    assert found["cluster"] == [2, 0, None, None] and found["weight"][1:] == [None] * 3
    with pytest.raises(ValidationError, match="fitted with `classes: topic`, here it is `classes: None`"):
        scorers.make("paser", {"model": tmp_path})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": lambda t: t.slice(0, 10)}, "expected at least 20"),
        ({"sample": lambda t: t.set_column(3, "jsd", pa.array([0.0] * len(t)))}, "the models agree"),
        ({"sample": lambda t: t.set_column(3, "jsd", pa.array([-1.0] * len(t)))}, "jsd: divergence.jsd is -1.0"),
        ({"sample": lambda t: t.set_column(3, "jsd", pa.array(["x"] * len(t)))}, "expected a number"),
        ({"candidates": lambda t: t.set_column(3, "ies", pa.nulls(len(t), pa.float64()))}, "none of the candidates"),
    ],
)
def test_samples_that_do_not_serve(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = samples()
    with pytest.raises(ValueError, match=message):
        FIT.fit({name: change.get(name, lambda t: t)(table) for name, table in given.items()}, tmp_path, 0)


def test_models_that_do_not_serve(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(fitted[0], tmp_path / "model")
    held = dict(np.load(fitted[0] / "model.npz"))
    for change, message in (
        ({"budget": held["degradation"]}, "budget is float64"),
        ({"budget": held["budget"] - 1000}, "not those of clusters"),
        ({"degradation": held["degradation"] * np.nan}, "not those of clusters"),
        ({"graph": held["graph"][::-1]}, "not those of a walk"),
        ({"centroids": held["centroids"][:, :7]}, "centroids is int16 (4, 7)"),
    ):
        np.savez(tmp_path / "model" / "model.npz", **{**held, **change})
        with pytest.raises(ValidationError) as error:
            scorers.make("paser", {"model": tmp_path / "model"})
        assert message in str(error.value)
    np.savez(tmp_path / "model" / "model.npz", **{**held, "graph": held["graph"][:0]})
    assert scored(tmp_path / "model", ["any text"])["consistent"] == [True], "a walk may have met no concept"
