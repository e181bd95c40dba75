"""Fitting mixture weights by RegMix: small models on random mixtures, a regression from weights to loss, its minimum.

Liu et al. 2024 (arXiv 2407.01492): 512 proxies of 1 M parameters on 1 B tokens each. Here 64 of 0.24 M on 100,000:
about 5 minutes on one core, most of it training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from trainers.holdout import regression
from trainers.weighed import Targeted

if TYPE_CHECKING:
    import pyarrow as pa

    from trainers.config import TrainConfig
    from trainers.proxies import Pool

PREDICTED = 100_000  # mixtures
FEWEST = 16  # mixtures that a regression is made of


class FitRegmix(Targeted):
    """Weights of least predicted loss, the mean over the sources of `target` (by default all), of held-out documents.

    A proxy is trained on each of `mixtures` Dirichlet draws around the natural shares to the power 1/2. No source of a
    draw has more than `max_epochs` times its natural share: in a mixture as large as all there is it would be repeated
    more often. The answer is the mean of the 128 best of 100,000 such draws by the regression's prediction.

    `regression`: `lightgbm` (trees, as in the paper) wants hundreds of mixtures; `log_linear` (ridge on the shares and
    their logarithms) is the better one on 64. The card compares both on mixtures they have not seen, if both are there.
    """

    method: ClassVar[str] = "regmix"
    budget: ClassVar[int] = 100_000
    mixtures: int = Field(64, ge=FEWEST)
    max_epochs: float = Field(4.0, gt=1)
    regression: Literal["log_linear", "lightgbm"] = "log_linear"

    @field_validator("regression")
    @classmethod
    def _there(cls, value: str) -> str:
        import importlib.util

        if value == "lightgbm" and importlib.util.find_spec("lightgbm") is None:
            raise ValueError("needs the package lightgbm; pip install 'corpusmill[mixtures]', or take log_linear")
        return value

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from trainers.proxies import pool
        from transforms.mixture_weights import REGRESSIONS, mean_of_best, tempered

        config = self.config(seed)
        with pool(samples, self.sources, self.tokenizer, out) as found:
            natural = found.shares(self.sources)
            prior, most = tempered(natural), np.minimum(self.max_epochs * natural, 1.0)
            drawn = self._drawn(prior, most, self.mixtures, [seed, 0])
            measured = [self._loss(found, shares, config) for shares in drawn]
            losses = np.array([self._target(one) for one in measured])
            predictor = REGRESSIONS[self.regression](drawn, losses)
            candidates = self._drawn(prior, most, PREDICTED, [seed, 1])
            weights = mean_of_best(candidates, predictor(candidates))
            checked = {}
            for name, shares in {"found": weights, "natural": natural}.items():
                told = self._loss(found, shares, config)
                predicted = float(predictor(shares[None])[0])
                checked[name] = {"predicted": predicted, "measured": self._target(told), "by_source": told}
        card = {
            "parameters": {"target": list(self.target or self.sources), "max_epochs": self.max_epochs}
            | {"regression": self.regression, "proxy": self.settings(config)},
            "seed": seed,
            "documents": {name: len(table) for name, table in samples.items()},
            "natural": dict(zip(self.sources, natural.tolist(), strict=True)),
            "regressions": self._compared(drawn, losses),
            "check": checked,
            "mixtures": [
                {"weights": dict(zip(self.sources, w.tolist(), strict=True)), "loss": float(loss), "by_source": m}
                for w, loss, m in zip(drawn, losses, measured, strict=True)
            ],
        }
        return self.write(out, weights, found.tokens, card)

    def _drawn(self, prior: np.ndarray, most: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
        from transforms.mixture_weights import dirichlet_mixtures

        drawn = dirichlet_mixtures(prior, most, count, np.random.default_rng(seed))
        if len(drawn) < self.mixtures:
            raise ValueError(
                f"of all mixtures drawn {len(drawn)} repeat no source more than {self.max_epochs:g} times, expected "
                f"{self.mixtures}; raise `max_epochs`, or leave out sources that are a tiny share of all"
            )
        return drawn

    def _loss(self, found: Pool, shares: np.ndarray, config: TrainConfig) -> dict[str, float]:
        """Held-out losses, by source, of a proxy trained on a mixture."""
        from trainers.proxies import make, measure, mixture, train

        named = dict(zip(self.sources, shares.tolist(), strict=True))
        corpus = mixture(found.learn, named, config)
        return measure(train(make(config, corpus), corpus, config), found.held, config)

    def _compared(self, drawn: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
        """How good regressions are on mixtures they have not seen (8 folds), and whether the one used is the best."""
        from transforms.mixture_weights import REGRESSIONS, held_out_predictions

        held: dict[str, Any] = {}
        for name in dict.fromkeys([self.regression, "log_linear"]):
            predicted = held_out_predictions(REGRESSIONS[name], drawn, losses)
            held[name] = regression(losses, predicted) | {"predicted": predicted.tolist()}
            held[name]["mixtures"] = held[name].pop("documents")
        best = min(held, key=lambda name: held[name]["mse"])
        if best != self.regression:
            held["note"] = (
                f"on unseen mixtures {self.regression} has a larger error than {best}; set `regression: {best}`"
            )
        return held
