"""Near duplicates by MinHash and banding: who share buckets, transitively, are a cluster; one of each is kept.

    signatures (scoring pass) -> buckets: stars of edges -> [verify: true Jaccard] -> components -> survivors -> flags

Within a split every bucket is a star at its smallest node, and only that node is shuffled: a page that occurs a million
times costs one row per split and band. A row of the shuffle takes 16 bytes; a worker holds one band of one split, or
one partition of COLUMN_ROWS rows. The local engine holds a graph's shuffle in memory: it gets SHUFFLE_ROWS at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipelines import clusters, engine, ledger, shards, store, survivors, verify
from pipelines.clusters import BLOCK, File, Part, Scratch, blocks
from pipelines.code import code_digest
from pipelines.dedupe import FLAGS
from pipelines.ledger import Record
from pipelines.near_signature import MinHashSignature
from pipelines.recipe import RecipeError, load
from pipelines.score import Column, Pass
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Struct, Tables
from sql.expressions import Expression
from transforms.components import bucket_stars
from transforms.draws import ranges
from transforms.minhash import PRESETS, MinHash

COLUMN_ROWS = 4_000_000  # rows of one band in a partition of the shuffle: 64 MB, 200 MB at work
SHUFFLE_ROWS = 16_000_000  # rows in one graph of the local engine, which takes 80 bytes of memory for each: 1.3 GB
FOLDER = "signatures/minhash"


class Near(BaseModel):
    """Documents of about the same word (or character) n-grams. That with the highest `prefer`, then lowest id, stays.

    Parameters of the signature are those of `preset`, unless given; `threshold` chooses bands and rows out of
    `permutations`. `verify`: the least true Jaccard similarity of the pairs that join a cluster. `against`: run folders
    whose documents stay whatever is found here; of these runs only the signatures are read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: Literal["fineweb", "curator"] = "fineweb"
    ngram: PositiveInt | None = None
    unit: Literal["word", "character"] | None = None
    bands: PositiveInt | None = None
    rows: PositiveInt | None = None
    seed: int | None = None
    normalise: bool | None = None
    threshold: float | None = Field(None, gt=0, lt=1)
    permutations: int | None = Field(None, ge=2)
    prefer: str = "bytes"
    verify: float | None = Field(None, gt=0, le=1)
    against: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("against"), str):
            return {**value, "against": (value["against"],)}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Near:
        if self.threshold and (self.bands or self.rows):
            raise ValueError("threshold chooses bands and rows: give it or them, not both")
        if self.permutations and not self.threshold:
            raise ValueError("permutations are bands times rows; they are given with threshold alone")
        if self.verify and self.against:
            raise ValueError("verify reads the texts of both runs, against only signatures: give one of them")
        mine = self.sketch()
        for folder in self.against:
            method = _recipe(folder).dedupe.get("minhash")
            if method is None:
                raise ValueError(f"against: the recipe of {folder} has no dedupe.minhash, so it has no signatures")
            theirs = Near(**{**method, "against": ()}).sketch()
            if theirs != mine:
                raise ValueError(
                    f"against: {folder} was made with {theirs!r}, this run asks for {mine!r}; they must be equal"
                )
        return self

    def sketch(self) -> MinHash:
        """The parameters of the signature."""
        names = ("ngram", "unit", "bands", "rows", "seed", "normalise")
        given = {**PRESETS[self.preset].model_dump(), **{n: v for n in names if (v := getattr(self, n)) is not None}}
        if self.threshold is None:
            return MinHash.model_validate(given)
        del given["bands"], given["rows"]
        return MinHash.from_threshold(self.threshold, self.permutations or 128, **given)

    def column(self) -> Column:
        return Column("minhash", FOLDER, MinHashSignature(parameters=self.sketch()))


def near(
    context: Context, tables: Tables, splits: Sequence[Split], method: Near, documents: int
) -> tuple[Struct, list[Record]]:
    """Flag the near duplicates of all splits; returns the new column and the step's records."""
    splits = sorted(splits, key=lambda s: (s.source, s.name))
    parts, older = _parts(context, splits, method)
    struct = Struct("dedupe/minhash", FLAGS, _base(tables, method, splits, older))
    if (held := context.held("dedupe:minhash", splits, struct.folder, struct.base)) is not None:
        return struct, held
    scratch = Scratch(f"{context.run}/scratch/minhash")
    scratch.discard()
    files = _buckets(context, parts, method, scratch)
    if method.verify is not None:
        files = verify.similar(context, tables, parts, method.sketch(), method.verify, files, scratch)
    labels = clusters.components(context, parts, files, scratch)
    records = survivors.flag(context, tables, parts, labels, method.prefer, struct, scratch)
    scratch.discard()
    return struct, records


def _base(tables: Tables, method: Near, splits: Sequence[Split], older: Sequence[str]) -> str:
    """What the flags of any one split depend on: the signatures of all of them, and the rule of survival."""
    return store.digest(
        method.sketch().model_dump(),
        method.verify,
        method.prefer,
        tables.structs[FOLDER].base,
        tables.base(Expression(method.prefer).names),
        sorted(s.identity() for s in splits),
        sorted(older),
        code_digest(__name__),
    )


def _parts(context: Context, splits: Sequence[Split], method: Near) -> tuple[list[Part], list[str]]:
    """Parts of this run in order of (source, split), then those of older runs; and the keys of the latter."""
    count = {(r.source, r.split): r.rows_out for r in context.records["index"]}
    found: list[tuple[str, int, Split | None]] = [
        (s.sidecar(f"{context.run}/{FOLDER}"), count[s.source, s.name], s) for s in splits
    ]
    keys = []
    for run in method.against:
        if not store.is_remote(run) and os.path.realpath(run) == os.path.realpath(context.run):
            raise RecipeError(
                f"dedupe.minhash.against: {run} is this run; every document would be a duplicate of itself"
            )
        for path, documents, key in older_signatures(run, method):
            found.append((path, documents, None))
            keys.append(key)
    first = accumulate((n for _, n, _ in found), initial=0)
    return [Part(i, f, n, path, s) for i, (f, (path, n, s)) in enumerate(zip(first, found, strict=False))], keys


def _recipe(run: str):  # type: ignore[no-untyped-def]
    try:
        return load(str(Path(run) / "recipe.yaml"))
    except RecipeError as error:
        raise ValueError(f"against: {run} is no run folder ({error})") from error


def older_signatures(run: str, method: Near) -> list[tuple[str, int, str]]:
    """(path, documents, key) of the signatures of another run, which has none of what it has rewritten.

    Raises:
        RecipeError: they are missing, or were made by other parameters or another version of the code.
    """
    recipe = _recipe(run)
    column = method.column()
    plan = Pass.plan(run, recipe.text, recipe.admission, [column])
    result = []
    held = shards.from_json(store.read_json(f"{run}/shards.json") or [])
    for split in shards.splits(s for s in held if s.source in recipe.sources):
        record, key = plan.current(column.folder, split), plan.key(column.folder, split)
        if record is not None:
            result.append((split.sidecar(f"{run}/{column.folder}"), record["rows_out"], key))
        elif plan.current("index", split) is not None:  # without an index the split could not be read
            raise RecipeError(
                f"dedupe.minhash.against: {run} has no current signatures of {split.source}/{split.name}; run it again"
            )
    if not result:
        raise RecipeError(f"dedupe.minhash.against: {run} has no current signatures; run its recipe again")
    return result


def _buckets(context: Context, parts: Sequence[Part], method: Near, scratch: Scratch) -> list[File]:
    """Star edges of all buckets, as files.

    Raises:
        LedgerError: another number of rows arrived than was sent.
    """
    documents = sum(p.documents for p in parts)
    count = max(1, -(-documents // COLUMN_ROWS))
    partitions = (method.sketch().bands + (method.verify is not None)) * count
    local = engine.is_local(context.options)
    together = max(1, SHUFFLE_ROWS * count // max(documents, 1)) if local else partitions
    files: list[File] = []
    for first in range(0, partitions, together):
        key = KeyBuckets(range(first, min(first + together, partitions)), count, scratch)

        def build(pipeline: beam.Pipeline, key: KeyBuckets = key) -> beam.PCollection:
            return (
                pipeline
                | "Parts" >> engine.deal(list(parts), [p.documents + 1 for p in parts], context.workers)
                | "Key" >> beam.ParDo(key).with_output_types(BLOCK)
                | "ByHash" >> beam.GroupByKey()
                | "Stars" >> beam.ParDo(Stars(scratch))
            )

        across = context.graph("dedupe minhash", build, len(parts), documents)
        within = [scratch.written(key.name(part)) for part in parts]
        sent, received = sum(f["sent"] for f in within), sum(f["received"] for f in across)
        if sent != received:
            raise ledger.LedgerError(
                f"dedupe:minhash: {sent} buckets were sent and {received} arrived; the engine lost some, run again"
            )
        files += [*within, *across]
    return files


class KeyBuckets(beam.DoFn):
    """Part -> (partition, block of its buckets' hashes and smallest nodes). Its own stars go to a file.

    A partition is one of the `ranges` of the hashes of a band; `partitions` says which to do. The band beyond the last
    stands for the content, so that equal documents meet before they are verified.
    """

    def __init__(self, partitions: range, ranges: int, scratch: Scratch) -> None:
        self.partitions, self.ranges, self.scratch = partitions, ranges, scratch

    def name(self, part: Part) -> str:
        return f"within/{self.partitions.start}-{part.number}"

    def process(self, part: Part) -> Iterator[BLOCK]:
        hashes = part.band_hashes()
        node = np.arange(part.first, part.first + part.documents)
        edges, sent = [(node[:0], node[:0])], 0
        for band in range(self.partitions.start // self.ranges, (self.partitions.stop - 1) // self.ranges + 1):
            if not part.documents:
                break
            key = hashes[:, band] if band < hashes.shape[1] else part.contents()
            star, key, centre = bucket_stars(key, node)
            if band * self.ranges in self.partitions:  # a band's stars are written once
                edges.append(star)
            partition = ranges(key, self.ranges) + band * self.ranges
            mine = slice(*np.searchsorted(partition, [self.partitions.start, self.partitions.stop]))
            sent += len(partition[mine])
            yield from blocks(partition[mine], {"hash": key[mine], "node": centre[mine]})
        u, v = clusters.distinct(*(np.concatenate(end) for end in zip(*edges, strict=True)))
        self.scratch.write(self.name(part), u, v, sent=sent)


class Stars(beam.DoFn):
    """All buckets of a partition -> record of the file with their star edges."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[File]:
        partition, rows = element[0], pa.Table.from_batches(list(element[1]))
        (u, v), _, _ = bucket_stars(rows.column("hash").to_numpy(), rows.column("node").to_numpy())
        yield self.scratch.write(f"across/{partition}", u, v, received=rows.num_rows)
