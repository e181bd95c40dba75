"""A fastText classifier's probability that a document is good. The speed is the library's own list prediction."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from scorers import Scorer
from transforms.batch import Batch


class FastText(Scorer):
    """Joulin et al. 2016 (arXiv 1607.01759), batch prediction on whole documents with line ends turned into spaces.

    `model` is a folder with `model.bin` and `card.json` (as `corpusmill` fits them), or a `.bin` file; then `positive`
    names the label whose probability is wanted.
    """

    name: ClassVar[str] = "fasttext"
    package: ClassVar[str] = "fasttext"
    model: Path
    positive: str | None = None

    @model_validator(mode="after")
    def _exists(self) -> FastText:
        file = self.model / "model.bin" if self.model.is_dir() else self.model
        if not file.is_file():
            raise ValueError(f"no fastText model at {file}; give a .bin file or a folder with model.bin")
        if self.positive is None:
            self.__dict__["positive"] = _positive(file)  # a parameter like one given: keys depend on it
        return self

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field("score", pa.float64(), metadata={"unit": "probability of the positive label"})])

    @cached_property
    def _loaded(self) -> tuple[Any, str]:
        import fasttext

        file = self.model / "model.bin" if self.model.is_dir() else self.model
        model = fasttext.load_model(str(file))
        positive = self.positive or _positive(file)
        if positive not in model.labels:
            raise ValueError(f"{file} has no label {positive!r}; its labels are {', '.join(model.labels[:20])}")
        return model, positive

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        model, positive = self._loaded
        scores = probabilities(model, batch.text.to_pylist(), positive)  # the library takes a list of str
        return pa.StructArray.from_arrays([pa.array(scores)], fields=list(self.fields()))

    def __getstate__(self) -> dict[Any, Any]:
        """The loaded model stays behind: each worker loads its own."""
        state = super().__getstate__()
        state["__dict__"] = {k: v for k, v in state["__dict__"].items() if k != "_loaded"}
        return state


def _positive(model: Path) -> str:
    """The label that the card beside a model names."""
    card = model.parent / "card.json"
    if not card.is_file():
        raise ValueError(f"{model} has no card.json beside it, so `positive` must name a label, as __label__1")
    named = json.loads(card.read_text()).get("positive")
    if not isinstance(named, str):
        raise ValueError(f"{card} names no `positive` label, so `positive` must be given, as __label__1")
    return named


def one_line(text: str) -> str:
    """The convention for line ends, in fitting and in scoring alike: each becomes a space."""
    return text.replace("\n", " ").replace("\r", " ")


def probabilities(model: Any, texts: list[str], positive: str) -> np.ndarray:
    """float64 [texts]: probability of the label `positive`, clipped to [0, 1] (fastText's sums can exceed 1 by 1e-5).

    One call for the whole list: the fast path, and the only one that fasttext 0.9.3 has with numpy 2. An empty text has
    no prediction and gets 0.
    """
    labels, found = model.predict([one_line(t) for t in texts], k=len(model.labels))
    lengths = np.fromiter(map(len, labels), dtype=np.int64, count=len(texts))
    flat = np.fromiter((p for row in found for p in row), dtype=np.float64)
    hit = np.fromiter((label == positive for row in labels for label in row), dtype=bool)
    summed = np.bincount(np.repeat(np.arange(len(texts)), lengths), flat * hit, minlength=len(texts))
    return np.clip(summed.astype(np.float64), 0, 1)  # of no documents, bincount makes integers
