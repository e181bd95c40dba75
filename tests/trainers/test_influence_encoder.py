"""An influence model with an encoder: it learns what the second half of documents alone holds, and scores each alike in
any company.
"""

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
from toy_classifier import make_classifier
from toy_influence import ordered, shuffled, trained

import scorers
from trainers.fit_influence import FitInfluence
from trainers.holdout import regression
from trainers.influence_encoder import FOLDER, Steps, fit_encoder
from transforms.batch import Batch
from transforms.mean_pooled import HALVES, document_means, half_window, load_pooled, predict
from transforms.sequence_classifier import check_encoder

WINDOW = 34  # of half a document: 32 words and two special tokens
STEPS = Steps(epochs=12, batch=16, lr=3e-3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights whose tokens are words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    out = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(40))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words.save(str(out / "tokenizer.json"))
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=WINDOW, pad_token_id=0, **size)
    BertModel(config).save_pretrained(out)
    return out


def planted(count: int, seed: int) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Documents of 50 to 64 words; the truth is how many are w0 to w4, which the first 32 never are."""
    draw = np.random.default_rng(seed)
    texts, truth = [], []
    for _ in range(count):
        words = np.concatenate([draw.integers(5, 40, 32), draw.integers(0, 40, int(draw.integers(18, 33)))])
        truth.append(float((words[32:] < 5).sum()))
        texts.append(" ".join(f"w{word}" for word in words))
    z = np.array(truth)
    return pa.array(texts, pa.large_string()), (z - z.mean()) / z.std()


def test_what_the_second_half_alone_holds_is_learned(encoder: Path, tmp_path: Path) -> None:
    texts, z = planted(700, 0)
    fresh, truth = planted(200, 1)
    weight, bias = fit_encoder(encoder, WINDOW, texts, z, tmp_path, 0, STEPS)
    model = load_pooled(check_encoder(tmp_path / FOLDER, WINDOW), weight, bias)
    found = predict(model, fresh)
    assert regression(truth, found)["spearman"] > 0.8
    first = pa.array([" ".join(text.split()[:32]) for text in fresh.to_pylist()], pa.large_string())
    assert abs(regression(truth, predict(model, first))["spearman"]) < 0.3, "the first half says nothing"


def test_values_are_means_over_all_tokens(encoder: Path, tmp_path: Path) -> None:
    """By the encoder itself: both halves for themselves, one mean over the tokens of both."""
    import torch
    from transformers import AutoModel

    texts, z = planted(40, 2)
    weight, bias = fit_encoder(encoder, WINDOW, texts, z, tmp_path, 0, STEPS._replace(epochs=1))
    model = load_pooled(check_encoder(tmp_path / FOLDER, WINDOW), weight, bias)
    plain = AutoModel.from_pretrained(tmp_path / FOLDER).eval()
    given = ["w3 w4 w5", texts[0].as_py(), " ".join(["w7 w1"] * 60), ""]
    chunks = model.chunker.cut(pa.array(given, pa.large_string()), "whole", HALVES)
    assert chunks.counts.tolist() == [1, 2, 2, 0] and chunks.tokens.tolist()[2] == 64, "the first two windows"
    found, at = predict(model, pa.array(given, pa.large_string())), 0
    for count, own in zip(chunks.counts[:3], found, strict=False):
        halves = [
            torch.from_numpy(chunks.ids[chunks.offsets[c] : chunks.offsets[c + 1]].astype(np.int64))
            for c in range(at, at + count)
        ]
        at += count
        with torch.inference_mode():
            states = torch.cat([plain(input_ids=half[None]).last_hidden_state[0] for half in halves])
        assert own == pytest.approx(float(states.mean(0).numpy() @ weight + bias), abs=1e-5)
    assert np.isnan(found[3])


def test_means_by_hand() -> None:
    from transforms.chunks import Chunks

    counts = np.array([2, 0, 1])
    chunks = Chunks(np.zeros(10, np.int32), np.array([0, 6, 8, 10]), counts, counts, counts)
    found = document_means(chunks, np.array([1.0, 5.0, 3.0]))
    assert found[[0, 2]].tolist() == [2.0, 3.0] and np.isnan(found[1])


def test_halves_of_the_probes_window(encoder: Path) -> None:
    assert [half_window(encoder, WINDOW, tokens) for tokens in (1024, 64, 40, 9, 2)] == [34, 34, 22, 6, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("influence"))


@pytest.fixture(scope="module")
def fitted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """By the real oracle, on sentences in order and shuffled, with an encoder of byte pairs."""
    given = make_classifier(tmp_path_factory.mktemp("bert"), run.parents[1] / "tokenizer", initializer_range=0.02)
    out = tmp_path_factory.mktemp("model")
    return out, fit(run, given).fit(samples(), out, seed=5)


def fit(run: Path, given: Path) -> FitInfluence:
    return FitInfluence(target="true", model=run, encoder=given, epochs=6, batch=8, encoder_lr=1e-3)


def samples() -> dict[str, pa.Table]:
    texts = [*ordered(70, 3), *shuffled(70, 3)]
    order = np.random.default_rng(0).permutation(len(texts))
    pool = pa.table({"id": [f"{i}" for i in order], "text": [texts[i] for i in order]})
    return {"target": pa.table({"text": ordered(12, 4)}), "pool": pool}


def scored(model: Path, texts: list[str]) -> list[float | None]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    found: list[float | None] = scorers.make("influence", {"model": model}).score(batch).field("score").to_pylist()
    return found


def test_the_card_and_what_is_written(fitted: tuple[Path, dict[str, Any]], run: Path) -> None:
    out, card = fitted
    assert json.loads((out / "card.json").read_text()) == card
    assert card["encoder"]["window"] == 96 // 2 + 2 and card["encoder"]["epochs"] == 6
    assert card["holdout"]["documents"] == 14 and card["holdout"]["spearman"] is not None
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "encoder", "model.npz", "probes.parquet"]
    loss, told = pq.read_table(out / "probes.parquet").column("loss").to_numpy(), card["reference_loss"]
    z = (loss - told["after_mean"]) / told["after_std"]
    found = np.array(scored(out, samples()["pool"].column("text").to_pylist()), float)
    assert card["holdout"]["mse"] == pytest.approx(np.mean((z + found)[::10] ** 2)), "of the model that is written"
    learned = np.arange(len(z)) % 10 > 0
    assert regression(-z[learned], found[learned])["spearman"] > 0.3, "less loss is more wanted"


def test_a_score_has_the_same_bits_in_any_company(fitted: tuple[Path, dict[str, Any]]) -> None:
    texts = [*ordered(12, 9), "", " \n", "lamp " * 400, "x", "日本語の文章"]
    alone = [scored(fitted[0], [text])[0] for text in texts]
    order = np.random.default_rng(1).permutation(len(texts))
    together = scored(fitted[0], [texts[i] for i in order])
    assert [together[list(order).index(i)] for i in range(len(texts))] == alone
    assert alone[12] is None and None not in alone[:12]


def test_the_same_samples_and_seed_give_the_same_bytes(
    fitted: tuple[Path, dict[str, Any]], run: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    given = make_classifier(tmp_path_factory.mktemp("bert"), run.parents[1] / "tokenizer", initializer_range=0.02)
    fit(run, given).fit(samples(), tmp_path, seed=5)
    for file in ("model.npz", "probes.parquet", "encoder/model.safetensors", "encoder/tokenizer.json"):
        assert (tmp_path / file).read_bytes() == (fitted[0] / file).read_bytes()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda m: shutil.rmtree(m / "encoder"), "no model folder at"),
        (lambda m: (m / "model.npz").unlink(), "no model of influence at"),
        (
            lambda m: np.savez(m / "model.npz", weight=np.full(32, np.nan, np.float32), bias=0.0),
            "expected finite float32",
        ),
        (lambda m: np.savez(m / "model.npz", weights=np.zeros(3)), "no model of influence at"),
        (lambda m: (m / "card.json").write_text(json.dumps({"encoder": {"window": 999}})), "a window of 999 tokens"),
    ],
)
def test_models_that_do_not_serve(fitted: tuple[Path, Any], tmp_path: Path, broken: Any, message: str) -> None:
    shutil.copytree(fitted[0], tmp_path / "model")
    broken(tmp_path / "model")
    with pytest.raises(ValidationError) as error:
        scorers.make("influence", {"model": tmp_path / "model"})
    assert message in str(error.value)


def test_encoders_that_do_not_serve(run: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no model folder at nowhere"):
        FitInfluence(target="true", model=run, encoder="nowhere")
    shutil.copytree(encoder, tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    with pytest.raises(ValidationError, match="has no pad_token_id"):
        FitInfluence(target="true", model=run, encoder=tmp_path / "encoder")
