"""Critical tokens by contrast of two small models, and the loss of weighted pairs against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from trainers.critical_tokens import Answered, contrast, contrastive_probability, weighted_dpo_loss
from trainers.data import Batch
from trainers.learner import Learner
from trainers.token_scores import Step

DIGITS, LENGTH = 10, 8  # a chain a₀ d₁ a₁ d₂ a₂ … with a_i = a_{i-1} + d_i modulo 10; 10 begins it, d are 11 + number


def chains(draw: np.random.Generator, count: int, wrong: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, 2 + 2 · LENGTH], and the place of the one wrong sum in each (-1: none), from which it goes on."""
    steps = draw.integers(0, 5, (count, LENGTH))
    bad = draw.integers(0, LENGTH, count) if wrong else np.full(count, -1)
    states = [draw.integers(0, 10, count)]
    for i in range(LENGTH):
        states.append((states[-1] + steps[:, i] + (bad == i)) % 10)  # the mistake: one too many
    text = np.empty((count, 2 + 2 * LENGTH), np.int64)
    text[:, 0], text[:, 1::2], text[:, 2::2] = 10, np.stack(states, 1), 11 + steps
    return text, bad


def as_batch(text: np.ndarray) -> Batch:
    inputs, targets = text[:, :-1].ravel(), text[:, 1:].ravel()
    answers = np.zeros(text[:, 1:].shape, np.float32)
    answers[:, 2::2] = 1
    return Batch(inputs, targets, np.full(len(text), text.shape[1] - 1), np.arange(len(text)), answers.ravel())


def fitted(draw: np.random.Generator, wrong: bool, share_wrong: float) -> object:
    """A model that has seen chains of which a share holds a mistake."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=16,
        max_position_embeddings=32,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="documents")
    learner, optimiser = Learner(model), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        good, _ = chains(draw, 32, False)
        bad, _ = chains(draw, 32, True)
        batch = as_batch(np.concatenate([good[: int(32 * (1 - share_wrong))], bad[: int(32 * share_wrong)]]))
        optimiser.param_groups[0]["lr"] = 5e-3 * min(1, 2 - step / 75)
        sums = learner(batch, 0.0)
        (sums.loss / batch.weight).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


def test_the_planted_step_is_the_most_critical() -> None:
    draw = np.random.default_rng(0)
    positive, negative = fitted(draw, False, 0.0), fitted(draw, True, 1.0)
    text, bad = chains(draw, 64, True)
    batch = as_batch(text)
    s = contrast(positive, negative, batch, Step())
    assert (s[batch.weights == 0] == 1).all(), "prompts are not judged"
    of_answers = s[batch.weights > 0].reshape(64, LENGTH)
    assert (of_answers.argmin(1) == bad).mean() > 0.95
    planted = of_answers[np.arange(64), bad]
    others = of_answers[np.arange(LENGTH) != bad[:, None]]
    assert planted.max() < 0.2 and np.median(others) > 0.9
    cut = contrast(positive, negative, batch, Step(part_tokens=100))
    np.testing.assert_allclose(cut, s, atol=1e-4)


def test_contrast_by_hand() -> None:
    positive, negative = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    expected = functional.softmax(2 * positive - negative, 1)[0]
    for token in range(3):
        found = contrastive_probability(positive, negative, torch.tensor([token]))
        assert found.item() == pytest.approx(expected[token].item())
    plain = contrastive_probability(positive, negative, torch.tensor([1]), beta=0.0)
    assert plain.item() == pytest.approx(functional.softmax(positive, 1)[0, 1].item()), "β = 0: the first model alone"
    shifted = contrastive_probability(positive + 5, negative - 3, torch.tensor([2]))
    assert shifted.item() == pytest.approx(expected[2].item(), rel=1e-5), "logits and log-probabilities do the same"


def pairs(seed: int = 0) -> tuple[Answered, Answered]:
    torch.manual_seed(seed)
    sides = []
    for lengths in ((3, 5, 1), (4, 2, 1)):
        n = sum(lengths)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        sides.append(
            Answered(-torch.rand(n, dtype=torch.double), -torch.rand(n).double(), torch.rand(n).double(), offsets)
        )
    return sides[0], sides[1]


def loop(chosen: Answered, rejected: Answered, beta: float, per_position: bool) -> float:
    losses = []
    for pair in range(len(chosen.offsets) - 1):
        c, r = (
            (s.weights * (s.log_p - s.reference))[s.offsets[pair] : s.offsets[pair + 1]].tolist()
            for s in (chosen, rejected)
        )
        if per_position:
            size = max(len(c), len(r))
            c, r = c + [0.0] * (size - len(c)), r + [0.0] * (size - len(r))
            losses += [math.log1p(math.exp(-beta * (a - b))) for a, b in zip(c, r, strict=True)]
        else:
            losses.append(math.log1p(math.exp(-beta * (sum(c) - sum(r)))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_loss_of_pairs_equals_a_loop(per_position: bool, beta: float) -> None:
    chosen, rejected = pairs()
    found = weighted_dpo_loss(chosen, rejected, beta, per_position)
    assert found.item() == pytest.approx(loop(chosen, rejected, beta, per_position), rel=1e-9)


def test_the_gradient_raises_chosen_tokens_and_lowers_rejected_ones_by_their_weights() -> None:
    chosen, rejected = pairs()
    log_p = rejected.log_p.clone().requires_grad_()
    weighted_dpo_loss(chosen, rejected._replace(log_p=log_p)).backward()
    assert (log_p.grad > 0).all()
    assert torch.allclose(log_p.grad[:4] / rejected.weights[:4], log_p.grad[0] / rejected.weights[0]), "within a pair"
    log_c = chosen.log_p.clone().requires_grad_()
    weighted_dpo_loss(chosen._replace(log_p=log_c), rejected).backward()
    assert (log_c.grad < 0).all()
    with pytest.raises(ValueError, match="3 chosen and 2 rejected"):
        weighted_dpo_loss(chosen, rejected._replace(offsets=rejected.offsets[:3]))


def test_with_equal_models_the_loss_is_log_two() -> None:
    chosen, rejected = pairs()
    same = [side._replace(log_p=side.reference) for side in (chosen, rejected)]
    for per_position in (False, True):
        assert weighted_dpo_loss(*same, per_position=per_position).item() == pytest.approx(math.log(2))
