"""What the scorers that read documents by chunks share."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def pooled(scores: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """float64 [documents]: mean, highest and lowest of the scores [chunks] of each document's `counts` chunks.

    NaN where a document has no chunks or one of its scores is NaN.
    """
    document = np.repeat(np.arange(len(counts)), counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(document, scores, minlength=len(counts)).astype(np.float64) / counts
        highest, lowest = np.full(len(counts), -np.inf), np.full(len(counts), np.inf)
        np.maximum.at(highest, document, scores)
        np.minimum.at(lowest, document, scores)
    none = counts == 0
    return {"mean": mean, "highest": np.where(none, np.nan, highest), "lowest": np.where(none, np.nan, lowest)}


def finite(values: np.ndarray) -> pa.Array:
    """float64 column, null where the value is no finite number."""
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
