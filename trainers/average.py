"""Averages of weights while training: the exponential moving average of a model, beside the model itself.

The average starts empty and is divided by the weight it has gathered, as Adam's moments are (arXiv 1412.6980): after
the first step it is that step's model, and no start has to be warmed away. Cost: a float32 copy of what is trained and
one pass over it per step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Averaging(BaseModel):
    """How fast the average forgets: by tokens, or by steps. Give one of the two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    half_life: int | None = Field(default=None, gt=0)  # tokens after which a step counts half
    decay: float | None = Field(default=None, ge=0, lt=1)  # of what was there, per step

    @model_validator(mode="after")
    def _one(self) -> Averaging:
        if (self.half_life is None) == (self.decay is None):
            raise ValueError(f"half_life {self.half_life} and decay {self.decay}: give exactly one of them")
        return self

    def kept(self, tokens: int) -> float:
        """The share of the average that a step of so many tokens leaves."""
        return 0.5 ** (tokens / self.half_life) if self.half_life else float(self.decay or 0)


class MovingAverage:
    """The average of the trained parameters of a module over its steps.

    After steps with parameters x_1 … x_n it is Σ w_i x_i / Σ w_i with w_i = (1 - k_i) k_{i+1} … k_n, k_i what step i
    kept. Parameters that are not trained are their own average.
    """

    def __init__(self, module: torch.nn.Module, averaging: Averaging) -> None:
        self.averaging = averaging
        self.weight = 0.0  # Σ w_i
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._mean = [torch.zeros_like(p, dtype=torch.float32) for p in self._trained.values()]

    @torch.no_grad()
    def update(self, tokens: int) -> None:
        """After an optimiser's step over `tokens` tokens."""
        kept = self.averaging.kept(tokens)
        self.weight = kept * self.weight + (1 - kept)
        new = [p.float() for p in self._trained.values()]
        torch._foreach_lerp_(self._mean, new, (1 - kept) / self.weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the module has the averaged weights: for evaluation and export. Not between backward and step."""
        if not self.weight:
            raise ValueError("no step has been averaged yet")
        trained = [p.data for p in self._trained.values()]
        for p, mean in zip(self._trained.values(), self._mean, strict=True):
            p.data = mean.to(p.dtype)
        try:
            yield
        finally:
            for p, data in zip(self._trained.values(), trained, strict=True):
                p.data = data

    def extra(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold: `average:<parameter>`, and `average:` for the weight gathered."""
        named = {f"average:{name}": mean for name, mean in zip(self._trained, self._mean, strict=True)}
        return named | {"average:": torch.tensor(self.weight, dtype=torch.float64)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `extra` gave, bit for bit. Raises ValueError: it is of other parameters."""
        given = {name.partition(":")[2]: t for name, t in tensors.items() if name.startswith("average:")}
        weight = given.pop("", None)
        odd = sorted(given.keys() ^ self._trained.keys())
        if odd or weight is None:
            raise ValueError(f"the checkpoint's average is of other parameters: {', '.join(odd[:3]) or 'none'} differ")
        self.weight = float(weight)
        for mean, name in zip(self._mean, self._trained, strict=True):
            mean.copy_(given[name])
