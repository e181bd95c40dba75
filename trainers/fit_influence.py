"""Fitting MATES' influence model: which documents would help this model, at this point of its training?

Yu et al. 2024 (arXiv 2406.06046). Probes take a step each and are measured on the reference (`trainers.oracle`); a
model of their words, or an encoder, then predicts what a step on any document would do (`scorers.influence`).
docs/influence.md has the loop with the trainer. A probe takes 2.6 s on one core against 256 documents of 256 tokens,
0.04 s of them for the step (0.95 M parameters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from trainers.holdout import regression
from trainers.targets import FromTarget
from transforms.model_folder import CAUSAL, check_model_folder, check_window
from transforms.sequence_classifier import check_encoder, one_thread, window_of

if TYPE_CHECKING:
    from transforms.batch import Batch

WINDOW = 1024  # tokens, that of the paper
CHARACTERS = 16  # read for each token of the window
PENALTIES = (0.01, 0.1, 1.0, 10.0)


class FitInfluence(FromTarget):
    """`model`: a folder of a causal model, or of a finished run of the trainer, RUN/training/MIXTURE/seedK.

    In a run of the trainer the optimiser has the moments of the last checkpoint, as MATES has it; a model alone begins
    with none, and then AdamW's first step is about as long for every document. The reference is `target` or `files`, in
    the paper 1,024 examples of LAMBADA; probes are documents where `pool` holds, in the paper 80,000 that are never
    selected from, and none is of the target or held out. Of both the first `window` tokens are read. `lr` is that of a
    stable phase. Of probes whose words are the same one is kept.

    What learns from the probes is a ridge regression on hashed words and word pairs or, with `encoder`, the folder of
    an encoder of transformers, that encoder and a regression on the mean over both halves of the window, as in the
    paper, whose `epochs`, `batch` and `encoder_lr` are the defaults.
    """

    method: ClassVar[str] = "influence"
    readers: ClassVar[tuple[str, ...]] = ("influence",)
    package: ClassVar[str] = "torch"
    model: Path
    target_documents: int = Field(64, ge=1, description="at most so many")
    pool_documents: int = Field(1000, ge=40, description="probes, at most so many")
    window: int | None = Field(None, ge=2, le=8192, description="None: as many as the model reads, at most 1024")
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    encoder: Path | None = None
    epochs: int = Field(5, ge=1)
    batch: int = Field(32, ge=1, description="documents to a step of the encoder")
    encoder_lr: float = Field(5e-5, gt=0, allow_inf_nan=False)

    @field_validator("model")
    @classmethod
    def _usable(cls, path: Path) -> Path:
        from trainers.tokenise import load_tokenizer

        folder = _folder(path)
        check_model_folder(folder, CAUSAL)
        load_tokenizer(folder)
        if _checkpoints(path):
            from trainers.checkpoint import newest

            if newest(path / "checkpoints") is None:
                raise ValueError(f"no checkpoint in {path}/checkpoints is whole; give {folder}, or train anew")
        return path

    @field_validator("encoder")
    @classmethod
    def _learns(cls, path: Path | None) -> Path | None:
        if path is not None and check_encoder(path).pad is None:
            raise ValueError(
                f"{path}/config.json has no pad_token_id, so documents of several lengths make no batch; write the id "
                "of a token there that no text has"
            )
        return path

    @model_validator(mode="after")
    def _reads_the_window(self) -> FitInfluence:
        check_window(check_model_folder(_folder(self.model), CAUSAL), self._tokens())
        return self

    def _tokens(self) -> int:
        """Of each document."""
        return self.window or min(WINDOW, window_of(check_model_folder(_folder(self.model), CAUSAL), None))

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms.batch import Batch

        window = self._tokens()
        pool = samples["pool"]
        batch = Batch(pa.record_batch({"text": _cut(pool.column("text"), window)}))
        chosen, wordless = unrepeated(batch.word_hashes, batch.words.offsets, window)
        if len(chosen) < 40:
            given = f"{len(chosen)} different probes with words among {len(batch)} documents"
            raise ValueError(f"{given}; expected at least 40: widen `pool` or raise `pool_documents`")
        reference = _cut(self.targets(samples, seed), window)
        if not len(reference):
            raise ValueError("no document of the target; widen its condition or give files that hold some")
        texts = batch.text.take(pa.array(chosen))
        before, losses, card = self._probe(reference, texts, window)
        held = np.arange(len(chosen)) % 10 == 0
        mean, deviation = float(losses[~held].mean()), float(losses[~held].std())
        if not np.ptp(losses[~held]):
            raise ValueError(f"a step on any probe leaves the reference at {mean} nats; raise `lr` (now {self.lr})")
        z = (losses - mean) / deviation
        if self.encoder:
            predicted, told = self._encoder(self.encoder, texts, z, held, out, seed)
        else:
            predicted, told = _ridge(batch, window, chosen, z, held, out)
        known = np.isfinite(predicted)  # a text may have no token of the encoder's
        card |= {
            **told,
            "seed": seed,
            "documents": {"reference": len(reference), "probes": len(chosen)}
            | {"repeated": len(batch) - len(chosen) - wordless, "without words": wordless},
            "reference_loss": {"before": before, "after_mean": mean, "after_std": deviation},
            "helpful": float((losses < before).mean()),
            "holdout": regression(z[held][known], predicted[known]) | {"predicted_std": float(predicted[known].std())},
        }
        own = {"id": pool.column("id")} if "id" in pool.column_names else {}
        table = pa.table({**own, "text": pool.column("text")}).take(pa.array(chosen)).drop(["text"])
        pq.write_table(table.append_column("loss", pa.array(losses)), out / "probes.parquet")
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def _encoder(
        self, encoder: Path, texts: pa.LargeStringArray, z: np.ndarray, held: np.ndarray, out: Path, seed: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Learn with an encoder and write it; predictions for those held out (float64), and what the card tells."""
        from trainers.influence_encoder import FOLDER, Steps, fit_encoder
        from transforms.mean_pooled import half_window, load_pooled, predict

        how = Steps(self.epochs, self.batch, self.encoder_lr)
        window = half_window(encoder, check_encoder(encoder).window, self._tokens())
        learned = texts.filter(pa.array(~held))
        weight, bias = fit_encoder(encoder, window, learned, z[~held], out, seed, how)
        np.savez(out / "model.npz", weight=weight, bias=np.float32(bias))
        model = load_pooled(check_encoder(out / FOLDER, window), weight, bias)
        predicted = predict(model, texts.filter(pa.array(held)))
        if not np.isfinite(predicted).any():
            raise ValueError(f"the encoder {encoder} gives no probe a number; its tokenizer knows none of their words")
        return predicted, {"encoder": {"name": encoder.name, "window": window, **how._asdict()}}

    def _probe(
        self, reference: pa.LargeStringArray, texts: pa.LargeStringArray, window: int
    ) -> tuple[float, np.ndarray, dict[str, Any]]:
        """The reference's loss before, and after a step on each text; what the card tells of how."""
        from trainers.oracle import beginnings, make_oracle, packed
        from trainers.tokenise import load_tokenizer

        folder, checkpoints = _folder(self.model), _checkpoints(self.model)
        end = load_tokenizer(folder)[1]
        with one_thread():
            oracle = make_oracle(folder, checkpoints, self.lr, beginnings(folder, reference, window))
            before = oracle.loss()
            losses = oracle.losses(packed([tokens], end) for tokens in beginnings(folder, texts, window))
        if not np.isfinite(losses).all():
            given = f"{int((~np.isfinite(losses)).sum())} of {len(losses)} probes"
            raise ValueError(f"a step on {given} gives no finite loss; lower `lr` (now {self.lr})")
        optimizer = "moments of the last checkpoint" if checkpoints else "AdamW without moments"
        return before, losses, {"parameters": {"lr": self.lr, "window": window, "optimizer": optimizer}}


def _ridge(
    batch: Batch, window: int, chosen: np.ndarray, z: np.ndarray, held: np.ndarray, out: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """The same with a ridge regression on the words of the chosen documents of a batch."""
    from transforms.hashed_ridge import features

    weights, penalty, predicted = learn(features(batch, window).take(chosen), z, held)
    np.savez(out / "model.npz", weights=weights)
    return predicted, {"penalty": penalty}


def _folder(path: Path) -> Path:
    """The model folder: in a run of the trainer the one beside its checkpoints."""
    return path / "model" if _checkpoints(path) else path


def _checkpoints(path: Path) -> Path | None:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else None


def _cut(texts: pa.Array | pa.ChunkedArray, window: int) -> pa.LargeStringArray:
    """The beginnings of texts, with more characters than a window's tokens have."""
    cut = pc.utf8_slice_codeunits(texts.cast(pa.large_string()), 0, window * CHARACTERS)
    return cut.combine_chunks() if isinstance(cut, pa.ChunkedArray) else cut


def unrepeated(hashes: np.ndarray, offsets: np.ndarray, words: int) -> tuple[np.ndarray, int]:
    """The first of the documents that begin with the same `words` words (int64), and how many have no words."""
    seen: dict[bytes, int] = {}
    for d in range(len(offsets) - 1):
        seen.setdefault(hashes[offsets[d] : min(offsets[d] + words, offsets[d + 1])].tobytes(), d)
    seen.pop(b"", None)
    return np.array(list(seen.values()), np.int64), int((np.diff(offsets) == 0).sum())


def learn(given: Any, z: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Weights (float32) learned from those not held out, their penalty, and predictions (float64) for those held out.

    The penalty is the one of PENALTIES that predicts every fifth of the learned from the others with the least error.
    """
    from transforms.hashed_ridge import dot, ridge

    def learned(some: np.ndarray, penalty: float) -> np.ndarray:
        return ridge(given.take(some), z[some], penalty).astype(np.float32)

    train = np.flatnonzero(~held)
    tried = np.arange(len(train)) % 5 == 0
    errors = [
        float(np.mean((dot(given.take(train[tried]), learned(train[~tried], p)) - z[train[tried]]) ** 2))
        for p in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmin(errors))]
    weights = learned(train, penalty)
    return weights, penalty, dot(given.take(np.flatnonzero(held)), weights)
