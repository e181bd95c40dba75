"""Tokens of a document under a given tokenizer, as a trainer will see them: what mixtures are weighed in.

The library takes 50 to 130 bytes of memory per byte of text, so it is given about half a MB at a time.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from scorers import Scorer
from transforms.batch import Batch
from transforms.pieces import groups


class Tokens(Scorer):
    """`tokenizer`: a `tokenizer.json` of the tokenizers library, or a folder with one. The end-of-text token counts.

    Documents of more than 262,144 characters are counted in pieces cut before a word, where byte-level BPE cuts too;
    in text without spaces a piece may cost a token or two more.
    """

    name: ClassVar[str] = "tokens"
    package: ClassVar[str] = "tokenizers"
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
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text, as for the trainer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        counts = np.ones(len(batch), np.int64)
        for documents, pieces in groups(batch.text):
            encoded = self._loaded.encode_batch_fast(pieces, add_special_tokens=False)
            np.add.at(counts, documents, np.fromiter(map(len, encoded), np.int64, len(pieces)))
        return pa.StructArray.from_arrays([pa.array(counts)], fields=list(self.fields()))
