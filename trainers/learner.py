"""What a step differentiates: the model, what trains beside it, and the loss of a packed batch, as one module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from trainers.adapters import Adapted, adapt
from trainers.config import TrainConfig
from trainers.data import Batch
from trainers.future_heads import FutureHeads
from trainers.loss import objective_sums
from trainers.mixture import Corpus
from trainers.model import head, hidden_states, make_model
from trainers.objectives import CrossEntropy, Objective, frozen_model, other_states, token_keys


@dataclass(frozen=True)
class Sums:
    """Sums over the targets of a batch, each times its weight; scalars."""

    loss: torch.Tensor  # what is trained
    nats: torch.Tensor  # plain cross-entropy, detached: what the log tells, whatever is trained


class Learner(torch.nn.Module):
    """The model of a run with its loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective | None = None,
        frozen: PreTrainedModel | None = None,
        heads: FutureHeads | None = None,
        adapted: Adapted | None = None,
    ) -> None:
        """objective: None for cross-entropy. frozen: what it compares with. adapted: the adapter inside `model`."""
        super().__init__()
        self.model, self.heads = model, heads
        self.objective = None if isinstance(objective, CrossEntropy) else objective
        self.adapted = adapted
        self._frozen = (frozen,)  # in a tuple it is no part of this module: not trained, not saved

    @property
    def frozen(self) -> PreTrainedModel | None:
        """What the objective compares with."""
        return self._frozen[0]

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        device: torch.device = self.model.device
        return device

    def forward(self, batch: Batch, progress: float) -> Sums:
        """progress: share of the budget that is spent, 0 to 1, for losses that fade."""
        targets = torch.from_numpy(batch.targets).to(self.device)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(self.device)
        hidden, output = hidden_states(self.model, batch), head(self.model)
        frozen, objective = self.frozen, self.objective
        compared = frozen is not None and objective is not None and objective.reads_other(progress)
        other = other_states(frozen, batch) if compared else None
        keys = token_keys(batch) if objective is not None and objective.reads_keys else None
        loss, nats = objective_sums(hidden, output, targets, weights, objective, other, progress, keys)
        if self.heads is not None:
            loss = loss + self.heads.sums(hidden, batch, output, weights, progress)
        return Sums(loss, nats)


def make_learner(config: TrainConfig, corpus: Corpus, device: str) -> Learner:
    """The learner that a config asks for, as it is before the first step.

    Raises ValueError: the start, the objective's other model, the adapter or the half do not fit.
    """
    model = make_model(config, corpus, device)
    frozen = frozen_model(config.objective, model, corpus.tokenizer, config.row_length)
    heads = FutureHeads(config.future_heads, model) if config.future_heads else None
    adapted = adapt(model, config.adapter, config.seed) if config.adapter else None
    if config.half is not None:
        config.half.freeze(model)
    return Learner(model, config.objective, frozen, heads, adapted)
