"""The fastText scorer gives the library's own probabilities, whatever is in the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scorers.fasttext import FastText, one_line, probabilities
from transforms.batch import Batch


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def own(model: Any, text: str, label: str) -> float:
    """The library's prediction of one document, as a list of one."""
    labels, values = model.predict([text.replace("\n", " ").replace("\r", " ")], k=2)
    return float(np.clip(dict(zip(labels[0], values[0], strict=True)).get(label, 0.0), 0, 1))


@pytest.fixture(scope="module")
def model(toy_fasttext: Path) -> Any:
    return fasttext.load_model(str(toy_fasttext / "model.bin"))


def test_scores_are_the_librarys_own(toy_fasttext: Path, model: Any, toy_texts: dict[str, list[str]]) -> None:
    texts = [*toy_texts["books"][:30], *toy_texts["junk"], *toy_texts["forum"]]
    scores = FastText(model=toy_fasttext).score(batch_of(texts)).field("score").to_pylist()
    assert scores == [own(model, text, "__label__good") for text in texts]
    assert np.mean(scores[:30]) > np.mean(scores[30:60]) + 0.2, "it tells prose from menus"


@given(st.lists(st.text(max_size=60), max_size=8))
def test_any_text_scores_as_the_library_does(model: Any, texts: list[str]) -> None:
    found = probabilities(model, texts, "__label__good")
    assert found.tolist() == [own(model, text, "__label__good") for text in texts]
    assert ((found >= 0) & (found <= 1)).all()


def test_line_ends_are_spaces() -> None:
    assert one_line("a\nb\r\nc\rd\u2028e") == "a b  c d\u2028e"


def test_a_bare_model_needs_the_name_of_its_label(toy_fasttext: Path, model: Any, tmp_path: Path) -> None:
    shutil.copy(toy_fasttext / "model.bin", tmp_path / "bare.bin")
    with pytest.raises(ValidationError, match="`positive` must name a label"):
        FastText(model=tmp_path / "bare.bin")
    other = FastText(model=tmp_path / "bare.bin", positive="__label__other")
    texts = ["menu a wooden boat 3", "the mayor sold a bag of flour."]
    assert other.score(batch_of(texts)).field("score").to_pylist() == [
        own(model, text, "__label__other") for text in texts
    ]
    with pytest.raises(ValueError, match="has no label '__label__goood'; its labels are __label__"):
        FastText(model=tmp_path / "bare.bin", positive="__label__goood").setup()
    with pytest.raises(ValidationError, match=r"no fastText model at .*nowhere"):
        FastText(model=tmp_path / "nowhere")


def test_the_card_names_the_positive_label(toy_fasttext: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_fasttext, tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text()) | {"positive": "__label__other"}
    (tmp_path / "m" / "card.json").write_text(json.dumps(card))
    texts = ["menu a wooden boat", "the mayor sold seven lamps."]
    turned = FastText(model=tmp_path / "m").score(batch_of(texts)).field("score").to_numpy()
    assert turned + FastText(model=toy_fasttext).score(batch_of(texts)).field("score").to_numpy() == pytest.approx(
        [1, 1], abs=1e-4
    )


def test_the_label_of_the_card_is_a_parameter(toy_fasttext: Path, tmp_path: Path) -> None:
    """Also beside a bare file, whose digest does not cover the card."""
    shutil.copytree(toy_fasttext, tmp_path / "m")
    scorer = FastText(model=tmp_path / "m" / "model.bin")
    assert scorer.model_dump()["positive"] == "__label__good"
    (tmp_path / "m" / "card.json").write_text('{"positive": "__label__other"}')
    assert FastText(model=tmp_path / "m" / "model.bin").model_dump()["positive"] == "__label__other"
    (tmp_path / "m" / "card.json").write_text("{}")
    with pytest.raises(ValidationError, match="names no `positive` label"):
        FastText(model=tmp_path / "m" / "model.bin")
