"""How much a training step on a document is predicted to help a model on a reference, for one point of its training.

Cost: words and their hashes, and 50 MB/s per core for what is predicted from them; of a document only the first words
are read, as many as the probes' window holds tokens.
"""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from scorers import Scorer
from transforms.batch import Batch
from transforms.model_folder import read_card


class Influence(Scorer):
    """MATES (Yu et al. 2024, arXiv 2406.06046). `model`: the folder that the fit `influence` makes.

    The fit learns z, the reference's loss after a step on a document, of which less is better; `score` is -z, so that
    `top_k(influence.score, ...)` and `gumbel_top_k(influence.score, share := 0.2, temperature := 0.5)` take the most
    helpful. It is blind to what else is selected: copies score alike, so dedupe first. Null without words.
    """

    name: ClassVar[str] = "influence"
    model: Path

    @model_validator(mode="after")
    def _whole(self) -> Influence:
        _ = self._loaded
        return self

    @cached_property
    def _loaded(self) -> tuple[int, np.ndarray]:
        """Words read of a document, and the weights."""
        try:
            words = int(read_card(self.model)["parameters"]["window"])
            with np.load(self.model / "model.npz", allow_pickle=False) as held:
                weights = held["weights"]
        except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
            wanted = "give a folder that the fit influence made, with card.json and model.npz"
            raise ValueError(f"no model of influence at {self.model} ({error!r}); {wanted}") from error
        from transforms.hashed_ridge import BITS

        if weights.dtype != np.float32 or weights.shape != (1 << BITS,) or not np.isfinite(weights).all() or words < 1:
            given = f"weights {weights.dtype} {weights.shape} for {words} words"
            raise ValueError(f"{self.model} holds {given}, expected {1 << BITS} finite float32; fit it anew")
        return words, weights

    def fields(self) -> pa.StructType:
        unit = "predicted loss on the reference after a step, in standard deviations of the probes, below their mean"
        return pa.struct([pa.field("score", pa.float64(), metadata={"unit": f"{unit}; higher is more wanted"})])

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.hashed_ridge import dot, features

        words, weights = self._loaded
        found = features(batch, words)
        score = pa.array(-dot(found, weights), mask=np.diff(found.offsets) == 0)
        return pa.StructArray.from_arrays([score], fields=list(self.fields()))
