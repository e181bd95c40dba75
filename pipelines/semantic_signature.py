"""Embeddings for semantic duplicates, computed in the scoring pass and kept.

In a module of its own, so that their key depends on the encoders and on nothing of the graph that uses them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from scorers import Scorer
from transforms.batch import Batch
from transforms.model_folder import ENCODER, check_model_folder
from transforms.semantic import HashingEncoder, TransformerEncoder, quantise

Encoder = Literal["hashing"] | Path
WIDTHS = ("hidden_size", "dim", "d_model")  # what configurations call the length of a vector
HASHING_WIDTH = 256


class SemanticSignature(Scorer):
    """Each document's vector of length 1 times 32767, as little-endian int16."""

    name: ClassVar[str] = "semantic"
    encoder: Encoder = "hashing"
    max_tokens: int = 512
    device: str = "cpu"

    def fields(self) -> pa.StructType:
        unit = {"meaning": "little-endian int16 each, 32767 is 1"}
        return pa.struct([pa.field("vector", pa.binary(2 * width(self.encoder)), nullable=False, metadata=unit)])

    def score(self, batch: Batch) -> pa.StructArray:
        fields = self.fields()
        vectors = quantise(self._encoder().encode(batch)).astype("<i2", copy=False)
        packed = pa.FixedSizeBinaryArray.from_buffers(fields[0].type, len(batch), [None, pa.py_buffer(vectors)])
        return pa.StructArray.from_arrays([packed], fields=list(fields))

    def _encoder(self) -> HashingEncoder | TransformerEncoder:
        if isinstance(self.encoder, Path):
            return TransformerEncoder(folder=self.encoder, max_tokens=self.max_tokens, device=self.device)
        return HashingEncoder()


def width(encoder: Encoder) -> int:
    """Numbers in a vector. Raises ValueError: the folder holds no encoder that can be used here."""
    if not isinstance(encoder, Path):
        return HASHING_WIDTH
    try:
        config = json.loads((encoder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"no encoder at {encoder} ({error}); give `hashing` or a folder with config.json") from error
    found = [config[key] for key in WIDTHS if key in config]
    if not found:
        raise ValueError(f"{encoder}/config.json has none of {', '.join(WIDTHS)}; it is no encoder's")
    return int(found[0])


def check(encoder: Encoder) -> None:
    """Raises ValueError: no such encoder, no whole one, one whose pooling is not known, or a package is missing."""
    width(encoder)
    if isinstance(encoder, Path):
        TransformerEncoder(folder=encoder).pooling()
        check_model_folder(encoder, ENCODER)
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"an encoder folder needs the package {package}; pip install 'corpusmill[trainer]'")
