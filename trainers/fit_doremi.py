"""Fitting mixture weights by DoReMi: where could a model still gain over one that trained on the reference weights?

Xie et al. 2023 (arXiv 2305.10429). Per round a reference model and a proxy; the proxy's steps also read their batch
once with either model, so a round costs about 2.7 trainings of `proxy.tokens`: 45 s on one core by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from trainers.weighed import Name, Weighed

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

    from trainers.config import TrainConfig
    from trainers.data import Batch
    from trainers.proxies import Pool

HISTORY = 100  # points of it on the card


class FitDoremi(Weighed):
    """Group DRO over the sources against a reference model; the answer is the mean of the weights over the steps.

    `reference`: weights of the first reference model, by default the natural shares. With `rounds` above 1 the answer
    of one is the reference of the next, until no weight moves by more than `tolerance`. `step` (the paper's η) and
    `smoothing` (c) are those of the paper; its models have 280 M parameters and 200,000 steps.
    """

    method: ClassVar[str] = "doremi"
    budget: ClassVar[int] = 400_000
    reference: dict[Name, float] | None = None
    rounds: int = Field(1, ge=1)
    tolerance: float = Field(0.01, ge=0)
    step: float = Field(1.0, gt=0)
    smoothing: float = Field(1e-4, gt=0, lt=1)

    @model_validator(mode="after")
    def _all_weighed(self) -> FitDoremi:
        given = self.reference
        if given is not None and (given.keys() != set(self.sources) or not all(0 < w < np.inf for w in given.values())):
            raise ValueError(f"reference {given}: expected a weight above 0 for each of {', '.join(self.sources)}")
        return self

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from trainers.proxies import pool

        config = self.config(seed)
        with pool(samples, self.sources, self.tokenizer, out) as found:
            weights = found.shares(self.sources)
            if self.reference is not None:
                weights = np.array([self.reference[name] for name in self.sources])
                weights /= weights.sum()
            rounds: list[dict[str, Any]] = []
            while len(rounds) < self.rounds and (not rounds or rounds[-1]["change"] > self.tolerance):
                weights, told = self._round(found, weights, config)
                rounds.append(told)
        card = {
            "parameters": {"step": self.step, "smoothing": self.smoothing, "proxy": self.settings(config)},
            "seed": seed,
            "documents": {name: len(samples[name]) for name in self.sources},
            "settled": rounds[-1]["change"] <= self.tolerance,
            "rounds": rounds,
        }
        return self.write(out, weights, found.tokens, card)

    def _round(self, found: Pool, weights: np.ndarray, config: TrainConfig) -> tuple[np.ndarray, dict[str, Any]]:
        """The weights of one round, and what the card tells of it."""
        from trainers.proxies import make, measure, mixture, train

        named = dict(zip(self.sources, weights.tolist(), strict=True))
        reference = train(make(config, found.learn), mixture(found.learn, named, config), config)
        even = dict.fromkeys(self.sources, 1 / len(self.sources))
        proxy = make(config, found.learn)
        robust = Robust(self, proxy, reference, found, config)
        train(proxy, mixture(found.learn, even, config), config, robust)
        answer = np.mean(robust.alphas, axis=0)
        answer /= answer.sum()
        losses = [measure(model, found.held, config) for model in (reference, proxy)]
        shown = np.unique(np.linspace(0, len(robust.alphas) - 1, HISTORY).round().astype(int))
        return answer, {
            "reference_weights": named,
            "weights": dict(zip(self.sources, answer.tolist(), strict=True)),
            "last_alpha": dict(zip(self.sources, robust.alpha.tolist(), strict=True)),
            "change": float(np.abs(answer - weights).max()),
            "held_out_nats": {name: {"reference": losses[0][name], "proxy": losses[1][name]} for name in self.sources},
            "history": {"steps": (shown + 1).tolist()}
            | {name: np.array(robust.alphas)[shown, i].tolist() for i, name in enumerate(self.sources)}
            | {"excess": {name: np.array(robust.excesses)[shown, i].tolist() for i, name in enumerate(self.sources)}},
        }


class Robust:
    """Weighs the tokens of each batch by group DRO, before the proxy's step on it.

    A step's weights come from its whole batch, however it is cut for accumulation. Sources are sampled evenly, so a
    token weighs alpha of its source times their number; the trainer divides by the sum of the weights.
    """

    def __init__(
        self, fit: FitDoremi, proxy: PreTrainedModel, reference: PreTrainedModel, found: Pool, config: TrainConfig
    ) -> None:
        self.fit, self.proxy, self.reference, self.config = fit, proxy, reference, config
        self.source = found.learn.source
        count = len(fit.sources)
        self.alpha = np.full(count, 1 / count)
        self.excess = np.zeros(count)  # of each source in the last batch that had some of it
        self.alphas: list[np.ndarray] = []  # of each step
        self.excesses: list[np.ndarray] = []

    def __call__(self, batch: Batch) -> Batch:
        from trainers.proxies import nats
        from transforms.mixture_weights import exponentiated_gradient

        source = np.repeat(self.source[batch.documents], batch.lengths)
        behind = np.maximum(nats(self.proxy, batch, self.config) - nats(self.reference, batch, self.config), 0)
        tokens = np.bincount(source, minlength=len(self.alpha))
        sums = np.bincount(source, behind, minlength=len(self.alpha))
        self.excess = np.where(tokens > 0, sums / np.maximum(tokens, 1), self.excess)
        self.alpha = exponentiated_gradient(self.alpha, self.excess, self.fit.step, self.fit.smoothing)
        self.alphas.append(self.alpha)
        self.excesses.append(self.excess)
        return replace(batch, weights=(self.alpha * len(self.alpha))[source].astype(np.float32))
