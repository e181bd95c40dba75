"""Fitting a classifier or a regression on an encoder: FineWeb-Edu (arXiv 2406.17557) fits a head on a frozen encoder to
grades from 0 to 5, Deep Ignorance (arXiv 2508.06601) all of ModernBERT to labels.

One thread, so that the same sample and seed give the same bytes on one processor and version of torch. A new encoder of
the default size learns about 15,000 tokens/s.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from scorers._chunk_scores import pooled
from trainers.fits import Fit, Wanted
from trainers.holdout import classification, regression
from transforms.chunks import Chunker, Chunks, Sections
from transforms.model_folder import ENCODER, ModelFolder, check_model_folder, load_model
from transforms.sequence_classifier import check_classifier, load, one_thread, window_of

if TYPE_CHECKING:
    import torch

GOOD, OTHER = "good", "other"
MOST_CHUNKS = 4  # of a document that are learned from
SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
BLOCK = 16  # batches within which documents of about one length are put together


class EncoderSize(BaseModel):
    """Size of a new BERT, under the names of transformers' BertConfig, with a tokenizer trained on the sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden_size: int = Field(128, ge=1)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(2, ge=1)
    intermediate_size: int = Field(512, ge=1)
    vocabulary: int = Field(4096, ge=300)
    window: int = Field(256, ge=8)

    @model_validator(mode="after")
    def _heads(self) -> EncoderSize:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class FitClassifier(Fit):
    """`label` is an SQL value of each document: true or false (null: not learned from), or a number to be regressed.

    `encoder` is a folder of an encoder of transformers; without it a new BERT of `size` is made. `train` says whether
    all weights learn or the head alone. `balance` gives both classes the same weight, so that a score of 0.5 means
    as likely as in a sample of half and half. `lr` without a value is 1e-3 for a new encoder, 1e-4 for all of a given
    one (Deep Ignorance), 3e-4 for its head (FineWeb-Edu). Every tenth document, of each class, is held out.
    """

    method: ClassVar[str] = "classifier"
    readers: ClassVar[tuple[str, ...]] = ("classifier", "safety")
    package: ClassVar[str] = "torch"
    label: str
    where: str = "true"
    documents: int = Field(5000, ge=40, description="drawn at most")
    encoder: Path | None = None
    size: EncoderSize = EncoderSize.model_validate({})
    train: Literal["all", "head"] = "all"
    sections: Sections = "beginning"
    balance: bool = True
    epochs: int = Field(3, ge=1)
    batch: int = Field(32, ge=1, description="chunks to a step")
    lr: float | None = Field(None, gt=0)

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, path: Path | None) -> Path | None:
        if path is not None:
            folder = check_model_folder(path, ENCODER)
            Chunker(path, window_of(folder, folder.config.get("pad_token_id")))
        return path

    @model_validator(mode="after")
    def _padding(self) -> FitClassifier:
        if self.encoder is None or self.batch == 1:
            return self
        if check_model_folder(self.encoder, ENCODER).config.get("pad_token_id") is None:
            raise ValueError(
                f"{self.encoder}/config.json has no pad_token_id, so chunks of several lengths make no batch; "
                "write the id of a token there that no text has, or set batch: 1"
            )
        return self

    @model_validator(mode="after")
    def _head(self) -> FitClassifier:
        if self.train == "head" and self.encoder is None:
            raise ValueError("train: head needs an `encoder`; the head of a new one would read noise")
        return self

    def samples(self) -> dict[str, Wanted]:
        return {"documents": Wanted(self.where, documents=self.documents, columns={"label": self.label})}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        table = samples["documents"]
        kind = table.schema.field("label").type
        if not (binary := pa.types.is_boolean(kind)) and not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        ):
            raise ValueError(f"label {self.label!r} is {kind}; expected true or false, or a number")
        kept = table.filter(pc.is_finite(table.column("label").cast(pa.float64())))
        truth = kept.column("label").cast(pa.float64()).to_numpy()
        _check(self.label, truth, binary)
        held = _held_out(truth if binary else np.zeros(len(truth)))
        texts = kept.column("text").cast(pa.large_string()).combine_chunks()
        fit_classifier(self, texts.filter(pa.array(~held)), truth[~held], binary, out, seed)
        scores = _scores(out, texts.filter(pa.array(held)), self.sections)
        known = np.isfinite(scores)  # a text without tokens has no score
        scores, right = scores[known], truth[held][known]
        counts = {GOOD: int(truth.sum()), OTHER: int((truth == 0).sum())} if binary else {"labelled": len(truth)}
        card = {
            "positive": GOOD if binary else None,
            "sections": self.sections,
            "parameters": self.model_dump(mode="json"),
            "seed": seed,
            "documents": counts,
            "without_label": table.num_rows - kept.num_rows,
            "holdout": classification(scores[right == 1], scores[right == 0]) if binary else regression(right, scores),
        }
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card


def _held_out(classes: np.ndarray) -> np.ndarray:
    """bool [documents]: every tenth of each class, in the order they were drawn in."""
    held = np.zeros(len(classes), bool)
    for one in np.unique(classes):
        held[np.flatnonzero(classes == one)[::10]] = True
    return held


def _check(label: str, truth: np.ndarray, binary: bool) -> None:
    good, different = int(truth.sum()), len(np.unique(truth))
    if binary and min(good, len(truth) - good) < 20:
        given = f"{good} documents where it is true and {len(truth) - good} where it is false"
        raise ValueError(f"label {label!r}: a classifier needs at least 20 documents on each side; given {given}")
    if not binary and (len(truth) < 40 or different < 2):
        given = f"{len(truth)} documents with {different} different values"
        raise ValueError(
            f"label {label!r}: a regression needs at least 40 documents of different values; given {given}"
        )


def fit_classifier(
    parameters: FitClassifier, texts: pa.LargeStringArray, truth: np.ndarray, binary: bool, out: Path, seed: int
) -> None:
    """Learn `truth` (float64 [texts]; 0 and 1 if `binary`) and write config.json, weights and tokenizer into `out`."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    p = parameters
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = {"num_labels": 2, "id2label": {0: OTHER, 1: GOOD}, "label2id": {OTHER: 0, GOOD: 1}}
        head = head if binary else {"num_labels": 1, "problem_type": "regression"}
        new: list[str] = []
        if p.encoder is None:
            model, window = _new(p.size, texts, out, head), p.size.window
        else:
            model, window, new = _given(check_model_folder(p.encoder, ENCODER), out, head)
        if p.train == "head":
            model.base_model.requires_grad_(False)
            for name in new:  # a pooler that the folder lacks is noise, and part of the head
                model.get_parameter(name).requires_grad_(True)
        chunks = Chunker(out, window).cut(texts, p.sections, MOST_CHUNKS)
        _learn(model, p, chunks, truth, binary, seed)
        model.save_pretrained(out, safe_serialization=True)


def _new(size: EncoderSize, texts: pa.LargeStringArray, out: Path, head: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertForSequenceClassification

    from trainers.fit_tokenizer import fit_tokenizer

    fit_tokenizer(texts.to_pylist(), out, size.vocabulary - len(SPECIAL))
    file = out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(list(SPECIAL))
    pad, begin, end = (tokenizer.token_to_id(token) for token in SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
    )
    tokenizer.save(str(file))
    named = dict(zip(("pad_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": size.window, **named}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    shape = size.model_dump(exclude={"vocabulary", "window"})
    config = BertConfig(
        **shape, **head, vocab_size=size.vocabulary, max_position_embeddings=size.window, pad_token_id=pad
    )
    return BertForSequenceClassification(config)


def _given(folder: ModelFolder, out: Path, head: dict[str, Any]) -> tuple[Any, int, list[str]]:
    """The model with a head, its window, and the parameters that are new."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder.path / name).is_file():
            shutil.copy(folder.path / name, out / name)
    model, new = load_model("AutoModelForSequenceClassification", folder.path, new_head=True, **head)
    return model, window_of(folder, folder.config.get("pad_token_id")), new


def _learn(model: Any, p: FitClassifier, chunks: Chunks, truth: np.ndarray, binary: bool, seed: int) -> None:
    """AdamW with linear decay, as Deep Ignorance sets it: betas 0.9 and 0.999, weight decay 0.01, gradients up to 1.

    A document's weight is shared by its chunks.
    """
    import torch

    document = np.repeat(np.arange(len(truth)), chunks.counts)
    targets, weights = truth[document], 1 / chunks.counts[document]
    if binary and p.balance:
        weights = weights / np.where(targets == 1, truth.mean(), 1 - truth.mean())
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == model.num_labels]
    if not binary and linear and linear[-1].bias is not None:
        torch.nn.init.constant_(linear[-1].bias, float(truth.mean()))  # else the first epochs go there
    lr = p.lr or (1e-3 if p.encoder is None else 1e-4 if p.train == "all" else 3e-4)
    learned = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    steps = list(batches(np.diff(chunks.offsets), p.batch, p.epochs, seed))
    model.train()
    if p.train == "head":
        model.base_model.eval()
    for step, members in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / len(steps))
        logits = model(**padded(chunks, members, model.config.pad_token_id)).logits
        loss = _loss(logits, targets[members], weights[members], binary)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
    model.eval()


def batches(lengths: np.ndarray, size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks of each step: shuffled, in blocks by length, the batches of a block shuffled again."""
    draw = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draw.permutation(len(lengths))
        for start in range(0, len(order), size * BLOCK):
            block = order[start : start + size * BLOCK]
            block = block[np.argsort(lengths[block], kind="stable")]
            parts = [block[at : at + size] for at in range(0, len(block), size)]
            yield from (parts[k] for k in draw.permutation(len(parts)))


def padded(chunks: Chunks, members: np.ndarray, pad: int | None) -> dict[str, torch.Tensor]:
    import torch

    found = [chunks.ids[chunks.offsets[c] : chunks.offsets[c + 1]] for c in members]
    width = max(map(len, found))
    ids, mask = np.full((len(found), width), pad or 0, np.int64), np.zeros((len(found), width), np.int64)
    for row, chunk in enumerate(found):
        ids[row, : len(chunk)], mask[row, : len(chunk)] = chunk, 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _loss(logits: torch.Tensor, targets: np.ndarray, weights: np.ndarray, binary: bool) -> torch.Tensor:
    import torch

    weight = torch.from_numpy(weights).float()
    if binary:
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long(), reduction="none")
    else:
        losses = (logits[:, 0] - torch.from_numpy(targets).float()) ** 2
    return (losses * weight).sum() / weight.sum()


def _scores(out: Path, texts: pa.LargeStringArray, sections: Sections) -> np.ndarray:
    """float64 [texts]: what the scorer will give, read back from the folder."""
    checked = check_classifier(out)
    model = load(checked)
    chunks = model.chunker.cut(texts, sections, MOST_CHUNKS)
    output = checked.output(GOOD) if len(checked.labels) > 1 else 0
    return pooled(model.scores(chunks, output), chunks.counts)["mean"]
