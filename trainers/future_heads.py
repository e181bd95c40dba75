"""Auxiliary heads that predict tokens further ahead while a model is trained (CAFT, arXiv 2506.07833).

Head i = 1, 2, … reads the model's last hidden states and predicts, at each token, the target i places after the model's
own: through one layer of its own and the model's output matrix. Their losses are added to the model's,

    loss = l_0 + weight · c(progress) · Σ_i decay^i · l_i,

so the hidden states come to hold more of what follows. The heads are thrown away when the model is saved.

Targets lie within the same piece of a document: nothing is predicted across the pieces of a packed row, and a head's
layer attends through the model's own attention function, which keeps them apart. As all sums of a batch are divided by
one number, the weight of its targets, l_i is the sum over the targets that head i has (i fewer in each piece) per
target of the batch, not per target of its own.

Cost per head: its layer and the head of the language model once more. A step of two layers of width 128 with a
vocabulary of 4,096 takes 3.7 to 4.1 times as long with four decoder heads, 2.8 to 3.2 times with residual ones; deep
models with small vocabularies pay less.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import cross_entropy


class FutureHeadsConfig(BaseModel):
    """Defaults are the released script's. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int = Field(default=4, gt=0)  # head i predicts i tokens further ahead than the model
    layer: Literal["decoder", "residual"] = "decoder"  # residual: x + silu(W x), W = 0 at first; needs no attention
    weight: float = Field(default=0.01, ge=0)  # alpha
    decay: float = Field(default=0.8, gt=0, le=1)  # gamma
    schedule: Literal["rsine", "sine", "linear", "constant"] = "rsine"  # rsine falls from 1 to 0, sine and linear rise

    def factor(self, progress: float) -> float:
        """What the heads' losses are multiplied with when this share of the budget is spent."""
        shapes = {
            "rsine": math.sin((1 - progress) * math.pi / 2),
            "sine": math.sin(progress * math.pi / 2),
            "linear": progress,
            "constant": 1.0,
        }
        return self.weight * shapes[self.schedule]


class FutureHeads(torch.nn.Module):
    """The heads of a model and their loss."""

    def __init__(self, config: FutureHeadsConfig, model: PreTrainedModel) -> None:
        """Decoder heads begin as copies of the model's last layer. ValueError: it has none that can be copied."""
        super().__init__()
        self.config = config
        if config.layer == "residual":
            width = model.get_output_embeddings().weight.shape[1]
            layers = [_Residual(width) for _ in range(config.heads)]
        else:
            base = model.base_model
            if not (hasattr(base, "layers") and hasattr(base, "rotary_emb")):
                raise ValueError(
                    f"{model.config.model_type} has no decoder layers with rotary positions to make heads of; "
                    "use layer: residual"
                )
            shared = {id(model.config): model.config}  # its attention function is asked for at every call
            layers = [copy.deepcopy(base.layers[-1], dict(shared)) for _ in range(config.heads)]
            self.rotary = copy.deepcopy(base.rotary_emb, dict(shared))
        self.layers = torch.nn.ModuleList(layers).to(model.device).requires_grad_(True)

    def forward(self, hidden: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        """[tokens, width] of each head, to be multiplied with the output matrix; hidden [tokens, width]."""
        if self.config.layer == "residual":
            return [layer(hidden) for layer in self.layers]
        positions = torch.from_numpy(batch.positions)[None].to(hidden.device)
        given: dict[str, Any] = {
            "position_ids": positions,
            "position_embeddings": self.rotary(hidden[None], positions),
            "document_lengths": batch.lengths.tolist(),
        }
        return [layer(hidden[None], **given)[0] for layer in self.layers]

    def sums(
        self,
        hidden: torch.Tensor,
        batch: Batch,
        output: torch.Tensor,
        weights: torch.Tensor | None,
        progress: float,
    ) -> torch.Tensor:
        """Weighted sum of the heads' losses, to be added to the sum of the model's own.

        hidden [tokens, width]: what the model's own head reads. output [vocabulary, width]: its matrix. weights
        [tokens]: of the batch's targets, None for ones; a target weighs as much wherever it is predicted from.
        progress: share of the budget that is spent.
        """
        factor = self.config.factor(progress)
        targets = torch.from_numpy(batch.targets).to(hidden.device)
        weights = torch.ones(len(targets), device=hidden.device) if weights is None else weights
        states, shifted, weighed = [], [], []
        for i, state in enumerate(self(hidden, batch), start=1):
            at = torch.from_numpy(sources(batch.lengths, i)).to(hidden.device)
            states.append(state.index_select(0, at))
            shifted.append(targets[at + i])
            weighed.append(weights[at + i] * (factor * self.config.decay**i))
        return cross_entropy(torch.cat(states), output, torch.cat(shifted), torch.cat(weighed))[0]


def sources(lengths: np.ndarray, ahead: int) -> np.ndarray:
    """int64 [n]: the places of a packed row from which `ahead` places on is still within the same piece.

    lengths: int64 [pieces].
    """
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(int(lengths.sum()))
    return np.flatnonzero(left > ahead)


class _Residual(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.nn.functional.silu(self.linear(x))
