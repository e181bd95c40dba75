"""Fitting mixture weights by modular training and merging: the parameters of models trained on parts are averaged.

Na et al. 2024 (arXiv 2410.15661). One seed model, one continuation per unit of a source; the loss of their weighted
average stands for that of a model continued on the mixture, so that hundreds of mixtures cost one forward pass each
over the target. With 5 sources and the defaults about 3 minutes on one core, two thirds of them training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from trainers.holdout import regression
from trainers.weighed import Targeted

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

    from trainers.config import TrainConfig
    from trainers.proxies import Pool

SETS = 200  # of sources that are candidates, besides that of all
GENTLE = 0.5  # share of the seed's learning rate with which units go on: they have to stay in one basin


class FitMerging(Targeted):
    """The best of many mixtures by the loss of averaged models on the sources of `target` (by default all).

    The seed model is `start`, or trained on `seed_tokens` of all sources evenly. From it a model is continued for each
    of up to `units` parts of each source, on `proxy.tokens` tokens and at half of `proxy.lr`. Candidates are the sets
    of up to 3 sources (of 2 or 1 where those are more than 200) and that of all, averaged by source (macro) and by unit
    (micro), the natural shares, and `drawn` Dirichlet mixtures. `checked` of them, from the best to the worst, are
    trained in truth, and the card correlates.
    """

    method: ClassVar[str] = "merging"
    budget: ClassVar[int] = 100_000
    start: Path | None = None
    seed_tokens: int = Field(500_000, gt=0)
    units: int = Field(2, ge=1)
    drawn: int = Field(100, ge=0)
    checked: int = Field(8, ge=0)

    @model_validator(mode="after")
    def _startable(self) -> FitMerging:
        if self.start is not None:
            from transforms.model_folder import CAUSAL, check_model_folder, check_window

            checked = check_model_folder(self.start, CAUSAL)
            if self.tokenizer is not None or "model" in self.proxy:
                raise ValueError("`start` has its own tokenizer and size; leave out `tokenizer` and `proxy.model`")
            check_window(checked, self.config(0).row_length)
        return self

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from trainers.proxies import make, measure, mixture, pool, train

        config = self.config(seed).model_copy(update={"start": self.start})
        gentle = config.model_copy(update={"lr": config.lr * GENTLE, "start": None})
        with pool(samples, self.sources, self.start or self.tokenizer, out) as found:
            begin = make(config, found.learn)
            if self.start is None:
                even = dict.fromkeys(self.sources, 1 / len(self.sources))
                of_all = config.model_copy(update={"tokens": self.seed_tokens})
                train(begin, mixture(found.learn, even, of_all), of_all)
            units = self._units(found, config)
            parts = Parts(begin, [self._part(found, begin, gentle, name, units[name]) for name in self.sources])
            candidates = []
            for kind, shares in self._candidates(found, np.array(list(units.values())), seed):
                losses = measure(parts.merged(shares), found.held, config)
                candidates.append({"kind": kind} | self._entry(shares, losses))
            candidates.sort(key=lambda candidate: candidate["loss"])
            truth = self._truth(found, begin, gentle, candidates)
            at_seed = measure(begin, found.held, config)
        card = {
            "parameters": {"target": list(self.target or self.sources), "seed_tokens": self.seed_tokens}
            | {"start": str(self.start or ""), "units": units, "proxy": self.settings(gentle)},
            "seed": seed,
            "documents": {name: len(table) for name, table in samples.items()},
            "seed_model": {"loss": self._target(at_seed), "by_source": at_seed},
            "truth": truth,
            "candidates": candidates,
        }
        weights = np.array([candidates[0]["weights"][name] for name in self.sources])
        return self.write(out, weights, found.tokens, card)

    def _units(self, found: Pool, config: TrainConfig) -> dict[str, int]:
        """How many parts of `config.tokens` tokens each source has, at least one and at most `units`."""
        has = {name: found.learn.length[found.learn.source == n].sum() for n, name in enumerate(found.learn.sources)}
        return {name: int(np.clip(has[name] // (config.tokens or 1), 1, self.units)) for name in self.sources}

    def _part(
        self, found: Pool, begin: PreTrainedModel, config: TrainConfig, name: str, units: int
    ) -> list[PreTrainedModel]:
        """The models continued on the units of a source: every so many-th of its documents each."""
        from trainers.proxies import mixture, train

        place = np.arange(len(found.learn)) % units  # by draw
        corpora = (mixture(found.learn, {name: 1.0}, config, place == unit) for unit in range(units))
        return [train(deepcopy(begin), corpus, config) for corpus in corpora]

    def _candidates(self, found: Pool, units: np.ndarray, seed: int) -> list[tuple[str, np.ndarray]]:
        """What is tried: (kind, shares), each shares once."""
        from transforms.mixture_weights import dirichlet_mixtures, subsets, tempered

        count = len(self.sources)
        natural = found.shares(self.sources)
        small = next(sets for size in (3, 2, 1) if len(sets := subsets(count, size)) <= SETS or size == 1)
        chosen = [np.isin(np.arange(count), some) for some in [*small, np.arange(count)]]
        generator = np.random.default_rng([seed, 0])
        drawn = dirichlet_mixtures(tempered(natural), np.ones(count), self.drawn, generator)
        listed = [("macro", some / some.sum()) for some in chosen]
        listed += [("micro", some * units / (some * units).sum()) for some in chosen]
        listed += [("natural", natural), *(("drawn", shares) for shares in drawn)]
        return list({shares.round(9).tobytes(): (kind, shares) for kind, shares in reversed(listed)}.values())[::-1]

    def _truth(
        self, found: Pool, begin: PreTrainedModel, config: TrainConfig, candidates: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Losses of models continued on some of the candidates, and how their ranks agree with the averages'."""
        from trainers.proxies import measure, mixture, train

        places = np.unique(np.linspace(0, len(candidates) - 1, self.checked).round().astype(int))
        told = []
        for candidate in (candidates[place] for place in places):
            model = train(deepcopy(begin), mixture(found.learn, candidate["weights"], config), config)
            losses = self._target(measure(model, found.held, config))
            told.append({"weights": candidate["weights"], "merged": candidate["loss"], "trained": losses})
        if len(told) < 2:
            return {"checked": told}
        trained, averaged = (np.array([one[key] for one in told]) for key in ("trained", "merged"))
        return {"spearman": regression(trained, averaged)["spearman"], "checked": told}

    def _entry(self, shares: np.ndarray, losses: dict[str, float]) -> dict[str, Any]:
        weights = dict(zip(self.sources, shares.tolist(), strict=True))
        return {"weights": weights, "loss": self._target(losses), "by_source": losses}


class Parts:
    """Models of several sources, each the mean of the parameters of its units; all continued from one seed model."""

    def __init__(self, begin: PreTrainedModel, parts: Sequence[Sequence[PreTrainedModel]]) -> None:
        import torch

        flat = torch.nn.utils.parameters_to_vector
        self._model = deepcopy(begin)
        self._means = torch.stack([torch.stack([flat(unit.parameters()) for unit in units]).mean(0) for units in parts])
        self._means = self._means.detach()

    def merged(self, shares: np.ndarray) -> PreTrainedModel:
        """The average by shares; the same object each time."""
        import torch

        averaged = torch.from_numpy(shares).to(self._means) @ self._means
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(averaged, self._model.parameters())
        return self._model
