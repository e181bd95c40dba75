"""A fitted GOT-D model wants what the pool lacks, and scores the pool's documents as the solution does."""

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
from trainers.fit_got_d import FitGotD
from transforms.batch import Batch
from transforms.draws import draws
from transforms.transport import gradient, sinkhorn

KINDS = {"cat": 0, "dog": 100}


def about(kind: str, count: int, seed: int) -> list[str]:
    """Documents of 60 words of a kind's own hundred."""
    draw = np.random.default_rng([seed, KINDS[kind]])
    words = ["".join(chr(97 + int(digit)) for digit in f"{KINDS[kind] + i:03d}") for i in range(100)]
    return [" ".join(draw.choice(words, 60)) for _ in range(count)]


def sample(texts: list[str]) -> pa.Table:
    """As the fit step draws it: in order of draw."""
    ids = pa.array([f"{i:05d}" for i in range(len(texts))])
    table = pa.table({"id": ids, "draw": draws(0, ids), "text": texts})
    return table.sort_by("draw")


@pytest.fixture(scope="module")
def samples() -> dict[str, pa.Table]:
    target = sample(about("cat", 60, 1) + about("dog", 60, 1))
    return {"target": target, "pool": sample(about("cat", 297, 2) + about("dog", 3, 2) + ["...", "!"])}


@pytest.fixture(scope="module")
def fitted(samples: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("fit") / "model"
    return out, FitGotD(target="true").fit(samples, out, seed=5)


def scores(model: Path, texts: list[str]) -> pa.StructArray:
    return scorers.make("got_d", {"model": model}).score(Batch(pa.record_batch({"text": texts})))


def test_documents_of_the_pool_have_the_gradients_of_the_solution(fitted: Any, samples: dict[str, pa.Table]) -> None:
    out, card = fitted
    fit = FitGotD(target="true")
    sides = fit.embedded(samples, 5)
    start = sinkhorn(sides.target, sides.pool, 0.2).f
    found = sinkhorn(sides.target, sides.pool, 0.1, start=start)
    texts = samples["pool"].column("text").to_pylist()
    scored = scores(out, texts)
    worded = [i for i, text in enumerate(texts) if text not in ("...", "!")]
    assert scored.field("potential").take(worded).to_pylist() == found.g.tolist()
    expected = gradient(found.g, found.g.mean(), 300)
    assert scored.field("gradient").take(worded).to_pylist() == expected.tolist()
    assert card["cost"] == found.cost and card["marginal_error"] == found.marginal_error


def test_unseen_documents_of_the_rare_kind_are_wanted(fitted: Any) -> None:
    out, _ = fitted
    cats, dogs = (scores(out, about(kind, 50, 9)).field("gradient").to_numpy() for kind in ("cat", "dog"))
    assert dogs.max() < cats.min() and dogs.max() < 0


def test_documents_without_words_have_no_gradient(fitted: Any) -> None:
    found = scores(fitted[0], ["...", "", "aaa", " \n"])
    assert [row["gradient"] is None for row in found.to_pylist()] == [True, True, False, True]
    assert [row["potential"] is None for row in found.to_pylist()] == [True, True, False, True]


def test_the_card(fitted: Any) -> None:
    out, card = fitted
    assert json.loads((out / "card.json").read_text()) == card
    assert card["documents"] == {"target": 120, "pool": 300, "without words": 2} and card["pool"]["points"] == 300
    assert card["parameters"] == {"epsilon": 0.1, "momentum": 1.3, "tolerance": 1e-3, "iterations": 2000}
    assert 0 < card["marginal_error"] <= 1e-3 and card["iterations"] >= 2 and 0.5 <= card["stability"] <= 1
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.npz"]


def test_the_same_samples_and_seed_give_the_same_bytes(
    samples: dict[str, pa.Table], fitted: Any, tmp_path: Path
) -> None:
    FitGotD(target="true").fit(samples, tmp_path, seed=5)
    for file in ("card.json", "model.npz"):
        assert (tmp_path / file).read_bytes() == (fitted[0] / file).read_bytes()


def test_targets_from_files(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    """The same texts in whatever files, in whatever order, make the same model."""
    texts = samples["target"].column("text").to_pylist()
    folder = tmp_path / "files" / "inner"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"body": [*texts[60:], None], "x": range(61)}), folder / "a.parquet")
    (folder / "b.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts[:60]))
    (folder / "notes.txt").touch()
    pq.write_table(pa.table({"body": texts}), tmp_path / "one.parquet")
    models = []
    for i, files in enumerate(([str(folder)], f"{tmp_path}/files/**/*", str(tmp_path / "one.parquet"))):
        fit = FitGotD(files=files, column="body", target_documents=100)
        assert set(fit.samples()) == {"pool"}
        assert fit.fit(samples, tmp_path / str(i), seed=5)["documents"]["target"] == 100
        models.append((tmp_path / str(i) / "model.npz").read_bytes())
    assert models[0] == models[1] == models[2]


def test_samples_do_not_overlap() -> None:
    wanted = FitGotD(target="source = 'a'", pool="source <> 'b'", pool_documents=77, target_documents=5).samples()
    assert (wanted["target"].where, wanted["target"].documents) == ("source = 'a'", 5)
    assert (wanted["pool"].where, wanted["pool"].documents, wanted["pool"].without) == ("source <> 'b'", 77, "target")


def test_a_model_with_an_encoder_needs_nothing_beside_it(toy_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_encoder, tmp_path / "encoder")
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(["one", "two", "three"], 9)) for _ in range(20)]
    texts += [" ".join(draw.choice(["four", "five", "six"], 9)) for _ in range(2)]
    samples = {"pool": sample(texts), "target": sample(["four six five six", "one two one", "five four four"])}
    fit = FitGotD(target="true", embedding={"encoder": tmp_path / "encoder"}, epsilon=0.05)
    fit.fit(samples, tmp_path / "model", 0)
    shutil.rmtree(tmp_path / "encoder")
    found = scores(tmp_path / "model", texts).field("gradient").to_numpy()
    assert sorted(np.argsort(found)[:2]) == [20, 21]
    assert scores(tmp_path / "model", texts[7:8]).field("gradient").to_pylist() == found[7:8].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of them"),
        ({"target": "true", "files": "one.parquet"}, "give one of them"),
        ({"files": "nowhere/*.parquet"}, "no target documents at nowhere"),
        ({"files": "notes.txt"}, "no target documents at notes.txt"),
        ({"files": "broken.jsonl"}, "broken.jsonl cannot be read as jsonl"),
        ({"files": "broken.parquet"}, "broken.parquet cannot be read as parquet"),
        ({"files": "one.parquet"}, "one.parquet has no column 'text'; its columns are body"),
        ({"files": "one.parquet", "column": "body"}, "column 'body' is Int64, expected strings"),
        ({"target": "true", "epsilon": 0}, "epsilon"),
        ({"target": "true", "momentum": 2}, "momentum"),
        ({"target": "true", "embedding": {"encoder": "nowhere"}}, "no model folder at nowhere"),
    ],
)
def test_mistakes_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "broken.parquet").write_text("PAR1")
    pq.write_table(pa.table({"body": [1, 2]}), tmp_path / "one.parquet")
    with pytest.raises(ValidationError) as error:
        FitGotD(**given)
    assert message in str(error.value)


def test_samples_that_do_not_serve(samples: dict[str, pa.Table], tmp_path: Path) -> None:
    fit = FitGotD(target="true")
    with pytest.raises(ValueError, match="0 of 1 target documents and 300 of 302 of the pool have words"):
        fit.fit({**samples, "target": sample(["?"])}, tmp_path, 0)
    with pytest.raises(ValueError, match="120 of 120 target documents and 1 of 2 of the pool have words"):
        fit.fit({**samples, "pool": sample(["?", "a word"])}, tmp_path, 0)
    with pytest.raises(ValueError, match=r"after 1 iterations, expected 1e-07; raise epsilon"):
        FitGotD(target="true", iterations=1, tolerance=1e-7).fit(samples, tmp_path, 0)
    assert not (tmp_path / "card.json").exists()
