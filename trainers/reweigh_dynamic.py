"""Dynamic loss-based reweighting: samples of a step weigh by the loss the model now has on them (arXiv 2502.06733).

The samples are the pieces of the step's batch; what is learned is Σ w_i l_i with l_i the mean loss of piece i and the
weights of transforms/loss_reweighting.py. Weights are scaled so that their sum over the batch's targets is as before:
with uniform w every piece counts the same, however long, where plain training counts every token the same.
Cost: a forward pass over the batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import token_losses
from trainers.model import head, hidden_states
from trainers.reweigh import Reweighing
from trainers.token_scores import Step, reading, score_parts
from transforms.loss_reweighting import Strategy, dynamic_weights


class Dynamic(Reweighing):
    """Weighs the pieces of a batch by their losses."""

    method: Literal["dynamic"] = "dynamic"
    strategy: Strategy = "linupper"
    strength: float = Field(default=1.0, gt=0)  # r: smaller ones tell losses apart more; 0.4 for 200M parameters and up
    warmup: float = Field(default=0.05, ge=0, le=1)  # share of the budget that is trained as it is

    def weights(self, model: PreTrainedModel, batch: Batch, step: Step) -> np.ndarray:
        if step.progress < self.warmup:
            return np.ones(len(batch.targets), np.float32) if batch.weights is None else batch.weights

        def score(part: Batch) -> torch.Tensor:
            targets = torch.from_numpy(part.targets).to(model.device)
            return token_losses(hidden_states(model, part), head(model), targets)[:, None]

        with reading(model):
            losses = score_parts(batch, step, 1, score)[:, 0]
        return self.decide(batch, losses)

    def decide(self, batch: Batch, losses: np.ndarray) -> np.ndarray:
        """As `weights`, from the tokens' losses (float [tokens], nats); all float32 [tokens]."""
        before = np.ones(len(losses)) if batch.weights is None else batch.weights.astype(np.float64)
        piece = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
        weight = np.bincount(piece, before, len(batch.lengths))
        trained = weight > 0
        total = np.bincount(piece, np.where(before > 0, before * losses, 0), len(batch.lengths))
        share = np.zeros(len(batch.lengths))
        share[trained] = dynamic_weights(total[trained] / weight[trained], self.strategy, self.strength)
        scale = np.divide(share * weight.sum(), weight, out=np.zeros_like(share), where=trained)
        return (before * scale[piece]).astype(np.float32)
