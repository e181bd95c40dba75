"""How much a training step on a document is predicted to help a model on a reference, for one point of its training.

Cost: words and their hashes, and 50 MB/s per core for what is predicted from them, of a document only the first words,
as many as the probes' window holds tokens; or what the fitted encoder costs for as many tokens.
"""

from __future__ import annotations

import importlib.util
import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from scorers import Scorer
from transforms.batch import Batch
from transforms.model_folder import read_card

if TYPE_CHECKING:
    from transforms.sequence_classifier import SequenceClassifier

FOLDER = "encoder"  # of a model folder that has one


class Influence(Scorer):
    """MATES (Yu et al. 2024, arXiv 2406.06046). `model`: the folder that the fit `influence` makes.

    The fit learns z, the reference's loss after a step on a document, of which less is better; `score` is -z, so that
    `top_k(influence.score, ...)` and `gumbel_top_k(influence.score, share := 0.2, temperature := 0.5)` take the most
    helpful. It is blind to what else is selected: copies score alike, so dedupe first. Null without words (of the
    encoder's, where the model has one).
    """

    name: ClassVar[str] = "influence"
    model: Path

    @model_validator(mode="after")
    def _whole(self) -> Influence:
        words, arrays = self._held
        if words is None:
            self._check_encoder(arrays)
            return self
        from transforms.hashed_ridge import BITS

        weights = arrays["weights"]
        if weights.dtype != np.float32 or weights.shape != (1 << BITS,) or not np.isfinite(weights).all() or words < 1:
            given = f"weights {weights.dtype} {weights.shape} for {words} words"
            raise ValueError(f"{self.model} holds {given}, expected {1 << BITS} finite float32; fit it anew")
        return self

    @cached_property
    def _held(self) -> tuple[int | None, dict[str, Any]]:
        """Words read of a document, None if an encoder reads it, and the arrays of the regression."""
        try:
            card = read_card(self.model)
            encoder = card.get("encoder")
            with np.load(self.model / "model.npz", allow_pickle=False) as held:
                arrays = {name: held[name] for name in (("weight", "bias") if encoder else ("weights",))}
            if encoder:
                return None, {**arrays, "window": int(encoder["window"])}
            return int(card["parameters"]["window"]), arrays
        except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
            wanted = "give a folder that the fit influence made, with card.json and model.npz"
            raise ValueError(f"no model of influence at {self.model} ({error!r}); {wanted}") from error

    def _check_encoder(self, arrays: dict[str, Any]) -> None:
        from transforms.sequence_classifier import check_encoder

        if importlib.util.find_spec("torch") is None:
            raise ValueError("a model with an encoder needs the package torch; pip install 'corpusmill[trainer]'")
        check_encoder(self.model / FOLDER, arrays["window"])
        weight, bias = arrays["weight"], arrays["bias"]
        if weight.dtype != np.float32 or weight.ndim != 1 or not np.isfinite([*weight, bias]).all():
            given = f"weight {weight.dtype} {weight.shape}"
            raise ValueError(f"{self.model}/model.npz holds {given}, expected finite float32 [width]; fit it anew")

    @cached_property
    def _encoder(self) -> SequenceClassifier:
        from transforms.mean_pooled import load_pooled
        from transforms.sequence_classifier import check_encoder

        arrays = self._held[1]
        checked = check_encoder(self.model / FOLDER, arrays["window"])
        return load_pooled(checked, arrays["weight"], float(arrays["bias"]))

    def setup(self) -> None:
        if self._held[0] is None:
            _ = self._encoder

    def fields(self) -> pa.StructType:
        unit = "predicted loss on the reference after a step, in standard deviations of the probes, below their mean"
        return pa.struct([pa.field("score", pa.float64(), metadata={"unit": f"{unit}; higher is more wanted"})])

    def score(self, batch: Batch) -> pa.StructArray:
        words, arrays = self._held
        if words is None:
            from transforms.mean_pooled import predict

            z = predict(self._encoder, batch.text)
            score = pa.array(-z, mask=~np.isfinite(z))
        else:
            from transforms.hashed_ridge import dot, features

            found = features(batch, words)
            score = pa.array(-dot(found, arrays["weights"]), mask=np.diff(found.offsets) == 0)
        return pa.StructArray.from_arrays([score], fields=list(self.fields()))
