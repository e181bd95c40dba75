"""Models of GOT-D that are missing, broken or of something else are refused when the scorer is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

import scorers
from trainers.fit_got_d import FitGotD
from transforms.batch import Batch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("got_d")
    samples = {
        name: pa.table({"text": [f"{name} {i} text" for i in range(9)], "draw": range(9)})
        for name in ("target", "pool")
    }
    FitGotD(target="true").fit(samples, out, 0)
    return out


def test_potentials_by_hand(model: Path) -> None:
    """-epsilon log mean_i exp((f_i - cost_i) / epsilon), with costs of vectors of length 1."""
    from transforms.embedding import Embedding

    text = "pool 3 text"
    found = scorers.make("got_d", {"model": model}).score(Batch(pa.record_batch({"text": [text]}))).to_pylist()[0]
    held, card = np.load(model / "model.npz"), json.loads((model / "card.json").read_text())
    x = Embedding().vectors(pa.array([text]))[0] / 32767
    costs = ((held["vectors"] / 32767 - x) ** 2).sum(axis=1)
    potential = -0.1 * np.log(np.exp((held["potential"] - costs) / 0.1).mean())
    assert found["potential"] == pytest.approx(potential)
    assert found["gradient"] == pytest.approx(9 / 8 * (potential - card["pool"]["mean_potential"]))


def change(model: Path, **card: Any) -> None:
    given = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps({**given, **card}))


def save(model: Path, vectors: np.ndarray, potential: np.ndarray) -> None:
    np.savez(model / "model.npz", vectors=vectors, potential=potential)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda m: (m / "card.json").unlink(), "no model of got_d at"),
        (lambda m: (m / "model.npz").unlink(), "no model of got_d at"),
        (lambda m: (m / "card.json").write_text("[]"), "no model of got_d at"),
        (lambda m: (m / "model.npz").write_bytes((m / "model.npz").read_bytes()[:900]), "no model of got_d at"),
        (lambda m: np.savez(m / "model.npz", vectors=np.zeros(3)), "no model of got_d at"),
        (lambda m: np.savez(m / "model.npz", vectors=np.array([None]), potential=np.zeros(1)), "no model of got_d at"),
        (
            lambda m: save(m, np.zeros((3, 256), np.int16), np.zeros(2)),
            "potential is float64 (2,), expected float64 [n], d = 256, n = 3",
        ),
        (lambda m: save(m, np.zeros((3, 256)), np.zeros(3)), "vectors is float64 (3, 256)"),
        (lambda m: save(m, np.zeros((0, 256), np.int16), np.zeros(0)), "vectors is int16 (0, 256)"),
        (lambda m: save(m, np.zeros((3, 256), np.int16), np.full(3, np.nan)), "finite"),
        (
            lambda m: save(m, np.zeros((3, 7), np.int16), np.zeros(3)),
            "vectors is int16 (3, 7), expected int16 [n, d], d = 256",
        ),
        (lambda m: change(m, parameters={"epsilon": -1}), "epsilon -1.0, mean potential"),
        (lambda m: change(m, pool={"points": 1, "mean_potential": 0}), "1 points"),
        (lambda m: change(m, embedding={"encoder": "encoder", "characters": 5}), "no model folder at"),
        (lambda m: change(m, embedding={"encoder": "hashing", "letters": 5}), "letters"),
    ],
)
def test_models_that_do_not_serve(model: Path, tmp_path: Path, broken: Any, message: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    broken(copy)
    with pytest.raises(ValidationError) as error:
        scorers.make("got_d", {"model": copy})
    assert message in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give a folder that the fit got_d made"):
        scorers.make("got_d", {"model": tmp_path / "nowhere"})
