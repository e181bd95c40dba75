"""Tokenise the shards of a mixture into one flat file of tokens and one Arrow table of documents.

Each document becomes its tokens and one end token; the file opens with an end token too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from transforms.pieces import groups

END = "<|endoftext|>"
_BATCH_BYTES = 8 << 20  # text that is tokenised in one call


def tokenise(folder: Path, manifest: dict[str, Any], tokenizer_folder: Path, target: Path) -> None:
    """Write tokens.bin and documents.arrow into target."""
    tokenizer, end = load_tokenizer(tokenizer_folder)
    dtype = token_type(tokenizer.get_vocab_size())
    writer = None
    with (target / "tokens.bin").open("wb") as tokens, (target / "documents.arrow").open("wb") as documents:
        np.array([end], dtype).tofile(tokens)
        for name, source in manifest["sources"].items():
            for file in source["files"]:
                for batch in _batches(folder / file["path"]):
                    ids, lengths = _encode(tokenizer, batch["text"], end, dtype)
                    ids.tofile(tokens)
                    table = _columns(name, batch, lengths)
                    writer = writer or pa.ipc.new_file(documents, table.schema)
                    writer.write_table(table)
        if writer is None:
            raise ValueError(f"{folder}: the shards hold no documents, though the manifest says so; make it anew")
        writer.close()


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


def _batches(path: Path) -> Iterator[pa.Table]:
    """Pieces of a shard of about _BATCH_BYTES of text, at least one document each."""
    with pq.ParquetFile(path) as shard:
        for records in shard.iter_batches(columns=["id", "text", "shard", "row", "draw"]):
            table = pa.Table.from_batches([records])
            size = np.cumsum(pc.binary_length(table["text"]).to_numpy())
            cuts = np.flatnonzero(np.diff(size // _BATCH_BYTES)) + 1
            edges = [0, *cuts.tolist(), len(table)]
            for a, b in pairwise(edges):
                if b > a:
                    yield table.slice(a, b - a)


def _encode(
    tokenizer: Tokenizer, text: pa.ChunkedArray, end: int, dtype: type[np.unsignedinteger[Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the texts end to end, an end token after each; and their lengths without it."""
    texts = text.cast(pa.large_string()).combine_chunks()
    parts: list[np.ndarray] = []
    lengths = np.zeros(len(texts), np.int64)
    before = 0
    for documents, pieces in groups(texts):  # bounded, however long a document is
        for document, encoding in zip(
            documents, tokenizer.encode_batch_fast(pieces, add_special_tokens=False), strict=True
        ):
            if document != before:
                parts.append(np.array([end], dtype))
                before = document
            parts.append(np.array(encoding.ids, dtype))
            lengths[document] += len(encoding.ids)
    return np.concatenate([*parts, np.array([end], dtype)]), lengths


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
