import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_mixture, make_tokenizer
from torch.nn import functional

from trainers.data import Batch
from trainers.evaluate import document_losses, evaluate, open_model, summary
from trainers.formats import Format
from trainers.loss import token_losses
from trainers.mixture import file_digest, open_mixture
from trainers.model import ModelConfig, head, hidden_states, new_model, save_model
from trainers.tokenise import load_tokenizer

TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


@pytest.fixture(scope="module")
def corpus(toy, tmp_path_factory):
    return open_mixture(toy / "heldout", tmp_path_factory.mktemp("cache"))


def model_of(corpus, row_length, seed=0):
    model = new_model(TINY, corpus, row_length, seed)
    for parameter in model.parameters():
        parameter.data.mul_(5)
    return model


def test_document_losses_equal_those_of_each_document_alone(corpus):
    longest = int(corpus.length.max())
    model = model_of(corpus, longest)
    found = document_losses(model, corpus, longest)
    model.set_attn_implementation("eager")
    for i in range(len(corpus)):
        text = torch.from_numpy(corpus.tokens[corpus.start[i] - 1 : corpus.end[i]].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=text[None, :-1]).logits[0]
        assert found[i] == pytest.approx(float(functional.cross_entropy(logits, text[1:], reduction="sum")), rel=1e-5)


def test_sums_per_source_and_overall(corpus):
    result, table = evaluate(model_of(corpus, 32), corpus, 32)
    nats, tokens, size = (table[name].to_numpy() for name in ("nats", "tokens", "bytes"))
    assert result["overall"]["documents"] == 50 and set(result["sources"]) == {"small", "large"}
    assert result["overall"]["nats_per_token"] == pytest.approx(nats.sum() / tokens.sum())
    own = np.array(table["source"].to_pylist()) == "small"
    entry = result["sources"]["small"]
    assert entry["bits_per_byte"] == pytest.approx(nats[own].sum() / math.log(2) / size[own].sum())
    assert entry["tokens"] == tokens[own].sum() and entry["documents"] == 30
    low, high = entry["nats_per_token_interval"]
    assert low < entry["nats_per_token"] < high


def test_intervals_are_seeded_and_cover_the_truth():
    generator = np.random.default_rng(0)
    tokens = np.full(200, 10)
    hits = 0
    for trial in range(60):
        nats = generator.normal(20, 4, 200)
        low, high = summary(nats, tokens, tokens, seed=trial)["nats_per_token_interval"]
        hits += low <= 2.0 <= high
    assert 50 <= hits <= 60
    assert summary(nats, tokens, tokens, 1) == summary(nats, tokens, tokens, 1) != summary(nats, tokens, tokens, 2)


def test_only_targets_with_a_weight_count(corpus):
    """Prompts of random length weigh nothing; small 0 learns nothing at all, half of the targets weigh 0.5."""
    generator = np.random.default_rng(0)
    weights = np.zeros(len(corpus.tokens), np.float32)
    for a, b in zip(corpus.start[1:], corpus.end[1:], strict=True):
        weights[generator.integers(a, b) : b] = generator.choice([0.5, 1.0])
    count = [int((weights[a:b] > 0).sum()) for a, b in zip(corpus.start, corpus.end, strict=True)]
    sft = replace(corpus, weights=weights, targets=np.array(count))
    model = model_of(corpus, 32)
    result, table = evaluate(model, sft, 32)
    assert table["tokens"].to_pylist() == count and count[0] == 0
    assert table["bytes"].null_count == 50 and "bits_per_byte" not in result["overall"]
    assert result["overall"]["documents"] == 49 and result["sources"]["small"]["documents"] == 29
    losses = np.concatenate([np.zeros(1), *target_losses(model, corpus)])
    expected = [losses[a:b][weights[a:b] > 0].sum() for a, b in zip(corpus.start, corpus.end, strict=True)]
    np.testing.assert_allclose(table["nats"].to_numpy(), expected, rtol=1e-4)
    assert result["overall"]["nats_per_token"] == pytest.approx(sum(expected) / sum(count), rel=1e-4)
    with pytest.raises(ValueError, match=r"every target weighs 0.*; hold out documents"):
        evaluate(model, replace(corpus, weights=np.zeros_like(weights), targets=np.zeros(50, np.int64)), 32)
    ones, _ = evaluate(model, replace(corpus, weights=np.ones(len(weights), np.uint8)), 32)
    plain, _ = evaluate(model, corpus, 32)
    assert ones["overall"]["nats_per_token"] == pytest.approx(plain["overall"]["nats_per_token"], rel=1e-6)


def test_bytes_of_completions_are_known(toy, tmp_path):
    """Of a prompt and a completion, the loss is of the completion after the prompt, by the completion's bytes."""
    texts = ["red dog finds", "old river", "the stone keeps a tree"]
    prompts = ["the old cat sees a", "a", "one"]
    folder = make_mixture(tmp_path / "sft", {"s": texts}, make_tokenizer(tmp_path / "tokenizer", texts + prompts, 280))
    path = folder / "s" / "00000.parquet"
    pq.write_table(pq.read_table(path).append_column("prompt", pa.array(prompts)), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sources"]["s"]["files"][0]["digest"] = file_digest(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sft = open_mixture(folder, tmp_path / "cache", Format(kind="prompt_completion"))
    result, table = evaluate(model_of(sft, 64), sft, 64)
    assert table["bytes"].to_pylist() == [len(text) for text in texts] and result["overall"]["bytes"] == 44
    assert table["tokens"].to_pylist() == [
        1 + n for n in sft.documents["tokens"].to_numpy() - prompt_tokens(sft, prompts)
    ]
    bits = sum(table["nats"].to_pylist()) / math.log(2) / 44
    assert result["overall"]["bits_per_byte"] == pytest.approx(bits)


def prompt_tokens(corpus, prompts):
    tokenizer, _ = load_tokenizer(corpus.tokenizer)
    return np.array([len(tokenizer.encode(p, add_special_tokens=False).ids) for p in prompts])


def target_losses(model, corpus):
    """Of every target, piece by piece as documents are cut into rows of 32."""
    for a, b in zip(corpus.start, corpus.end, strict=True):
        for c in range(a, b, 32):
            text = torch.from_numpy(corpus.tokens[c - 1 : min(c + 32, b)].astype(np.int64))
            batch = Batch(text[:-1].numpy(), text[1:].numpy(), np.array([len(text) - 1]), np.zeros(1, np.int64))
            with torch.no_grad():
                yield token_losses(hidden_states(model, batch), head(model), text[1:]).numpy()


def test_a_folder_is_opened_with_its_own_row_length(corpus, tmp_path):
    model = model_of(corpus, 64)
    save_model(model, corpus.tokenizer, tmp_path / "model")
    opened, row_length = open_model(tmp_path / "model")
    assert row_length == 64
    np.testing.assert_allclose(document_losses(opened, corpus, 64), document_losses(model, corpus, 64), rtol=1e-5)
    with pytest.raises(ValueError, match="a window of 65 tokens"):
        open_model(tmp_path / "model", 65)
    with pytest.raises(ValueError, match="no model folder at"):
        open_model(tmp_path / "nothing")
