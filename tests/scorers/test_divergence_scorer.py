"""A model that lost a topic diverges there; equal models nowhere; folders that cannot be compared are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from toy_damage import DAMAGED, TOPICS, document, models

from scorers import make
from transforms.batch import Batch

WINDOW = {"window": 64, "stride": 32}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return models(tmp_path_factory.mktemp("topics"))


def score(one: Path, other: Path, texts: list[str], **more: Any) -> pa.StructArray:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    return make("divergence", {"model": one, "damaged": other, **WINDOW, **more}).score(batch)


def test_the_damaged_topic_diverges(pair: tuple[Path, Path]) -> None:
    draw = np.random.default_rng(0)
    texts = [document(i % TOPICS, draw, int(draw.integers(2, 20))) for i in range(80)]
    found = score(*pair, texts)
    jsd = found.field("jsd").to_numpy()
    topic = np.arange(80) % TOPICS
    assert jsd[topic == DAMAGED].min() > 2 * jsd[topic != DAMAGED].max(), "whatever the length"
    assert jsd.min() >= 0 and jsd.max() <= np.log(2)
    assert found.field("tokens").to_pylist() == [len(text.split()) for text in texts]
    turned = score(pair[1], pair[0], texts)
    assert turned.equals(found), "the same bits"


def test_equal_models_do_not_diverge(pair: tuple[Path, Path]) -> None:
    found = score(pair[0], pair[0], [document(1, np.random.default_rng(0)), "bdlum", ""])
    assert found.field("jsd").to_pylist() == [0.0, 0.0, None] and found.field("ies").to_pylist() == [0.0, 0.0, None]


def test_short_documents_count_as_longer_ones(pair: tuple[Path, Path]) -> None:
    words = document(DAMAGED, np.random.default_rng(1), 9).split()
    rows = score(*pair, [" ".join(words[:n]) for n in (1, 2, 15, 16, 17, 30)]).to_pylist()
    for row, cost in zip(rows, (16, 16, 16, 16, 17, 30), strict=True):
        assert row["ies"] == pytest.approx(row["jsd"] / np.log(cost**2))
    plain = score(*pair, [" ".join(words[:2])], shortest=2).to_pylist()[0]
    assert plain["ies"] == pytest.approx(plain["jsd"] / np.log(4))


def edited(file: Path, change: Callable[[Any], Any]) -> None:
    given = json.loads(file.read_text())
    change(given)
    file.write_text(json.dumps(given))


def swapped(tokenizer: Any) -> None:
    """Two words change places."""
    words = tokenizer["model"]["vocab"]
    words["balum"], words["belum"] = words["belum"], words["balum"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(max_position_embeddings=63), "a window of 64 tokens"),
        ("tokenizer.json", swapped, "differ in model of tokenizer.json"),
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "NFC"}), "differ in normalizer of tokenizer.json"),
        ("tokenizer_config.json", lambda t: t.update(bos_token=None), "differ in begin (0 and None)"),
    ],
)
def test_models_that_cannot_be_compared(
    pair: tuple[Path, Path], tmp_path: Path, file: str, change: Callable[[Any], Any], message: str
) -> None:
    shutil.copytree(pair[1], tmp_path / "damaged")
    edited(tmp_path / "damaged" / file, change)
    with pytest.raises(ValidationError) as error:
        make("divergence", {"model": pair[0], "damaged": tmp_path / "damaged", **WINDOW})
    assert message in str(error.value)
    with pytest.raises(ValidationError, match="no model folder at"):
        make("divergence", {"model": pair[0], "damaged": tmp_path / "nowhere", **WINDOW})


def test_a_tokenizer_saved_anew_is_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Its spelling, and what is not used of it, may differ."""
    shutil.copytree(pair[1], tmp_path / "damaged")
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    edited(tmp_path / "damaged" / "tokenizer.json", lambda t: t.update(truncation=truncation))
    text = [document(0, np.random.default_rng(2))]
    assert score(pair[0], tmp_path / "damaged", text).equals(score(*pair, text))
