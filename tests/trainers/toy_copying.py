"""Answers that copy keys from the prompt, with filler and noise between: what ssToken is to tell apart.

A sample is KEYS random keys, and then for each of them a filler (always the same at this place), the key, and a random
token. All after the prompt is trained.
"""

from __future__ import annotations

import numpy as np
import torch
from toy_groups import learn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from trainers.data import Batch

KEYS, VALUES = 4, 24  # ids: keys, then random tokens, then fillers, then the token that begins
BEGIN = 2 * VALUES + KEYS
FILLER, KEY, NOISE = range(3)


def samples(draw: np.random.Generator, count: int) -> Batch:
    text = np.empty((count, 1 + 4 * KEYS), np.int64)
    text[:, 0], text[:, 1 : 1 + KEYS] = BEGIN, draw.integers(0, VALUES, (count, KEYS))
    answer = text[:, 1 + KEYS :].reshape(count, KEYS, 3)
    answer[:, :, FILLER] = 2 * VALUES + np.arange(KEYS)
    answer[:, :, KEY] = text[:, 1 : 1 + KEYS]
    answer[:, :, NOISE] = VALUES + draw.integers(0, VALUES, (count, KEYS))
    weights = np.zeros((count, 4 * KEYS), np.float32)
    weights[:, KEYS:] = 1
    inputs, targets = text[:, :-1].ravel(), text[:, 1:].ravel()
    return Batch(inputs, targets, np.full(count, 4 * KEYS), np.arange(count), weights.ravel())


def kinds(count: int) -> np.ndarray:
    """int [targets], FILLER, KEY or NOISE; -1 in the prompt."""
    one = np.concatenate([np.full(KEYS, -1), np.tile([FILLER, KEY, NOISE], KEYS)])
    return np.tile(one, count)


def before_and_after(seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model that knows fillers, and what it has become when it has learned to copy."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=BEGIN + 1,
        max_position_embeddings=64,
        use_cache=False,
    )
    models = [AutoModelForCausalLM.from_config(config, attn_implementation="documents") for _ in range(2)]
    draw = np.random.default_rng(seed)
    learn(models[0], [samples(draw, 64) for _ in range(60)], 3e-3)
    models[1].load_state_dict(models[0].state_dict())
    learn(models[1], [samples(draw, 64) for _ in range(300)], 4e-3)
    return models[0], models[1]
