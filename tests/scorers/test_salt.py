"""SALT's score: what is hard yet learnable stands above boilerplate and above noise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import toy_grammar
from pydantic import ValidationError

from pipelines.recipe import parse
from pipelines.run import run
from scorers import make
from scorers.salt import Salt
from sql.views import query
from transforms.batch import Batch

WINDOW = {"window": 64, "stride": 32}
COUNT = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has seen the grammar and the boilerplate."""
    return toy_grammar.family(tmp_path_factory.mktemp("salt"), 0, [150], mixed=True)[0]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """COUNT documents each of the grammar, of boilerplate, of the grammar's words shuffled; one empty, one foreign."""
    draw = np.random.default_rng(3)
    kinds = (toy_grammar.grammar, toy_grammar.boilerplate, toy_grammar.shuffled)
    texts = [kind(draw) for kind in kinds for _ in range(COUNT)]
    return Batch(pa.record_batch({"text": pa.array([*texts, "", "日本語 🎉"], pa.large_string())}))


def by_kind(values: pa.Array) -> list[np.ndarray]:
    return np.split(values.to_numpy(zero_copy_only=False)[: 3 * COUNT], 3)


def test_the_learnable_and_hard_stands_first(model: Path, batch: Batch) -> None:
    found = Salt(model=model, **WINDOW).score(batch)
    hard, easy, noise = by_kind(found.field("score"))
    assert hard.min() > easy.max() + 0.2 and hard.min() > noise.max() + 0.2
    assert np.mean(noise == 0) > 0.9, "more than half of the words are no guess of the model"
    in_topk = [float(share.mean()) for share in by_kind(found.field("frac_in_topk"))]
    assert in_topk[0] > 0.9 and in_topk[1] > 0.95 and in_topk[2] < 0.5
    assert found.field("tokens").to_pylist()[-2:] == [0, 2]
    last = {name: found.field(name).to_pylist()[-2] for name in ("score", "frac_in_topk", "mean_masked_loss")}
    assert set(last.values()) == {None}, "nothing is scored in an empty text"


def test_dropped_tokens_part_the_hard_from_the_easy_alone(model: Path, batch: Batch) -> None:
    """Noise scores by the words that happen to be likely; that they are few is for `frac_in_topk` to tell."""
    dropped = Salt(model=model, masked_tokens="drop", **WINDOW).score(batch)
    hard, easy, _ = by_kind(dropped.field("score"))
    assert hard.min() > easy.max() + 0.2
    zero = Salt(model=model, **WINDOW).score(batch)
    for name in ("frac_in_topk", "mean_masked_loss", "tokens"):
        assert dropped.field(name).equals(zero.field(name))
    difference = pc.subtract(dropped.field("score"), zero.field("score"))
    assert pc.min(difference).as_py() >= 0


def test_with_k_of_the_vocabulary_it_is_the_median_loss(model: Path, batch: Batch) -> None:
    plane = make("eu_plane", {"model": model, "tokens": True, **WINDOW}).score(batch)
    losses = plane.field("losses").to_pylist()
    expected = [float(np.median(values)) if values else None for values in losses]
    for masked in ("zero", "drop"):
        found = make("salt", {"model": model, "k": 1000, "masked_tokens": masked, **WINDOW}).score(batch)
        for own, median in zip(found.field("score").to_pylist(), expected, strict=True):
            assert own == pytest.approx(median)
        np.testing.assert_allclose(by_kind(found.field("mean_masked_loss")), by_kind(plane.field("error")), rtol=1e-6)


def test_documents_of_score_zero_go_by_their_mean(model: Path, batch: Batch, tmp_path: Path) -> None:
    """By the condition that the scorer's docstring gives, through a run."""
    ids = [f"{kind}{i}" for kind in "hen" for i in range(COUNT)]
    table = pa.table({"id": ids, "text": batch.text.slice(0, 3 * COUNT)})
    pq.write_table(table, tmp_path / "a.parquet")
    condition = re.search(r"`(top_k.*)`", str(Salt.__doc__))
    assert condition
    recipe = {
        "name": "salt",
        "sources": {"a": str(tmp_path / "a.parquet")},
        "score": {"salt": {"model": str(model), **WINDOW}},
        "select": {"hard": condition[1].replace("share := 0.2", "share := 0.8")},
    }
    run(parse(recipe), str(tmp_path / "run"), until="select")
    rows = query(str(tmp_path / "run"), "SELECT id, salt, selection.keep AS keep FROM documents").to_pylist()
    assert all(row["keep"] for row in rows if row["salt"]["score"] > 0)
    means = {
        k: [r["salt"]["mean_masked_loss"] for r in rows if r["salt"]["score"] == 0 and r["keep"] == k]
        for k in (True, False)
    }
    assert sum(row["keep"] for row in rows) == 0.8 * len(rows) and means[True] and min(means[True]) > max(means[False])


def test_mistakes_are_found_at_construction(model: Path) -> None:
    for wrong, message in (({"k": 0}, "greater than or equal to 1"), ({"masked_tokens": "keep"}, "'zero' or 'drop'")):
        with pytest.raises(ValidationError, match=message):
            make("salt", {"model": model, **WINDOW} | wrong)
