"""Models of influence that are missing or broken are refused when the scorer is made; a score by hand."""

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
from transforms.batch import Batch
from transforms.hashed_ridge import BITS, features


def scored(model: Path, texts: list[str]) -> list[float | None]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    return scorers.make("influence", {"model": model}).score(batch).field("score").to_pylist()


def model_of(folder: Path, weights: np.ndarray, window: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "model.npz", weights=weights)
    (folder / "card.json").write_text(json.dumps({"parameters": {"window": window}}))
    return folder


def test_scores_by_hand(tmp_path: Path) -> None:
    """A word that raises the loss by 1: the document of two such words and their pair has a score of -sqrt(2 / 3)."""
    one = features(Batch(pa.record_batch({"text": ["bad"]})), 4)
    weights = np.zeros(1 << BITS, np.float32)
    weights[one.place[0]] = one.value[0]
    model = model_of(tmp_path / "model", weights)
    found = scored(model, ["bad", "bad bad", "good", "", " \n", "good good good good bad"])
    assert found[:5] == [-1.0, pytest.approx(-((2 / 3) ** 0.5)), 0.0, None, None]
    assert found[5] == 0.0, "beyond the window"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda m: shutil.rmtree(m), "give a folder that the fit influence made"),
        (lambda m: (m / "card.json").unlink(), "no model of influence at"),
        (lambda m: (m / "card.json").write_text("[]"), "no model of influence at"),
        (lambda m: (m / "card.json").write_text("{}"), "no model of influence at"),
        (lambda m: (m / "model.npz").unlink(), "no model of influence at"),
        (lambda m: (m / "model.npz").write_bytes((m / "model.npz").read_bytes()[:900]), "no model of influence at"),
        (lambda m: np.savez(m / "model.npz", weights=np.array([None])), "no model of influence at"),
        (lambda m: model_of(m, np.zeros(7, np.float32)), "weights float32 (7,)"),
        (lambda m: model_of(m, np.zeros(1 << BITS)), "weights float64"),
        (lambda m: model_of(m, np.full(1 << BITS, np.nan, np.float32)), "expected 262144 finite float32"),
        (lambda m: model_of(m, np.zeros(1 << BITS, np.float32), 0), "for 0 words"),
    ],
)
def test_models_that_do_not_serve(toy_influence: Path, tmp_path: Path, broken: Any, message: str) -> None:
    shutil.copytree(toy_influence, tmp_path / "model")
    broken(tmp_path / "model")
    with pytest.raises(ValidationError) as error:
        scorers.make("influence", {"model": tmp_path / "model"})
    assert message in str(error.value)
