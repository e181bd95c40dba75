import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config

from trainers.data import Batch
from trainers.future_heads import FutureHeads, FutureHeadsConfig, sources
from trainers.loss import cross_entropy
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, head, hidden_states, new_model

LENGTHS = [30, 11, 11, 3, 2, 1]


@pytest.fixture(params=[2, 1], ids=["heads", "grouped-query"])
def model(request, toy, tmp_path):
    config = ModelConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=request.param)
    model = new_model(config, open_mixture(toy / "mixture", tmp_path), row_length=64, seed=0)
    for parameter in model.parameters():  # larger weights: attention that matters
        parameter.data.mul_(4 if parameter.ndim == 2 else 1)
    return model


@pytest.fixture
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, 300, (2, sum(LENGTHS)))
    weights = np.random.default_rng(1).random(sum(LENGTHS)).astype(np.float32)
    weights[[4, 33]] = 0
    return Batch(tokens[0], tokens[1], np.array(LENGTHS), np.arange(len(LENGTHS)), weights)


def pieces(tokens: np.ndarray | torch.Tensor) -> list:
    ends = np.cumsum(LENGTHS)
    return [tokens[b - n : b] for b, n in zip(ends, LENGTHS, strict=True)]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_target_lies_in_another_piece(ahead):
    generator = np.random.default_rng(ahead)
    for _ in range(20):
        lengths = generator.integers(1, 9, generator.integers(1, 12))
        piece = np.repeat(np.arange(len(lengths)), lengths)
        expected = [i for i in range(len(piece) - ahead) if piece[i] == piece[i + ahead]]
        assert sources(lengths, ahead).tolist() == expected


def test_a_head_that_copies_is_right_where_text_repeats_at_its_distance(toy, tmp_path):
    """In text of period 3 the token that is read is the one 3 places on: the target of head 2."""
    width, lengths = 8, np.array([12, 9])
    model = new_model(ModelConfig(hidden_size=width), open_mixture(toy / "mixture", tmp_path), 64, seed=0)
    inputs = np.concatenate([np.tile([0, 1, 2], 4), np.tile([5, 3, 4], 3)])
    after = np.concatenate([np.tile([1, 2, 0], 4), np.tile([3, 4, 5], 3)])
    batch = Batch(inputs, after, lengths, np.arange(2))
    copies = 30 * torch.eye(width)
    losses = {}
    for count in (1, 2, 3):
        config = FutureHeadsConfig(heads=count, layer="residual", weight=1, decay=1, schedule="constant")
        found = FutureHeads(config, model).sums(copies[torch.from_numpy(inputs)], batch, torch.eye(width), None, 0.0)
        losses[count] = float(found.detach()) - sum(losses.values())
    assert losses[2] == pytest.approx(0, abs=1e-3)
    assert losses[1] == pytest.approx(30 * (21 - 2), rel=1e-3)  # every one of its targets missed, 1 fewer per piece
    assert losses[3] == pytest.approx(30 * (21 - 6), rel=1e-3)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("layer", ["decoder", "residual"])
def test_loss_is_the_formula_over_documents_alone(model, batch, layer, weighted):
    config = FutureHeadsConfig(heads=3, layer=layer, weight=0.2, decay=0.7)
    heads = FutureHeads(config, model)
    for parameter in heads.parameters():  # heads that differ
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    hidden = hidden_states(model, batch)
    weights = torch.from_numpy(batch.weights) if weighted else None
    found = heads.sums(hidden, batch, head(model), weights, 0.25)
    expected = torch.zeros(())
    model.set_attn_implementation("eager")  # transformers' own, one document at a time
    weigh = batch.weights if weighted else np.ones(sum(LENGTHS), np.float32)
    for state, targets, w in zip(pieces(hidden), pieces(batch.targets), pieces(weigh), strict=True):
        for i, own in enumerate(heads.layers, start=1):
            x = state[None]
            if layer == "decoder":
                places = torch.arange(len(state))[None]
                mask = torch.full((len(state), len(state)), float("-inf")).triu(1)[None, None]
                x = own(x, attention_mask=mask, position_ids=places, position_embeddings=heads.rotary(x, places))
            else:
                x = x + functional.silu(x @ own.linear.weight.T + own.linear.bias)
            logits = x[0] @ head(model).T
            for t in range(len(state) - i):
                one = functional.cross_entropy(logits[t], torch.tensor(targets[t + i]))
                expected = expected + one * float(w[t + i]) * 0.2 * np.sin(0.75 * np.pi / 2) * 0.7**i
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    parameters = [*heads.parameters(), *model.parameters()]
    packed, alone = (
        torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (found, expected)
    )
    for a, b in zip(packed, alone, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=2e-4, rtol=1e-3)


def test_heads_begin_as_the_last_layer_and_stay_out_of_the_model(model, batch):
    names, count = set(model.state_dict()), sum(p.numel() for p in model.parameters())
    heads = FutureHeads(FutureHeadsConfig(heads=2), model)
    last = dict(model.base_model.layers[-1].named_parameters())
    for layer in heads.layers:
        assert all(torch.equal(p, last[name]) and p is not last[name] for name, p in layer.named_parameters())
    heads.sums(hidden_states(model, batch), batch, head(model), None, 0.0).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in heads.parameters())
    assert head(model).grad is not None and model.base_model.layers[0].mlp.up_proj.weight.grad is not None
    assert set(model.state_dict()) == names and sum(p.numel() for p in model.parameters()) == count
    assert all(layer.self_attn.config is model.config for layer in heads.layers)  # one switch of attention for all


@pytest.mark.parametrize("place", [5, 34])
def test_a_state_reaches_later_ones_of_its_document_alone(model, batch, place):
    heads = FutureHeads(FutureHeadsConfig(heads=2), model)
    with torch.no_grad():
        hidden = hidden_states(model, batch)
        other = hidden.clone()
        other[place] += torch.randn(hidden.shape[1])
        for before, after in zip(heads(hidden, batch), heads(other, batch), strict=True):
            changed = (before != after).any(dim=1).numpy()
            start = 0 if place < LENGTHS[0] else LENGTHS[0]
            end = start + LENGTHS[0 if place < LENGTHS[0] else 1]
            assert not changed[:place].any() and changed[place:end].all() and not changed[end:].any()


def test_without_weight_only_the_models_own_loss_is_trained(model, batch):
    heads = FutureHeads(FutureHeadsConfig(weight=0), model)
    targets, weights = torch.from_numpy(batch.targets), torch.from_numpy(batch.weights)
    hidden = hidden_states(model, batch)
    own, _ = cross_entropy(hidden, head(model), targets, weights)
    plain = torch.autograd.grad(own, list(model.parameters()), retain_graph=True)
    both = torch.autograd.grad(own + heads.sums(hidden, batch, head(model), weights, 0.0), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, both, strict=True))


def test_parts_of_a_batch_sum_up_to_the_whole(model, batch):
    heads = FutureHeads(FutureHeadsConfig(), model)

    def total(part: Batch) -> float:
        weights = torch.from_numpy(part.weights)
        return float(heads.sums(hidden_states(model, part), part, head(model), weights, 0.1).detach())

    assert total(batch) == pytest.approx(sum(map(total, batch.parts(30))), rel=1e-5)
    assert total(batch.pieces(np.array([4, 5]))) > 0
    assert total(batch.pieces(np.array([5]))) == 0  # a single token has nothing further ahead


def test_ends_of_the_schedules():
    ends = {
        name: [FutureHeadsConfig(weight=2, schedule=name).factor(x) for x in (0.0, 0.5, 1.0)]
        for name in ("rsine", "sine", "linear", "constant")
    }
    half = 2**0.5
    assert ends["rsine"] == pytest.approx([2, half, 0]) and ends["sine"] == pytest.approx([0, half, 2])
    assert ends["linear"] == pytest.approx([0, 1, 2]) and ends["constant"] == [2, 2, 2]


def test_models_without_rotary_layers_need_residual_heads():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"gpt2 has no decoder layers with rotary positions.*residual"):
        FutureHeads(FutureHeadsConfig(), model)
    heads = FutureHeads(FutureHeadsConfig(layer="residual"), model)
    batch = Batch(np.arange(6), np.arange(6) + 1, np.array([6]), np.zeros(1, np.int64))
    hidden = torch.randn(6, 16)
    assert all(torch.equal(state, hidden) for state in heads(hidden, batch))  # they begin as copies


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"decay": 0}, {"weight": -1}, {"schedule": "cosine"}, {"alpha": 1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        FutureHeadsConfig(**wrong)
