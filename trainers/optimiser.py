"""The optimiser of a run: AdamW over what is to be trained."""

from __future__ import annotations

import torch

from trainers.config import TrainConfig
from trainers.learner import Learner

DECAY = 0.1


def make_optimiser(learner: Learner, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decoupled decay (arXiv 1711.05101) of the matrices only: not of embeddings, norms and biases."""
    model = learner.model
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(p) for table in tables for p in table.parameters()}
    parameters = [p for p in learner.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    default = 0.0 if learner.adapted else DECAY
    decay = default if config.weight_decay is None else config.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
