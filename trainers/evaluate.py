"""Held-out loss per source, in nats per token and bits per byte, with intervals from a bootstrap over documents.

Every document counts once, whatever its epochs, and all of its tokens are predicted, the end token too. Bits per byte
(of UTF-8) compare models with different tokenizers. Losses of single documents are kept for paired comparisons.
Documents longer than a row are scored in pieces that do not see each other.
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
from trainers.model import head, hidden_states
from transforms.draws import mix64
from transforms.packing import pack, split_lengths

RESAMPLES = 1000


def evaluate(
    model: PreTrainedModel, corpus: Corpus, row_length: int, *, seed: int = 0, bf16: bool = False
) -> tuple[dict[str, Any], pa.Table]:
    """({"overall": …, "sources": {name: …}}, losses of the documents).

    Each entry holds documents, tokens, bytes, nats_per_token, bits_per_byte, and for both of these a 95 % interval
    [low, high] under `…_interval`. The table has id, source, shard, row, tokens (with the end token), bytes, nats.
    bf16: multiply in bf16; logits are turned into losses in float32 either way.
    """
    nats = document_losses(model, corpus, row_length, bf16)
    tokens, size = corpus.length, corpus.documents["bytes"].to_numpy()
    order = np.argsort(corpus.key)  # so that the draws do not depend on the order of files
    sources = {}
    for number, name in enumerate(corpus.sources):
        own = order[corpus.source[order] == number]
        sources[name] = summary(nats[own], tokens[own], size[own], seed)
    table = corpus.documents.select(["id", "source", "shard", "row", "bytes"])
    table = table.append_column("tokens", pa.array(tokens)).append_column("nats", pa.array(nats))
    return {"overall": summary(nats[order], tokens[order], size[order], seed), "sources": sources}, table


def document_losses(model: PreTrainedModel, corpus: Corpus, row_length: int, bf16: bool = False) -> np.ndarray:
    """float64 [documents]: minus the log-probability of each document, in nats."""
    nats = np.zeros(len(corpus))
    training = model.training
    model.eval()
    precision = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    with torch.no_grad(), precision:
        for batch in _batches(corpus, row_length):
            targets = torch.from_numpy(batch.targets).to(model.device)
            losses = token_losses(hidden_states(model, batch), head(model), targets).double().cpu().numpy()
            first = np.cumsum(batch.lengths) - batch.lengths
            np.add.at(nats, batch.documents, np.add.reduceat(losses, first))
    model.train(training)
    return nats


def summary(nats: np.ndarray, tokens: np.ndarray, size: np.ndarray, seed: int) -> dict[str, Any]:
    """Ratios of sums over documents and their bootstrap intervals (percentiles of RESAMPLES resamples of documents).

    nats float [documents], tokens and size (bytes) int [documents].
    """
    generator = np.random.default_rng(seed)
    sums = np.stack([nats, tokens, size], axis=1).astype(np.float64)
    drawn = np.empty((RESAMPLES, 3))
    for i in range(RESAMPLES):
        drawn[i] = np.bincount(generator.integers(len(nats), size=len(nats)), minlength=len(nats)) @ sums
    total = sums.sum(axis=0)

    def entry(divisor: int, unit: float) -> tuple[float, list[float]]:
        ratios = drawn[:, 0] / np.maximum(drawn[:, divisor], 1) / unit
        return float(total[0] / total[divisor] / unit), np.quantile(ratios, [0.025, 0.975]).tolist()

    per_token, token_interval = entry(1, 1.0)
    per_byte, byte_interval = entry(2, math.log(2))
    return {
        "documents": len(nats),
        "tokens": int(total[1]),
        "bytes": int(total[2]),
        "nats_per_token": per_token,
        "nats_per_token_interval": token_interval,
        "bits_per_byte": per_byte,
        "bits_per_byte_interval": byte_interval,
    }


def paired_difference(a: pa.Table, b: pa.Table, seed: int = 0) -> dict[str, Any]:
    """Bits per byte of model a minus those of model b on the same documents, with a 95 % bootstrap interval.

    a, b: tables of `evaluate` for one held-out mixture. Resampling documents, not losses, keeps what makes a document
    hard out of the interval. Raises ValueError if the documents differ.
    """
    place = ["source", "shard", "row"]
    a, b = (table.sort_by([(name, "ascending") for name in place]) for table in (a, b))
    if not a.select(place).equals(b.select(place)):
        raise ValueError("the two tables of losses are of different documents; evaluate both models on one mixture")
    size = a["bytes"].to_numpy()
    difference = a["nats"].to_numpy() - b["nats"].to_numpy()
    result = summary(difference, np.ones(len(size), np.int64), size, seed)
    return {"bits_per_byte": result["bits_per_byte"], "interval": result["bits_per_byte_interval"]}


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
