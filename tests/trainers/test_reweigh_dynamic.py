import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from trainers.data import Batch
from trainers.loss import cross_entropy
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, head, hidden_states, new_model
from trainers.reweigh_dynamic import Dynamic
from trainers.token_scores import Step
from transforms.loss_reweighting import dynamic_weights

LENGTHS = [20, 9, 9, 4, 1]
LATE = Step(step=9, tokens=50, budget=100)


@pytest.fixture
def model(toy, tmp_path):
    config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    return new_model(config, open_mixture(toy / "mixture", tmp_path), row_length=64, seed=0)


@pytest.fixture(params=[False, True], ids=["all", "weighted"])
def batch(request) -> Batch:
    tokens = np.random.default_rng(0).integers(0, 300, (2, sum(LENGTHS)))
    weights = np.random.default_rng(1).random(sum(LENGTHS)).astype(np.float32)
    weights[[3, 5]] = 0
    weights[29:38] = 0  # the third piece: nothing of it is trained
    return Batch(tokens[0], tokens[1], np.array(LENGTHS), np.arange(5), weights if request.param else None)


def piece_losses(model, batch: Batch) -> tuple[torch.Tensor, np.ndarray]:
    """Mean loss of each trained piece by plain means, and which pieces those are."""
    ends = np.cumsum(batch.lengths)
    means, trained = [], []
    states = hidden_states(model, batch)
    for i, (b, n) in enumerate(zip(ends, batch.lengths, strict=True)):
        w = torch.ones(n) if batch.weights is None else torch.from_numpy(batch.weights[b - n : b])
        losses = functional.cross_entropy(
            states[b - n : b] @ head(model).T, torch.from_numpy(batch.targets[b - n : b]), reduction="none"
        )
        if w.sum() > 0:
            means.append((losses * w).sum() / w.sum())
            trained.append(i)
    return torch.stack(means), np.array(trained)


@pytest.mark.parametrize("strategy", ["linupper", "uniform"])
def test_what_is_learned_is_the_weighted_mean_of_the_pieces_losses(model, batch, strategy):
    rule = Dynamic(strategy=strategy, strength=0.4)
    weights = rule.weights(model, batch, LATE)
    assert weights.dtype == np.float32 and weights.sum() == pytest.approx(batch.weight, rel=1e-5)
    targets = torch.from_numpy(batch.targets)
    total, weight = cross_entropy(hidden_states(model, batch), head(model), targets, torch.from_numpy(weights))
    losses, _ = piece_losses(model, batch)
    share = torch.from_numpy(dynamic_weights(losses.detach().numpy(), strategy, 0.4)).float()
    expected = (share * losses).sum()
    assert torch.allclose(total / weight, expected, atol=1e-5)
    for a, b in zip(
        *(torch.autograd.grad(x, list(model.parameters())) for x in (total / weight, expected)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_targets_that_are_not_trained_stay_so_and_pieces_without_any_take_no_part(model, batch):
    weights = Dynamic().weights(model, batch, LATE)
    if batch.weights is None:
        assert (weights > 0).all()
    else:
        assert np.array_equal(weights == 0, batch.weights == 0)


def test_the_beginning_is_trained_as_it_is(model, batch):
    early = Step(step=0, tokens=4, budget=100)
    found = Dynamic(warmup=0.05).weights(model, batch, early)
    assert np.array_equal(found, np.ones(sum(LENGTHS)) if batch.weights is None else batch.weights)
    assert not np.array_equal(Dynamic(warmup=0.04).weights(model, batch, early), found)


def test_the_cut_into_parts_changes_nothing(model, batch):
    whole = Dynamic().weights(model, batch, LATE)
    cut = Dynamic().weights(model, batch, Step(step=9, tokens=50, budget=100, part_tokens=20))
    assert np.allclose(whole, cut, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"strategy": "upper"}, {"strength": 0}, {"warmup": 2}, {"delta": 1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Dynamic(**wrong)
