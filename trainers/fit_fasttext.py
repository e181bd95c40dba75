"""Fitting a fastText classifier of good documents against random ones, as DCLM does (Li et al. 2024, arXiv 2406.11794).

One process and one thread, so that the same sample and seed give the same bits. About 1 s for 10,000 documents of 3 kB.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from scorers.fasttext import END, one_line, probabilities, zero
from trainers.fits import Fit, Wanted
from trainers.holdout import classification

if TYPE_CHECKING:
    import pyarrow as pa

GOOD, OTHER = "__label__good", "__label__other"
LABEL = re.compile(r"(?<!\S)__label__\S*")
M_PERTURB = -6  # of glibc's mallopt
STEPS = 25_000  # documents times epochs, at least


class FastTextParameters(BaseModel):
    """fastText's own. Learning rate, epochs and n-grams are PreSelect's (arXiv 2503.00808, table 5); it has a `dim` of
    100 and fastText's own `bucket` of 2,000,000; both are smaller here, so that a model takes 50 MB and not 800.

    Five epochs are for many documents. A document is one step of descent, and below about 25,000 of them nothing is
    learned (with 1,131 documents AUC .55 after 5 epochs, .88 after 25), so `epoch: null` makes as many as that takes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    lr: float = Field(0.1, gt=0)
    dim: int = Field(64, ge=1)
    epoch: int | None = Field(None, ge=1, description="null: 5, or as many as make STEPS of the documents")
    word_ngrams: int = Field(2, ge=1)
    bucket: int = Field(200_000, ge=1)
    min_count: int = Field(2, ge=1)
    characters: int = Field(20_000, ge=1, description="of each document, the first so many are learned from")
    zero_end_of_sentence: bool = True  # fastText's </s> feature carries length, not quality


class FitFastText(Fit):
    """A fastText classifier: documents where `positives` holds against a random draw where `negatives` holds."""

    method: ClassVar[str] = "fasttext"
    readers: ClassVar[tuple[str, ...]] = ("fasttext",)
    package: ClassVar[str] = "fasttext"
    positives: str
    negatives: str = "true"
    documents: int = Field(5000, ge=20, description="at most so many on each side")
    parameters: FastTextParameters = FastTextParameters.model_validate({})

    def samples(self) -> dict[str, Wanted]:
        """No document of the positives is among the random ones."""
        positives = Wanted(self.positives, documents=self.documents)
        return {
            "positives": positives,
            "negatives": Wanted(self.negatives, documents=self.documents, without="positives"),
        }

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        good, other = (samples[name].column("text").to_pylist() for name in ("positives", "negatives"))
        return fit_fasttext(good, other, out, self.parameters, seed)


def fit_fasttext(
    good: list[str], other: list[str], out: Path, parameters: FastTextParameters, seed: int = 0
) -> dict[str, Any]:
    """Fit on both lists, every tenth document of each held out; writes `out/model.bin` and `out/card.json`.

    Words that look like fastText's labels are left out, as they are when it predicts: in training they would be labels.

    Returns:
        The card: parameters, counts, newline convention, hold-out ROC-AUC with its standard error (Hanley and McNeil
        1982) and a calibration table.

    Raises:
        ValueError: fewer than 20 documents on one side.
    """
    if min(len(good), len(other)) < 20:
        given = f"{len(good)} good and {len(other)} other"
        raise ValueError(f"fastText needs at least 20 documents on each side; given {given}")
    import fasttext

    out.mkdir(parents=True, exist_ok=True)
    train = [(GOOD, t) for i, t in enumerate(good) if i % 10] + [(OTHER, t) for i, t in enumerate(other) if i % 10]
    order = np.random.default_rng(seed).permutation(len(train))
    lines = out / "train.txt"
    p = parameters
    epochs = p.epoch or max(5, -(-STEPS // len(train)))
    with lines.open("w", encoding="utf-8") as file:
        for i in order:
            file.write(f"{train[i][0]} {LABEL.sub('', one_line(train[i][1][: p.characters]))}\n")
    with _zeroed_memory():
        model = fasttext.train_supervised(
            str(lines), lr=p.lr, dim=p.dim, epoch=epochs, wordNgrams=p.word_ngrams, bucket=p.bucket,
            minCount=p.min_count, minn=0, maxn=0, thread=1, seed=seed, verbose=0,
        )  # fmt: skip
    lines.unlink()
    if parameters.zero_end_of_sentence:
        zero(model, END)
    temporary = out / "model.bin.tmp"
    model.save_model(str(temporary))
    temporary.replace(out / "model.bin")
    held = ([t[: p.characters] for t in texts[::10]] for texts in (good, other))
    scores = [probabilities(model, texts, GOOD) for texts in held]
    card = {
        "positive": GOOD,
        "newline": " ",
        "parameters": parameters.model_dump() | {"epoch": epochs},
        "seed": seed,
        "documents": {"good": len(good), "other": len(other)},
        "holdout": classification(*scores),
    }
    (out / "card.json").write_text(json.dumps(card, indent=1))
    return card


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """New memory is zero. fastText 0.9.3 with one thread draws a tenth of its table and leaves the rest as it finds it,
    which in a small table is what was freed before: other bits each time, or not a number.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: only large tables, which come fresh, are sure to be zero
        yield
        return
    mallopt(M_PERTURB, 0xFF)  # fills with the complement
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)
