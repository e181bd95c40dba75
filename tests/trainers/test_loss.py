import pytest
import torch
from torch.nn import functional

from trainers import loss
from trainers.loss import cross_entropy, token_losses


@pytest.fixture
def tensors(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 8)
    torch.manual_seed(0)
    hidden = torch.randn(29, 6, requires_grad=True)
    output = torch.randn(50, 6, requires_grad=True)
    return hidden, output, torch.randint(0, 50, (29,)), torch.rand(29)


def test_sum_and_gradients_equal_plain_weighted_cross_entropy(tensors):
    hidden, output, targets, weights = tensors
    total, weight = cross_entropy(hidden, output, targets, weights)
    found = torch.autograd.grad(total / weight, (hidden, output))
    plain = (functional.cross_entropy(hidden @ output.T, targets, reduction="none") * weights).sum() / weights.sum()
    expected = torch.autograd.grad(plain, (hidden, output))
    assert torch.allclose(total / weight, plain, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_no_weights_are_ones(tensors):
    hidden, output, targets, _ = tensors
    total, weight = cross_entropy(hidden, output, targets)
    assert weight == 29
    assert torch.allclose(total, functional.cross_entropy(hidden @ output.T, targets, reduction="sum"))
    assert torch.allclose(token_losses(hidden, output, targets).sum(), total)


def test_weight_zero_removes_a_token(tensors):
    hidden, output, targets, weights = tensors
    weights[5] = 0
    total, weight = cross_entropy(hidden, output, targets, weights)
    (gradient,) = torch.autograd.grad(total / weight, hidden)
    assert (gradient[5] == 0).all() and (gradient[4] != 0).any()


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tensors):
    hidden, output, targets, weights = tensors
    total, weight = cross_entropy(hidden, output, targets, weights)
    whole = torch.autograd.grad(total / weight, output)[0]
    cut = torch.zeros_like(whole)
    for part in (slice(0, 3), slice(3, 20), slice(20, 29)):
        total, _ = cross_entropy(hidden[part], output, targets[part], weights[part])
        cut += torch.autograd.grad(total / weight, output)[0]
    assert torch.allclose(cut, whole, atol=1e-6)


def test_improbable_targets_have_finite_losses():
    hidden, output = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    total, _ = cross_entropy(hidden, output, torch.tensor([1]))
    assert float(total) == pytest.approx(400)


def test_bf16_products_stay_near_float32(tensors):
    hidden, output, targets, _ = tensors
    exact, _ = cross_entropy(hidden, output, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = cross_entropy(hidden, output, targets)
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)
