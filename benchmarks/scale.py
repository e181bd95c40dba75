"""Cost and memory of a run as its input grows, and what the engine adds to the kernels.

    python benchmarks/scale.py [--sizes-mb 50,500,2000] [--corpus FOLDER] [--folder FOLDER] [--workers 2] [--unique]

The input is the sample corpus, repeated under new ids up to each size; with --unique a number at the head of each text
keeps the repeats from being duplicates. The recipe scores (FineWeb's rules, a fastText model, tokens), dedupes, selects
with a quantile and mixes; nothing is trained. The models are fitted once, before, on the corpus itself.

    seconds_per_mb   wall clock of a whole run by the size of its text in MB (10^6 bytes), start of the workers included
    start_seconds    the same run on one row group: what does not grow
    seconds_per_mb_after_start   the same less start_seconds
    peak_mb          largest resident set of any process of any run, in MB
    overhead         scoring pass: wall clock, less the start, times workers / seconds that a plain loop takes in one
                     process for the same kernels over the same batches, writing the same sidecars
    overhead_with_start          the same, start included
    overhead_cpu                 the same in processor seconds of all processes, which other work disturbs less
    (the plain loop is run for inputs of up to 600 MB; the overhead given is that of the largest of these)

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core: as the plain loop, so each worker

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHARD_BYTES = 100e6
GROUP_BYTES = 8e6


def repeat(corpus: Path, out: Path, megabytes: float, unique: bool) -> float:
    """Write the shards of `corpus` again and again under new ids, some MB at a time; returns megabytes of text."""
    groups = [
        (path.parent.name, path, g)
        for path in sorted(corpus.glob("*/*.parquet"))
        for g in range(pq.read_metadata(path).num_row_groups)
    ]
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

    texts = {
        p.name: pq.read_table(next(p.glob("*.parquet")), columns=["text"]).column("text").to_pylist()[:1000]
        for p in sorted(corpus.iterdir())
    }
    everything = [text for some in texts.values() for text in some[:300]]
    fit_tokenizer(everything, models / "tokenizer", 8192)
    fit_fasttext(next(iter(texts.values())), everything, models / "quality", FastTextParameters())


@contextmanager
def watched(every: float = 0.1) -> Iterator[dict[int, float]]:
    """Peak resident MB of this process and of each of its descendants, by process id, while the body runs."""
    peaks: dict[int, float] = {}
    stop, me = threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(every):
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    peaks[process.pid] = max(peaks.get(process.pid, 0.0), process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def measure(given: dict[str, Any], run_folder: Path, workers: int) -> dict[str, Any]:
    """One whole run in a process of its own, as from the command line; seconds by step, peaks by process."""
    command = [
        sys.executable,
        __file__,
        "--one",
        json.dumps(given),
        "--folder",
        str(run_folder),
        f"--workers={workers}",
    ]
    with watched() as peaks:
        process = psutil.Popen(command, stdout=subprocess.PIPE)
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    others = [mb for pid, mb in peaks.items() if pid not in (os.getpid(), process.pid)]
    return {**json.loads(out.splitlines()[-1]), "worker_mb": round(max(others, default=0.0))}


def one(given: dict[str, Any], folder: str, workers: int) -> dict[str, Any]:
    """The run itself, and the processor seconds that its scoring pass took in all processes."""
    from pipelines.recipe import parse
    from pipelines.run import Run

    began = time.perf_counter()
    job = Run(parse(given), folder, workers=workers)
    job.start()
    before = os.times()
    job.score()
    cpu = sum(os.times()[:4]) - sum(before[:4])
    for step in (job.dedupe, job.fit, job.select, job.mix, job.balance):
        step()
    status = Path("/proc/self/status").read_text()
    return {
        "seconds": {k: round(v, 2) for k, v in job.context.seconds.items()}
        | {"total": round(time.perf_counter() - began, 2)},
        "score_cpu_seconds": round(cpu, 2),
        "documents": job.documents,
        "mixture_digest": job.manifests["curated"]["digest"],
        "launcher_mb": round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e6),
    }


def kernels(given: dict[str, Any], run_folder: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds, processor seconds and seconds by part of the scoring pass in a plain loop: read, score, write."""
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
    began, cpu = time.perf_counter(), time.process_time()
    for n, split in enumerate(todo):
        sinks = [
            pq.ParquetWriter(run_folder / f"{n}.{k}.parquet", schema, compression="zstd", compression_level=1)
            for k, schema in enumerate([INDEX, *(c.schema() for c in columns)])
        ]
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
    return time.perf_counter() - began, time.process_time() - cpu, {name: round(s, 2) for name, s in parts.items()}


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
    parser.add_argument(
        "--unique", action="store_true", help="make every repeat differ, so that nothing is a duplicate"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a recipe: the run that is measured, in its own process
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(json.loads(given.one), str(given.folder), given.workers)))
        return
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
    repeat(corpus, folder / "tiny", 1e-6, given.unique)
    tiny = recipe(folder / "tiny", folder / "models")
    kernels(tiny, folder / "warm")  # compiles the kernels, or loads them
    start = measure(tiny, folder / "run-tiny", given.workers)
    sizes: dict[str, dict[str, Any]] = {}
    for size in given.sizes_mb.split(","):
        megabytes = repeat(corpus, folder / "input", float(size), given.unique)
        sizes[size] = paired(folder, start, given.workers, megabytes)
        print(f"{size} MB: {json.dumps(sizes[size])}", file=sys.stderr, flush=True)
        for done in ("input", "plain", "run"):
            shutil.rmtree(folder / done, ignore_errors=True)
    rates = {name: made["seconds_per_mb"] for name, made in sizes.items()}
    largest = sizes[max((name for name in sizes if "overhead" in sizes[name]), key=float)]
    return {
        "seconds_per_mb": rates,
        "spread": round(max(rates.values()) / min(rates.values()) - 1, 3),
        "peak_mb": max(max(made["launcher_mb"], made["worker_mb"]) for made in sizes.values()),
        **{name: largest[name] for name in ("overhead", "overhead_with_start", "overhead_cpu")},
        "start_seconds": start["seconds"]["total"],
        "workers": given.workers,
        "cores": len(psutil.Process().cpu_affinity()),
        "sizes": sizes,
    }


PLAIN_MB = 600


def paired(folder: Path, start: dict[str, Any], workers: int, megabytes: float) -> dict[str, Any]:
    """The run over an input, and up to PLAIN_MB the plain loop before it."""
    plan = recipe(folder / "input", folder / "models")
    loop = kernels(plan, folder / "plain") if megabytes <= PLAIN_MB else None
    made = measure(plan, folder / "run", workers)
    total = made["seconds"]["total"]
    result = {
        **made,
        "megabytes": round(megabytes, 1),
        "seconds_per_mb": round(total / megabytes, 4),
        "seconds_per_mb_after_start": round((total - start["seconds"]["total"]) / megabytes, 4),
    }
    return result if loop is None else result | overhead(made, start, workers, *loop)


def overhead(
    made: dict[str, Any], start: dict[str, Any], workers: int, plain: float, plain_cpu: float, parts: dict[str, float]
) -> dict[str, Any]:
    """What the engine adds to the kernels: ratios of the scoring pass to the plain loop."""
    score = made["seconds"]["score"]
    return {
        "kernel_seconds": {"total": round(plain, 2), "cpu": round(plain_cpu, 2), **parts},
        "overhead": round((score - start["seconds"]["score"]) * workers / plain, 3),
        "overhead_with_start": round(score * workers / plain, 3),
        "overhead_cpu": round((made["score_cpu_seconds"] - start["score_cpu_seconds"]) / plain_cpu, 3),
    }


if __name__ == "__main__":
    main()
