"""What a language model says about every token of a packed batch, as arrays: the material of token pruning.

One forward pass without gradients, in parts of `part_tokens`; of the logits, one chunk of CHUNK tokens is held at a
time, and only of targets that are trained. Several processes each read their share of the pieces and exchange scores.
Numbers are those of the model in evaluation mode (no dropout), under the caller's autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainers.data import Batch
from trainers.distributed import World
from trainers.loss import CHUNK
from trainers.model import head, hidden_states
from transforms.draws import mix64
from transforms.token_pruning import answer_inputs

QUERIES = 128  # whose attention is computed at a time
ATTENTION_NUMBERS = 1 << 22  # of one block: 16 MB
_WATCHED = "documents, watched"


@dataclass(frozen=True)
class Step:
    """Where a run is when a batch is judged."""

    step: int = 0  # number of the step, from 0
    tokens: int = 0  # seen before it
    budget: int = 1  # tokens of the run
    seed: int = 0
    part_tokens: int = 16384  # of one forward pass
    world: World = field(default_factory=World)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(self.tokens / self.budget, 1.0)


@dataclass(frozen=True)
class Answers:
    """The trained targets of a batch; the samples are its pieces."""

    weights: np.ndarray  # float32 [tokens of the batch], as they were
    place: np.ndarray  # int64 [trained], their places in the batch
    offsets: np.ndarray  # int64 [pieces + 1], where each sample begins in `place`

    @classmethod
    def of(cls, batch: Batch) -> Answers:
        weights = np.ones(len(batch.targets), np.float32) if batch.weights is None else batch.weights
        before = np.concatenate([[0], np.cumsum(weights > 0)])
        return cls(weights, np.flatnonzero(weights > 0), before[np.concatenate([[0], np.cumsum(batch.lengths)])])

    def means(self, values: np.ndarray) -> np.ndarray:
        """float64 [pieces]: mean of values (float [tokens of the batch]) over each sample; NaN where nothing is
        trained. Sums run token by token, so they depend on the sample alone."""
        count = np.diff(self.offsets)
        sample = np.repeat(np.arange(len(count)), count)
        total = np.bincount(sample, weights=values[self.place], minlength=len(count))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def only(self, kept: np.ndarray) -> np.ndarray:
        """float32 [tokens of the batch]: the weights, 0 for the trained targets that are not kept (bool [trained])."""
        weights = self.weights.copy()
        weights[self.place[~kept]] = 0
        return weights


def piece_keys(batch: Batch) -> np.ndarray:
    """uint64 [pieces]: a hash of each piece's tokens, for ties and draws that depend on no order of documents."""
    if not len(batch.lengths):
        return np.zeros(0, np.uint64)
    first = np.cumsum(batch.lengths) - batch.lengths
    tokens = mix64(mix64(batch.positions) ^ batch.targets.astype(np.uint64))
    return mix64(np.add.reduceat(tokens, first) ^ mix64(batch.inputs[first]))


def losses_and_entropies(model: PreTrainedModel, batch: Batch, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """float32 [tokens] each, nats: the loss of every trained target and the entropy of the distribution it was drawn
    from, over the whole vocabulary; 0 for other targets."""

    def score(part: Batch) -> torch.Tensor:
        return _loss_and_entropy(hidden_states(model, part), model, part)

    with reading(model):
        found = score_parts(batch, step, 2, score)
    return found[:, 0], found[:, 1]


def losses_and_attention(model: PreTrainedModel, batch: Batch, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """float32 [tokens] each: losses as above, and how much of the last layer's attention goes from each target to
    prompt tokens before it (0 to 1, mean over heads).

    A target attends from where it is read as an input, one place later; the last target of a piece is not read, it
    takes the attention of the place that predicts it. The prompt is all that is not answer: with several turns, every
    turn of the user so far. The first input of a piece counts as prompt.
    """

    def score(part: Batch) -> torch.Tensor:
        answers = Answers.of(part)
        edges = np.concatenate([[0], np.cumsum(part.lengths)])
        prompt = torch.from_numpy(~answer_inputs(answers.weights > 0, edges)).to(model.device)
        with _watching(model, prompt) as seen:
            scores = _loss_and_entropy(hidden_states(model, part), model, part)
        own = np.arange(1, len(part.inputs) + 1)
        own[edges[1:] - 1] -= 1
        return torch.stack([scores[:, 0], seen[0][torch.from_numpy(own).to(model.device)]], dim=1)

    with reading(model):
        found = score_parts(batch, step, 2, score)
    return found[:, 0], found[:, 1]


def score_parts(batch: Batch, step: Step, columns: int, score: Callable[[Batch], torch.Tensor]) -> np.ndarray:
    """float32 [tokens, columns]: `score` (float [tokens of a part, columns]) of all pieces, whoever computed them.

    Raises FloatingPointError for scores that are no numbers.
    """
    world, pieces = step.world, np.arange(len(batch.lengths))
    own = [score(part).float().cpu().numpy() for part in batch.share(world.rank, world.ranks).parts(step.part_tokens)]
    values = np.concatenate([np.zeros((0, columns), np.float32), *own])
    order = np.concatenate([pieces[rank :: world.ranks] for rank in range(world.ranks)])
    length, first = batch.lengths[order], (np.cumsum(batch.lengths) - batch.lengths)[order]
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    whole = np.empty((len(batch.targets), columns), np.float32)
    whole[np.repeat(first, length) + within] = world.gather(values)
    if not np.isfinite(whole).all():  # asked after the exchange, so that all processes know
        raise FloatingPointError(f"step {step.step + 1}: the model's losses are no numbers")
    return whole


@contextmanager
def reading(*models: PreTrainedModel) -> Iterator[None]:
    """The models in evaluation mode and without gradients; afterwards as they were."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, before in zip(models, training, strict=True):
            model.train(before)


def _loss_and_entropy(hidden: torch.Tensor, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[tokens, 2], zeros for targets of weight 0."""
    wanted = torch.from_numpy(Answers.of(batch).place).to(hidden.device)
    targets = torch.from_numpy(batch.targets).to(hidden.device)
    scores = torch.zeros(len(hidden), 2, device=hidden.device)
    for some in wanted.split(CHUNK):
        log_p = torch.log_softmax(hidden[some] @ head(model).T, dim=1, dtype=torch.float32)
        scores[some, 0] = -log_p.gather(1, targets[some, None])[:, 0]
        scores[some, 1] = -(log_p.exp() * log_p.clamp_min(-1e30)).sum(dim=1)  # 0 · -inf shall be 0
    return scores


@contextmanager
def _watching(model: PreTrainedModel, prompt: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """While it is open, the last layer's attention to `prompt` (bool [tokens]) goes into the list that it gives.

    Queries and keys are taken where the model hands them to its attention function, so positions and norms are its own.
    """
    seen: list[torch.Tensor] = []
    name = model.config._attn_implementation
    attend, last = ALL_ATTENTION_FUNCTIONS[name], model.config.get_text_config().num_hidden_layers - 1

    def watch(module: Any, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if module.layer_idx == last:
            with torch.autocast(query.device.type, enabled=False):
                seen.append(attention_to(query[0], key[0], prompt, options["document_lengths"], options["scaling"]))
        return attend(module, query, key, *arguments, **options)

    AttentionInterface.register(_WATCHED, watch)
    model.set_attn_implementation(_WATCHED)
    try:
        yield seen
    finally:
        model.set_attn_implementation(name)


def attention_to(
    query: torch.Tensor, key: torch.Tensor, prompt: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    """float32 [tokens]: causal attention within each document that falls on tokens of `prompt`, mean over heads.

    query [heads, tokens, width], key [key heads, tokens, width], prompt bool [tokens], lengths of the documents.
    """
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    found = torch.empty(query.shape[1], device=query.device)
    start = 0
    for length in lengths:
        q, k = (x[:, start : start + length].float() for x in (query, key))
        own, place = prompt[start : start + length].float(), torch.arange(length, device=q.device)
        block = min(QUERIES, max(1, ATTENTION_NUMBERS // (len(q) * length)))
        for a in range(0, length, block):
            b = min(a + block, length)
            scores = (q[:, a:b] @ k[:, :b].transpose(1, 2) * scaling).masked_fill(
                place[:b] > place[a:b, None], float("-inf")
            )
            found[start + a : start + b] = (torch.softmax(scores, dim=-1) @ own[:b]).mean(dim=0)
        start += length
    return found
