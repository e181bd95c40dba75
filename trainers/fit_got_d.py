"""Fitting GOT-D: which documents should there be more of, so that the pool comes nearer to a target?

Kang et al. 2024, "Get more for less" (arXiv 2405.02774). With 1,000 target documents and a pool of 10,000, by the
hashing encoder, about 0.3 s per iteration on one core; the models hold the target's side only, 520 bytes per document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from trainers.targets import TargetFit

if TYPE_CHECKING:
    import pyarrow as pa

    from transforms.transport import Transport


class FitGotD(TargetFit):
    """Entropic optimal transport between the target and a sample of the pool, which stands for what the model that is
    to be trained further has seen before.

    The potentials of the target's side tell the gradient of any document (`scorers.got_d`). `epsilon` is in squared
    distances of vectors of length 1, of which unrelated documents have about 2. Defaults are those of the paper's code,
    but for a `tolerance` of the marginal error 100 times as strict. `stability` on the card tells how much of the most
    wanted tenth of the pool stays with twice the epsilon. Domains can be compared by the card's `cost`, with one fit
    each whose `pool` is the domain. Files of the target should hold no documents of the pool: a copy is nearer to its
    original than any other document can be, and takes its mass.
    """

    method: ClassVar[str] = "got_d"
    readers: ClassVar[tuple[str, ...]] = ("got_d",)
    epsilon: float = Field(0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(1.3, ge=1, lt=2)
    tolerance: float = Field(1e-3, gt=0, lt=1)
    iterations: int = Field(2000, ge=1)

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms.transport import sinkhorn

        sides = self.embedded(samples, seed)
        how = (self.momentum, self.tolerance, self.iterations)
        smooth = sinkhorn(sides.target, sides.pool, 2 * self.epsilon, *how)
        found = sinkhorn(sides.target, sides.pool, self.epsilon, *how, start=smooth.f)
        card = {
            "embedding": self.embedding.keep(out),
            "parameters": {name: getattr(self, name) for name in ("epsilon", "momentum", "tolerance", "iterations")},
            "seed": seed,
            "documents": sides.documents(),
            "pool": {"points": len(found.g), "mean_potential": float(found.g.mean())},
            "cost": found.cost,
            "iterations": smooth.iterations + found.iterations,
            "marginal_error": found.marginal_error,
            "stability": stability(found, smooth),
        }
        np.savez(out / "model.npz", vectors=sides.target, potential=found.f)
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card


def stability(one: Transport, other: Transport) -> float:
    """Share of the tenth of the pool most wanted by one solution that is so by the other too."""
    count = -(-len(one.g) // 10)
    first, second = (np.argsort(found.g, kind="stable")[:count] for found in (one, other))
    return len(np.intersect1d(first, second)) / count
