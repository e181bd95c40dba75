"""Losses to train with: each supplies the target q of trainers/loss.py, whose loss is -Σ q_a log p_a with q held fixed.

| kind | q | for |
|---|---|---|
| cross_entropy | 1 at the target y | pre-training, facts, formats |
| dft | p_y at y | noisy answers of which many are right; it hardly learns what the model finds unlikely |
| asft | p_y at y, and weight · base | the same, held near the base model |
| one_token_rollout | p'_y at y, beta · p'_a at every other token | as dft; p' is p at another temperature |
| distill | 1 - share at y, and share · teacher | the first part of a run: a teacher's odds are less noisy than data |

Losses that differ in kind differ in scale: dft is 10 to 20 times smaller than cross-entropy and may fall while that
rises, so the log has both, and models are compared by cross-entropy.

Time for the head of the model, forward and backward, against cross-entropy (8,192 tokens, vocabulary 4,096, width 192,
one core; float32, bf16): dft 1.01, 1.02; asft 1.6, 2.1; one_token_rollout 1.1, 1.5, sampled 1.7, 2.9; distill 1.5, 2.0.
asft and distill also take a forward pass of the frozen model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import Chunk, Other, Target
from trainers.model import ModelPath, check_reads, head, hidden_states, load_model
from trainers.token_scores import piece_keys
from transforms.draws import mix64, seeded


class _Loss(BaseModel):
    """An objective, as trainers.loss.Objective has it. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def reads_other(self, progress: float) -> bool:
        """Whether the target needs the frozen model at this share of the budget."""
        return False

    @property
    def reads_keys(self) -> bool:
        """Whether the target needs the tokens' names."""
        return False


class CrossEntropy(_Loss):
    """-log p_y."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def target(self, chunk: Chunk) -> Target:
        return Target()


class DFT(_Loss):
    """-sg(p_y) log p_y, whose gradient is that of -p_y (dynamic fine-tuning, arXiv 2508.05629)."""

    kind: Literal["dft"] = "dft"

    def target(self, chunk: Chunk) -> Target:
        return Target(chunk.log_p.gather(1, chunk.targets).exp_())


class ASFT(_Loss):
    """DFT's loss + weight · KL(base ‖ p) over the vocabulary (anchored fine-tuning, arXiv 2509.23753)."""

    kind: Literal["asft"] = "asft"
    weight: float = Field(default=0.05, ge=0)
    base: ModelPath | None = None  # model folder; None: the model as it is when the run begins

    def reads_other(self, progress: float) -> bool:
        return self.weight > 0

    def target(self, chunk: Chunk) -> Target:
        p_y = chunk.log_p.gather(1, chunk.targets).exp_()
        if self.weight == 0:
            return Target(p_y)
        log_base = _other(chunk)
        base = log_base.exp()
        negative_entropy = torch.linalg.vecdot(base, log_base).unsqueeze(1)
        return Target(p_y, base.mul_(self.weight), negative_entropy.mul_(self.weight))


class OneTokenRollout(_Loss):
    """Policy gradient on rollouts of one token: a draw earns 1 if it is the target, else beta (arXiv 2509.26313).

    Drawn from p' = softmax(logits / temperature). `closed` takes the expectation over the draws, so q is p'_y at the
    target and beta · p'_a elsewhere; `sampled` draws, by a hash of (seed, progress, token), so a batch cut otherwise or
    a resumed run draws the same. At temperature 1 the gradient is (1 - beta) times DFT's, in expectation if sampled.
    The paper's beta is slightly negative; its value and the temperature are not public, the defaults are ours.
    """

    kind: Literal["one_token_rollout"] = "one_token_rollout"
    beta: float = Field(default=-0.1, ge=-1, lt=1)
    temperature: float = Field(default=1.0, gt=0)
    mode: Literal["closed", "sampled"] = "closed"
    samples: int = Field(default=256, gt=0)  # per token; of `sampled`
    seed: int = Field(default=0, ge=0, lt=2**64)

    @property
    def reads_keys(self) -> bool:
        return self.mode == "sampled"

    def target(self, chunk: Chunk) -> Target:
        policy = chunk.log_p.exp() if self.temperature == 1 else torch.softmax(chunk.log_p / self.temperature, dim=1)
        if self.mode == "sampled":
            policy = self._drawn(policy, chunk.progress, chunk.keys)
        return Target(policy.gather(1, chunk.targets).mul_(1 - self.beta), policy.mul_(self.beta))

    def _drawn(self, policy: torch.Tensor, progress: float, keys: np.ndarray | None) -> torch.Tensor:
        """[tokens, vocabulary]: how often each token is drawn, as a share of the samples."""
        if keys is None or len(keys) != len(policy):
            raise ValueError(f"one_token_rollout draws by the {len(policy)} tokens' keys: give those of token_keys")
        step = seeded(self.seed, np.array([progress]).view(np.uint64))
        numbers = mix64(mix64(keys ^ step)[:, None] + np.arange(self.samples, dtype=np.uint64))
        uniform = torch.from_numpy((numbers >> np.uint64(40)) / 2.0**24).to(policy)
        heights = policy.cumsum(1)
        drawn = torch.searchsorted(heights, uniform * heights[:, -1:], right=True).clamp_(max=policy.shape[1] - 1)
        share = torch.full_like(uniform, 1 / self.samples)
        return torch.zeros_like(policy).scatter_add_(1, drawn, share)


class Distill(_Loss):
    """(1 - share) · cross-entropy to the data + share · cross-entropy to a teacher, then to the data alone.

    The two stages of SALT (arXiv 2410.18779): a teacher smaller than the model helps early and harms late, since where
    it is weak it is wrong. There the first stage took 36,000 of about 208,000 steps, whence the default of `until`.
    """

    kind: Literal["distill"] = "distill"
    teacher: ModelPath
    share: float = Field(default=0.5, ge=0, le=1)
    until: float = Field(default=0.17, ge=0, le=1)  # share of the budget with the teacher
    transition: Literal["step", "linear"] = "step"  # linear: the share falls to 0 at `until`
    temperature: float = Field(default=1.0, gt=0)  # of the teacher alone: its probabilities to the power 1/temperature

    def share_at(self, progress: float) -> float:
        """The teacher's share when this share of the budget is spent."""
        if progress >= self.until:
            return 0.0
        return self.share * (1 - progress / self.until) if self.transition == "linear" else self.share

    def reads_other(self, progress: float) -> bool:
        return self.share_at(progress) > 0

    def target(self, chunk: Chunk) -> Target:
        share = self.share_at(chunk.progress)
        if share == 0:
            return Target()
        log_q = _other(chunk)
        q = log_q.exp_() if self.temperature == 1 else torch.softmax(log_q.div_(self.temperature), dim=1)
        return Target(torch.full_like(q[:, :1], 1 - share), q.mul_(share))


Objective = Annotated[CrossEntropy | DFT | ASFT | OneTokenRollout | Distill, Field(discriminator="kind")]


def frozen_model(
    objective: Objective, model: PreTrainedModel, tokenizer: Path, row_length: int
) -> PreTrainedModel | None:
    """The model that the objective compares with, on the device of `model`, frozen; None for those without one.

    model: what is trained, as it is before the first step (of the run, not of a resumed process): ASFT without `base`
    copies it. tokenizer: the mixture's folder of it. row_length: tokens of the longest context.

    Raises ValueError: the folder's model has other tokens than the mixture or another number of logits than `model`,
    or was made for shorter contexts.
    """
    if isinstance(objective, Distill):
        folder: Path | None = objective.teacher
    elif isinstance(objective, ASFT) and objective.weight > 0:
        folder = objective.base
    else:
        return None
    frozen = copy.deepcopy(model) if folder is None else load_model(folder).to(model.device)
    if folder is not None:
        if len(head(frozen)) != len(head(model)):
            raise ValueError(
                f"{folder} predicts {len(head(frozen))} tokens, the trained model {len(head(model))}; "
                "give a model with the same tokenizer"
            )
        check_reads(frozen, folder, tokenizer, row_length)
    return frozen.requires_grad_(False).eval()


def other_states(frozen: PreTrainedModel, batch: Batch) -> Other:
    """What a frozen model says about a batch, for `objective_sums`."""
    with torch.no_grad():
        return Other(hidden_states(frozen, batch), head(frozen))


def token_keys(batch: Batch) -> np.ndarray:
    """uint64 [tokens]: a name of each token for random draws, made of its piece and place, whatever lies beside it."""
    return mix64(np.repeat(piece_keys(batch), batch.lengths) ^ mix64(batch.positions))


def _other(chunk: Chunk) -> torch.Tensor:
    if chunk.other is None:
        raise ValueError("this objective compares with a frozen model: give what other_states returns")
    return chunk.other
