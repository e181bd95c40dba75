"""Fitting PreSelect (Shum et al. 2025, arXiv 2503.00808): a fastText classifier of documents whose losses under several
models rank these models by ability, against documents whose losses do so least.

Nearly all of the time goes into the losses: each seed document is read by each model (see `transforms.losses`), one
model in memory at a time. The sample is held in memory as text. What fastText costs stands in `fit_fasttext`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Mapping
from math import factorial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainers.fit_fasttext import FastTextParameters, fit_fasttext
from trainers.fits import Fit, Wanted
from transforms.model_folder import CAUSAL, ModelFolder, check_model_folder, check_window
from transforms.predictive_strength import LACKING, NEGATIVE, POSITIVE, chance, labels, predictive_strength

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST = 20  # documents on each side that fastText needs
EXPECTED = 0.01  # of the seed documents are positives; the paper reports over a fifth, chance gives 1/720

log = logging.getLogger(__name__)


class Rated(BaseModel):
    """A folder of a causal model of transformers, and how able it is: a mean over benchmarks, or the like."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Path
    ability: float = Field(allow_inf_nan=False)


class FitPreselect(Fit):
    """Seed documents are drawn by domain and read by all `models`; those on which every abler model has the lower loss
    are the positives, as many of the least concordant ones the negatives.

    `documents` are drawn at random where `where` holds, with the SQL value `domain` (as `url.domain`; documents
    without one are left out); the first `per_domain` of each of the `domains` most frequent in the draw are the seeds.
    The paper takes 300 of each of 3,000 domains, six models of one family (families mixed were no better than chance),
    and seeds that are not in the pool to select from: use shards of their own, or a `where` that `select` excludes.
    Models read `window` tokens every `stride`. All must begin texts with a token, or none and all have one tokenizer,
    so that every one predicts the same text.

    The paper keeps the best tenth by characters: `preselect.score >= quantile(preselect.score, 0.9, characters)`.
    """

    method: ClassVar[str] = "preselect"
    readers: ClassVar[tuple[str, ...]] = ("fasttext",)
    package: ClassVar[str] = "fasttext"
    models: tuple[Rated, ...] = Field(min_length=2)
    domain: str
    where: str = "true"
    documents: int = Field(100_000, ge=2 * FEWEST, description="drawn at most, before domains are counted")
    domains: int = Field(3000, ge=1)
    per_domain: int = Field(300, ge=1)
    window: int = Field(1900, ge=2)
    stride: int = Field(512, ge=1)
    parameters: FastTextParameters = FastTextParameters.model_validate({})

    @model_validator(mode="after")
    def _comparable(self) -> FitPreselect:
        if self.stride >= self.window:
            raise ValueError(f"stride {self.stride} must be less than the window of {self.window} tokens")
        if importlib.util.find_spec("torch") is None:
            raise ValueError("needs the package torch for the losses; pip install 'corpusmill[trainer]'")
        for what, counts in (
            ("the folder", Counter(str(rated.model) for rated in self.models)),
            ("the ability", Counter(str(rated.ability) for rated in self.models)),
        ):
            one, count = counts.most_common(1)[0]
            if count > 1:
                raise ValueError(f"models: {count} have {what} {one}; models must differ and rank strictly")
        folders = [check_model_folder(rated.model, CAUSAL) for rated in self.models]
        for folder in folders:
            check_window(folder, self.window)
        _check_first_token(folders)
        return self

    def samples(self) -> dict[str, Wanted]:
        return {"seed": Wanted(self.where, documents=self.documents, columns={"domain": self.domain})}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        drawn = samples["seed"]
        chosen, domains = seeds(drawn.column("domain"), self.domains, self.per_domain)
        table = drawn.take(pa.array(chosen))
        texts = table.column("text").cast(pa.large_string()).combine_chunks()
        losses = np.column_stack([_losses(rated.model, texts, self.window, self.stride) for rated in self.models])
        strength = predictive_strength(losses, np.array([rated.ability for rated in self.models]))
        most = len(self.models) * (len(self.models) - 1) // 2
        label = labels(strength, most)
        positives, negatives = (texts.filter(pa.array(label == side)).to_pylist() for side in (POSITIVE, NEGATIVE))
        lacking = drawn.column("domain").null_count
        seen = {"drawn": drawn.num_rows, "without_domain": lacking, "domains": domains, "seeds": len(texts)}
        told = _told(strength, len(self.models))
        if min(len(positives), len(negatives)) < FEWEST:
            raise ValueError(
                f"{told['positives']} of {told['scored']} seed documents are positives and {len(negatives)} are left "
                f"as negatives, expected at least {FEWEST} each; draw more `documents`, and check that the models are "
                "of one family and their abilities right"
            )
        if "warning" in told:
            log.warning("fit preselect: %s", told["warning"])
        card = fit_fasttext(positives, negatives, out, self.parameters, seed)
        rated = [{"model": rated.model.name, "ability": rated.ability} for rated in self.models]
        card |= {"models": rated, "window": self.window, "stride": self.stride, "sample": seen, "strength": told}
        (out / "card.json").write_text(json.dumps(card, indent=1))
        _keep_losses(out / "losses.parquet", table, losses, strength)
        return card


def seeds(domain: pa.ChunkedArray, domains: int, per_domain: int) -> tuple[np.ndarray, int]:
    """The first `per_domain` documents of each of the `domains` most frequent values (ties by value), nulls left out.

    Returns:
        int64 [chosen], their places in ascending order, and how many domains they come from.

    Raises:
        ValueError: no document has a domain.
    """
    there = np.flatnonzero(domain.is_valid().to_numpy())
    if not len(there):
        raise ValueError(f"none of the {len(domain)} documents drawn has a domain; check the expression `domain`")
    try:
        names = domain.drop_null().cast(pa.large_string()).combine_chunks()
    except pa.ArrowException:
        raise ValueError(f"`domain` is {domain.type}; expected text, or what can be written as text") from None
    code = pc.rank(names, tiebreaker="dense").to_numpy().astype(np.int64) - 1
    counts = np.bincount(code)
    frequent = np.zeros(len(counts), bool)
    frequent[np.argsort(-counts, kind="stable")[:domains]] = True
    order = np.argsort(code, kind="stable")
    place = np.empty(len(code), np.int64)
    place[order] = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    return there[frequent[code] & (place < per_domain)], int(frequent.sum())


def _check_first_token(folders: Sequence[ModelFolder]) -> None:
    """Raises ValueError: some models would leave out the loss of text that others count."""
    without = [folder.path for folder in folders if folder.begin is None]
    if not without:
        return
    if len(without) < len(folders):
        begun = next(folder.path for folder in folders if folder.begin is not None)
        raise ValueError(
            f"models: {without[0]} has no token that begins a text and {begun} has one, so the first token would count "
            "in the loss of the second alone; name a bos_token in each tokenizer_config.json, or in none"
        )
    first, *others = ((path, (path / "tokenizer.json").read_bytes()) for path in without)
    for path, tokenizer in others:
        if tokenizer != first[1]:
            raise ValueError(
                f"models: {first[0]} and {path} have different tokenizers and no token that begins a text, so their "
                "losses would leave out different parts of it; name a bos_token in each tokenizer_config.json"
            )


def _losses(folder: Path, texts: pa.LargeStringArray, window: int, stride: int) -> np.ndarray:
    """float64 [documents]: total loss in nats, NaN where no token is scored."""
    from transforms.causal_model import load
    from transforms.losses import document_sums, token_losses

    tokens, total, _ = document_sums(len(texts), token_losses(load(folder), texts, window, stride))
    return np.where(tokens > 0, total, np.nan)


def _told(strength: np.ndarray, models: int) -> dict[str, Any]:
    """For the card: the histogram beside the one that chance gives, and whether positives are rare enough to warn."""
    scored = strength[strength != LACKING]
    expected = chance(models)
    counts = np.bincount(scored, minlength=len(expected))
    share = float(counts[-1] / max(len(scored), 1))
    told = {
        "scored": len(scored),
        "without_loss": int(len(strength) - len(scored)),
        "positives": int(counts[-1]),
        "share_of_positives": share,
        "histogram": counts.tolist(),
        "histogram_by_chance": (expected * len(scored)).round(2).tolist(),
    }
    least = max(EXPECTED, 1 / factorial(models))
    if share < least:
        told["warning"] = (
            f"positives are {share:.2%} of {len(scored)} seed documents, expected more than {least:.2%}: the losses "
            "hardly rank the models; check that these are of one family, and their abilities"
        )
    return told


def _keep_losses(file: Path, table: pa.Table, losses: np.ndarray, strength: np.ndarray) -> None:
    """The seed documents' losses (nats, in the order of the card's models) and strength, to look into."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(losses.ravel()), losses.shape[1])
    columns = {"id": table.column("id"), "domain": table.column("domain"), "losses": rows}
    pq.write_table(pa.table({**columns, "strength": pa.array(strength, mask=strength == LACKING)}), file)
