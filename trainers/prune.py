"""Loss weights of single tokens, decided once for a mixture by frozen models or rules and kept beside it.

The rules are those of reweighing (trainers/reweigh.py), here with models that stand still, and four more. Thresholds
over several documents are taken within pools of about `pool` of them; which pool a document falls into depends on its
key alone, so the result does not change with the number or order of files. A document longer than `row_length` is
judged in pieces, as the trainer would read it.

Files: MIXTURE/weights/NAME/weights.parquet with source, shard, row and `weights`, a list<float32> with a number for
each target of a document, by which its loss weight is to be multiplied (trainers/token_weights.py reads it); and
weights.json with the digests of tokenizer, mixture and models, the parameters and the share that is kept.

Cost: one forward pass of each model over the mixture; memory is that of a pool.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from trainers.critical_tokens import contrast
from trainers.data import Batch, gather
from trainers.formats import conversation
from trainers.mixture import Corpus, read_manifest
from trainers.model import ModelPath, check_packing, check_reads, model_digest
from trainers.reweigh import QTuning, Share, SSToken, frozen_model
from trainers.token_scores import Answers, Step, losses_and_entropies
from trainers.token_weights import keys
from trainers.tokenise import load_tokenizer
from transforms.adverse_turns import ERRORS, trained_turns
from transforms.draws import mix64, ranges
from transforms.packing import split_lengths
from transforms.token_pruning import Tries, answer_inputs, build_tries, keep_share, key_tokens, key_weights

WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
BEFORE = ("", " ", '"', "\n")  # names are tokenised after each of these
FACTORS = {"unit": "factors of the loss weights of targets"}
SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("weights", pa.list_(pa.float32()), metadata=FACTORS),
    ]
)


@dataclass(frozen=True)
class Pool:
    """Documents that are judged together."""

    corpus: Corpus
    mixture: Path
    documents: np.ndarray  # int64 [documents], places in the corpus
    offsets: np.ndarray  # int64 [documents + 1] into their targets, end to end
    batch: Batch  # their pieces, longest first
    place: np.ndarray  # int64 [tokens of the batch], place of each target among the documents' targets
    device: str


class Method(BaseModel):
    """How loss weights are decided."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    row_length: int = Field(default=2048, ge=2)  # tokens; the longest context
    pool: int = Field(default=1024, ge=1)  # documents whose scores are compared, about

    def judge(self, pool: Pool) -> np.ndarray:
        """float32 [tokens of the pool's batch]: their new loss weights."""
        raise NotImplementedError

    def folders(self) -> dict[str, Path]:
        """The models it reads, by the name of the parameter."""
        return {name: value for name, value in self if isinstance(value, Path)}


class FrozenQTuning(QTuning, Method):
    """Q-Tuning with a model that stands still (arXiv 2509.23873)."""

    model: ModelPath

    def judge(self, pool: Pool) -> np.ndarray:
        return self.weights(frozen_model(self.model, pool.device), pool.batch, Step())


class FrozenSSToken(SSToken, Method):
    """ssToken between two models that stand still (arXiv 2510.18250)."""

    model: ModelPath  # the later one, whose attention counts

    def judge(self, pool: Pool) -> np.ndarray:
        return self.weights(
            frozen_model(self.model, pool.device), pool.batch, Step(tokens=1, budget=1)
        )  # past any warm-up


class ExcessLoss(Method):
    """The tokens of a pool whose loss exceeds that of a reference model most (Rho-1, arXiv 2404.07965)."""

    method: Literal["excess_loss"] = "excess_loss"
    model: ModelPath  # the one that is to learn
    reference: ModelPath  # one trained on what is to be learned
    tokens: Share = 0.6  # of the pool's

    def judge(self, pool: Pool) -> np.ndarray:
        own, reference = (
            losses_and_entropies(frozen_model(folder, pool.device), pool.batch, Step())[0]
            for folder in (self.model, self.reference)
        )
        answers = Answers.of(pool.batch)
        excess = (own.astype(np.float64) - reference)[answers.place]
        return answers.only(keep_share(excess, np.array([0, len(excess)]), self.tokens, "high"))


class CriticalTokens(Method):
    """Weights s_t = softmax((1 + β) positive - β negative) of the targets, or 1 - s_t for solutions that are wrong
    (cDPO, arXiv 2411.19943): times the weight a target had."""

    method: Literal["critical_tokens"] = "critical_tokens"
    positive: ModelPath  # trained on right solutions
    negative: ModelPath  # trained on wrong ones
    beta: float = Field(default=1.0, ge=0)
    rejected: bool = False

    def judge(self, pool: Pool) -> np.ndarray:
        positive, negative = (frozen_model(folder, pool.device) for folder in (self.positive, self.negative))
        s = contrast(positive, negative, pool.batch, Step(), self.beta)
        return Answers.of(pool.batch).weights * ((1 - s) if self.rejected else s)


class KeyTokens(Method):
    """More weight for the tokens at which the name of a tool is decided (TL-Training, arXiv 2412.15495).

    The names that a document chooses from are a column of the mixture, list<string>; those found among its trained
    tokens count. Of the paper's parameter ends, which keep weight 1, nothing is known here: they are among the others.
    """

    method: Literal["key_tokens"] = "key_tokens"
    names: str = "tools"
    most: float = Field(default=9.0, ge=1)

    def judge(self, pool: Pool) -> np.ndarray:
        tokenizer, inside = _vocabulary(pool.corpus.tokenizer, pool.corpus.digest)
        lists, tries = _choices(_column(pool, self.names).cast(pa.list_(pa.string())), tokenizer)
        tokens = np.empty(len(pool.place), np.int64)
        tokens[pool.place] = pool.batch.targets
        key = key_tokens(tokens, pool.offsets, lists, tries, inside)
        answers = Answers.of(pool.batch)
        weights = answers.weights.copy()
        weights[answers.place] *= key_weights(key[pool.place[answers.place]], answers.offsets, self.most)
        return weights


class AdverseTurns(Method):
    """Nothing is learned of turns whose calls failed, as the tool messages after them tell (arXiv 2412.15495).

    For conversations: `format` has kind messages. See transforms/adverse_turns.py.
    """

    method: Literal["adverse_turns"] = "adverse_turns"
    errors: tuple[str, ...] = ERRORS

    def judge(self, pool: Pool) -> np.ndarray:
        roles, contents, offsets = _messages(_column(pool, "messages"))
        learned = trained_turns(roles, contents, offsets, self.errors)
        assistant = pc.fill_null(pc.equal(roles, "assistant"), False).to_numpy(zero_copy_only=False)
        before = np.concatenate([[0], np.cumsum(assistant)])[offsets]  # turns of the assistant in earlier documents
        weights = np.empty(len(pool.place), np.float32)
        weights[pool.place] = Answers.of(pool.batch).weights
        trained = weights > 0
        first = trained & ~answer_inputs(trained, pool.offsets)  # of each turn: headers stand between them
        runs = np.concatenate([[0], np.cumsum(first)])
        odd = np.flatnonzero(np.diff(runs[pool.offsets]) != np.diff(before))
        if len(odd):
            raise ValueError(
                f"{pool.corpus.names(pool.documents[odd[:1]])[0]}: its turns cannot be told apart by what is trained; "
                "open the mixture with format.kind=messages, turns all, and a template with headers"
            )
        weights[trained] *= learned[assistant][runs[1:][trained] - 1]
        return weights[pool.place]


METHODS: dict[str, type[Method]] = {
    "q_tuning": FrozenQTuning,
    "sstoken": FrozenSSToken,
    "excess_loss": ExcessLoss,
    "critical_tokens": CriticalTokens,
    "key_tokens": KeyTokens,
    "adverse_turns": AdverseTurns,
}


def prune(corpus: Corpus, mixture: Path, name: str, spec: Method, device: str = "cpu") -> dict[str, Any]:
    """Write the loss weights of all documents of a mixture into `mixture`/weights/`name`; returns its weights.json.

    corpus: the mixture, opened with the format it is to be trained in. What is there with the same key is kept.

    Raises:
        ValueError: a model that cannot read packed rows, has too few tokens or too few positions; a column is missing.
    """
    card = _card(corpus, mixture, spec)
    target = mixture / "weights" / name
    held = target / "weights.json"
    if held.is_file() and (found := json.loads(held.read_text())).get("key") == card["key"]:
        return found | {"reused": True}
    _check_models(corpus, mixture, spec, device)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        counts = np.zeros(3)
        with pq.ParquetWriter(work / "weights.parquet", SCHEMA, compression="zstd") as writer:
            for pool in _pools(corpus, mixture, spec, device):
                old, new = Answers.of(pool.batch).weights, spec.judge(pool)
                counts += [(old > 0).sum(), (new > 0).sum(), new.sum(dtype=np.float64)]
                writer.write_table(_table(pool, old, new))
        card |= {"documents": len(corpus), "tokens": int(corpus.length.sum()), "trained": int(counts[0])}
        card |= {"kept": counts[1] / max(counts[0], 1), "mean_weight": counts[2] / max(counts[0], 1)}
        (work / "weights.json").write_text(json.dumps(card, indent=1))
        work.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return card | {"reused": False}


def _card(corpus: Corpus, mixture: Path, spec: Method) -> dict[str, Any]:
    """What the weights belong to, and the key by which they are found current."""
    import xxhash

    manifest = read_manifest(mixture)
    parameters = spec.model_dump(mode="json", exclude={"method"})
    models = {name: model_digest(folder) for name, folder in spec.folders().items()}
    method: str = spec.method  # type: ignore[attr-defined]
    card = {"tokenizer": manifest["tokenizer"]["digest"], "mixture": manifest["digest"], "tokens_digest": corpus.digest}
    card |= {"method": method, "parameters": parameters, "models": models}
    decisive = {k: v for k, v in card.items() if k != "parameters"}
    decisive |= {k: v for k, v in parameters.items() if k not in models}
    return card | {"key": xxhash.xxh3_128_hexdigest(json.dumps(decisive, sort_keys=True).encode())}


def _check_models(corpus: Corpus, mixture: Path, spec: Method, device: str) -> None:
    probe = _pool(corpus, mixture, np.arange(min(4, len(corpus))), spec.row_length, device).batch
    for folder in spec.folders().values():
        model = frozen_model(folder, device)
        check_reads(model, folder, corpus.tokenizer, min(spec.row_length, int(corpus.length.max())))
        check_packing(model, probe)


def _pools(corpus: Corpus, mixture: Path, spec: Method, device: str) -> Iterator[Pool]:
    """All documents, in pools that depend on their keys alone."""
    count = max(1, round(len(corpus) / spec.pool))
    number = ranges(mix64(corpus.key), count)
    order = np.lexsort((corpus.key, number))
    for documents in np.split(order, np.cumsum(np.bincount(number, minlength=count))[:-1]):
        if len(documents):
            yield _pool(corpus, mixture, documents, spec.row_length, device)


def _pool(corpus: Corpus, mixture: Path, documents: np.ndarray, row_length: int, device: str) -> Pool:
    length = corpus.length[documents]
    offsets = np.concatenate([[0], np.cumsum(length)])
    pieces = split_lengths(length, row_length)
    order = np.argsort(-pieces.length, kind="stable")  # as `gather` puts them
    number, start, length = pieces.document[order], pieces.start[order], pieces.length[order]
    batch = gather(corpus, documents[number], corpus.start[documents[number]] + start, length)
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    place = np.repeat(offsets[number] + start, length) + within
    return Pool(corpus, mixture, documents, offsets, batch, place, device)


def _table(pool: Pool, old: np.ndarray, new: np.ndarray) -> pa.Table:
    """Factors of the weights, 0 for what was not trained."""
    factors = np.zeros(len(new), np.float32)
    factors[pool.place] = np.divide(new, old, out=np.zeros_like(new), where=old > 0)
    lists = pa.ListArray.from_arrays(pa.array(pool.offsets, pa.int32()), pa.array(factors))
    columns = pool.corpus.documents.select(["source", "shard", "row"]).take(pa.array(pool.documents))
    return columns.append_column("weights", lists).cast(SCHEMA)


def _column(pool: Pool, name: str) -> pa.Array:
    """A column of the mixture for the documents of a pool. ValueError if a file has none of that name."""
    names, values = _whole_column(pool.mixture, name, pool.corpus.digest)
    order = np.argsort(names)
    wanted = keys(pool.corpus.documents.take(pa.array(pool.documents)))
    return values.take(pa.array(order[np.searchsorted(names[order], wanted)]))


@lru_cache(maxsize=1)
def _whole_column(mixture: Path, column: str, digest: str) -> tuple[np.ndarray, pa.Array]:
    """Keys of all documents and their values; `digest`, that of the corpus, makes another mixture another entry."""
    parts = []
    for source in read_manifest(mixture)["sources"].values():
        for file in source["files"]:
            path = mixture / file["path"]
            there = pq.read_schema(path).names
            if column not in there:
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(there)}")
            parts.append(pq.read_table(path, columns=["source", "shard", "row", column], partitioning=None))
    table = pa.concat_tables(parts, promote_options="permissive")
    return keys(table), table[column].combine_chunks()


def _choices(names: pa.Array, tokenizer: Tokenizer) -> tuple[np.ndarray, Tries]:
    """Which list of names each document chooses from (int64 [documents], -1: none), and tries over their tokens."""
    joined = pc.binary_join(names, "\0").dictionary_encode()
    lists = [[name for name in held.split("\0") if name] for held in joined.dictionary.to_pylist()]
    spelled = _spellings(tokenizer, sorted({name for held in lists for name in held}))
    tries = build_tries([[ids for name in held for ids in spelled[name]] for held in lists])
    return pc.fill_null(joined.indices.cast(pa.int64()), -1).to_numpy(), tries


def _messages(conversations: pa.Array) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Roles, contents and offsets of conversations: lists of structs, or the same as JSON."""
    if pa.types.is_string(conversations.type) or pa.types.is_large_string(conversations.type):
        held = [conversation(text) for text in conversations.to_pylist()]
        pairs = [[{k: m.get(k) for k in ("role", "content")} for m in messages] for messages in held]
        conversations = pa.array(pairs, pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})))
    flat = pc.list_flatten(conversations)
    lengths = pc.fill_null(pc.list_value_length(conversations), 0).to_numpy()
    roles, contents = (pc.struct_field(flat, name).cast(pa.string()) for name in ("role", "content"))
    return roles, contents, np.concatenate([[0], np.cumsum(lengths)])


@lru_cache(maxsize=1)
def _vocabulary(folder: Path, digest: str) -> tuple[Tokenizer, np.ndarray]:
    """A tokenizer, and for each token (uint8) bit 1: it starts like the inside of an ASCII word, bit 2: it ends so."""
    tokenizer, _ = load_tokenizer(folder)
    texts = (tokenizer.id_to_token(i) or " " for i in range(tokenizer.get_vocab_size()))
    return tokenizer, np.array([(t[:1] in WORD) + 2 * (t[-1:] in WORD) for t in texts], np.uint8)


def _spellings(tokenizer: Tokenizer, names: list[str]) -> dict[str, list[list[int]]]:
    """The tokens of each name after each of BEFORE."""
    pairs = [(before, name) for name in names for before in BEFORE]
    encoded = tokenizer.encode_batch([before + name for before, name in pairs], add_special_tokens=False)
    spelled: dict[str, list[list[int]]] = {name: [] for name in names}
    for (before, name), found in zip(pairs, encoded, strict=True):
        own = zip(found.ids, found.offsets, strict=True)
        spelled[name].append([token for token, (_, end) in own if end > len(before)])
    return spelled
