import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from trainers.evaluate import document_losses, evaluate, paired_difference, summary
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, new_model

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


def test_paired_difference_sees_what_separate_intervals_do_not(corpus):
    _, first = evaluate(model_of(corpus, 32), corpus, 32)
    lower = first.set_column(first.schema.get_field_index("nats"), "nats", [first["nats"].to_numpy() * 0.99])
    shuffled = lower.take(np.random.default_rng(0).permutation(len(lower)))
    difference = paired_difference(shuffled, first)
    assert difference["bits_per_byte"] < 0 and difference["interval"][1] < 0
    with pytest.raises(ValueError, match="different documents"):
        paired_difference(first, first.slice(1))
