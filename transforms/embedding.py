"""Documents as vectors for methods that compare them with a target: the first characters of each, as 16-bit integers.

Cost: that of the encoder. The hashing one makes about 45 MB/s per core. A transformer is run on one document at a time,
since the floats of a padded batch depend on what else is in it, and a score must not.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from transforms.batch import Batch
from transforms.model_folder import ENCODER, check_model_folder

WIDTHS = {"hidden_size", "dim", "d_model"}  # what configurations call the length of a vector
HASHING_WIDTH = 256
FOLDER = "encoder"  # of a model folder that has its own


class Embedding(BaseModel):
    """`encoder`: `hashing` (words and word pairs, no model), or the folder of a transformers or sentence-transformers
    encoder. Of a document the first `characters` are read, so that length has little say in how near it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    encoder: Literal["hashing"] | Path = "hashing"
    characters: int = Field(default=1000, ge=1)

    @field_validator("encoder")
    @classmethod
    def _usable(cls, encoder: Literal["hashing"] | Path) -> Literal["hashing"] | Path:
        if isinstance(encoder, Path):
            from transforms.semantic import TransformerEncoder

            if not WIDTHS & check_model_folder(encoder, ENCODER).config.keys():
                raise ValueError(f"{encoder}/config.json has none of {', '.join(sorted(WIDTHS))}; it is no encoder's")
            TransformerEncoder(folder=encoder).pooling()
            for package in ("torch", "transformers"):
                if importlib.util.find_spec(package) is None:
                    raise ValueError(
                        f"an encoder folder needs the package {package}; pip install 'corpusmill[trainer]'"
                    )
        return encoder

    def width(self) -> int:
        """Numbers in a vector."""
        if not isinstance(self.encoder, Path):
            return HASHING_WIDTH
        config = json.loads((self.encoder / "config.json").read_bytes())
        return int(next(config[name] for name in sorted(WIDTHS) if name in config))

    def vectors(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int16 [texts, dimensions], of length 32767; zeros for a text without words. Texts: strings, no nulls."""
        from transforms.semantic import HashingEncoder, TransformerEncoder, quantise

        cut = pc.utf8_slice_codeunits(texts.cast(pa.large_string()), 0, self.characters)
        cut = cut.combine_chunks() if isinstance(cut, pa.ChunkedArray) else cut
        batch = Batch(pa.record_batch({"text": cut}))
        if not isinstance(self.encoder, Path):
            return quantise(HashingEncoder().encode(batch))
        encoder = TransformerEncoder(folder=self.encoder)
        alone = (Batch(batch.records.slice(i, 1)) for i in range(len(batch)))
        found = [encoder.encode(one) for one in alone] or [encoder.encode(batch)]
        return quantise(np.concatenate(found))

    def keep(self, out: Path) -> dict[str, Any]:
        """Copy the encoder into a model folder, which then needs nothing beside it; returns what its card must hold."""
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.encoder, Path):
            return self.model_dump()
        shutil.copytree(self.encoder, out / FOLDER, ignore=shutil.ignore_patterns(".*", "*.bin", "*.pt", "*.pth"))
        return {**self.model_dump(), "encoder": FOLDER}

    @classmethod
    def kept(cls, out: Path, given: dict[str, Any]) -> Embedding:
        """What `keep` kept. Raises ValueError: the folder or the card does not serve."""
        return cls.model_validate({**given, "encoder": out / FOLDER} if given.get("encoder") == FOLDER else given)
