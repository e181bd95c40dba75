"""What a step differentiates: the model and the loss of a packed batch, as one module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import cross_entropy
from trainers.model import head, hidden_states


@dataclass(frozen=True)
class Sums:
    """Sums over the targets of a batch, each times its weight; scalars."""

    loss: torch.Tensor  # what is trained
    nats: torch.Tensor  # plain cross-entropy, detached: what the log tells, whatever is trained


class Learner(torch.nn.Module):
    """The model of a run with its loss."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        device: torch.device = self.model.device
        return device

    def forward(self, batch: Batch, progress: float) -> Sums:
        """progress: share of the budget that is spent, 0 to 1, for losses that fade."""
        device = self.device
        targets = torch.from_numpy(batch.targets).to(device)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
        loss, _ = cross_entropy(hidden_states(self.model, batch), head(self.model), targets, weights)
        return Sums(loss, loss.detach())
