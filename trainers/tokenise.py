"""Tokenise the shards of a mixture into one flat file of tokens, one of their loss weights, and a table of documents.

Each document of text becomes its tokens and one end token; the file opens with an end token too. A conversation is
what its chat template makes of it, and nothing stands before its first token: that one is no target (Corpus.lead).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from trainers import token_weights
from trainers.formats import Chat, ChatTokenizer, Format, Template, conversation
from transforms.pieces import AT_ONCE, groups

END = "<|endoftext|>"
_BATCH_BYTES = 8 << 20  # text that is tokenised in one call
_OWN = ("id", "text", "shard", "row", "draw")


def tokenise(
    folder: Path, manifest: dict[str, Any], tokenizer_folder: Path, target: Path, format: Format | None = None
) -> None:
    """Write tokens.bin and documents.arrow into target, and unless all is learned alike weights.bin and targets.npy.

    weights.bin holds a number per token (`weight_type`), targets.npy int64 [documents], the tokens that weigh anything.
    Raises ValueError naming the document that does not fit the format, or the weights that do not fit the tokenizer.
    """
    format = format or Format()
    if format.weights:
        token_weights.check(format.weights, manifest["tokenizer"]["digest"])
    encoder = Encoder(tokenizer_folder, format)
    schema, lengths = None, []
    with (
        (target / "tokens.bin").open("wb") as tokens,
        (target / "weights.bin").open("wb") as weights,
        (target / "documents.arrow").open("wb") as documents,
    ):
        np.array([encoder.end], encoder.dtype).tofile(tokens)
        np.zeros(1, weight_type(format)).tofile(weights)
        for name, source in manifest["sources"].items():
            for file in source["files"]:
                for batch in _batches(folder / file["path"], format):
                    encoded = encoder.encode(name, batch)
                    encoded.ids.tofile(tokens)
                    encoded.weights.astype(weight_type(format)).tofile(weights)
                    lengths.append(encoded.lengths)
                    table = _columns(name, batch, encoded.lengths - 1 - encoder.lead)
                    if schema is None:
                        schema = table.schema
                        writer = pa.ipc.new_file(documents, schema)
                    writer.write_table(table)
        if schema is None:
            raise ValueError(f"{folder}: the shards hold no documents, though the manifest says so; make it anew")
        writer.close()
    if format.plain:
        (target / "weights.bin").unlink()
    else:
        _finish_weights(target, format, np.concatenate(lengths), encoder.lead)


def _finish_weights(target: Path, format: Format, lengths: np.ndarray, lead: int) -> None:
    """Multiply by the weights made beforehand, and count targets."""
    weights = np.memmap(target / "weights.bin", weight_type(format), mode="r+")
    first = 1 + np.cumsum(lengths) - lengths
    if format.weights:
        documents = pa.ipc.open_file(pa.memory_map(str(target / "documents.arrow"))).read_all()
        token_weights.multiply(format.weights, documents, first + lead, lengths - lead, weights)
        weights.flush()
    counts = []
    for a in range(0, len(first), 4096):
        here = first[a : a + 4096]
        some = weights[here[0] : here[-1] + lengths[a : a + 4096][-1]] > 0
        counts.append(np.add.reduceat(some, here - here[0], dtype=np.int64))
    np.save(target / "targets.npy", np.concatenate(counts))


def weight_type(format: Format) -> type[np.generic]:
    """Of weights.bin: 0 or 1, unless documents or tokens have weights of their own."""
    return np.float32 if format.document_weight or format.weights else np.uint8


def end_token(path: Path) -> str:
    """`eos_token` of the tokenizer_config.json in a tokenizer's folder, or beside its file; END where it names none."""
    config = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("eos_token") if config.is_file() else None
    return (named.get("content") if isinstance(named, dict) else named) or END


def load_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a file, or of a folder with tokenizer.json, and the id of its end token (see `end_token`).

    Text that spells out a special token is tokenised as any other text: a document cannot end itself.
    ValueError if it has no end token.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    name = end_token(path)
    end = tokenizer.token_to_id(name)
    if end is None:
        raise ValueError(
            f"{file} has no token {name} to end documents with; name one of its tokens as eos_token in "
            "tokenizer_config.json beside it, or train it with that special token"
        )
    return tokenizer, end


def token_type(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Encoded:
    """Documents end to end."""

    ids: np.ndarray  # uint16 or uint32 [tokens]
    weights: np.ndarray  # [tokens]
    lengths: np.ndarray  # int64 [documents]


class Encoder:
    """Turns rows of a mixture's shards into tokens and weights, as a format says."""

    def __init__(self, tokenizer_folder: Path, format: Format) -> None:
        self.format = format
        self.tokenizer, self.end = load_tokenizer(tokenizer_folder)
        self.dtype = token_type(self.tokenizer.get_vocab_size())
        self.lead = int(format.conversation)
        if format.conversation:
            self.template = Template(tokenizer_folder, end_token(tokenizer_folder))
            self.chats = ChatTokenizer(self.tokenizer, self.template)

    def encode(self, source: str, batch: pa.Table) -> Encoded:
        """Tokens and weights of rows of a shard. ValueError naming the document that does not fit the format."""
        if self.format.conversation:
            encoded = self._conversations(source, batch)
        else:
            end = np.full(len(batch), self.end, self.dtype), np.ones(len(batch), np.int64)
            parts = [(*self._texts(batch["text"]), 1), (*end, 1)]
            if self.format.kind == "prompt_completion":
                parts.insert(0, (*self._texts(batch["prompt"]), 0))
            encoded = _interleaved(parts)
        if self.format.document_weight is None:
            return encoded
        own = _document_weights(source, batch, self.format.document_weight)
        return Encoded(encoded.ids, encoded.weights * np.repeat(own, encoded.lengths), encoded.lengths)

    def _texts(self, text: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the texts end to end, and how many each has; null is empty."""
        texts = pc.fill_null(text.cast(pa.large_string()), "").combine_chunks()
        parts = [np.empty(0, self.dtype)]
        lengths = np.zeros(len(texts), np.int64)
        for documents, pieces in groups(texts):  # bounded, however long a document is
            found = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            for document, encoding in zip(documents, found, strict=True):
                parts.append(np.array(encoding.ids, self.dtype))
                lengths[document] += len(encoding.ids)
        return np.concatenate(parts), lengths

    def _conversations(self, source: str, batch: pa.Table) -> Encoded:
        held: list[Chat] = []
        found: list[tuple[np.ndarray, np.ndarray]] = []
        size = 0
        rows = batch["messages"].to_pylist() if self.format.kind == "messages" else _turns(batch)
        for place, value in enumerate(rows):  # templates take one conversation at a time
            try:
                held.append(self.template.chat(conversation(value), self.format.turns))
            except ValueError as error:
                raise ValueError(f"{_name(source, batch, place)}: {error}") from error
            size += len(held[-1].text)
            if size >= AT_ONCE:
                found += self.chats.encode(held)
                held, size = [], 0
        found += self.chats.encode(held)
        nothing = np.array([self.end, self.end]), np.zeros(2, bool)  # so that each has a place
        found = [(ids, learned) if learned.any() else nothing for ids, learned in found]
        ids = np.concatenate([ids for ids, _ in found]).astype(self.dtype)
        lengths = np.array([len(ids) for ids, _ in found], np.int64)
        weights = np.concatenate([learned for _, learned in found])
        weights[np.cumsum(lengths) - lengths] = False  # nothing stands before the first token to predict it from
        return Encoded(ids, weights, lengths)


def _turns(batch: pa.Table) -> list[list[dict[str, str]]]:
    """Prompts and completions as conversations."""
    prompts, completions = (batch[name].cast(pa.large_string()).to_pylist() for name in ("prompt", "text"))
    pairs = zip(prompts, completions, strict=True)
    return [
        [{"role": "user", "content": prompt or ""}, {"role": "assistant", "content": completion}]
        for prompt, completion in pairs
    ]


def _interleaved(parts: list[tuple[np.ndarray, np.ndarray, int]]) -> Encoded:
    """Documents made of a piece of each part, in order. Part: tokens end to end, their number by document, weight."""
    lengths = np.sum([sizes for _, sizes, _ in parts], axis=0)
    place = np.cumsum(lengths) - lengths
    ids = np.empty(lengths.sum(), parts[0][0].dtype)
    weights = np.empty(len(ids), np.uint8)
    for tokens, sizes, weight in parts:
        to = np.repeat(place - (np.cumsum(sizes) - sizes), sizes) + np.arange(len(tokens))
        ids[to], weights[to] = tokens, weight
        place = place + sizes
    return Encoded(ids, weights, lengths)


def _document_weights(source: str, batch: pa.Table, column: str) -> np.ndarray:
    """float32 [documents]. ValueError naming the document whose weight is null, negative or no number."""
    found = batch[column].cast(pa.float64()).to_numpy()  # null becomes NaN
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        name = _name(source, batch, wrong[0])
        raise ValueError(f"{name}: {column} is {batch[column][int(wrong[0])].as_py()}, expected a number from 0")
    return found.astype(np.float32)


def _name(source: str, batch: pa.Table, place: int) -> str:
    row = batch.select(["shard", "row", "id"]).slice(int(place), 1).to_pylist()[0]
    return f"{source}/{row['shard']} row {row['row']} ({row['id']})"


def _batches(path: Path, format: Format) -> Iterator[pa.Table]:
    """Pieces of a shard of about _BATCH_BYTES of text, at least one document each."""
    more = [name for name in (format.column, format.document_weight) if name]
    with pq.ParquetFile(path) as shard:
        there = shard.schema_arrow.names
        for name in more:
            if name not in there:
                raise ValueError(f"{path} has no column {name!r}, which the format reads; it has {', '.join(there)}")
        for records in shard.iter_batches(columns=[*_OWN, *more], batch_size=8192):
            table = pa.Table.from_batches([records])
            size = np.cumsum(pc.binary_length(table["text"]).to_numpy())
            cuts = np.flatnonzero(np.diff(size // _BATCH_BYTES)) + 1
            edges = [0, *cuts.tolist(), len(table)]
            for a, b in pairwise(edges):
                if b > a:
                    yield table.slice(a, b - a)


def _columns(source: str, batch: pa.Table, lengths: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "id": batch["id"].cast(pa.large_string()),
            "source": pa.array([source] * len(batch), pa.string()),
            "shard": batch["shard"].cast(pa.string()),
            "row": batch["row"].cast(pa.int64()),
            "draw": batch["draw"],
            "tokens": lengths,
            "bytes": pc.binary_length(batch["text"]).cast(pa.int64()),
        }
    )
