"""A fitted influence model wants what a step of the oracle shows to help, and says how well it knows."""

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
from sklearn.metrics import roc_auc_score
from toy_influence import ordered, shuffled, trained

import scorers
from trainers.fit_influence import FitInfluence, learn, unrepeated
from trainers.holdout import ranks
from transforms.batch import Batch
from transforms.hashed_ridge import features

COUNT = 100  # of probes of each kind


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("influence"))


@pytest.fixture(scope="module")
def samples() -> dict[str, pa.Table]:
    """Probes of both kinds in random order, one of them twice but for white space, one without words."""
    texts, kinds = [*ordered(COUNT, 3), *shuffled(COUNT, 3)], ["in order"] * COUNT + ["shuffled"] * COUNT
    order = np.random.default_rng(0).permutation(2 * COUNT)
    pool = [texts[i] for i in order] + [texts[order[0]].replace(" ", "  ", 3), " \n "]
    ids = [f"{kinds[i]} {i}" for i in order] + ["again", "empty"]
    return {"target": pa.table({"text": ordered(16, 4)}), "pool": pa.table({"id": ids, "text": pool})}


@pytest.fixture(scope="module")
def fitted(run: Path, samples: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("model")
    return out, FitInfluence(target="true", model=run).fit(samples, out, seed=5)


def scores(model: Path, texts: list[str]) -> np.ndarray:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    return scorers.make("influence", {"model": model}).score(batch).field("score").to_numpy(zero_copy_only=False)


def test_unseen_documents_of_the_references_grammar_score_higher(fitted: tuple[Path, Any]) -> None:
    found = scores(fitted[0], [*ordered(60, 9), *shuffled(60, 9)])
    assert roc_auc_score([1] * 60 + [0] * 60, found) > 0.95


def test_the_highest_score_has_the_lowest_loss(fitted: tuple[Path, Any], samples: dict[str, pa.Table]) -> None:
    """The sign: less loss on the reference is more wanted."""
    probes = pq.read_table(fitted[0] / "probes.parquet")
    loss = probes.column("loss").to_numpy()
    kind = np.array([name.startswith("in order") for name in probes.column("id").to_pylist()])
    assert roc_auc_score(kind, -loss) > 0.95, "the oracle itself"
    texts = dict(zip(*(samples["pool"].column(c).to_pylist() for c in ("id", "text")), strict=True))
    found = scores(fitted[0], [texts[name] for name in probes.column("id").to_pylist()])
    assert np.corrcoef(ranks(found), ranks(loss))[0, 1] < -0.7


def test_the_card(fitted: tuple[Path, Any], samples: dict[str, pa.Table]) -> None:
    out, card = fitted
    assert json.loads((out / "card.json").read_text()) == card
    assert card["documents"] == {"reference": 16, "probes": 2 * COUNT, "repeated": 1, "without words": 1}
    assert card["parameters"] == {"lr": 1e-3, "window": 96, "optimizer": "moments of the last checkpoint"}
    probes = pq.read_table(out / "probes.parquet")
    assert probes.column("id").to_pylist() == samples["pool"].column("id").to_pylist()[:-2]
    loss = probes.column("loss").to_numpy()
    train = loss[np.arange(len(loss)) % 10 > 0]
    told = card["reference_loss"]
    assert (told["after_mean"], told["after_std"]) == (train.mean(), train.std()), "of the train split alone"
    assert card["helpful"] == np.mean(loss < told["before"])
    assert card["holdout"]["documents"] == 2 * COUNT // 10 and card["holdout"]["spearman"] > 0.5
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.npz", "probes.parquet"]


def test_the_holdout_is_told_of_the_model_that_is_written(
    fitted: tuple[Path, Any], samples: dict[str, pa.Table]
) -> None:
    out, card = fitted
    loss, told = pq.read_table(out / "probes.parquet").column("loss").to_numpy()[::10], card["reference_loss"]
    found = scores(out, samples["pool"].column("text").to_pylist()[: 2 * COUNT : 10])
    z = (loss - told["after_mean"]) / told["after_std"]
    assert card["holdout"]["mse"] == pytest.approx(np.mean((z + found) ** 2))


def test_the_same_samples_and_seed_give_the_same_bytes(
    run: Path, samples: dict[str, pa.Table], fitted: tuple[Path, Any], tmp_path: Path
) -> None:
    FitInfluence(target="true", model=run).fit(samples, tmp_path, seed=5)
    for file in ("card.json", "model.npz", "probes.parquet"):
        assert (tmp_path / file).read_bytes() == (fitted[0] / file).read_bytes()


def test_a_model_alone_has_no_moments(run: Path, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    few = {**samples, "pool": samples["pool"].slice(0, 60)}
    card = FitInfluence(target="true", model=run / "model", lr=1e-4, window=40).fit(few, tmp_path, 0)
    assert card["parameters"] == {"lr": 1e-4, "window": 40, "optimizer": "AdamW without moments"}
    assert card["documents"]["probes"] == 60


def test_the_reference_may_be_files(run: Path, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    lines = [json.dumps({"body": text}) + "\n" for text in samples["target"].column("text").to_pylist()]
    (tmp_path / "reference.jsonl").write_text("".join(lines))
    fit = FitInfluence(files=tmp_path, column="body", target_documents=10, model=run)
    assert set(fit.samples()) == {"pool"}
    out = tmp_path / "out"
    out.mkdir()
    card = fit.fit({"pool": samples["pool"].slice(0, 50)}, out, 0)
    assert card["documents"]["reference"] == 10 and card["documents"]["probes"] == 50


def test_probes_are_not_of_the_target() -> None:
    wanted = FitInfluence.model_construct(target="source = 'a'", pool="true", pool_documents=50).samples()
    assert wanted["pool"].without == "target" and wanted["pool"].documents == 50


def test_a_shift_of_all_losses_changes_no_prediction() -> None:
    """z is the same up to rounding, so is what is learned from it."""
    texts = [*ordered(50, 21), *shuffled(50, 21)]
    given = features(Batch(pa.record_batch({"text": texts})), 100)
    held = np.arange(100) % 10 == 0
    loss = np.random.default_rng(0).normal(4, 0.1, 100)

    def z(losses: np.ndarray) -> np.ndarray:
        return (losses - losses[~held].mean()) / losses[~held].std()

    one, other = learn(given, z(loss), held), learn(given, z(loss + 1.0), held)
    assert one[1] == other[1] and other[2] == pytest.approx(one[2], abs=1e-5)


def test_probes_that_begin_alike_are_one() -> None:
    batch = Batch(pa.record_batch({"text": ["a b c", " ", "a  b d", "a", "x y", "a b", "", "x\ny"]}))
    found, wordless = unrepeated(batch.word_hashes, batch.words.offsets, 2)
    assert found.tolist() == [0, 3, 4] and wordless == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of them"),
        ({"target": "true", "model": "nowhere"}, "no model folder at nowhere"),
        ({"target": "true", "window": 97}, "a window of 97 tokens"),
        ({"target": "true", "pool_documents": 39}, "pool_documents"),
        ({"target": "true", "lr": 0}, "lr"),
        ({"target": "true", "embedding": {}}, "embedding"),
    ],
)
def test_mistakes_are_told_at_once(run: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        FitInfluence(**{"model": run, **given})
    assert message in str(error.value)


def test_runs_that_are_not_whole_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("optimiser.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValidationError, match=r"no checkpoint in .* is whole"):
        FitInfluence(target="true", model=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(ValidationError, match="no model folder at"):
        FitInfluence(target="true", model=tmp_path / "run")


def test_samples_that_do_not_serve(run: Path, samples: dict[str, pa.Table], tmp_path: Path) -> None:
    fit = FitInfluence(target="true", model=run)
    few = pa.table({"text": ["a b c"] * 60 + ordered(20, 1)})
    with pytest.raises(ValueError, match="21 different probes with words among 80 documents"):
        fit.fit({**samples, "pool": few}, tmp_path, 0)
    with pytest.raises(ValueError, match="no document of the target"):
        fit.fit({**samples, "target": samples["target"].slice(0, 0)}, tmp_path, 0)
    some = {**samples, "pool": samples["pool"].slice(0, 40)}
    with pytest.raises(ValueError, match="raise `lr`"):
        FitInfluence(target="true", model=run, lr=1e-30).fit(some, tmp_path, 0)
    assert not list(tmp_path.iterdir())
