"""Reweighing: the model that is about to learn decides what of a step's batch it learns from, and how much.

A decision is a function of the model, the batch of the whole step and how far the run is, so a resumed run needs no
state for it. Cost: a forward pass over the batch (Q-Tuning), or that and one of another model (ssToken); what is then
dropped whole is left out of the pass that learns (`Batch.trained`).

Q-Tuning (arXiv 2509.23873) pools its thresholds over all pieces of the step: the larger `batch_tokens`, the better its
quantiles. What the paper leaves open: a sample is a
piece of a document; more than the asked share is kept where a corner holds more; the middle band is dropped, unless
corners and the filling up from the dropped ones do not suffice; samples that fill up are kept whole; quantiles are
discrete and corners include their edges; neighbours are the trained tokens before and after in the sample, a missing
one counts as the token itself; the share of tokens is rounded up; ties between samples go by a hash of their tokens,
ties between tokens to the earlier one. `keep: low` (drop the most perplexing tokens) is what the prose, the figure and
the ablation say, `high` what its algorithm 1 says. Pruned tokens stay as context: only their loss goes.

ssToken (arXiv 2510.18250): the released code starts with attention alone until a certain sample comes; `warmup` is
that as a share of the budget.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.model import ModelPath, check_packing, check_reads, load_model
from trainers.token_scores import Answers, Step, losses_and_attention, losses_and_entropies, piece_keys
from transforms.quadrants import MISTAKE, sample_stage
from transforms.token_pruning import keep_share, self_modulated, smoothed_perplexity

Share = Annotated[float, Field(gt=0, le=1)]


class Reweighing(BaseModel):
    """A rule for the loss weights of a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def check(self, device: str, tokenizer: Path, row_length: int, batch: Batch) -> None:
        """Before the first step, with a batch of the run. ValueError: a model compared with cannot read the mixture."""

    def weights(self, model: PreTrainedModel, batch: Batch, step: Step) -> np.ndarray:
        """float32 [tokens]: the new loss weights of the batch's targets, 0 for those that are pruned.

        batch: of the whole step, the same in every process.
        Raises FloatingPointError if the model's losses are no numbers.
        """
        raise NotImplementedError


class QTuning(Reweighing):
    """Keeps confident mistakes, without their most perplexing tokens, and hesitant successes whole."""

    method: Literal["q_tuning"] = "q_tuning"
    samples: Share = 0.25  # of the samples, at least
    tokens: Share = 0.5  # of the tokens of confident mistakes
    smoothing: float = Field(default=0.5, ge=0, le=1)  # λ: how much a token's neighbours count
    keep: Literal["low", "high"] = "low"  # which of these tokens, by smoothed perplexity

    def weights(self, model: PreTrainedModel, batch: Batch, step: Step) -> np.ndarray:
        return self.decide(batch, *losses_and_entropies(model, batch, step))

    def decide(self, batch: Batch, loss: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        """As `weights`, from the tokens' losses and entropies (float [tokens], nats)."""
        answers = Answers.of(batch)
        count = np.diff(answers.offsets)
        stage = sample_stage(answers.means(loss), answers.means(entropy), self.samples, piece_keys(batch))
        scores = smoothed_perplexity(loss[answers.place], answers.offsets, self.smoothing)
        inside = keep_share(scores, answers.offsets, self.tokens, self.keep)
        whole = np.repeat(stage.quadrant != MISTAKE, count)
        return answers.only(np.repeat(stage.keep, count) & (whole | inside))


class SSToken(Reweighing):
    """Keeps the tokens of each sample that the model has come to predict better and that look at the prompt."""

    method: Literal["sstoken"] = "sstoken"
    history: ModelPath  # what the run's progress is measured against, as a rule the model it starts from
    gamma: float = Field(default=0.5, ge=0, le=1)  # share of the progress in the score; the rest is attention
    tokens: Share = 0.6  # ρ: of each sample's tokens
    warmup: float = Field(default=0.0, ge=0, le=1)  # share of the budget during which attention alone decides

    def check(self, device: str, tokenizer: Path, row_length: int, batch: Batch) -> None:
        history = frozen_model(self.history, device)
        check_reads(history, self.history, tokenizer, row_length)
        check_packing(history, batch)

    def weights(self, model: PreTrainedModel, batch: Batch, step: Step) -> np.ndarray:
        before, _ = losses_and_entropies(frozen_model(self.history, str(model.device)), batch, step)
        now, attention = losses_and_attention(model, batch, step)
        return self.decide(batch, before, now, attention, step.progress)

    def decide(
        self, batch: Batch, history: np.ndarray, current: np.ndarray, attention: np.ndarray, progress: float
    ) -> np.ndarray:
        """As `weights`, from losses of the older model and of this one and the attention to prompts (float [tokens])"""
        answers = Answers.of(batch)
        gamma = 0.0 if progress < self.warmup else self.gamma
        before, now, seen = (values[answers.place] for values in (history, current, attention))
        scores = self_modulated(before, now, seen, answers.offsets, gamma)
        return answers.only(keep_share(scores, answers.offsets, self.tokens, "high"))


@lru_cache(maxsize=4)
def frozen_model(folder: Path, device: str) -> PreTrainedModel:
    """A model that is only read, loaded once per process."""
    return load_model(folder).eval().requires_grad_(False).to(device)
