"""Log-probabilities of continuations after contexts, on packed rows: what tasks and the evaluation harness ask for.

One forward pass for each pair, without padding; pairs of a row do not see each other. Logits are made for the tokens of
continuations alone. Where context and continuation are longer than a row, the beginning of the context is left out; a
continuation that alone is longer is predicted in pieces of a row, each seeing the row of tokens before its last one.
Cost: a batch of 16 rows of hidden states; the loop over pairs is numpy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import CHUNK
from trainers.model import head, hidden_states
from transforms.packing import pack, split_lengths

ROWS = 16  # of a batch


@dataclass(frozen=True)
class Likelihood:
    """Of each pair of a context and a continuation."""

    log_probability: np.ndarray  # float64 [pairs], nats; of the continuation given the context
    greedy: np.ndarray  # bool [pairs], whether every token of the continuation is the most likely one
    cut: np.ndarray  # bool [pairs], whether the context's beginning was left out


@torch.no_grad()
def likelihood(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    row_length: int,
    bf16: bool = False,
) -> Likelihood:
    """Log-probability of each continuation after its context, both as token ids.

    An empty continuation has log-probability 0 and is greedy. bf16: multiply in bf16.

    Raises:
        ValueError: a context is empty: the first token needs one before it.
    """
    windows = _windows(contexts, continuations, row_length)
    nats, greedy = np.zeros(len(contexts)), np.ones(len(contexts), bool)
    training = model.training
    model.eval()
    precision = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    with precision:
        for batch in _batches(windows, row_length):
            losses, best = _predicted(model, batch)
            pair = np.repeat(batch.documents, batch.lengths)[_counted(batch)]
            np.add.at(nats, pair, losses)
            np.logical_and.at(greedy, pair, best)
    model.train(training)
    return Likelihood(-nats, greedy, windows.cut)


@dataclass(frozen=True)
class _Windows:
    """What is fed at once: the tokens start:end, of which the last `predicted` are targets that count."""

    tokens: np.ndarray  # int64, contexts and continuations end to end
    pair: np.ndarray  # int64 [windows]
    start: np.ndarray  # int64 [windows], of the inputs, which end before the last token
    length: np.ndarray  # int64 [windows], of the inputs
    predicted: np.ndarray  # int64 [windows]
    cut: np.ndarray  # bool [pairs]


def _windows(contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], row_length: int) -> _Windows:
    before = np.array([len(tokens) for tokens in contexts], np.int64)
    after = np.array([len(tokens) for tokens in continuations], np.int64)
    if len(before) and not before.all():
        raise ValueError(f"context {int(np.argmin(before))} is empty; give it at least the token that begins a text")
    parts = [np.asarray(tokens, np.int64) for pair in zip(contexts, continuations, strict=True) for tokens in pair]
    first = np.cumsum(before + after) - before - after
    pieces = split_lengths(after, row_length)
    end = before[pieces.document] + pieces.start + pieces.length - 1  # of the inputs, within the pair
    start = np.maximum(0, end - row_length)
    cut = np.zeros(len(before), bool)
    cut[pieces.document[(pieces.start == 0) & (start > 0)]] = True
    tokens = np.concatenate([*parts, np.zeros(0, np.int64)])
    return _Windows(tokens, pieces.document, first[pieces.document] + start, end - start, pieces.length, cut)


def _batches(windows: _Windows, row_length: int) -> Iterator[Batch]:
    """Windows packed into batches of ROWS rows, longest first, with weight 1 on the targets that count."""
    rows = pack(windows.length, row_length)
    for row in range(0, len(rows), ROWS):
        own = rows.order[rows.offsets[row] : rows.offsets[min(row + ROWS, len(rows))]]
        own = own[np.argsort(-windows.length[own], kind="stable")]  # equal lengths share one call of attention
        length = windows.length[own]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        place = np.repeat(windows.start[own], length) + within
        counts = within >= np.repeat(length - windows.predicted[own], length)
        inputs, targets = windows.tokens[place], windows.tokens[place + 1]
        yield Batch(inputs, targets, length, windows.pair[own], counts.astype(np.float32))


def _counted(batch: Batch) -> np.ndarray:
    """int [targets that count], their places."""
    assert batch.weights is not None
    return np.flatnonzero(batch.weights)


def _predicted(model: PreTrainedModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Loss in nats (float64) of the targets of a batch that count, and whether each was the most likely token."""
    chosen = torch.from_numpy(_counted(batch)).to(model.device)
    hidden = hidden_states(model, batch)[chosen]
    targets = torch.from_numpy(batch.targets).to(model.device)[chosen]
    output, losses, best = head(model), [], []
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        log_p = torch.log_softmax((h @ output.T).float(), dim=-1)
        losses.append(-log_p.gather(1, t[:, None])[:, 0])
        best.append(log_p.argmax(dim=-1) == t)
    return torch.cat(losses).double().cpu().numpy(), torch.cat(best).cpu().numpy()
