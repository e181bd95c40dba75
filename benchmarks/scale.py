"""Cost and memory of a run as its input grows, and what the engine adds to the kernels.

    python benchmarks/scale.py [--sizes-mb 50,500,2000] [--corpus FOLDER] [--folder FOLDER] [--workers 2] [--unique] [--json]

The input is the sample corpus, repeated under new ids up to each size; with --unique a number at the head of each text
keeps the repeats from being duplicates. The recipe scores (FineWeb's rules, a fastText model, tokens), dedupes, selects
with a quantile and mixes; nothing is trained. The models are fitted once, before, on the corpus itself.

    seconds_per_mb   wall clock of a whole run by the size of its text in MB (10^6 bytes), worker processes' start included
    start_seconds    the same run on one row group: what does not grow
    peak_mb          largest resident set of any process of any run, in MB
    overhead         scoring pass: wall clock x workers / seconds that one process takes for the same kernels in a plain loop
                     over the same batches, writing the same sidecars. `overhead_with_start` counts the start of workers too

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core: as the plain loop, so each worker

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHARD_BYTES = 100e6
GROUP_BYTES = 8e6


def repeat(corpus: Path, out: Path, megabytes: float, unique: bool) -> float:
    """Write the shards of `corpus` again and again under new ids, some MB at a time; returns megabytes of text."""
    groups = [(path.parent.name, path, g) for path in sorted(corpus.glob("*/*.parquet")) for g in range(pq.read_metadata(path).num_row_groups)]
    writers: dict[str, Shards] = {source: Shards(out / source) for source in {source for source, _, _ in groups}}
    written, turn = 0.0, 0
    while written < megabytes * 1e6:
        for source, path, g in groups:
            table = pq.ParquetFile(path).read_row_group(g, columns=["id", "text"])
            written += writers[source].write(renamed(table, turn, unique))
            if written >= megabytes * 1e6:
                break
        turn += 1
    for writer in writers.values():
        writer.close()
    return written / 1e6


def renamed(table: pa.Table, turn: int, unique: bool) -> pa.Table:
    suffix = pa.scalar(f"-{turn}")
    text = table.column("text")
    if unique:
        text = pc.binary_join_element_wise(pa.scalar(f"{turn}."), text, " ")
    return pa.table({"id": pc.binary_join_element_wise(table.column("id"), suffix, ""), "text": text})


class Shards:
    """Writes tables as row groups of shards of about SHARD_BYTES of text."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.count, self.size = folder, 0, 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> int:
        size = pc.sum(pc.binary_length(table.column("text"))).as_py()
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.folder / f"{self.count:05d}.parquet", table.schema, compression="zstd")
        self.writer.write_table(table)
        self.size += size
        if self.size >= SHARD_BYTES:
            self.close()
        return size

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer, self.size, self.count = None, 0, self.count + 1


def recipe(corpus: Path, models: Path) -> dict[str, Any]:
    quality = {"scorer": "fasttext", "model": str(models / "quality")}
    return {
        "name": "scale",
        "sources": {p.name: f"{p}/*.parquet" for p in sorted(corpus.iterdir()) if any(p.glob("*.parquet"))},
        "score": {"fineweb": {}, "quality": quality},
        "dedupe": {"exact": {}},
        "select": {"unique": "exact.keep", "quality": "quality.score >= quantile(quality.score, 0.3)"},
        "tokenizer": str(models / "tokenizer"),
        "mix": {"curated": {"weights": "natural"}},
    }


def fit(corpus: Path, models: Path) -> None:
    """A tokenizer and a fastText classifier (the first source against all), on the first shards of the corpus."""
    from trainers.fit_fasttext import FastTextParameters, fit_fasttext
    from trainers.fit_tokenizer import fit_tokenizer

    texts = {p.name: pq.read_table(next(p.glob("*.parquet")), columns=["text"]).column("text").to_pylist()[:1000] for p in sorted(corpus.iterdir())}
    everything = [text for some in texts.values() for text in some[:300]]
    fit_tokenizer(everything, models / "tokenizer", 8192)
    fit_fasttext(next(iter(texts.values())), everything, models / "quality", FastTextParameters())


@contextmanager
def watched(every: float = 0.1) -> Iterator[dict[int, tuple[str, float]]]:
    """Peak resident MB of this process and of each of its descendants, by process id, while the body runs."""
    peaks: dict[int, tuple[str, float]] = {}
    stop, me = threading.Event(), psutil.Process()

    def look() -> None:
        for process in [me, *me.children(recursive=True)]:
            try:
                name = "launcher" if process.pid == me.pid else " ".join(process.cmdline()[1:3])
                peaks[process.pid] = name, max(peaks.get(process.pid, ("", 0.0))[1], process.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                continue

    def watch() -> None:
        while not stop.wait(every):
            look()

    look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure(given: dict[str, Any], run_folder: Path, workers: int) -> dict[str, Any]:
    """One whole run in a process of its own, as from the command line; seconds by step, peaks by process."""
    code = (
        "import json, sys, yaml; from pipelines.recipe import parse; from pipelines.run import run\n"
        "s = run(parse(yaml.safe_load(sys.argv[1])), sys.argv[2], workers=int(sys.argv[3]), until='mix')\n"
        "import resource; s['launcher_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6\n"
        "print(json.dumps(s, default=str))"
    )
    root = str(Path(__file__).parents[1])
    with watched() as peaks:
        command = [sys.executable, "-c", code, json.dumps(given), str(run_folder), str(workers)]
        process = psutil.Popen(command, cwd=root, stdout=-1, env={**os.environ, "PYTHONPATH": root})
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    summary = json.loads(out.splitlines()[-1])
    mine = os.getpid()
    worker_mb = max((mb for pid, (_, mb) in peaks.items() if pid not in (mine, process.pid)), default=0.0)
    return {
        "seconds": summary["seconds"],
        "documents": summary["documents_in"],
        "launcher_mb": round(summary["launcher_mb"]),
        "worker_mb": round(worker_mb),
        "mixture_digest": summary["mixture_digest"],
    }


def kernels(given: dict[str, Any], run_folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds for what the scoring pass does, in a plain loop: read, score with every column, write the sidecars."""
    from pipelines.plan import Plan
    from pipelines.reading import INDEX, read
    from pipelines.recipe import parse
    from pipelines.shards import expand, scan, splits
    from transforms.batch import Batch

    plan = Plan(parse(given), str(run_folder))
    columns = [*plan.columns.values(), *(m.column() for m in plan.methods.values())]
    for column in columns:
        column.scorer.setup()
    todo = splits(scan(shard, "text") for shard in expand(plan.recipe.sources))
    run_folder.mkdir(parents=True)
    parts = dict.fromkeys(["read", *(c.folder for c in columns), "write"], 0.0)
    began = time.perf_counter()
    for n, split in enumerate(todo):
        sinks = [pq.ParquetWriter(run_folder / f"{n}.{k}.parquet", schema, compression="zstd", compression_level=1) for k, schema in enumerate([INDEX, *(c.schema() for c in columns)])]
        at = time.perf_counter()
        for part in read(split, "text", plan.recipe.admission, columns=[]):
            at = _lap(parts, "read", at)
            made = [part.index]
            batch = Batch(part.documents, text="text")
            for column in columns:
                keys = [part.documents.column("row"), part.documents.column("id")]
                made.append(pa.RecordBatch.from_arrays([*keys, column.scorer.score(batch)], schema=column.schema()))
                at = _lap(parts, column.folder, at)
            for sink, rows in zip(sinks, made, strict=True):
                sink.write_batch(rows)
            at = _lap(parts, "write", at)
        for sink in sinks:
            sink.close()
    return time.perf_counter() - began, parts


def _lap(parts: dict[str, float], name: str, since: float) -> float:
    now = time.perf_counter()
    parts[name] += now - since
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes-mb", default="50,500,2000")
    parser.add_argument("--corpus", type=Path, help="folder with one folder of shards per source; made if not given")
    parser.add_argument("--folder", type=Path, help="where inputs and runs go; a temporary folder if not given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unique", action="store_true", help="make every repeat differ, so that nothing is a duplicate")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpusmill-scale-", dir=given.folder) as folder:
        result = compare(Path(folder), given)
    if not given.json:
        print(json.dumps(result, indent=1))
    print(json.dumps(result))


def compare(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    corpus = given.corpus
    if corpus is None:
        from pipelines.sample_corpus import build

        corpus = folder / "corpus"
        build(corpus, 25)
    fit(corpus, folder / "models")
    sizes: dict[str, dict[str, Any]] = {}
    repeat(corpus, folder / "tiny", 1e-6, given.unique)
    tiny = recipe(folder / "tiny", folder / "models")
    kernels(tiny, folder / "warm")  # compiles the kernels, or loads them
    start = measure(tiny, folder / "run-tiny", given.workers)
    overheads = {}
    for size in map(float, given.sizes_mb.split(",")):
        input_folder = folder / "input"
        megabytes = repeat(corpus, input_folder, size, given.unique)
        plan = recipe(input_folder, folder / "models")
        plain, parts = kernels(plan, folder / "plain")
        made = measure(plan, folder / "run", given.workers)
        score = made["seconds"]["score"]
        overheads[size] = (score - start["seconds"]["score"]) * given.workers / plain, score * given.workers / plain
        made |= {"megabytes": megabytes, "seconds_per_mb": made["seconds"]["total"] / megabytes}
        made |= {"kernel_seconds": plain, "kernel_parts": {k: round(v, 2) for k, v in parts.items()}}
        made |= {"overhead": overheads[size][0], "overhead_with_start": overheads[size][1]}
        sizes[f"{size:g}"] = made
        print(f"{size:g} MB: {json.dumps(made)}", file=sys.stderr, flush=True)
        for done in ("input", "plain", "run"):
            shutil.rmtree(folder / done)
    largest = sizes[f"{max(overheads):g}"]
    rates = [made["seconds_per_mb"] for made in sizes.values()]
    return {
        "seconds_per_mb": {name: round(made["seconds_per_mb"], 4) for name, made in sizes.items()},
        "spread": round(float(np.ptp(rates) / np.mean(rates)), 3),
        "peak_mb": max(max(made["launcher_mb"], made["worker_mb"]) for made in sizes.values()),
        "overhead": round(largest["overhead"], 3),
        "overhead_with_start": round(largest["overhead_with_start"], 3),
        "start_seconds": start["seconds"]["total"],
        "workers": given.workers,
        "cores": len(psutil.Process().cpu_affinity()),
        "sizes": sizes,
    }


if __name__ == "__main__":
    main()
