"""What the scores of a packed batch are, against each document alone in the model's own attention."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from toy_batches import make_batch

from trainers import token_scores
from trainers.data import Batch
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, new_model
from trainers.reweigh import QTuning
from trainers.token_scores import (
    Answers,
    Step,
    attention_to,
    losses_and_attention,
    losses_and_entropies,
    piece_keys,
)

ROOT = Path(__file__).parents[2]
SIZE = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


@pytest.fixture(scope="module")
def model(toy, tmp_path_factory):
    corpus = open_mixture(toy / "heldout", tmp_path_factory.mktemp("cache"))
    made = new_model(SIZE, corpus, 256, 0)
    for parameter in made.parameters():
        parameter.data.mul_(4)  # attention that looks somewhere
    return made.train()


def alone(model, batch: Batch, **options):
    """The model's outputs for each piece by itself."""
    name = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = [
            model(input_ids=piece[None], use_cache=False, **options)
            for piece in torch.from_numpy(batch.inputs).split(batch.lengths.tolist())
        ]
    model.set_attn_implementation(name)
    return outputs


BATCH = make_batch([150, 40, 40, 23, 7, 1, 9])


def test_losses_and_entropies_of_trained_targets(model) -> None:
    loss, entropy = losses_and_entropies(model, BATCH, Step())
    logits = torch.cat([out.logits[0] for out in alone(model, BATCH)])
    expected = functional.cross_entropy(logits, torch.from_numpy(BATCH.targets), reduction="none").numpy()
    trained = BATCH.weights > 0
    np.testing.assert_allclose(loss[trained], expected[trained], rtol=1e-4, atol=1e-4)
    spread = torch.distributions.Categorical(logits=logits).entropy().numpy()
    np.testing.assert_allclose(entropy[trained], spread[trained], rtol=1e-4, atol=1e-4)
    assert not loss[~trained].any() and not entropy[~trained].any()
    assert model.training, "the model is left as it was"


def test_attention_of_answers_to_prompts_of_several_turns(model, monkeypatch) -> None:
    monkeypatch.setattr(token_scores, "QUERIES", 16)
    loss, found = losses_and_attention(model, BATCH, Step())
    assert np.array_equal(loss, losses_and_entropies(model, BATCH, Step())[0])
    weights = np.split(BATCH.weights, np.cumsum(BATCH.lengths)[:-1])
    expected = []
    for out, weight in zip(alone(model, BATCH, output_attentions=True), weights, strict=True):
        prompt = np.append(True, weight[:-1] == 0)  # an input is of the prompt unless it was a trained target
        to_prompt = out.attentions[-1][0].mean(0).numpy()[:, prompt].sum(1)
        expected.append(np.append(to_prompt[1:], to_prompt[-1]))
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
    assert found.std() > 0.05
    assert model.config._attn_implementation == "documents", "the model is left as it was"


def test_attention_does_not_depend_on_blocks(monkeypatch) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4, 60, 8), torch.randn(2, 60, 8)
    prompt = torch.rand(60) < 0.5
    whole = attention_to(query, key, prompt, [40, 20], 0.3)
    monkeypatch.setattr(token_scores, "ATTENTION_NUMBERS", 4 * 40 * 3)
    assert torch.allclose(attention_to(query, key, prompt, [40, 20], 0.3), whole, atol=1e-6)
    everything = attention_to(query, key, torch.ones(60, dtype=torch.bool), [40, 20], 0.3)
    assert torch.allclose(everything, torch.ones(60), atol=1e-5)


def test_parts_do_not_matter(model) -> None:
    whole = losses_and_attention(model, BATCH, Step())
    cut = losses_and_attention(model, BATCH, Step(part_tokens=50))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_in_bf16_scores_are_nearly_the_same(model) -> None:
    exact = losses_and_attention(model, BATCH, Step())
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses_and_attention(model, BATCH, Step())
    for a, b, allowed in zip(exact, rough, (0.2, 0.02), strict=True):
        assert b.dtype == np.float32 and 0 < np.abs(a - b).mean() < allowed


def test_models_that_are_broken_are_named(model) -> None:
    held = model.get_output_embeddings().weight.data.clone()
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 8"):
        losses_and_entropies(model, BATCH, Step(step=7))
    model.get_output_embeddings().weight.data.copy_(held)


def test_answers_know_their_samples() -> None:
    answers = Answers.of(BATCH)
    values = np.arange(len(BATCH.targets), dtype=float)
    means = answers.means(values)
    pieces = np.split(np.arange(len(values)), np.cumsum(BATCH.lengths)[:-1])
    for piece, mean in zip(pieces, means, strict=True):
        own = piece[BATCH.weights[piece] > 0]
        assert mean == pytest.approx(own.mean()) if len(own) else np.isnan(mean)
    unweighted = Answers.of(replace(BATCH, weights=None))
    assert np.array_equal(unweighted.place, np.arange(len(values))) and (unweighted.weights == 1).all()


def test_keys_of_pieces_depend_on_their_tokens_alone() -> None:
    keys = piece_keys(BATCH)
    assert len(set(keys.tolist())) == len(keys)
    order = np.array([3, 0, 6])
    assert np.array_equal(piece_keys(BATCH.pieces(order)), keys[order])
    other = BATCH.targets.copy()
    other[0], other[1] = other[1], other[0]
    assert piece_keys(replace(BATCH, targets=other))[0] != keys[0]


SCRIPT = """
import sys
import numpy as np
from trainers.data import Batch
from trainers.distributed import world
from trainers.model import load_model
from trainers.reweigh import QTuning
from trainers.token_scores import Step, losses_and_attention

folder = sys.argv[1]
held = np.load(folder + "/batch.npz")
batch = Batch(**held)
with world("cpu") as here:
    model = load_model(folder + "/model")
    step = Step(world=here)
    found = np.stack([*losses_and_attention(model, batch, step), QTuning(samples=0.5).weights(model, batch, step)])
    np.save(f"{folder}/found{here.rank}.npy", found)
"""


def test_processes_find_the_same(model, tmp_path) -> None:
    """Each reads its share of the pieces, one of them one piece more than the other."""
    model.save_pretrained(tmp_path / "model")
    np.savez(tmp_path / "batch.npz", **vars(BATCH))
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (np.load(tmp_path / f"found{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second), "all processes decide the same"
    loss, attention = losses_and_attention(model, BATCH, Step())
    np.testing.assert_allclose(first[:2], np.stack([loss, attention]), atol=1e-4)
    assert np.array_equal(first[2], QTuning(samples=0.5).weights(model, BATCH, Step()))
