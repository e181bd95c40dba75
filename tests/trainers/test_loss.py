import numpy as np
import pytest
import torch
from torch.nn import functional

from trainers import loss
from trainers.loss import Other, Target, cross_entropy, objective_sums, token_losses


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


def test_one_call_gives_the_trained_and_the_plain_loss(tensors):
    class Doubled:
        def target(self, chunk):
            return Target(torch.full_like(chunk.log_p[:, :1], 2.0))

    hidden, output, targets, weights = tensors
    loss, nats = objective_sums(hidden, output, targets, weights, Doubled())
    plain, same = objective_sums(hidden, output, targets, weights)
    assert torch.equal(nats, same) and torch.equal(plain, same) and not nats.requires_grad
    assert torch.allclose(loss, 2 * plain)
    doubled, once = (torch.autograd.grad(x, (hidden, output)) for x in (loss, plain))
    assert all(torch.allclose(a, 2 * b, atol=1e-6) for a, b in zip(doubled, once, strict=True))


def test_an_objective_sees_what_belongs_to_its_tokens(tensors):
    seen = []

    class Watch:
        def target(self, chunk):
            seen.append(chunk)
            return Target()

    hidden, output, targets, weights = tensors
    weights = weights.detach().clone()
    weights[[3, 17]] = 0  # left out before the chunks are cut
    other = Other(torch.randn(29, 3), torch.randn(50, 3))
    objective_sums(hidden, output, targets, weights, Watch(), other, 0.25, np.arange(29, dtype=np.uint64))
    kept = [i for i in range(29) if i not in (3, 17)]
    assert [len(chunk.targets) for chunk in seen] == [8, 8, 8, 3]
    assert np.concatenate([chunk.keys for chunk in seen]).tolist() == kept
    assert torch.equal(torch.cat([chunk.targets for chunk in seen])[:, 0], targets[kept])
    expected = torch.log_softmax(other.hidden[kept] @ other.output.T, 1)
    assert torch.allclose(torch.cat([chunk.other for chunk in seen]), expected, atol=1e-6)
    assert {chunk.progress for chunk in seen} == {0.25}


def test_nothing_to_learn_gives_zero_and_no_gradient(tensors):
    hidden, output, targets, _ = tensors
    loss, nats = objective_sums(hidden, output, targets, torch.zeros(29))
    assert loss == 0 and nats == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (hidden, output)))


def test_gradients_in_float64_equal_finite_differences(tensors):
    hidden, output = (x.detach().double().requires_grad_() for x in tensors[:2])
    targets, weights = tensors[2], tensors[3].double()
    assert torch.autograd.gradcheck(lambda h, o: objective_sums(h, o, targets, weights)[0], (hidden, output))
