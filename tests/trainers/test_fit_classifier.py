"""Fitted classifiers find what was planted, are the same bytes each time, and their cards say what is true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from scorers.classifier import Classifier
from trainers.fit_classifier import EncoderSize, FitClassifier
from trainers.holdout import classification, regression
from transforms.batch import Batch

SIZE = EncoderSize(hidden_size=32, intermediate_size=64, vocabulary=500, window=64)


def documents(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts over 60 words, and of each the share of words that come from the first ten."""
    draw = np.random.default_rng(seed)
    words = np.array([f"{a}{b}" for a in ("ka", "lo", "mi", "su", "re", "to") for b in "bdfglmnprs"])
    shares = draw.choice([0.0, 0.2, 0.5, 0.8], count)
    texts = [
        " ".join(np.where(draw.random(40) < s, draw.choice(words[:10], 40), draw.choice(words[10:], 40)))
        for s in shares
    ]
    return texts, shares


def table(labels: pa.Array, texts: list[str]) -> dict[str, pa.Table]:
    return {"documents": pa.table({"id": [str(k) for k in range(len(texts))], "text": texts, "label": labels})}


def scores(folder: Path, texts: list[str], **parameters: Any) -> np.ndarray:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    found: np.ndarray = (
        Classifier(model=folder, **parameters).score(batch).field("score").to_numpy(zero_copy_only=False)
    )
    return found


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    texts, shares = documents(600)
    out = tmp_path_factory.mktemp("fit") / "model"
    labels = pa.array([*(shares > 0.4).tolist()[:-7], *[None] * 7])
    return out, FitClassifier(label="good", size=SIZE, epochs=5).fit(table(labels, texts), out, 3)


def test_classes(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    assert card["holdout"]["auc"] > 0.9 and card["without_label"] == 7 and card["positive"] == "good"
    texts, shares = documents(200, 9)
    found = scores(out, texts)
    assert classification(found[shares > 0.4], found[shares < 0.4])["auc"] > 0.9
    assert json.loads((out / "card.json").read_text()) == card
    assert sum(card["documents"].values()) == 593
    texts, shares = documents(600)
    held = [[t for t, s in zip(texts[:593], shares, strict=False) if (s > 0.4) == good][::10] for good in (True, False)]
    assert card["holdout"] == classification(*(scores(out, side, sections="beginning") for side in held))


def test_a_good_head_and_a_bad_tail(fitted: tuple[Path, dict[str, Any]]) -> None:
    """The mean of top, middle and bottom lies between, as Arctic-SnowCoder has it; the beginning is the head alone."""
    out, _ = fitted
    texts, shares = documents(400, 11)
    good = " ".join(t for t, s in zip(texts, shares, strict=True) if s == 0.8)
    bad = " ".join(t for t, s in zip(texts, shares, strict=True) if s == 0.0)
    mixed = good[:4000] + " " + bad[:4000]
    ends = scores(out, [good, mixed, bad], sections="top_middle_bottom")
    assert ends[0] > ends[1] + 0.2 > ends[2] + 0.4
    first = scores(out, [good, mixed, bad], sections="beginning")
    assert first[0] == first[1] > first[2] + 0.5


def test_numbers(tmp_path: Path) -> None:
    texts, shares = documents(600)
    grades = shares * 5
    card = FitClassifier(label="grade", size=SIZE, epochs=5).fit(table(pa.array(grades), texts), tmp_path, 0)
    assert card["holdout"]["spearman"] > 0.8 and card["holdout"]["r2"] > 0.6 and card["positive"] is None
    held = scores(tmp_path, texts[::10], sections="beginning")
    assert card["holdout"] == regression(grades[::10], held)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "regression"


def test_the_same_sample_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    import torch

    texts, shares = documents(120)
    samples = table(pa.array(shares > 0.4), texts)
    fit = FitClassifier(label="good", size=SIZE, epochs=1)
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit.fit(samples, tmp_path / name, seed)
        torch.rand(3)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["card.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    same = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files]
    assert all(same)
    assert (tmp_path / "a" / files[2]).read_bytes() != (tmp_path / "c" / files[2]).read_bytes()
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("train", ["all", "head"])
def test_an_encoder_is_fitted_on(train: Any, fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The encoder that learned one grade serves another; with `head` its own weights stay."""
    from safetensors.torch import load_file

    texts, shares = documents(300, 5)
    samples = table(pa.array(shares < 0.4), texts)
    fit = FitClassifier(label="bad", encoder=fitted[0], train=train, epochs=4, lr=2e-3)
    assert fit.fit(samples, tmp_path, 0)["holdout"]["auc"] > 0.9
    old, new = load_file(fitted[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    kept = [torch_equal(old[name], new[name]) for name in old if not name.startswith("classifier")]
    assert all(kept) if train == "head" else not any(kept)


def without(folder: Path, out: Path, lost: str) -> Path:
    """A copy of a model folder without the tensors whose name starts so."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith(lost)}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_partial_encoders(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A pooler that is missing learns with the head; anything else that is missing is refused."""
    from safetensors.torch import load_file

    texts, shares = documents(60, 5)
    samples = table(pa.array(shares < 0.4), texts)
    fits = {}
    for lr in (1e-9, 1e-2):
        encoder = without(fitted[0], tmp_path / f"encoder{lr}", "bert.pooler.")
        FitClassifier(label="bad", encoder=encoder, train="head", epochs=1, lr=lr).fit(samples, tmp_path / str(lr), 0)
        fits[lr] = load_file(tmp_path / str(lr) / "model.safetensors")
    moved = {name for name in fits[1e-9] if abs(fits[1e-9][name] - fits[1e-2][name]).max() > 1e-4}
    assert moved == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    encoder = without(fitted[0], tmp_path / "partial", "bert.encoder.layer.1.")
    with pytest.raises(ValueError, match=r"16 tensors of the model are missing or misshapen: bert\.encoder\.layer\.1"):
        FitClassifier(label="bad", encoder=encoder).fit(samples, tmp_path / "out", 0)


def test_batches_need_padding(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = without(fitted[0], tmp_path / "encoder", "nothing")
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValidationError, match=r"config\.json has no pad_token_id, .* or set batch: 1"):
        FitClassifier(label="x", encoder=folder)
    texts, shares = documents(60, 5)
    fit = FitClassifier(label="x", encoder=folder, batch=1, epochs=1)
    assert fit.fit(table(pa.array(shares < 0.4), texts), tmp_path / "out", 0)["positive"] == "good"


def torch_equal(a: Any, b: Any) -> bool:
    return bool((a == b).all())


def test_balance(tmp_path: Path) -> None:
    """Of one good document in six, balanced scores are higher; the ranking is as good."""
    texts, shares = documents(900, 2)
    good = np.flatnonzero(shares == 0.5)[:50]
    rare = np.sort(np.concatenate([good, np.flatnonzero(shares < 0.4)[:250]]))
    samples = table(pa.array(shares[rare] == 0.5), [texts[k] for k in rare])
    means = []
    for balance in (True, False):
        out = tmp_path / str(balance)
        FitClassifier(label="good", size=SIZE, epochs=4, balance=balance).fit(samples, out, 0)
        means.append(scores(out, [texts[k] for k in good]).mean())
    assert means[0] > means[1] + 0.1


def test_what_does_not_serve(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    texts, _ = documents(60)
    fit = FitClassifier(label="x > 1", size=SIZE)
    with pytest.raises(ValueError, match=r"label 'x > 1': .* at least 20 documents on each side; given 0 documents"):
        fit.fit(table(pa.array([False] * 60), texts), tmp_path, 0)
    with pytest.raises(ValueError, match="at least 40 documents of different values; given 60 documents with 1 diff"):
        fit.fit(table(pa.array([2.5] * 60), texts), tmp_path, 0)
    with pytest.raises(ValueError, match="is string; expected true or false, or a number"):
        fit.fit(table(pa.array(["a"] * 60), texts), tmp_path, 0)
    with pytest.raises(ValidationError, match="train: head needs an `encoder`"):
        FitClassifier(label="x", train="head")
    with pytest.raises(ValidationError, match="no model folder at"):
        FitClassifier(label="x", encoder=tmp_path / "nowhere")
    shutil.copytree(fitted[0], tmp_path / "causal")
    config = json.loads((fitted[0] / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "causal" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValidationError, match="architecture LlamaForCausalLM"):
        FitClassifier(label="x", encoder=tmp_path / "causal")
    with pytest.raises(ValidationError, match="must be a multiple of num_attention_heads"):
        EncoderSize(hidden_size=33)
