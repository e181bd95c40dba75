"""Held-out loss per source, in nats per token and bits per byte, with intervals from a bootstrap over documents.

Every document counts once, whatever its epochs, and all of its tokens are predicted, the end token too. Bits per byte
(of UTF-8) compare models with different tokenizers. Losses of single documents are kept for paired comparisons.
Documents longer than a row are scored in pieces that do not see each other.

Of a corpus with loss weights (SFT: prompts weigh nothing) only targets with a weight above 0 count, each alike, and
documents without one are left out of the sums. Bytes are then those of completions; of conversations, and where tokens
have weights of their own, it is not known what bytes the targets stand for, and there are no bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from trainers.data import Batch, gather
from trainers.loss import token_losses
from trainers.mixture import Corpus
from trainers.model import check_packing, head, hidden_states, load_model
from transforms.draws import mix64
from transforms.model_folder import CAUSAL, check_model_folder, check_window
from transforms.packing import pack, split_lengths

RESAMPLES = 1000
LONGEST = 2048  # tokens of a row, where nothing else is said
PROBE = (44, 17, 3)  # lengths of the pieces on which packed and separate losses are compared


def evaluate(
    model: PreTrainedModel, corpus: Corpus, row_length: int, *, seed: int = 0, bf16: bool = False
) -> tuple[dict[str, Any], pa.Table]:
    """({"overall": …, "sources": {name: …}}, losses of the documents).

    Each entry holds documents, tokens, bytes, nats_per_token, bits_per_byte, and for both of these a 95 % interval
    [low, high] under `…_interval`. The table has id, source, shard, row, bytes, tokens (with the end token), nats.
    Where bytes are not known (see the module), entries lack what goes by them, and the table's are null.
    bf16: multiply in bf16; logits are turned into losses in float32 either way.

    Raises:
        ValueError: no target weighs more than 0.
    """
    tokens = corpus.targets
    if not tokens.any():
        raise ValueError(
            f"{corpus.tokenizer.parent}: every target weighs 0, so there is no loss to measure; hold out documents "
            "with completions, or give the format that they have"
        )
    nats = document_losses(model, corpus, row_length, bf16)
    size = corpus.documents["bytes"].to_numpy() if _known_bytes(corpus) else None
    order = np.argsort(corpus.key)  # so that the draws do not depend on the order of files
    order = order[tokens[order] > 0]

    def entry(own: np.ndarray) -> dict[str, Any]:
        return summary(nats[own], tokens[own], None if size is None else size[own], seed)

    owned = {name: order[corpus.source[order] == number] for number, name in enumerate(corpus.sources)}
    table = corpus.documents.select(["id", "source", "shard", "row"])
    for name, values in (("bytes", size), ("tokens", tokens), ("nats", nats)):
        column = pa.nulls(len(table), pa.int64()) if values is None else pa.array(values)
        table = table.append_column(name, column)
    return {"overall": entry(order), "sources": {name: entry(own) for name, own in owned.items() if len(own)}}, table


def open_model(folder: Path, row_length: int | None = None, device: str = "cpu") -> tuple[PreTrainedModel, int]:
    """A causal language model of transformers, in float32, and the tokens it may read at once.

    row_length: None takes what the model was made for, at most LONGEST.

    Raises:
        ValueError: the folder holds no whole, safe causal model, it was made for shorter rows, or packed pieces get
            other losses from it than each alone.
    """
    checked = check_model_folder(folder, CAUSAL)
    model = load_model(folder).to(device).eval()
    row_length = row_length or min(LONGEST, model.config.max_position_embeddings)
    check_window(checked, row_length)
    tokens = np.random.default_rng(0).integers(checked.vocabulary, size=sum(PROBE) + 1)
    check_packing(model, Batch(tokens[:-1], tokens[1:], np.array(PROBE), np.arange(len(PROBE))))
    return model, row_length


def _known_bytes(corpus: Corpus) -> bool:
    """Whether the targets are what `text` holds: all of a text or completion, with weights of 0 and 1 (uint8)."""
    return corpus.weights is None or (corpus.lead == 0 and corpus.weights.dtype == np.uint8)


def document_losses(model: PreTrainedModel, corpus: Corpus, row_length: int, bf16: bool = False) -> np.ndarray:
    """float64 [documents]: minus the log-probability of each document's targets that count, in nats."""
    nats = np.zeros(len(corpus))
    training = model.training
    model.eval()
    precision = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    with torch.no_grad(), precision:
        for batch in map(Batch.trained, _batches(corpus, row_length)):
            if not len(batch.lengths):
                continue
            targets = torch.from_numpy(batch.targets).to(model.device)
            losses = token_losses(hidden_states(model, batch), head(model), targets).double().cpu().numpy()
            if batch.weights is not None:
                losses = losses * (batch.weights > 0)
            first = np.cumsum(batch.lengths) - batch.lengths
            np.add.at(nats, batch.documents, np.add.reduceat(losses, first))
    model.train(training)
    return nats


def summary(nats: np.ndarray, tokens: np.ndarray, size: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Ratios of sums over documents and their bootstrap intervals (percentiles of RESAMPLES resamples of documents).

    nats float [documents], tokens and size (bytes, None where they are not known) int [documents].
    """
    generator = np.random.default_rng(seed)
    sums = np.stack([nats, tokens, tokens if size is None else size], axis=1).astype(np.float64)
    drawn = np.empty((RESAMPLES, 3))
    for i in range(RESAMPLES):
        drawn[i] = np.bincount(generator.integers(len(nats), size=len(nats)), minlength=len(nats)) @ sums
    total = sums.sum(axis=0)

    def entry(name: str, divisor: int, unit: float) -> dict[str, Any]:
        ratios = drawn[:, 0] / np.maximum(drawn[:, divisor], 1) / unit
        mean, interval = float(total[0] / total[divisor] / unit), np.quantile(ratios, [0.025, 0.975]).tolist()
        return {name: mean, f"{name}_interval": interval}

    result = {"documents": len(nats), "tokens": int(total[1])} | entry("nats_per_token", 1, 1.0)
    return result if size is None else result | {"bytes": int(total[2])} | entry("bits_per_byte", 2, math.log(2))


def write_losses(table: pa.Table, path: Path) -> None:
    """Write the losses of the documents as Parquet, whole or not at all."""
    work = path.with_name(f".{path.name}")
    pq.write_table(table, work)
    work.replace(path)


def _batches(corpus: Corpus, row_length: int) -> Iterator[Batch]:
    """All documents once, packed into batches of 16 rows, in an order that depends on the documents alone."""
    order = np.argsort(mix64(corpus.key))
    pieces = split_lengths(corpus.length[order], row_length)
    document = order[pieces.document]
    rows = pack(pieces.length, row_length)
    for row in range(0, len(rows), 16):
        own = rows.order[rows.offsets[row] : rows.offsets[min(row + 16, len(rows))]]
        start = corpus.start[document[own]] + pieces.start[own]
        yield gather(corpus, document[own], start, pieces.length[own])
