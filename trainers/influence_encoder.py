"""The encoder of an influence model: learned from documents and their standardised losses.

Yu et al. 2024 (arXiv 2406.06046): mean squared error, AdamW with weight decay 0.01 and linear decay, dropout 0.1 before
the last layer, all weights learn. The published code keeps the weights of the best held-out Spearman; here the last
ones stay, so that documents held out tell what they should. One thread: the same documents and seed give the same
bytes. A step costs three times what reading its documents does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from trainers.fit_classifier import batches, padded
from transforms.chunks import Chunker, Chunks
from transforms.model_folder import ENCODER, check_model_folder, load_model
from transforms.sequence_classifier import one_thread

if TYPE_CHECKING:
    import torch

    from transforms.mean_pooled import MeanPooled

FOLDER = "encoder"  # of the model folder


class Steps(NamedTuple):
    """Passes over the documents, documents to a step, learning rate at the first step."""

    epochs: int
    batch: int
    lr: float


def fit_encoder(
    folder: Path,
    window: int,
    texts: pa.LargeStringArray,
    z: np.ndarray,
    out: Path,
    seed: int,
    how: Steps,
) -> tuple[np.ndarray, float]:
    """Learn z (float64 [texts]) on the encoder in `folder`, write it with its tokenizer into `out`/encoder.

    Args:
        window: tokens of half a document, special ones included (see `mean_pooled.half_window`).

    Returns:
        The layer behind the encoder: float32 [width], and its constant.
    """
    import torch
    from transformers.utils import logging

    from transforms.mean_pooled import HALVES, MeanPooled

    logging.disable_progress_bar()
    checked = check_model_folder(folder, ENCODER)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, _ = load_model("AutoModel", folder, new_head=True)
        model = MeanPooled(encoder)
        torch.nn.init.normal_(model.head.weight, std=0.02)
        torch.nn.init.zeros_(model.head.bias)
        chunks = Chunker(folder, window).cut(texts, "whole", HALVES)
        some = np.flatnonzero(chunks.counts)  # a text without tokens teaches nothing
        if not len(some):
            raise ValueError(f"no document has a token of the encoder's in {folder}")
        _learn(model, chunks.of(some), z[some], checked.config.get("pad_token_id"), seed, how)
        encoder.save_pretrained(out / FOLDER, safe_serialization=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, out / FOLDER / name)
    return model.head.weight.detach().numpy()[0].copy(), float(model.head.bias.detach())


def _learn(model: MeanPooled, chunks: Chunks, z: np.ndarray, pad: int | None, seed: int, how: Steps) -> None:
    import torch

    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=how.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    steps = list(batches(chunks.tokens, how.batch, how.epochs, seed))
    model.train()
    for step, members in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = how.lr * (1 - step / len(steps))
        members = np.sort(members)
        found = _values(model, chunks.of(members), pad)
        loss = ((found - torch.from_numpy(z[members]).float()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
    model.eval()


def _values(model: MeanPooled, chunks: Chunks, pad: int | None) -> torch.Tensor:
    """[documents]: means of the chunks' values, weighted by tokens, as `mean_pooled.document_means` has them."""
    import torch

    values = model(**padded(chunks, np.arange(len(chunks)), pad)).logits[:, 0]
    document = torch.from_numpy(np.repeat(np.arange(len(chunks.counts)), chunks.counts))
    size = torch.from_numpy(np.diff(chunks.offsets)).float()
    empty = torch.zeros(len(chunks.counts))
    return empty.index_add(0, document, values * size) / empty.index_add(0, document, size)
