"""Cleaning by a refiner: lines that a fitted model calls noise are cut, and documents of which too little is left.

Each document is read once, at about 19 MB/s per core (`transforms.refiner`), by the rules of `transforms.programs`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipelines.clean_local import Local, Told
from transforms.batch import Batch
from transforms.programs import DROPPED, DROPPED_RATIO, DROPPED_SHORT, STATUSES, Rules, execute
from transforms.refiner import Refiner, load


class Prox(Local):
    """ProX (Zhou et al. 2024, arXiv 2409.17115) with the refiner of the folder `model`, that the fit `refiner` makes.

    `keep`: the share of what must stay that shall, by pages that the fit left out; or give a `threshold` of scores. A
    document is dropped, and cut whole, where `most_removed` of its words go or at most `short` words are left; it
    stays as it is where less than `least_left` would be. `prox.keep` and `prox.status` tell `select` which.
    """

    model: Path
    keep: float = Field(0.95, ge=0, le=0.99)
    threshold: float | None = Field(None, allow_inf_nan=False)
    most_removed: float = Field(Rules().most_removed, gt=0, le=1)
    least_left: float = Field(Rules().least_left, ge=0, lt=1)
    short: int = Field(Rules().short, ge=0)

    fields: ClassVar[tuple[pa.Field, ...]] = (
        pa.field("status", pa.string(), metadata={"unit": f"one of {', '.join(STATUSES)}"}),
        pa.field(
            "keep", pa.bool_(), metadata={"unit": "false where the document is dropped; null where not looked at"}
        ),
    )

    @field_validator("model")
    @classmethod
    def _whole(cls, path: Path) -> Path:
        load(path)
        return path

    @cached_property
    def _refiner(self) -> Refiner:
        return load(self.model)

    @model_validator(mode="after")
    def _known(self) -> Prox:
        if self.threshold is None and not np.isfinite(self._refiner.threshold(self.keep)):
            known = ", ".join(sorted(self._refiner.thresholds)) or "none"
            raise ValueError(f"the refiner has no threshold for keep {self.keep}; it has {known}")
        return self

    def cuts(self, batch: Batch) -> Told:
        refiner = self._refiner
        threshold = refiner.threshold(self.keep) if self.threshold is None else self.threshold
        rules = Rules(self.least_left, self.most_removed, short=self.short)
        cuts, status = execute(batch, refiner.edits(batch, threshold), rules)
        names = pa.array(STATUSES).take(pa.array(status))
        dropped = np.isin(status, (DROPPED, DROPPED_RATIO, DROPPED_SHORT))
        return Told(cuts, (names, pa.array(~dropped)), names)
