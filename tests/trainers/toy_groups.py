"""Samples of four planted kinds for a model that was taught a world before: what Q-Tuning is to tell apart.

A sample is a key and then SLOTS times a place and a value; values are trained, keys and places are the prompt. The base
model has learned of each key how its values are spread:

    known      always the same: nothing is left to learn
    hesitant   the right value in half of the cases, anything else in the other
    mistake    another value in nearly all cases, the right one in one of thirty
    noise      keys it has never seen, and random values

Samples for tuning have the right values. Those of mistakes have a run of CORRUPT slots with random values instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from trainers.data import Batch
from trainers.learner import Learner

KNOWN, HESITANT, MISTAKE, NOISE = range(4)
NAMES = ("known", "hesitant", "mistake", "noise")
KEYS, SLOTS, VALUES, CORRUPT = 8, 8, 32, 2  # keys of a kind
PLACE = VALUES  # ids: values, then places, then keys
KEY = PLACE + SLOTS
VOCABULARY = KEY + 4 * KEYS
OFTEN = {KNOWN: 1.0, HESITANT: 0.5, MISTAKE: 1 / 30}  # how often the base model has seen the right value


@dataclass(frozen=True)
class Facts:
    """What is right, and what the base model believes of mistakes."""

    right: np.ndarray  # int64 [keys, slots]
    belief: np.ndarray  # int64 [keys, slots]

    @classmethod
    def make(cls, seed: int) -> Facts:
        draw = np.random.default_rng(seed)
        right = draw.integers(0, VALUES, (4 * KEYS, SLOTS))
        return cls(right, (right + draw.integers(1, VALUES, right.shape)) % VALUES)

    def taught(self, draw: np.random.Generator, count: int) -> Batch:
        """Samples that the base model learns from."""
        keys = draw.integers(0, 3 * KEYS, count)
        kind = keys[:, None] // KEYS
        often = np.select([kind == k for k in OFTEN], list(OFTEN.values()))
        other = np.where(kind == MISTAKE, self.belief[keys], draw.integers(0, VALUES, (count, SLOTS)))
        return packed(keys, np.where(draw.random((count, SLOTS)) < often, self.right[keys], other))

    def tuning(self, draw: np.random.Generator, count: int) -> tuple[Batch, np.ndarray, np.ndarray]:
        """Samples to choose from, their kinds (int [count]), and which targets are corrupted (bool [targets])."""
        keys = draw.integers(0, 4 * KEYS, count)
        kind = keys // KEYS
        random = draw.integers(0, VALUES, (count, SLOTS))
        first = draw.integers(0, SLOTS - CORRUPT + 1, (count, 1))
        run = (np.arange(SLOTS) >= first) & (np.arange(SLOTS) < first + CORRUPT) & (kind == MISTAKE)[:, None]
        corrupt = np.zeros((count, 2 * SLOTS), bool)
        corrupt[:, 1::2] = run
        values = np.where(run | (kind == NOISE)[:, None], random, self.right[keys])
        return packed(keys, values), kind, corrupt.ravel()


def packed(keys: np.ndarray, values: np.ndarray) -> Batch:
    text = np.empty((len(keys), 1 + 2 * SLOTS), np.int64)
    text[:, 0], text[:, 1::2], text[:, 2::2] = KEY + keys, PLACE + np.arange(SLOTS), values
    weights = np.zeros((len(keys), 2 * SLOTS), np.float32)
    weights[:, 1::2] = 1
    inputs, targets = text[:, :-1].ravel(), text[:, 1:].ravel()
    return Batch(inputs, targets, np.full(len(keys), 2 * SLOTS), np.arange(len(keys)), weights.ravel())


def new_model(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="documents")


def learn(model: PreTrainedModel, batches: list[Batch], lr: float) -> None:
    """A step on each, at a rate that falls linearly to nothing."""
    learner, optimiser = Learner(model), torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    for number, batch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (number + 1) / 20) * (1 - number / len(batches))
        sums = learner(batch, 0.0)
        (sums.loss / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()


def base_model(facts: Facts, seed: int, steps: int = 300) -> PreTrainedModel:
    draw = np.random.default_rng(seed)
    model = new_model(seed)
    learn(model, [facts.taught(draw, 64) for _ in range(steps)], 4e-3)
    return model
