"""How far apart two causal language models predict the tokens of a document: Jensen-Shannon divergence, in nats.

JSD = ½ KL(p | m) + ½ KL(q | m) with m = (p + q) / 2: symmetric, 0 where the models agree, log 2 where nothing is likely
to both. Documents are read as `transforms.losses` does, by both models in the same rows; a document's numbers have the
same bits in any company.

Cost: a reading by either model, and for the divergence about as much as two softmaxes more. Memory: both models, a
row's activations of each, and two chunks of logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import pad

from transforms.causal_model import CausalModel
from transforms.losses import Lot, Windows, chunk_size, lots, score_rows, target_states

BLOCK = 1 << 17  # numbers of a distribution's rows that are worked on at a time


def token_divergences(
    first: CausalModel, second: CausalModel, texts: pa.LargeStringArray, window: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents (int64 [tokens]) and divergences (float32 [tokens], nats) at the tokens that `token_losses` scores.

    A document may go on in the next of these. The models' folders have passed `model_folder.check_same_tokens`. Texts:
    one per document, without nulls.

    Raises:
        ValueError: a stride outside 1..window - 1, or numbers that are no divergences (a model's weights are broken).
    """
    for lot, windows, row in lots(first, texts, window, stride):
        document, jsd = score_rows(lot, windows, row, partial(_row, first, second), [np.float32], first.device)
        yield document, jsd


@torch.inference_mode()
def _row(first: CausalModel, second: CausalModel, lot: Lot, windows: Windows, row: int) -> tuple[np.ndarray, ...]:
    """Places in the lot of the tokens that the windows score, and divergences."""
    (targets, one), (_, other) = (target_states(model, lot, windows, row) for model in (first, second))
    found, size = np.zeros(len(targets), np.float32), chunk_size(first)
    for a in range(0, len(targets), size):
        parts = (h[a : a + size] for h in (one, other))
        p, q = (
            torch.softmax(model.logits(pad(h, (0, 0, 0, size - len(h)))), dim=1)
            for model, h in zip((first, second), parts, strict=True)
        )
        found[a : a + size] = jensen_shannon(p, q)[: len(targets) - a].cpu()
    return targets, found


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """[rows], nats, 0 to log 2: the divergence of distributions [rows, vocabulary]; the same bits either way round.

    What is 0 in both counts 0; NaN where a probability is. In float32 off by up to 1e-7. Few rows at a time, since what
    lies between stays in the cache: three times as fast.
    """
    rows = 1 << max(0, (BLOCK // p.shape[1]).bit_length() - 1)
    parts = zip(p.split(rows), q.split(rows), strict=True)
    return torch.cat([_jensen_shannon(*part) for part in parts]).clamp_(0.0, float(np.log(2)))


def _jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    least = torch.finfo(p.dtype).tiny  # its logarithm times 0 is 0
    m = (p + q).mul_(0.5).clamp_min_(least)
    terms = (p / m).clamp_min_(least).log_().mul_(p)
    torch.div(q, m, out=m).clamp_min_(least).log_().mul_(q)
    return terms.add_(m).sum(dim=1).mul_(0.5)
