"""The fitted classifier finds what was planted, is the same bytes each time, and its card says what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from scorers.fasttext import probabilities
from trainers.fit_fasttext import GOOD, OTHER, FastTextParameters, fit_fasttext
from trainers.holdout import classification

SMALL = FastTextParameters(dim=8, bucket=2000, epoch=10)


def planted(count: int, shift: float, seed: int) -> list[str]:
    """Documents over 400 words; `shift` is the share of words from the first hundred."""
    draw = np.random.default_rng(seed)
    words = np.array([f"word{i}" for i in range(400)])
    return [
        " ".join(np.where(draw.random(60) < shift, draw.choice(words[:100], 60), draw.choice(words, 60)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("fit") / "model"
    return out, fit_fasttext(planted(600, 0.5, 1), planted(500, 0.0, 2), out, FastTextParameters(), seed=3)


def test_it_finds_what_was_planted(fitted: Any) -> None:
    out, card = fitted
    assert card["holdout"]["auc"] > 0.95
    model = fasttext.load_model(str(out / "model.bin"))
    good, other = planted(200, 0.5, 8), planted(200, 0.0, 9)
    scores = probabilities(model, good + other, GOOD)
    assert roc_auc_score([1] * 200 + [0] * 200, scores) > 0.95


def test_the_card_is_correct(fitted: Any) -> None:
    out, card = fitted
    assert json.loads((out / "card.json").read_text()) == card
    assert (card["positive"], card["newline"], card["seed"]) == (GOOD, " ", 3)
    assert card["documents"] == {"good": 600, "other": 500} and card["holdout"]["documents"] == 110
    assert card["parameters"] == FastTextParameters().model_dump() | {"epoch": -(-25_000 // 990)}
    model = fasttext.load_model(str(out / "model.bin"))
    held = [planted(600, 0.5, 1)[::10], planted(500, 0.0, 2)[::10]]
    scores = [probabilities(model, texts, GOOD) for texts in held]
    assert card["holdout"] == classification(*scores)
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.bin"], "nothing else is left"


@pytest.mark.parametrize("parameters", [SMALL, FastTextParameters(dim=3, bucket=7, epoch=1), FastTextParameters()])
def test_the_same_sample_and_seed_give_the_same_bytes(tmp_path: Path, parameters: FastTextParameters) -> None:
    """Small tables too, which fastText leaves partly as it finds the memory."""
    good, other = planted(60, 0.5, 1), planted(60, 0.0, 2)
    found = []
    for k in range(3):
        junk = [np.full(1000 + 37 * i, np.nan) for i in range(300)]  # what memory may hold
        del junk
        fit_fasttext(good, other, tmp_path / str(k), parameters)
        found.append((tmp_path / str(k) / "model.bin").read_bytes())
    assert found[0] == found[1] == found[2]
    fit_fasttext(good, other, tmp_path / "seed", parameters, seed=1)
    assert (tmp_path / "seed" / "model.bin").read_bytes() != found[0]


def test_the_end_of_sentence_is_zeroed(tmp_path: Path) -> None:
    good, other = planted(60, 0.5, 1), planted(60, 0.0, 2)
    for zero in (True, False):
        fit_fasttext(good, other, tmp_path / str(zero), SMALL.model_copy(update={"zero_end_of_sentence": zero}))
        model = fasttext.load_model(str(tmp_path / str(zero) / "model.bin"))
        row = model.get_input_matrix()[model.get_word_id("</s>")]
        assert model.get_word_id("</s>") >= 0 and (not row.any()) == zero
        assert model.get_input_matrix()[model.get_word_id("word1")].any()


def test_labels_in_the_text_are_no_labels(tmp_path: Path) -> None:
    """A page that speaks of fastText must not vote."""
    good = [f"__label__other {text} x__label__y __label__\n__label__third" for text in planted(60, 0.9, 1)]
    card = fit_fasttext(good, planted(60, 0.0, 2), tmp_path, SMALL)
    model = fasttext.load_model(str(tmp_path / "model.bin"))
    assert sorted(model.labels) == [GOOD, OTHER]
    assert card["holdout"]["auc"] > 0.95


@pytest.mark.parametrize("text", ["", " \n\r\n ", "日本語 🎉 שלום", "\x0b\x0c\x85\u2028", "x" * 50_000])
def test_odd_documents_are_learned_from(tmp_path: Path, text: str) -> None:
    card = fit_fasttext([text, *planted(40, 0.9, 1)], [*planted(40, 0.0, 2), text], tmp_path, SMALL)
    assert card["documents"] == {"good": 41, "other": 41}


def test_too_few_documents_and_wrong_parameters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 20 documents on each side; given 40 good and 19 other"):
        fit_fasttext(["a"] * 40, ["b"] * 19, tmp_path, SMALL)
    for wrong in ({"lr": 0}, {"dim": 0}, {"epochs": 3}, {"bucket": -1}):
        with pytest.raises(ValidationError):
            FastTextParameters(**wrong)


def test_without_epochs_few_documents_are_read_often_enough_to_learn(tmp_path):
    generator = np.random.default_rng(3)
    words = [f"word{i}" for i in range(400)]
    good, other = (
        [" ".join(generator.choice(words[part], 60)) for _ in range(150)] for part in (slice(0, 300), slice(100, 400))
    )
    few = fit_fasttext(good, other, tmp_path / "few", FastTextParameters(bucket=2000, epoch=5))
    card = fit_fasttext(good, other, tmp_path / "enough", FastTextParameters(bucket=2000))
    assert card["parameters"]["epoch"] == -(-25_000 // 270)
    assert card["holdout"]["auc"] > 0.95 and card["holdout"]["auc"] > few["holdout"]["auc"]
