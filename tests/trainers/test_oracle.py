"""The oracle takes the step it says it takes, from the state it says it starts from, and leaves no trace."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from toy_influence import ordered, shuffled, trained

from trainers import checkpoint
from trainers.learner import Learner
from trainers.loss import token_losses
from trainers.model import head, hidden_states
from trainers.oracle import Oracle, beginnings, make_oracle, packed
from trainers.run import backward
from trainers.tokenise import load_tokenizer
from transforms.sequence_classifier import one_thread

WINDOW = 96


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("oracle"))


def tokens(run: Path, texts: list[str]) -> list[np.ndarray]:
    return beginnings(run / "model", pa.array(texts, pa.large_string()), WINDOW)


def oracle_of(run: Path, lr: float = 1e-3, moments: bool = True) -> Oracle:
    return make_oracle(run / "model", run / "checkpoints" if moments else None, lr, tokens(run, ordered(12, 7)))


def probes(run: Path, texts: list[str]) -> list:
    return [packed([one], load_tokenizer(run / "model")[1]) for one in tokens(run, texts)]


def gradient(oracle: Oracle, batches: list) -> list[torch.Tensor]:
    """Of the mean loss of the batches' tokens; not clipped, by the model's own head."""
    oracle.model.zero_grad()
    total = sum(len(batch.targets) for batch in batches)
    for batch in batches:
        logits = hidden_states(oracle.model, batch) @ head(oracle.model).T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets), reduction="sum")
        (loss / total).backward()
    found = [p.grad.clone() for p in oracle.model.parameters()]
    oracle.model.zero_grad(set_to_none=False)
    return found


def clipped(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    return [g / max(1.0, norm) for g in gradients]


def product(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(some, others, strict=True))


def test_a_small_step_of_sgd_changes_the_loss_by_the_product_of_gradients(run: Path) -> None:
    """y - L = -lr <g_ref, g_x>, to first order."""
    made = oracle_of(run)
    descent = torch.optim.SGD(made.model.parameters(), lr=1e-3)
    oracle = Oracle(Learner(made.model), descent, made.config, packed_reference(run))
    reference = gradient(oracle, oracle.reference)
    for probe in probes(run, [*ordered(3, 11), *shuffled(3, 11)]):
        expected = -1e-3 * product(reference, clipped(gradient(oracle, [probe])))
        assert expected != 0 and oracle.losses([probe])[0] - oracle.loss() == pytest.approx(expected, rel=0.02)


def packed_reference(run: Path):
    return packed(tokens(run, ordered(12, 7)), load_tokenizer(run / "model")[1])


def test_a_small_step_of_adam_uses_the_moments_of_the_checkpoint(run: Path) -> None:
    """AdamW by hand: betas 0.9 and 0.95, decay 0.1 of matrices, moments and count of the run's last step."""
    lr = 1e-5
    oracle = oracle_of(run, lr)
    held = load_file(checkpoint.newest(run / "checkpoints")[0] / "optimiser.safetensors")
    names = [name for name, _ in Learner(oracle.model).named_parameters()]
    assert int(held[f"step:{names[0]}"]) > 30
    reference = gradient(oracle, oracle.reference)
    embeddings = {id(oracle.model.get_input_embeddings().weight), id(head(oracle.model))}
    probe = probes(run, ordered(1, 12))[0]
    step = []
    for (name, p), g in zip(Learner(oracle.model).named_parameters(), clipped(gradient(oracle, [probe])), strict=True):
        count = int(held[f"step:{name}"]) + 1
        first = 0.9 * held[f"exp_avg:{name}"] + 0.1 * g
        second = 0.95 * held[f"exp_avg_sq:{name}"] + 0.05 * g**2
        moved = first / (1 - 0.9**count) / ((second / (1 - 0.95**count)).sqrt() + 1e-8)
        step.append(-lr * (moved + (0.1 * p.detach() if p.ndim >= 2 and id(p) not in embeddings else 0)))
    expected = product(reference, step)
    assert oracle.losses([probe])[0] - oracle.loss() == pytest.approx(expected, rel=0.02)


def test_without_a_checkpoint_the_step_is_the_first_of_a_fresh_adam(run: Path) -> None:
    oracle = oracle_of(run, moments=False)
    probe = probes(run, ordered(1, 12))[0]
    found = oracle.losses([probe, probe])
    other = oracle_of(run, moments=False)
    backward(Learner(other.model), probe, other.config)
    other.optimiser.step()
    assert found.tolist() == [other.loss()] * 2
    assert found[0] != oracle_of(run).losses([probe])[0], "moments matter"


@pytest.mark.parametrize("moments", [True, False])
def test_weights_and_moments_are_restored_bit_for_bit(run: Path, moments: bool) -> None:
    oracle = oracle_of(run, moments=moments)

    def state() -> dict[str, torch.Tensor]:
        found = {f"weight {i}": p.detach().clone() for i, p in enumerate(oracle.model.parameters())}
        for i, p in enumerate(oracle.model.parameters()):
            found |= {f"{k} {i}": t.clone() for k, t in oracle.optimiser.state.get(p, {}).items()}
        return found

    before, random = state(), torch.get_rng_state()
    some = probes(run, [*ordered(3, 13), *shuffled(2, 13)])
    with one_thread():
        loss = oracle.loss()
        found = oracle.losses(some)
        after = state()
        assert before.keys() == after.keys() and len(before) == (4 if moments else 1) * len(oracle._weights)
        assert all(torch.equal(t, after[name]) for name, t in before.items())
        assert oracle.loss() == loss and torch.equal(random, torch.get_rng_state())
        assert oracle.losses(some[::-1]).tolist() == found[::-1].tolist(), "whatever was probed before"
        assert [oracle_of(run, moments=moments).losses([one])[0] for one in some] == found.tolist()


def test_the_reference_loss_is_the_mean_over_its_tokens(run: Path) -> None:
    oracle = oracle_of(run)
    losses = []
    for one in tokens(run, ordered(12, 7)):
        alone = packed([one], load_tokenizer(run / "model")[1])
        with torch.no_grad():
            losses += token_losses(
                hidden_states(oracle.model, alone), head(oracle.model), torch.from_numpy(alone.targets)
            ).tolist()
    assert oracle.loss() == pytest.approx(np.mean(losses), rel=1e-6)


def test_documents_of_the_references_grammar_help_more(run: Path) -> None:
    losses = oracle_of(run).losses(probes(run, [*ordered(40, 14), *shuffled(40, 14)]))
    assert roc_auc_score([1] * 40 + [0] * 40, -losses) > 0.95


def test_beginnings_end_with_the_end_token_where_it_fits(run: Path) -> None:
    tokenizer, end = load_tokenizer(run / "model")
    text = ordered(1, 15)[0]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts = pa.array([text, "<|endoftext|> a", ""], pa.large_string())
    whole, spelled, empty = beginnings(run / "model", texts, 1000)
    assert whole.tolist() == [*ids, end] and empty.tolist() == [end]
    assert (spelled == end).sum() == 1, "a text cannot end itself"
    assert beginnings(run / "model", texts, 5)[0].tolist() == ids[:5]
    batch = packed([whole[:3], whole], end)
    assert batch.inputs.tolist() == [end, *ids, end, *ids[:2]] and batch.targets.tolist() == [*ids, end, *ids[:3]]
    assert batch.lengths.tolist() == [len(ids) + 1, 3] and batch.documents.tolist() == [1, 0]


def test_a_damaged_checkpoint_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole checkpoint"):
        make_oracle(run / "model", tmp_path, 1e-3, tokens(run, ["a b c"]))
