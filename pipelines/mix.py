"""Mixtures: documents drawn to budgets of tokens per source and phase, written as shards with a manifest.

Ratios are in tokens. A source that has more than it is asked for is drawn from in order of draw; one that has less is
repeated. Repeats, and phases that take the same documents, are numbers in the manifest, not copies on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import store
from pipelines.code import code_digest
from pipelines.ledger import Record
from pipelines.shards import Split
from pipelines.shares import Mixture, Part, Share, shares
from pipelines.steps import Context, MapSplit
from pipelines.tables import Tables
from sql.expressions import Expression, evaluate
from transforms.conversations import is_conversation
from transforms.draws import hashes, mix64
from transforms.epochs import marginal

OWN = pa.schema(
    {"id": pa.large_string(), "text": pa.large_string(), "source": pa.string(), "shard": pa.string()}
    | {"row": pa.int64(), "tokens": pa.int64(), "draw": pa.uint64()}
)


@dataclass(frozen=True)
class Mix:
    """One split's part of a mixture: its chosen documents with every column of the shard.

    `where` and `cuts` are of the phases: a condition, and by source the draw up to which documents are taken. Where the
    conditions differ, bit k of a column `phases` tells whether a document qualifies for phase k.
    """

    tables: Tables
    where: Sequence[str]
    cuts: Sequence[Mapping[str, int]]

    def __call__(self, split: Split) -> tuple[pa.Table, Record]:
        emptied = self.tables.emptied()
        names = set().union(*(Expression(f"{where} AND {emptied}").names for where in self.where))
        table = self.tables.load(split, {"draw", "holdout", "tokens", *names})
        conditions = {f"q{k}": f"coalesce({where}, false)" for k, where in enumerate(self.where)}
        found = evaluate({**conditions, "e": emptied}, table)
        left, draw = ~found.column("e").to_numpy(), table.column("draw").to_numpy()
        qualifies = [found.column(name).to_numpy() for name in conditions]
        taken = [draw <= np.uint64(cuts[split.source]) if split.source in cuts else None for cuts in self.cuts]
        eligible = np.any(qualifies, axis=0)
        chosen = np.zeros(len(draw), bool)
        for mine, up_to in zip(qualifies, taken, strict=True):
            chosen |= False if up_to is None else mine & left & up_to
        tokens = pc.struct_field(table.column("tokens").combine_chunks(), "count").to_numpy()
        own = {"tokens": tokens, "draw": draw}
        if len(set(self.where)) > 1:
            bits = [mine.astype(np.uint64) << np.uint64(k) for k, mine in enumerate(qualifies)]
            own["phases"] = np.bitwise_or.reduce(bits, axis=0)
        rows = self._rows(split, chosen, own)
        dropped = {"not eligible": int((~eligible).sum()), "emptied by cuts": int((eligible & ~left).sum())}
        dropped["not drawn"] = int((eligible & left & ~chosen).sum())
        dropped = {reason: n for reason, n in dropped.items() if n}
        detail = {"tokens": int(tokens[chosen].sum()), "content": content(rows, *own.keys() & {"phases"})}
        size = rows.column("text").nbytes
        made = Record.of("", split, table.num_rows, rows.num_rows, dropped=dropped, bytes=size, detail=detail)
        return rows, made

    def _rows(self, split: Split, chosen: np.ndarray, own: Mapping[str, np.ndarray]) -> pa.Table:
        batches, seen = [], 0
        for part in self.tables.read(split):
            here = slice(seen, seen + part.documents.num_rows)
            seen = here.stop
            made = self._batch(split, part.documents, {name: values[here] for name, values in own.items()})
            batches.append(made.filter(pa.array(chosen[here])))
        return pa.Table.from_batches(batches) if batches else OWN.empty_table()

    def _batch(self, split: Split, documents: pa.RecordBatch, numbers: Mapping[str, np.ndarray]) -> pa.RecordBatch:
        n, text = documents.num_rows, self.tables.text
        own = {
            "id": documents.column("id"),
            "text": documents.column(text),
            "source": pa.repeat(split.source, n),
            "shard": pa.repeat(split.shard, n),
            "row": documents.column("row"),
            **{name: pa.array(values) for name, values in numbers.items()},
        }
        carried = {name: documents.column(name) for name in documents.schema.names if name not in ("id", "row", text)}
        if (turns := f"{text}_original") in carried and is_conversation(carried[turns].type):
            carried["messages"] = carried.pop(turns)
        if text == "messages":  # conversations as JSON, which the trainer reads under this name
            carried.setdefault(text, documents.column(text))
        renamed = {f"{name}_original" if name in own else name: column for name, column in carried.items()}
        return pa.record_batch(own | renamed)


def content(rows: pa.Table, *numbers: str) -> list[int]:
    """Two 64-bit sums over documents of hashes of (source, id, text) and of the columns of numbers that are named: they
    change with any byte, not with the order.
    """
    from transforms.hashing import hash_spans

    lanes = [0, 0]
    for batch in rows.select(["id", "source", "text", *numbers]).to_batches():
        if not batch.num_rows:
            continue
        text = batch.column("text")
        offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
        data = np.frombuffer(text.buffers()[2] or b"", np.uint8)
        halves = hash_spans(data, offsets[:-1], offsets[1:])  # 128 bits, but the same for other white space
        place = mix64(hashes(batch.column("id")) ^ mix64(hashes(batch.column("source")))) ^ mix64(hashes(text))
        for name in numbers:
            place = mix64(place ^ mix64(batch.column(name).to_numpy()))
        for lane, half in enumerate(halves):
            lanes[lane] = (lanes[lane] + int(mix64(place ^ half).sum(dtype=np.uint64))) % 2**64
    return lanes


def mix(
    context: Context,
    tables: Tables,
    splits: Sequence[Split],
    name: str,
    mixture: Mixture,
    also: str,
    documents: int,
    tokenizer: str,
    recipe: str,
) -> dict[str, Any]:
    """Write one mixture; returns its manifest.

    While shards are replaced there is no manifest: it is removed before the first and written after the last.

    Args:
        also: SQL that holds for every document, besides what the mixture says.
        tokenizer: a tokenizer file of whatever name, or a folder with tokenizer.json; copied into the mixture.
    """
    given = shares(context, tables, splits, name, mixture, f"({also}) AND NOT {tables.emptied()}", documents)
    parts = mixture.parts(name)
    where = [f"({part.where}) AND ({also})" for part in parts]
    cuts = [{source: share.cut for source, share in phase.items()} for phase in given]
    folder = f"{context.run}/mixtures/{name}"
    names = {"draw", "holdout", "tokens", tables.text}.union(*(Expression(text).names for text in where))
    base = store.digest(where, cuts, tables.base(names), code_digest(__name__))
    step = MapSplit(context.run, f"mix:{name}", folder, base, Mix(tables, where, cuts))
    with ThreadPoolExecutor(16) as pool:
        if not all(pool.map(step.held, splits)):
            store.remove(f"{folder}/manifest.json")
    records = context.run_splits(f"mix {name}", splits, beam.ParDo(step), copies=True)
    described = {"name": name, "seed": tables.seed, "recipe": recipe, "tokenizer": _copy_tokenizer(tokenizer, folder)}
    manifest = _manifest(folder, records, described, parts, given)
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
    template, copy = file.parent / "chat_template.jinja", f"{folder}/tokenizer/chat_template.jinja"
    if template.is_file():
        with store.commit(copy) as sink:
            sink.write(template.read_bytes())
    elif not store.is_remote(copy):
        store.remove(copy)
    return {"path": "tokenizer", "digest": store.file_digest(f"{folder}/tokenizer/tokenizer.json")}


def _remove_others(folder: str, splits: Sequence[Split]) -> None:
    """Remove shards of splits that there were once; those without a chosen document stay, to be found done."""
    if store.is_remote(folder):
        return
    current = {Path(split.sidecar(folder)) for split in splits}
    weights = Path(folder) / "weights"  # of tokens, written by `corpusmill prune`
    for path in Path(folder).rglob("*.parquet"):
        if path not in current and weights not in path.parents:
            path.unlink()


def _manifest(
    folder: str,
    records: Sequence[Record],
    described: dict[str, Any],
    parts: Sequence[Part],
    given: Sequence[Mapping[str, Share]],
) -> dict[str, Any]:
    total = sum(share.asked for phase in given for share in phase.values())
    sources: dict[str, Any] = {}
    identity = []
    for source in sorted(set().union(*given)):
        mine = sorted((r for r in records if r.source == source and r.rows_out), key=lambda r: r.split)
        shares = [phase[source] for phase in given if source in phase]
        sources[source] = _source(shares, total, [_file(folder, record) for record in mine])
        sums = [sum(r.detail["content"][lane] for r in mine) % 2**64 for lane in range(2)]
        identity.append((source, sums, [phase[source].asked if source in phase else 0 for phase in given]))
    digest = store.digest(identity, described["seed"], described["tokenizer"]["digest"])
    phases = [_phase(part, phase) for part, phase in zip(parts, given, strict=True)]
    return described | {"digest": digest, "tokens": total, "sources": sources, "phases": phases}


def _source(shares: Sequence[Share], total: int, files: list[dict[str, Any]]) -> dict[str, Any]:
    """What one source gives to all phases, and what that is worth."""
    asked, held = sum(share.asked for share in shares), sum(f["tokens"] for f in files)
    return {
        "weight": asked / total,
        "documents": sum(f["documents"] for f in files),
        "tokens": held,
        "available": max(share.available for share in shares),
        "asked": asked,
        "epochs": asked / held,
        "effective_tokens": round(sum(share.effective for share in shares)),
        "marginal": marginal(max(share.epochs for share in shares), 1),
        "files": files,
    }


def _phase(part: Part, shares: Mapping[str, Share]) -> dict[str, Any]:
    tokens = sum(share.asked for share in shares.values())
    sources = {
        source: {
            "asked": share.asked,
            "weight": share.asked / tokens,
            "available": share.available,
            "epochs": share.epochs,
            "effective_tokens": round(share.effective),
        }
        for source, share in sorted(shares.items())
    }
    return {"tokens": tokens, "where": part.where, "sources": sources}


def _file(folder: str, record: Record) -> dict[str, Any]:
    path = f"{record.source}/{record.split}.parquet"
    digest = store.file_digest(f"{folder}/{path}")
    return {"path": path, "documents": record.rows_out, "tokens": record.detail["tokens"], "digest": digest}
