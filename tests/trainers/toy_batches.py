"""Batches of random tokens whose pieces hold several turns."""

from __future__ import annotations

import numpy as np

from trainers.data import Batch


def make_batch(lengths: list[int], seed: int = 0, vocabulary: int = 300) -> Batch:
    """Five targets of a prompt and five of an answer by turns, weights of pieces 1 or 0.5; the last learns nothing."""
    draw = np.random.default_rng(seed)
    text = [draw.integers(0, vocabulary, n + 1) for n in lengths]
    trained = [(np.arange(n) // 5 % 2 * draw.choice([1.0, 0.5])).astype(np.float32) for n in lengths]
    trained[-1][:] = 0
    inputs, targets = (np.concatenate([t[a : len(t) - 1 + a] for t in text]) for a in (0, 1))
    return Batch(inputs, targets, np.array(lengths), np.arange(len(lengths)), np.concatenate(trained))
