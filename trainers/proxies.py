"""Small language models trained and measured on samples of the sources, one after the other on one thread.

Cost on one core: a proxy of 0.24 M parameters learns about 25,000 tokens/s and reads about three times as many.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from trainers.config import TrainConfig
from trainers.data import Batch, Batches
from trainers.evaluate import document_losses
from trainers.fit_tokenizer import fit_tokenizer
from trainers.learner import Learner
from trainers.loss import token_losses
from trainers.mixture import Corpus, file_digest, open_mixture
from trainers.model import check_packing, head, hidden_states, make_model
from trainers.optimiser import make_optimiser
from trainers.phases import Documents, phases
from trainers.run import backward
from transforms.sequence_classifier import one_thread

VOCABULARY = 2048  # of the tokenizer that is made where none is given
HELD = 10  # every so many-th document is measured on
HELD_BYTES = 32_000  # of each source, about
FEWEST = 20  # documents of a source


@dataclass(frozen=True)
class Pool:
    """Documents of the samples, tokenised. `tokens`: estimate of how many each source has in the whole corpus."""

    learn: Corpus
    held: Corpus
    tokens: dict[str, float]

    def shares(self, names: Sequence[str]) -> np.ndarray:
        """Natural shares of some of the sources."""
        sizes = np.array([self.tokens[name] for name in names])
        return sizes / sizes.sum()


@contextmanager
def pool(samples: Mapping[str, pa.Table], learned: Sequence[str], tokenizer: Path | None, out: Path) -> Iterator[Pool]:
    """Tokenise the samples (tables of id, text and draw in order of draw); on one thread while it is open.

    The tokenizer is copied to out/tokenizer, or made there. Sources that are not `learned` are measured on with all
    their documents, up to HELD_BYTES.

    Raises:
        ValueError: a source gives fewer than FEWEST documents.
    """
    for name, table in samples.items():
        if len(table) < FEWEST:
            raise ValueError(f"source {name!r} gives {len(table)} documents, expected at least {FEWEST}; widen `where`")
    _tokenizer(samples, tokenizer, out / "tokenizer")
    with one_thread(), torch.random.fork_rng(devices=[]), TemporaryDirectory(dir=out) as scratch:
        held = {name: _held(table, 1 if name not in learned else HELD) for name, table in samples.items()}
        rest = {name: samples[name].filter(pa.array(~held[name])) for name in learned}
        measured = {name: table.filter(pa.array(held[name])) for name, table in samples.items()}
        learn = _corpus(Path(scratch) / "learn", rest, out / "tokenizer")
        kept = _corpus(Path(scratch) / "held", measured, out / "tokenizer")
        yield Pool(learn, kept, {name: _whole(samples[name], name, learn) for name in learned})


def _tokenizer(samples: Mapping[str, pa.Table], given: Path | None, out: Path) -> None:
    if given is None:
        fit_tokenizer(
            (text for _, table in sorted(samples.items()) for text in table["text"].to_pylist()), out, VOCABULARY
        )
        return
    out.mkdir()
    file = given / "tokenizer.json" if given.is_dir() else given
    shutil.copyfile(file, out / "tokenizer.json")
    if (file.parent / "tokenizer_config.json").is_file():
        shutil.copyfile(file.parent / "tokenizer_config.json", out / "tokenizer_config.json")


def _held(table: pa.Table, every: int) -> np.ndarray:
    """bool [documents]: every so many-th in order of draw, until there are HELD_BYTES."""
    candidate = np.arange(len(table)) % every == 0
    size = np.where(candidate, pc.binary_length(table["text"]).to_numpy(), 0)
    return candidate & (np.cumsum(size) - size < HELD_BYTES)


def _whole(table: pa.Table, name: str, learn: Corpus) -> float:
    """Tokens of a source in the whole corpus: those of the sample over the share of documents that it holds.

    A sample holds the documents of least draw, uniform in 64 bits: of N the n-th lies at about n / (N + 1), and
    (n - 1) / draw is an unbiased estimate of N. Its relative error is about 1 / √n, and 1 / n where all were drawn.
    """
    documents = (len(table) - 1) / max((float(table["draw"][-1].as_py()) + 1) / 2.0**64, 2.0**-64)
    own = learn.source == learn.sources.index(name)
    return float(learn.length[own].mean() * max(documents, len(table)))


def _corpus(folder: Path, tables: Mapping[str, pa.Table], tokenizer: Path) -> Corpus:
    """Tokenised by way of a mixture folder, as the trainer reads it."""
    sources: dict[str, Any] = {}
    for name, table in tables.items():
        rows = pa.table({"id": table["id"], "text": table["text"], "draw": table["draw"]})
        rows = rows.append_column("shard", pa.repeat("sample", len(rows)))
        rows = rows.append_column("row", pa.array(np.arange(len(rows))))
        path = folder / f"{len(sources)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)
        file = {"path": path.name, "documents": len(rows), "digest": file_digest(path)}
        sources[name] = {"documents": len(rows), "epochs": 1.0, "files": [file]}
    digest = "".join(source["files"][0]["digest"] for source in sources.values())
    own = {"path": str(tokenizer), "digest": file_digest(tokenizer / "tokenizer.json")}
    (folder / "manifest.json").write_text(json.dumps({"digest": digest, "tokenizer": own, "sources": sources}))
    return open_mixture(folder, folder)


def mixture(
    corpus: Corpus, shares: Mapping[str, float], config: TrainConfig, among: np.ndarray | None = None
) -> Corpus:
    """The corpus with a pass of `config.tokens` tokens, of which each source gives its share, to the token.

    among: bool [documents], those that may be taken; None: all.
    """
    draw = corpus.documents["draw"].to_numpy()
    documents = Documents(corpus.length, draw, corpus.key, corpus.source, corpus.sources)
    asked = {name: {"asked": round(share * (config.tokens or 0))} for name, share in shares.items()}
    qualifies = None if among is None else among.astype(np.uint64)
    return replace(corpus, phases=phases({"phases": [{"sources": asked}]}, documents, qualifies))


def make(config: TrainConfig, corpus: Corpus) -> PreTrainedModel:
    """A proxy before its first step: new, or the model of `config.start`.

    Raises:
        ValueError: that model does not fit the tokenizer or `row_length`, or cannot be trained on packed rows.
    """
    model = make_model(config, corpus, "cpu")
    if config.start is not None:
        check_packing(model, Batches(corpus, config.row_length, config.rows, config.seed).batch(0))
    return model


def train(
    model: PreTrainedModel, corpus: Corpus, config: TrainConfig, weigh: Callable[[Batch], Batch] | None = None
) -> PreTrainedModel:
    """Train the model in place on `config.tokens` tokens; `weigh` may give each batch loss weights before its step.

    Raises:
        ValueError: the loss is no longer a number.
    """
    torch.manual_seed(config.seed)
    learner = Learner(model.train())
    optimiser = make_optimiser(learner, config)
    batches = Batches(corpus, config.row_length, config.rows, config.seed)
    budget = config.tokens or int(batches.plan_report()["tokens"])
    step = tokens = 0
    while tokens < budget:
        batch, progress = batches.batch(step), tokens / budget
        step, tokens = step + 1, tokens + len(batch.targets)
        for group in optimiser.param_groups:
            group["lr"] = config.schedule(tokens, budget, config.lr, config.batch_tokens)
        losses = backward(learner, weigh(batch) if weigh else batch, config, progress)
        if not np.isfinite([losses.loss, losses.norm]).all():
            raise ValueError(f"a proxy's loss is {losses.loss} at step {step}; lower proxy.lr (now {config.lr})")
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    return model


@torch.no_grad()
def nats(model: PreTrainedModel, batch: Batch, config: TrainConfig) -> np.ndarray:
    """float64 [tokens]: the loss of each target."""
    training = model.training
    model.eval()
    parts = batch.parts(config.part_tokens)
    found = [token_losses(hidden_states(model, p), head(model), torch.from_numpy(p.targets)) for p in parts]
    model.train(training)
    return torch.cat(found).double().numpy()


def measure(model: PreTrainedModel, held: Corpus, config: TrainConfig) -> dict[str, float]:
    """Mean loss of the held-out documents of each source, nats per token."""
    losses = document_losses(model, held, config.row_length)
    own = [held.source == number for number in range(len(held.sources))]
    return {name: float(losses[o].sum() / held.length[o].sum()) for name, o in zip(held.sources, own, strict=True)}
