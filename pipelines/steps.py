"""Running a step: a Beam graph over splits; records are collected, checked against what was sent, written down."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipelines import engine, ledger, progress, store, unfinished
from pipelines.ledger import Record
from pipelines.shards import Split

THREADS = min(4, os.cpu_count() or 1)  # of the launcher; each holds a split
LIGHT_ROWS = 1_000_000  # of fewer documents sidecars are read in the launcher: worker processes take 2 s to start


class StaleError(Exception):
    """A step has something to compute where only what is committed and current was asked for."""


class Every(frozenset[str]):
    """Holds whatever it is asked for."""

    def __contains__(self, item: object) -> bool:
        return True


@dataclass
class Context:
    """Where and with what a run's steps are computed."""

    run: str
    options: Sequence[str] = ()
    workers: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)
    frozen: bool = False  # steps give what is committed and current; where one has to compute something, it is stopped

    def computes(self, label: str) -> None:
        """Said by a step before it computes anything.

        Raises:
            StaleError: the run is frozen.
        """
        if self.frozen:
            raise StaleError(f"step {label} is not current")

    def graph(
        self, label: str, build: Callable[[beam.Pipeline], beam.PCollection], splits: int, rows: int | None = None
    ) -> list[Any]:
        """Run a graph that ends in JSON-able elements, and return these; they come through a file of the run folder.

        Args:
            rows: given by graphs that do little for each; with few of them, starting workers would take longer.
        """
        self.computes(label)
        workers = 1 if rows is not None and rows < LIGHT_ROWS else self.workers
        path = f"{self.run}/collected/{uuid.uuid4().hex}.json"

        def collected(pipeline: beam.Pipeline) -> None:
            _ = build(pipeline) | "Collect" >> beam.combiners.ToList() | "Write" >> beam.Map(_write_json, path)

        started = time.perf_counter()
        with progress.follow(self.run, label, splits):
            engine.run_graph(collected, options=self.options, workers=workers, label=label)
        result = store.read_json(path)
        store.remove(path)
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - started
        if result is None:
            raise ledger.LedgerError(f"step {label}: the engine ended without a result; run again")
        return result

    def here(self, label: str, elements: Sequence[Any], process: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """What `process` gives for each element, found in this process by a few threads.

        For work that is Arrow's, DuckDB's or the disk's, which threads share as well as processes do.
        """
        self.computes(label)
        started = time.perf_counter()
        with progress.follow(self.run, label, len(elements)), ThreadPoolExecutor(max(self.workers, THREADS)) as pool:
            try:
                found = list(pool.map(lambda element: list(process(element)), elements))
            except Exception as error:
                raise engine.job_failed(error, label) from error
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - started
        return [item for items in found for item in items]

    def deal(self, splits: Sequence[Split], elements: Sequence[Any] | None = None) -> beam.PTransform:
        """A source of splits (or of an element for each) that keeps all workers busy."""
        return engine.deal(
            list(splits if elements is None else elements), [s.text_bytes + 1 for s in splits], self.workers
        )

    def run_splits(
        self, label: str, splits: Sequence[Split], transform: beam.ParDo, text: bool = True, copies: bool = False
    ) -> list[Record]:
        """Run a transform from splits to ledger records over the splits that are not committed; check, write and return
        the records of all, step by step. Where nothing is missing, no engine is started.

        Args:
            transform: its DoFn tells by `held(split)` the records of a split that is committed, or None; not of one
                whose requests failed and may be answered now, unless this run has `tried`.
            text: whether it reads more than sidecars. copies: it reads text only to choose or copy documents.
            Local runs do light work and copies in the launcher.
        """
        if not splits:
            return self.settle([], [], transform.fn.steps)
        self.seconds.setdefault(label, 0.0)
        before = [r for step in transform.fn.steps for r in self.records.get(step, ())]
        tried = {r.key for r in before if unfinished.is_unfinished(r.repaired, r.dropped)}
        transform.fn.tried = Every() if self.frozen else tried
        with ThreadPoolExecutor(16) as pool:  # footers of remote run folders are slow to come
            held = list(pool.map(transform.fn.held, splits))
        items = [item for records in held if records is not None for item in records]
        todo = [split for split, records in zip(splits, held, strict=True) if records is None]
        if todo:
            light = copies or (not text and sum(s.rows for s in todo) < LIGHT_ROWS)
            if light and engine.is_local(self.options):
                items += self.here(label, todo, transform.fn.process)
            else:
                items += self.graph(label, lambda p: p | "Splits" >> self.deal(todo) | label >> transform, len(todo))
        records = self.settle(splits, [Record(**item) for item in items], transform.fn.steps)
        self._note(transform.fn, splits, records)
        return records

    def _note(self, made_by: Any, splits: Sequence[Split], records: Sequence[Record]) -> None:
        """Write down whose requests failed and may be answered by the next run."""
        named = {(s.source, s.name): s for s in splits}
        paths = [made_by.sidecar(r.step, named[r.source, r.split]).removeprefix(f"{self.run}/") for r in records]
        open_ = [unfinished.is_unfinished(r.repaired, r.dropped) for r in records]
        unfinished.note(self.run, dict(zip(paths, open_, strict=True)))

    def held(self, step: str, splits: Sequence[Split], folder: str, base: str) -> list[Record] | None:
        """The step's records where the sidecars of all splits are committed and current, else None."""
        keys = {s: store.digest(base, s.identity()) for s in splits}
        records = [store.committed(s.sidecar(f"{self.run}/{folder}"), key) for s, key in keys.items()]
        if any(record is None for record in records):
            return None
        return self.settle(splits, [Record(**{**record, "reused": True}) for record in records if record], [step])

    def settle(self, splits: Sequence[Split], records: list[Record], steps: Sequence[str]) -> list[Record]:
        """Check the records of `steps` against the splits that were sent, and write them to the ledger.

        Raises:
            LedgerError: a split came back for one of the steps not once, or does not balance.
        """
        sent = {(s.source, s.name) for s in splits}
        for step in sorted({*steps, *(r.step for r in records)}):
            mine = [r for r in records if r.step == step]
            quarantined = {(r.source, r.split) for r in records if r.quarantined}
            expected = [s for s in splits if (s.source, s.name) not in quarantined or step == "index"]
            ledger.check(step, expected, mine)
            before = self.records.get(step)
            aside = [r for r in before or () if r.quarantined and (r.source, r.split) not in sent]
            if before is not None and len(mine) + len(aside) == len(before) and all(r.reused for r in mine):
                continue  # a second scoring pass finds the index of the first
            self.records[step] = [*mine, *aside]
            ledger.write(f"{self.run}/ledger/{step.replace(':', '.')}.parquet", self.records[step])
        return records


def _write_json(items: list[Any], path: str) -> None:
    store.write_json(path, items)


class MapSplit(beam.DoFn):
    """Split -> ledger record. `compute` gives the rows of the split's sidecar and its record; committed ones are kept.

    Args:
        step: name in the ledger. folder: path of the sidecars. base: what their keys depend on besides the split.
    """

    def __init__(
        self, run: str, step: str, folder: str, base: str, compute: Callable[[Split], tuple[pa.Table, Record]]
    ) -> None:
        self.run, self.step, self.folder, self.base, self.compute = run, step, folder, base, compute
        self.steps = [step]
        self.tried: Collection[str] = ()

    def sidecar(self, step: str, split: Split) -> str:
        """Path of what the step writes of a split."""
        return split.sidecar(self.folder)

    def held(self, split: Split) -> list[dict[str, Any]] | None:
        """The split's record if its sidecar is committed and current, and no request is to be made again."""
        made = store.committed(split.sidecar(self.folder), store.digest(self.base, split.identity()))
        record = unfinished.held(made, self.tried)
        return None if record is None else [{**record, "reused": True}]

    def process(self, split: Split) -> Iterator[dict[str, Any]]:
        if held := self.held(split):
            yield from held
            return
        key, path = store.digest(self.base, split.identity()), split.sidecar(self.folder)
        started = time.perf_counter()
        rows, made = self.compute(split)
        made.step, made.key, made.seconds = self.step, key, time.perf_counter() - started
        store.write_sidecar(path, key, rows, made.json())
        progress.report(self.run, self.step, split, made.rows_in, made.bytes)
        yield made.json()
