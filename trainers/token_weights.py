"""Per-token loss weights that were made beforehand (pruning, teachers' judgements): a folder beside a mixture.

`weights.json` holds at least `tokenizer`, the digest of the tokenizer that made them (as in a mixture's manifest). Its
`*.parquet` files hold `source`, `shard`, `row` and `weights`, list<float32>: one number for each target of the
document, for text its tokens and the end token, for conversations every token but the first.

Cost: one pass over the files and over the tokens' weights on disk; 32 bytes of memory per document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from transforms.draws import mix64

COLUMNS = ("source", "shard", "row", "weights")


def files(folder: Path) -> list[Path]:
    """weights.json and the Parquet files of a folder of weights. ValueError if there are none."""
    found = [folder / "weights.json", *sorted(folder.rglob("*.parquet"))]
    if not found[0].is_file() or len(found) == 1:
        raise ValueError(f"{folder} holds no token weights; expected weights.json and Parquet files")
    return found


def check(folder: Path, tokenizer: str) -> None:
    """ValueError if the weights are of another tokenizer than the one with this digest."""
    made = json.loads(files(folder)[0].read_text()).get("tokenizer")
    if made != tokenizer:
        raise ValueError(
            f"{folder} holds weights of the tokenizer with digest {made}; the mixture's has {tokenizer}: "
            "their tokens differ, make the weights with this mixture"
        )


def multiply(folder: Path, documents: pa.Table, start: np.ndarray, length: np.ndarray, weights: np.ndarray) -> None:
    """Multiply the weights of all documents, in place.

    Args:
        documents: with source, shard and row. start, length: int64 [documents], places of their targets in `weights`.

    Raises:
        ValueError: naming the document that has no weights, or twice, or not one per target, or a weight below 0.
    """
    names = keys(documents)
    order = np.argsort(names)
    times = np.zeros(len(names), np.int64)
    for batch in _batches(folder):
        place = order[np.minimum(np.searchsorted(names[order], sought := keys(batch)), len(order) - 1)]
        ours = names[place] == sought
        batch, place = batch.filter(pa.array(ours)), place[ours]
        times += np.bincount(place, minlength=len(times))
        given = batch["weights"].combine_chunks()
        sizes = pc.fill_null(pc.list_value_length(given), 0).to_numpy()
        wrong = np.flatnonzero(sizes != length[place])
        if len(wrong):
            i = place[wrong[0]]
            found = f"{sizes[wrong[0]]} weights, expected {length[i]}: one per target token"
            raise ValueError(f"{folder}: {_name(documents, i)} has {found}")
        values = given.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(bad):
            i = place[np.searchsorted(np.cumsum(sizes), bad[0], side="right")]
            raise ValueError(f"{folder}: {_name(documents, i)} has the weight {values[bad[0]]}; expected 0 or more")
        first = np.cumsum(sizes) - sizes
        weights[np.repeat(start[place] - first, sizes) + np.arange(len(values))] *= values
    for count, what in ((0, "no weights"), (2, "weights twice")):
        wrong = np.flatnonzero(times >= 2 if count else times == 0)
        if len(wrong):
            raise ValueError(f"{folder} has {what} for {len(wrong)} documents, such as {_name(documents, wrong[0])}")


def keys(documents: pa.Table) -> np.ndarray:
    """uint64 [documents]: a hash of source, shard and row."""
    text = pa.large_string()
    source, shard = documents["source"].cast(text), documents["shard"].cast(text)
    place = pc.binary_join_element_wise(source, shard, pa.scalar("\0", text))
    named = pa.chunked_array(place).combine_chunks().dictionary_encode()
    hashes = [xxhash.xxh3_64_intdigest(name.encode()) for name in named.dictionary.to_pylist()]
    return mix64(np.array(hashes, np.uint64)[named.indices.to_numpy()] ^ mix64(documents["row"].to_numpy()))


def _batches(folder: Path) -> Iterator[pa.Table]:
    for path in files(folder)[1:]:
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} has no column {missing[0]}; expected {', '.join(COLUMNS)}")
            for records in file.iter_batches(batch_size=4096, columns=list(COLUMNS)):
                yield pa.Table.from_batches([records])


def _name(documents: pa.Table, place: int) -> str:
    row = documents.select(["source", "shard", "row", "id"]).slice(int(place), 1).to_pylist()[0]
    return f"{row['source']}/{row['shard']} row {row['row']} ({row['id']})"
