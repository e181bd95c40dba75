"""Masked thought (arXiv 2403.02178): some input tokens of answers are hidden, every target stays.

Draws are a function of seed, step, the piece's tokens and the position, so a run that was killed goes on with the same
bits, and neither the order of documents nor the number of processes counts. Cost: a hash per token.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from trainers.data import Batch
from trainers.token_scores import Answers, Step, piece_keys
from trainers.tokenise import load_tokenizer
from transforms.draws import below, mix64
from transforms.token_pruning import answer_inputs


class MaskedThought(BaseModel):
    """Hides each answer token among the inputs with a probability that rises linearly to its full value.

    The paper: 0.4 for small sets (GSM8K), 0.2 for large ones, rising over two thirds of the run, and more epochs than
    without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    probability: float = Field(default=0.4, ge=0, le=1)
    warmup: float = Field(default=2 / 3, ge=0, le=1)  # share of the budget
    token: str | None = None  # of the tokenizer, put in place of hidden ones; None: its end token

    def probability_at(self, progress: float) -> float:
        """progress: share of the budget that is spent, 0 to 1."""
        return self.probability * (min(progress / self.warmup, 1.0) if self.warmup else 1.0)

    def mask_id(self, tokenizer: Path) -> int:
        """Id of the token that hides others. ValueError if the tokenizer (folder or file) has no such token."""
        loaded, end = load_tokenizer(tokenizer)
        found = end if self.token is None else loaded.token_to_id(self.token)
        if found is None:
            raise ValueError(
                f"masked thought: {tokenizer} has no token {self.token!r}; name one of its tokens, "
                "or none for its end token"
            )
        return int(found)

    def corrupt(self, batch: Batch, step: Step, mask: int) -> Batch:
        """The batch with hidden inputs. An input belongs to an answer where it was a trained target one place before;
        the first input of a piece never does. Give the batch as it was drawn, before weights are pruned."""
        ends = np.cumsum(batch.lengths)
        answer = answer_inputs(Answers.of(batch).weights > 0, np.concatenate([[0], ends]))
        salt = mix64(mix64(np.array([step.seed % 2**64], np.uint64)) ^ np.uint64(step.step))
        draw = mix64(np.repeat(mix64(piece_keys(batch) ^ salt), batch.lengths) ^ mix64(batch.positions))
        hidden = answer & below(draw, self.probability_at(step.progress))
        return replace(batch, inputs=np.where(hidden, mask, batch.inputs))
