"""Documents' scores follow from their chunks' as the sections say."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from toy_classifier import make_classifier

from scorers.classifier import Classifier
from scorers.safety import Safety
from transforms.batch import Batch


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def test_a_document_is_the_mean_of_its_chunks(toy_classifier: Path) -> None:
    scorer = Classifier(model=toy_classifier, label=1)
    text = "the mayor sold seven lamps " * 60
    model = scorer._loaded
    chunks = model.chunker.cut(pa.array([text], pa.large_string()), "whole", 64)
    alone = model.scores(chunks, 1)
    row = scorer.score(batch_of(["x", text])).to_pylist()[1]
    assert len(alone) > 3 and row["chunks"] == len(alone) and row["unread"] == 0
    assert row["score"] == pytest.approx(alone.mean(), abs=1e-12)
    assert (row["highest"], row["lowest"]) == (alone.max(), alone.min())


def test_unread_and_null(toy_classifier: Path) -> None:
    scorer = Classifier(model=toy_classifier, label="LABEL_1", most_chunks=2)
    rows = scorer.score(batch_of(["", "the boat " * 500])).to_pylist()
    assert rows[0] == {"score": None, "highest": None, "lowest": None, "chunks": 0, "tokens": 0, "unread": 0}
    assert rows[1]["chunks"] == 2 and rows[1]["unread"] > 2000


def test_labels_share_the_probability(toy_classifier: Path) -> None:
    batch = batch_of(["the boat", "seven lamps before the rain"])
    scores = [Classifier(model=toy_classifier, label=k).score(batch).field("score").to_numpy() for k in (0, 1)]
    assert scores[0] + scores[1] == pytest.approx([1, 1])
    with pytest.raises(ValidationError, match="has the labels LABEL_0, LABEL_1; say in `label`"):
        Classifier(model=toy_classifier)


def test_regressions_give_raw_values(toy_tokenizer: Path, tmp_path: Path) -> None:
    """Those of a head whose weights are made 100 times as large lie outside of [0, 1]."""
    folder = make_classifier(tmp_path / "value", toy_tokenizer, labels=1, initializer_range=1.0)
    scores = (
        Classifier(model=folder).score(batch_of(["the boat", "seven lamps", "a", "9999"])).field("score").to_numpy()
    )
    assert np.abs(scores).max() > 1


def test_threads_share_one_model(toy_classifier: Path) -> None:
    texts = [f"the mayor sold lamp {k}. " * (1 + k % 9) for k in range(60)]
    wanted = Classifier(model=toy_classifier, label=1).score(batch_of(texts))
    scorers = [Classifier(model=toy_classifier, label=1) for _ in range(4)]
    found: dict[int, pa.StructArray] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, scorers[k].score(batch_of(texts)))) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(struct == wanted for struct in found.values())
    assert len({id(scorer._loaded) for scorer in scorers}) == 1


@pytest.mark.parametrize(
    ("device", "told"), [("gpu", "'gpu' is no device of torch; there are cpu"), ("cuda:99", "no device 'cuda:99' here")]
)
def test_devices_are_checked(device: str, told: str, toy_classifier: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        Classifier(model=toy_classifier, label=1, device=device)
    with pytest.raises(ValidationError, match=told):
        Safety(model=toy_classifier, label=1, threshold=0.5, device=device)
