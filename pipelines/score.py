"""The scoring pass: a split is read once, and every column still missing for it is computed on the same batches.

Index, scorers and dedupe signatures are all columns: batch in, one struct per document out, one sidecar per split.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipelines import ledger, progress, store, unfinished
from pipelines.code import code_digest
from pipelines.cuts import read_cut
from pipelines.reading import INDEX, Admission, CorruptSplitError, Read, tally
from pipelines.shards import Split
from scorers import Scorer
from transforms.batch import Batch


@dataclass(frozen=True)
class Column:
    """One sidecar to fill: the struct column's name, its folder in the run, and the scorer that computes it."""

    name: str
    folder: str
    scorer: Scorer

    @property
    def step(self) -> str:
        return f"{self.folder.split('/')[0]}:{self.name}"

    def base(self) -> str:
        """What its keys depend on besides the split: code, parameters, and the content of files that these name."""
        kind = type(self.scorer)
        return store.digest(self.name, kind.__name__, store.content(self.scorer), code_digest(kind.__module__))

    def schema(self) -> pa.Schema:
        return pa.schema([INDEX.field("row"), INDEX.field("id"), pa.field(self.name, self.scorer.fields())])


@dataclass(frozen=True)
class Pass:
    """One scoring pass: where it writes, how it reads (`cuts`: folders of spans that are cut from the text), and the
    columns it fills with the base of their keys."""

    run: str
    text: str
    admission: Admission
    columns: tuple[Column, ...]
    bases: dict[str, str] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()

    @classmethod
    def plan(
        cls, run: str, text: str, admission: Admission, columns: Sequence[Column], cuts: Mapping[str, str] | None = None
    ) -> Pass:
        """`cuts`: folder -> base of the spans that were cut from the text before."""
        cuts = {folder: base + unfinished.mark(run, folder) for folder, base in (cuts or {}).items()}
        reading = store.digest(text, admission.model_dump(), code_digest("pipelines.reading"))
        bases = {"index": reading} | {c.folder: store.digest(reading, c.base(), *cuts.values()) for c in columns}
        return cls(run, text, admission, tuple(columns), bases, tuple(cuts))

    def key(self, folder: str, split: Split) -> str:
        return store.digest(self.bases[folder], split.identity())

    def current(self, folder: str, split: Split) -> dict[str, Any] | None:
        return store.committed(split.sidecar(f"{self.run}/{folder}"), self.key(folder, split))


class ScoreSplit(beam.DoFn):
    """Split -> ledger records, one for the index and one for each column; sidecars are committed on the way."""

    def __init__(self, plan: Pass) -> None:
        self.plan = plan
        self._ready: set[str] = set()
        self.steps = ["index", *(column.step for column in plan.columns)]
        self.tried: Collection[str] = ()

    def sidecar(self, step: str, split: Split) -> str:
        """Path of what a step writes of a split."""
        folder = next((c.folder for c in self.plan.columns if c.step == step), step)
        return split.sidecar(f"{self.plan.run}/{folder}")

    def _records(self, split: Split) -> dict[str, dict[str, Any] | None]:
        """What is committed of the split, by folder; None for what is missing or has requests to be made again."""
        folders = ["index", *(c.folder for c in self.plan.columns)]
        return {folder: unfinished.held(self.plan.current(folder, split), self.tried) for folder in folders}

    def held(self, split: Split) -> list[dict[str, Any]] | None:
        """The records of a split of which nothing is missing."""
        records = [record for record in self._records(split).values() if record is not None]
        return [{**r, "reused": True} for r in records] if len(records) == len(self.plan.columns) + 1 else None

    def process(self, split: Split) -> Iterator[dict[str, Any]]:
        records = self._records(split)
        missing = [folder for folder, record in records.items() if record is None]
        if missing:
            try:
                records.update(self._compute(split, missing))
            except CorruptSplitError as error:
                yield quarantine("index", split, str(error)).json()
                return
        for folder, record in records.items():
            assert record is not None
            yield {**record, "reused": folder not in missing}

    def _compute(self, split: Split, missing: list[str]) -> dict[str, dict[str, Any]]:
        started = time.perf_counter()
        columns = [c for c in self.plan.columns if c.folder in missing]
        for column in columns:
            if column.folder not in self._ready:
                column.scorer.setup()
                self._ready.add(column.folder)
        index = ledger.Record.of("index", split, 0, 0, key=self.plan.key("index", split))
        sidecars = {f: self._open(f, split) for f in missing}
        seconds = dict.fromkeys(missing, 0.0)
        counted: dict[str, Counter[str]] = {folder: Counter() for folder in missing}
        # The pass that admits documents reads every column, so that a corrupt page of any of them is met here.
        wanted = None if "index" in missing else _extra(columns)
        try:
            for batch in read_cut(self.plan.run, split, self.plan.text, self.plan.admission, self.plan.cuts, wanted):
                _count(index, batch)
                if "index" in sidecars:
                    sidecars["index"].write(batch.index)
                for column, struct in self._score(batch, columns, sidecars, seconds):
                    counted[column.folder].update(_counted(column.scorer, struct))
            index.seconds = time.perf_counter() - started
        except BaseException as error:
            for sidecar in sidecars.values():
                sidecar.abandon(error)
            raise
        records = {}
        for folder in missing:
            record = index if folder == "index" else self._record(folder, split, index, seconds[folder])
            record.repaired.update(sorted(counted[folder].items()))
            sidecars[folder].close(record.json())
            records[folder] = record.json()
        progress.report(self.plan.run, "score", split, index.rows_out, index.bytes)
        return records

    def _open(self, folder: str, split: Split) -> store.Sidecar:
        schema = INDEX if folder == "index" else next(c for c in self.plan.columns if c.folder == folder).schema()
        return store.Sidecar(split.sidecar(f"{self.plan.run}/{folder}"), schema, self.plan.key(folder, split))

    def _score(
        self, read: Read, columns: list[Column], sidecars: dict[str, store.Sidecar], seconds: dict[str, float]
    ) -> Iterator[tuple[Column, pa.StructArray]]:
        if not read.documents.num_rows:
            return
        batch = Batch(read.documents, text=self.plan.text)
        for column in columns:
            started = time.perf_counter()
            struct = column.scorer.score(batch)
            if len(struct) != len(batch):
                raise ValueError(
                    f"scorer {column.name!r} gave {len(struct)} rows for {len(batch)} documents; it must give one each"
                )
            keys = [read.documents.column("row"), read.documents.column("id")]
            sidecars[column.folder].write(pa.RecordBatch.from_arrays([*keys, struct], schema=column.schema()))
            seconds[column.folder] += time.perf_counter() - started
            yield column, struct

    def _record(self, folder: str, split: Split, index: ledger.Record, seconds: float) -> ledger.Record:
        column = next(c for c in self.plan.columns if c.folder == folder)
        key = self.plan.key(folder, split)
        return ledger.Record.of(
            column.step, split, index.rows_out, index.rows_out, bytes=index.bytes, seconds=seconds, key=key
        )


def _extra(columns: Sequence[Column]) -> list[str]:
    """Columns besides id and text that scorers ask for."""
    return sorted({name for c in columns for name in c.scorer.needs})


def _counted(scorer: Scorer, struct: pa.StructArray) -> dict[str, int]:
    """How often a scorer says something else than `ok` in the field that it wants counted."""
    return tally(struct.field(scorer.counted), "ok") if scorer.counted else {}


def _count(index: ledger.Record, batch: Read) -> None:
    index.rows_in += batch.index.num_rows
    index.rows_out += batch.documents.num_rows
    index.bytes += batch.documents.nbytes
    for total, counts in ((index.dropped, batch.dropped()), (index.repaired, batch.repaired())):
        for reason, count in counts.items():
            total[reason] = total.get(reason, 0) + count


def quarantine(step: str, split: Split, cause: str) -> ledger.Record:
    """The record of a split that could not be read: all its rows are set aside, with the cause."""
    return ledger.Record.of(step, split, split.rows, 0, quarantined=split.rows, cause=cause)
