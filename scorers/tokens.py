"""Tokens of a document under a given tokenizer, as a trainer will see them: what mixtures are weighed in."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from scorers import Scorer
from transforms.batch import Batch


class Tokens(Scorer):
    """`tokenizer`: a `tokenizer.json` of the tokenizers library, or a folder with one. The end-of-text token counts."""

    name: ClassVar[str] = "tokens"
    tokenizer: Path

    @field_validator("tokenizer")
    @classmethod
    def _exists(cls, path: Path) -> Path:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no tokenizer at {file}; give a tokenizer.json or a folder with one")
        return path

    def fields(self) -> pa.StructType:
        unit = {"unit": "tokens, end of text included"}
        return pa.struct([pa.field("count", pa.int64(), nullable=False, metadata=unit)])

    @cached_property
    def _loaded(self) -> Any:
        from tokenizers import Tokenizer

        path = self.tokenizer
        return Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        texts = batch.text.to_pylist()  # the library takes a list of str
        encoded = self._loaded.encode_batch_fast(texts, add_special_tokens=False)
        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(batch)) + 1
        return pa.StructArray.from_arrays([pa.array(counts)], fields=list(self.fields()))

    def __getstate__(self) -> dict[Any, Any]:
        """The loaded tokenizer stays behind: each worker loads its own."""
        state = super().__getstate__()
        state["__dict__"] = {k: v for k, v in state["__dict__"].items() if k != "_loaded"}
        return state
