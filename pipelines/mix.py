"""Mixtures: documents drawn to a budget of tokens per source, written as shards with a manifest that the trainer reads.

Ratios are in tokens. A source that has more than it is asked for is drawn from in order of draw; one that has less is
repeated, and the repeats are epochs in the manifest, not copies on disk.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines import store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.select import remembered
from pipelines.shards import Split
from pipelines.steps import Context, MapSplit
from pipelines.tables import Tables
from pipelines.thresholds import Found, Statistic
from sql.expressions import Expression, evaluate
from transforms.draws import hashes, mix64

log = logging.getLogger("corpusmill")
TOKENS = "tokens.count"
OWN = pa.schema(
    {"id": pa.large_string(), "text": pa.large_string(), "source": pa.string(), "shard": pa.string()}
    | {"row": pa.int64(), "tokens": pa.int64(), "draw": pa.uint64()}
)
WARN_EPOCHS = 4.0  # repeats are worth nearly as much as new data up to here (Muennighoff et al. 2023, arXiv 2305.16264)


class MixError(ValueError):
    """A mixture that cannot be made of the documents there are."""

    exit_code = 2


class Mixture(BaseModel):
    """One mixture of a recipe.

    `where` chooses documents; held-out ones never qualify. `tokens` is one pass over it (null: all there are, once).
    `weights` are shares of tokens by source, or `natural`: as the chosen documents have them. A source asked for more
    than `max_epochs` times what it has is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    where: str = "selection.keep"
    tokens: int | None = Field(default=None, gt=0)
    weights: dict[str, float] | Literal["natural"] = "natural"
    max_epochs: float = Field(default=16.0, gt=0)

    @field_validator("tokens", mode="before")
    @classmethod
    def _suffix(cls, value: Any) -> Any:
        """Accepts 300k, 5M and 2B."""
        if not isinstance(value, str):
            return value
        if value.isdecimal():
            return int(value)
        try:
            return round(float(value[:-1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[value[-1:].upper()])
        except (KeyError, ValueError, OverflowError):
            raise ValueError(f"{value!r} is no number of tokens; write 300000, 300k, 5M or 2B") from None

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: dict[str, float] | str) -> dict[str, float] | str:
        shares = value.values() if isinstance(value, dict) else [1.0]
        if not all(math.isfinite(share) and share >= 0 for share in shares) or not any(shares):
            raise ValueError(f"{value} are no weights: they must be finite, none below 0 and one above 0")
        return value


@dataclass(frozen=True)
class Share:
    """What one source gives: tokens and documents that qualify, tokens asked of it, the draw up to which to take it."""

    available: int
    documents: int
    asked: int
    cut: int


def shares(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    name: str,
    mixture: Mixture,
    where: str,
    documents: int,
) -> dict[str, Share]:
    """How much each source gives to a mixture; warns of sources repeated so often that it is worth less than new text.

    Raises:
        MixError: a source with a weight has no document, or would have to be repeated more than `max_epochs` times.
    """
    sources = sorted({s.source for s in splits})
    everything = [Statistic(source, "draw", share=1.0, where=where, weight=TOKENS, source=source) for source in sources]
    found = remembered(context, tables, splits, everything, documents)
    asked = _asked(name, mixture, {s: found[s].weight for s in sources})
    partly = [
        Statistic(source, "draw", total=asked[source], where=where, weight=TOKENS, source=source)
        for source in asked
        if asked[source] < found[source].weight
    ]
    cuts = remembered(context, tables, splits, partly, documents)
    for source, tokens in asked.items():
        if (epochs := tokens / found[source].weight) > WARN_EPOCHS:
            worth = f"beyond {WARN_EPOCHS:g} repeats add less than new text would"
            log.warning("mix.%s: source %r is repeated %.1f times; %s", name, source, epochs, worth)
    return {s: Share(found[s].weight, found[s].documents, tokens, _cut(cuts.get(s))) for s, tokens in asked.items()}


def _cut(found: Found | None) -> int:
    """The draw up to which documents are taken; all of them where nothing was looked for."""
    return 2**64 - 1 if found is None else int(found.value or 0)


def _asked(name: str, mixture: Mixture, available: Mapping[str, int]) -> dict[str, int]:
    """Tokens to take of each source that gives any."""
    weights: Mapping[str, float] = available if mixture.weights == "natural" else mixture.weights
    weights = {source: weight for source, weight in weights.items() if weight}
    unknown = weights.keys() - available.keys()
    if unknown:
        raise MixError(f"mix.{name}.weights names {', '.join(sorted(unknown))}; the sources are {', '.join(available)}")
    if not weights:
        raise MixError(f"mix.{name}: no document satisfies {mixture.where!r}")
    if mixture.weights == "natural" and mixture.tokens is None:  # whole corpora keep their counts exactly
        return {source: available[source] for source in weights}
    total = sum(available[source] for source in weights) if mixture.tokens is None else mixture.tokens
    asked = {source: round(total * weight / sum(weights.values())) for source, weight in weights.items()}
    for source, tokens in asked.items():
        _check_epochs(name, mixture, source, tokens, available[source])
    return {source: tokens for source, tokens in asked.items() if tokens}


def _check_epochs(name: str, mixture: Mixture, source: str, asked: int, available: int) -> None:
    if asked and not available:
        none = f"no document of it satisfies {mixture.where!r}"
        raise MixError(f"mix.{name}: source {source!r} is to give {asked:,} tokens but {none}")
    if asked > mixture.max_epochs * available:
        raise MixError(
            f"mix.{name}: source {source!r} has {available:,} tokens and would be repeated {asked / available:.1f} "
            f"times to give {asked:,}; lower its weight or `tokens`, or raise max_epochs (now {mixture.max_epochs:g})"
        )


@dataclass(frozen=True)
class Mix:
    """One split's part of a mixture: its chosen documents with every column of the shard."""

    tables: Tables
    where: str
    cuts: Mapping[str, int]

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        emptied = self.tables.emptied()
        names = Expression(f"{self.where} AND {emptied}").names
        table = self.tables.load(split, {"draw", "holdout", "tokens", *names})
        found = evaluate({"q": f"coalesce({self.where}, false)", "e": emptied}, table)
        eligible, left = found.column("q").to_numpy(), ~found.column("e").to_numpy()
        qualify = eligible & left
        draw = table.column("draw").to_numpy()
        cut = self.cuts.get(split.source)
        chosen = np.zeros(len(draw), bool) if cut is None else qualify & (draw <= np.uint64(cut))
        tokens = pc.struct_field(table.column("tokens").combine_chunks(), "count").to_numpy()
        rows = self._rows(split, chosen, tokens, draw)
        dropped = {"not eligible": int((~eligible).sum()), "emptied by cuts": int((eligible & ~left).sum())}
        dropped["not drawn"] = int((qualify & ~chosen).sum())
        dropped = {reason: n for reason, n in dropped.items() if n}
        detail = {"tokens": int(tokens[chosen].sum()), "content": content(rows)}
        size = rows.column("text").nbytes
        made = Record.of("", split, table.num_rows, rows.num_rows, dropped=dropped, bytes=size, detail=detail)
        return rows, made

    def _rows(self, split: Split, chosen: np.ndarray, tokens: np.ndarray, draw: np.ndarray) -> pa.Table:
        batches, seen = [], 0
        for part in self.tables.read(split):
            here = slice(seen, seen + part.documents.num_rows)
            seen = here.stop
            made = self._batch(split, part.documents, tokens[here], draw[here])
            batches.append(made.filter(pa.array(chosen[here])))
        return pa.Table.from_batches(batches) if batches else OWN.empty_table()

    def _batch(self, split: Split, documents: pa.RecordBatch, tokens: np.ndarray, draw: np.ndarray) -> pa.RecordBatch:
        n, text = documents.num_rows, self.tables.text
        own = {
            "id": documents.column("id"),
            "text": documents.column(text),
            "source": pa.repeat(split.source, n),
            "shard": pa.repeat(split.shard, n),
            "row": documents.column("row"),
            "tokens": pa.array(tokens),
            "draw": pa.array(draw),
        }
        carried = {name: documents.column(name) for name in documents.schema.names if name not in ("id", "row", text)}
        renamed = {f"{name}_original" if name in own else name: column for name, column in carried.items()}
        return pa.record_batch(own | renamed)


def content(rows: pa.Table) -> list[int]:
    """Two 64-bit sums over documents of hashes of (source, id, text): they change with any byte, not with the order."""
    from transforms.hashing import hash_spans

    lanes = [0, 0]
    for batch in rows.select(["id", "source", "text"]).to_batches():
        if not batch.num_rows:
            continue
        text = batch.column("text")
        offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
        data = np.frombuffer(text.buffers()[2] or b"", np.uint8)
        halves = hash_spans(data, offsets[:-1], offsets[1:])  # 128 bits, but the same for other white space
        place = mix64(hashes(batch.column("id")) ^ mix64(hashes(batch.column("source")))) ^ mix64(hashes(text))
        for lane, half in enumerate(halves):
            lanes[lane] = (lanes[lane] + int(mix64(place ^ half).sum(dtype=np.uint64))) % 2**64
    return lanes


def mix(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    name: str,
    mixture: Mixture,
    where: str,
    documents: int,
    tokenizer: str,
    recipe: str,
) -> dict[str, Any]:
    """Write one mixture; returns its manifest.

    While shards are replaced there is no manifest: it is removed before the first and written after the last.

    Args:
        tokenizer: a tokenizer file of whatever name, or a folder with tokenizer.json; copied into the mixture.
    """
    left = f"({where}) AND NOT {tables.emptied()}"
    given = shares(context, tables, splits, name, mixture, left, documents)
    cuts = {source: share.cut for source, share in given.items()}
    folder = f"{context.run}/mixtures/{name}"
    names = {"draw", "holdout", "tokens", tables.text, *Expression(where).names}
    base = store.digest(where, cuts, tables.base(names), code_digest(__name__))
    step = MapSplit(context.run, f"mix:{name}", folder, base, Mix(tables, where, cuts))
    with ThreadPoolExecutor(16) as pool:
        if not all(pool.map(step.held, splits)):
            store.remove(f"{folder}/manifest.json")
    records = context.run_splits(f"mix {name}", splits, beam.ParDo(step), copies=True)
    described = _copy_tokenizer(tokenizer, folder)
    manifest = _manifest(folder, records, name, tables.seed, given, described, recipe)
    store.write_json(f"{folder}/manifest.json", manifest)
    _remove_others(folder, splits)
    return manifest


def _copy_tokenizer(tokenizer: str, folder: str) -> dict[str, str]:
    """Put the tokenizer's files into a mixture's folder, so that it needs nothing else; returns path and digest."""
    file = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
    config = file.parent / "tokenizer_config.json"
    for source, copy in ((file, "tokenizer.json"), (config, config.name)):
        if source.is_file():
            with store.commit(f"{folder}/tokenizer/{copy}") as sink:
                sink.write(source.read_bytes())
        elif store.read_json(f"{folder}/tokenizer/{copy}") is not None:
            store.remove(f"{folder}/tokenizer/{copy}")  # of another tokenizer
    return {"path": "tokenizer", "digest": store.file_digest(f"{folder}/tokenizer/tokenizer.json")}


def _remove_others(folder: str, splits: Sequence[Split]) -> None:
    """Remove shards of splits that there were once; those without a chosen document stay, to be found done."""
    if store.is_remote(folder):
        return
    current = {Path(split.sidecar(folder)) for split in splits}
    for path in Path(folder).rglob("*.parquet"):
        if path not in current:
            path.unlink()


def _manifest(
    folder: str,
    records: Sequence[Record],
    name: str,
    seed: int,
    given: Mapping[str, Share],
    tokenizer: dict[str, str],
    recipe: str,
) -> dict[str, Any]:
    total = sum(share.asked for share in given.values())
    sources: dict[str, Any] = {}
    identity = []
    for source, share in sorted(given.items()):
        mine = sorted((r for r in records if r.source == source and r.rows_out), key=lambda r: r.split)
        files = [_file(folder, record) for record in mine]
        held = sum(f["tokens"] for f in files)
        sums = [sum(r.detail["content"][lane] for r in mine) % 2**64 for lane in range(2)]
        identity.append((source, sums, share.asked, held))
        sources[source] = {
            "weight": share.asked / total,
            "documents": sum(f["documents"] for f in files),
            "tokens": held,
            "available": share.available,
            "asked": share.asked,
            "epochs": share.asked / held,
            "phase": 0,
            "files": files,
        }
    digest = store.digest(identity, seed, tokenizer["digest"])
    manifest = {"name": name, "seed": seed, "digest": digest, "recipe": recipe, "tokenizer": tokenizer}
    return manifest | {"tokens": total, "sources": sources}


def _file(folder: str, record: Record) -> dict[str, Any]:
    path = f"{record.source}/{record.split}.parquet"
    digest = store.file_digest(f"{folder}/{path}")
    return {"path": path, "documents": record.rows_out, "tokens": record.detail["tokens"], "digest": digest}
