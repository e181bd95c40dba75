"""The optimiser of a run: AdamW over what is to be trained."""

from __future__ import annotations

import torch

from trainers.config import TrainConfig
from trainers.learner import Learner
from trainers.model import head


def make_optimiser(learner: Learner, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decoupled decay (arXiv 1711.05101) of the matrices only: not of embeddings, norms and biases."""
    embeddings = {id(head(learner.model)), id(learner.model.get_input_embeddings().weight)}
    parameters = [p for p in learner.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
