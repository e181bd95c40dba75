"""Learning rates as pure functions of the tokens seen, so a resumed or extended run needs no scheduler state.

`tokens` counts the batch about to be applied: the first step already learns and the last one ends at the final rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]

POWER_A, POWER_B = 4.0, -0.51  # fitted in arXiv 2408.13359 under µP, batch in sequences of 4096 tokens


class Schedule(BaseModel):
    """Shares are of the token budget. `final` is the last learning rate as a share of the peak."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant", "cosine", "wsd", "power"] = "cosine"
    warmup: Share = 0.02
    decay: Share = 0.2  # wsd and power only
    final: Share = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} overlap; keep their sum at most 1")
        return self

    def __call__(self, tokens: int, budget: int, peak: float, batch_tokens: int) -> float:
        """Learning rate of the step that brings the tokens seen to `tokens` of `budget`."""
        share = min(tokens / budget, 1.0)
        if self.kind == "cosine":
            return peak * cosine(share, self.warmup, self.final)
        if self.kind == "wsd":
            return peak * wsd(share, self.warmup, self.decay, self.final)
        if self.kind == "power":
            return power(share, budget, self.warmup, self.decay, self.final, peak, batch_tokens)
        return peak * warmup(share, self.warmup)


def warmup(share: float, until: float) -> float:
    """Linear from 0 to 1 at `until`, then 1."""
    return share / until if share < until else 1.0


def cosine(share: float, until: float, final: float) -> float:
    """Warm-up, then half a cosine from 1 to `final` (arXiv 1608.03983, without restarts)."""
    if share < until or until == 1:
        return warmup(share, until)
    progress = (share - until) / (1 - until)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(share: float, until: float, decay: float, final: float) -> float:
    """Warm-up, stable phase, linear decay over the last `decay` (arXiv 2404.06395; linear as in arXiv 2405.18392)."""
    return _shaped(lambda _: 1.0, share, until, decay, final)


def power(share: float, budget: int, until: float, decay: float, final: float, peak: float, batch_tokens: int) -> float:
    """min(peak, batch · a · tokens^b) between warm-up and decay (arXiv 2408.13359). Absolute rate, not a factor.

    `batch` counts sequences of 4096 tokens. The constants hold for µP; other parametrisations are bounded by `peak`.
    """
    return _shaped(
        lambda x: min(peak, batch_tokens / 4096 * POWER_A * max(x * budget, 1.0) ** POWER_B), share, until, decay, final
    )


def _shaped(stable: Callable[[float], float], share: float, until: float, decay: float, final: float) -> float:
    if share < until:
        return stable(until) * share / until
    if share <= 1 - decay:
        return stable(share)
    return stable(1 - decay) * (1 - (1 - final) * (share - (1 - decay)) / decay)
