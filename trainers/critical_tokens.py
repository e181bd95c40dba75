"""Critical tokens by contrast, and the preference loss that weighs them: cDPO (arXiv 2411.19943).

Two models, one trained on right solutions and one on wrong ones, tell which token of a solution leads astray: where
the first, pushed away from the second, finds it unlikely. Losses here are functions of log-probabilities; the trainer
has no loop over pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import CHUNK
from trainers.model import head, hidden_states
from trainers.token_scores import Answers, Step, reading, score_parts


def contrastive_probability(
    positive: torch.Tensor, negative: torch.Tensor, targets: torch.Tensor, beta: float = 1.0
) -> torch.Tensor:
    """float [tokens]: s_t = softmax((1 + β) positive - β negative) at the target. The lower, the more critical.

    positive, negative: logits or log-probabilities [tokens, vocabulary] of the two models; targets int64 [tokens].
    """
    contrast = torch.log_softmax((1 + beta) * positive - beta * negative, dim=1)
    return contrast.gather(1, targets[:, None])[:, 0].exp()


def contrast(
    positive: PreTrainedModel, negative: PreTrainedModel, batch: Batch, step: Step, beta: float = 1.0
) -> np.ndarray:
    """float32 [tokens]: s_t of every trained target of a batch, 1 for other targets."""

    def score(part: Batch) -> torch.Tensor:
        states = [hidden_states(model, part) for model in (positive, negative)]
        found = torch.ones(len(part.targets), 1, device=states[0].device)
        targets = torch.from_numpy(part.targets).to(found.device)
        for some in torch.from_numpy(Answers.of(part).place).to(found.device).split(CHUNK):
            good, bad = ((h[some] @ head(m).T).float() for h, m in zip(states, (positive, negative), strict=True))
            found[some, 0] = contrastive_probability(good, bad, targets[some], beta)
        return found

    with reading(positive, negative):
        return score_parts(batch, step, 1, score)[:, 0]


class Answered(NamedTuple):
    """One side of pairs: solutions end to end; pair i has the tokens `offsets[i]:offsets[i + 1]`."""

    log_p: torch.Tensor  # float [tokens], of the model that learns
    reference: torch.Tensor  # float [tokens], of the model it shall stay near
    weights: torch.Tensor  # float [tokens]: 1 - s_t for rejected ones, s_t or 1 for chosen ones
    offsets: torch.Tensor  # int64 [pairs + 1]

    def ratios(self) -> torch.Tensor:
        """[tokens]: weighted log-ratios."""
        return self.weights * (self.log_p - self.reference)


def weighted_dpo_loss(
    chosen: Answered, rejected: Answered, beta: float = 0.1, per_position: bool = False
) -> torch.Tensor:
    """Mean over pairs of -log σ(β (Σ chosen - Σ rejected)), the sums over weighted log-ratios of tokens; a scalar.

    per_position does as the released code: the logistic of each position's difference, the two answers aligned at their
    starts (the shorter one goes on with zeros), and the mean over all positions of all pairs.
    Raises ValueError if the two sides hold different numbers of pairs.
    """
    if len(chosen.offsets) != len(rejected.offsets):
        raise ValueError(
            f"{len(chosen.offsets) - 1} chosen and {len(rejected.offsets) - 1} rejected answers; give pairs"
        )
    if not per_position:
        return -functional.logsigmoid(beta * (_sums(chosen) - _sums(rejected))).mean()
    lengths = torch.maximum(chosen.offsets.diff(), rejected.offsets.diff())
    start = lengths.cumsum(0) - lengths
    aligned = []
    for side in (chosen, rejected):
        count = side.offsets.diff()
        place = torch.arange(len(side.log_p), device=count.device) + (start - side.offsets[:-1]).repeat_interleave(
            count
        )
        zeros = side.log_p.new_zeros(int(lengths.sum()))
        aligned.append(zeros.index_add(0, place, side.ratios()))
    return -functional.logsigmoid(beta * (aligned[0] - aligned[1])).mean()


def _sums(side: Answered) -> torch.Tensor:
    count = side.offsets.diff()
    pair = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return side.log_p.new_zeros(len(count)).index_add(0, pair, side.ratios())
