"""A regression on the mean of an encoder's last hidden states, over all tokens of a document read in two halves.

MATES' influence model (Yu et al. 2024, arXiv 2406.06046): both halves of a long document go through the encoder for
themselves, and the mean runs over the tokens of both. The layer behind it is linear, so a document's value is the mean
of its chunks' values, weighted by their tokens; chunks are read as classifiers read them
(`transforms.sequence_classifier`) and have the same bits in any company. The cost is the encoder's.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from transforms.chunks import Chunks
from transforms.model_folder import load_model
from transforms.sequence_classifier import ClassifierFolder, SequenceClassifier

HALVES = 2


class MeanPooled(torch.nn.Module):
    """An encoder of transformers, dropout and a linear layer; called and answering as its classifiers do."""

    def __init__(self, encoder: Any, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(encoder.config.hidden_size, 1)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SimpleNamespace:
        given = {} if attention_mask is None else {"attention_mask": attention_mask}
        hidden = self.encoder(input_ids=input_ids, **given).last_hidden_state
        if attention_mask is None:
            mean = hidden.mean(dim=1)
        else:
            mask = attention_mask[:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return SimpleNamespace(logits=self.head(self.dropout(mean)))


def load_pooled(checked: ClassifierFolder, weight: np.ndarray, bias: float) -> SequenceClassifier:
    """The model of an encoder's folder and a linear layer (float32 [width]).

    Raises:
        ValueError: the encoder's weights cannot be read, are not whole or of another width.
    """
    encoder, _ = load_model("AutoModel", checked.folder.path, new_head=True)  # poolers are not asked
    model = MeanPooled(encoder)
    if model.head.weight.shape[1] != len(weight):
        expected = model.head.weight.shape[1]
        raise ValueError(f"{checked.folder.path} has states of {expected} numbers, the layer behind it {len(weight)}")
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight)[None])
        model.head.bias.fill_(bias)
    return SequenceClassifier(checked, model.eval().requires_grad_(False))


def predict(model: SequenceClassifier, texts: pa.LargeStringArray) -> np.ndarray:
    """float64 [texts]: the value of each; NaN without tokens, or where the model gives no number."""
    chunks = model.chunker.cut(texts, "whole", HALVES)
    return document_means(chunks, model.scores(chunks, 0))


def document_means(chunks: Chunks, values: np.ndarray) -> np.ndarray:
    """float64 [documents]: values of chunks, weighted by their tokens; NaN where there are none."""
    document = np.repeat(np.arange(len(chunks.counts)), chunks.counts)
    size = np.diff(chunks.offsets).astype(np.float64)
    total = np.bincount(document, values * size, minlength=len(chunks.counts))
    with np.errstate(invalid="ignore"):
        return total / np.bincount(document, size, minlength=len(chunks.counts))


def half_window(path: Path, window: int, tokens: int) -> int:
    """Tokens of a chunk, special ones included, of an encoder that reads `window`, for documents of `tokens` tokens.

    Raises:
        ValueError: the encoder's window has no room beside special tokens.
    """
    from transforms.chunks import Chunker

    chunker = Chunker(path, window)
    return min(window, len(chunker.prefix) + len(chunker.suffix) + max(1, tokens // HALVES))
