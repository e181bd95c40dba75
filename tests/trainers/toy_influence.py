"""A model trained a little on sentences in order and out of order, and documents of both kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import make_mixture, make_tokenizer
from toy_corpus import prose

from trainers.config import TrainConfig
from trainers.model import ModelConfig
from trainers.train import train

TINY = ModelConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


def ordered(count: int, seed: int) -> list[str]:
    draw = np.random.default_rng([seed, 0])
    return [prose(draw, int(draw.integers(2, 5))) for _ in range(count)]


def shuffled(count: int, seed: int) -> list[str]:
    """Such documents with their words in random order."""
    draw = np.random.default_rng([seed, 1])
    return [" ".join(draw.permutation(text.split())) for text in ordered(count, seed + 1000)]


def trained(folder: Path) -> Path:
    """Folder of a finished run of the trainer, with model and checkpoints."""
    texts = [*ordered(150, 1), *shuffled(150, 2)]
    tokenizer = make_tokenizer(folder / "tokenizer", texts, 400)
    make_mixture(folder / "mixture", {"both": texts}, tokenizer)
    config = TrainConfig(model=TINY, tokens=40_000, row_length=96, threads=1, precision="fp32")
    train(config, folder / "mixture", folder / "training" / "seed0")
    return folder / "training" / "seed0"
