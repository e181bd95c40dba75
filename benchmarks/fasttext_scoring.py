"""fastText scoring, shards in to sidecars out, against the library's own list prediction of the same texts in memory.

    python benchmarks/fasttext_scoring.py --input GLOB [--megabytes 300] [--repeats 3] [--unit line] [--model FOLDER]
                                          [--json]

Parquet files with a column `text`. Unless a model is given, one is fitted to the input, of the size that published ones
have (100 dimensions, 2 M buckets of n-grams). Ours is `corpusmill score` from scan to summary on a fresh run folder:
decoding, admission, index and scores written. The library's is `load_model` and `model.predict(texts)`, the texts in
memory and their line ends replaced before the clock starts. Both run in this process, on one core, in turn; seconds
are those of the processor, which other work disturbs least, and wall clock stands beside them.

    ratio         median over the pairs of (seconds of the library / our seconds); the aim is 0.9
    wall_ratio    the same of wall clock
    different     documents whose score is not the library's own, to the bit
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.recipe import parse
from pipelines.run import run
from scorers._fasttext_file import locate
from scorers.fasttext import FastText, _pieces, one_line
from trainers.fit_fasttext import FastTextParameters, fit_fasttext

PUBLISHED = FastTextParameters(dim=100, bucket=2_000_000, epoch=1, min_count=1, zero_end_of_sentence=False)
LEARNED_FROM = 20_000  # documents


def take(pattern: str, megabytes: float, folder: Path) -> tuple[list[str], float]:
    """Write shards of the input's texts, some of every file; returns those that are admitted, and their megabytes."""
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
    if not paths:
        raise SystemExit(f"no file matches {pattern!r}")
    tables = [pq.read_table(path, columns=["text"]).cast(pa.schema([("text", pa.large_string())])) for path in paths]
    share = min(1.0, megabytes * 1e6 / sum(t.nbytes for t in tables))
    texts: list[str] = []
    for number, table in enumerate(tables):
        part = table.slice(0, max(1, int(len(table) * share)))
        pq.write_table(part, folder / f"{number:05}.parquet", row_group_size=2000, compression="zstd")
        texts += [t.replace("\0", "") for t in part.column("text").to_pylist() if t and t.strip()]
    return texts, sum(len(t.encode()) for t in texts) / 1e6


def fitted(texts: list[str], folder: Path) -> Path:
    """A model of the size of published ones, of short documents against long ones."""
    step = max(1, len(texts) // LEARNED_FROM)
    some = sorted(texts[::step], key=len)
    fit_fasttext(some[: len(some) // 2], some[len(some) // 2 :], folder, PUBLISHED)
    return folder


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Of the processor and of the wall."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def scored(shards: Path, parameters: dict[str, Any], folder: Path) -> None:
    given = {"name": "bench", "sources": {"texts": f"{shards}/*.parquet"}, "score": {"fasttext": parameters}}
    run(parse(given), str(folder), until="score")


def written(folder: Path, field: str) -> np.ndarray:
    """A field of the scores of a run, in order of the shards, float64 [documents]."""
    files = sorted((folder / "scores" / "fasttext" / "texts").glob("*.parquet"))
    column = pa.concat_tables([pq.read_table(f) for f in files]).column("fasttext").combine_chunks()
    return column.field(field).to_numpy(zero_copy_only=False)


def different(model: Any, scorer: FastText, texts: list[str], found: np.ndarray) -> int:
    """Documents (of lines: at most so many) whose score, or number of lines, is not the library's."""
    if scorer.unit != "document":
        _, documents = _pieces(pa.array(texts, pa.large_string()), scorer.unit)
        return int((np.bincount(documents, minlength=len(texts)) != found).sum())
    labels, values = model.predict([one_line(t) for t in texts], k=len(model.labels))
    pairs = zip(labels, values, strict=True)
    own = [float(p[row.index(scorer.positive)]) if scorer.positive in row else 0.0 for row, p in pairs]
    return int((np.clip(own, 0, 1) != found).sum())


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import fasttext

    (folder / "shards").mkdir()
    texts, megabytes = take(arguments.input, arguments.megabytes, folder / "shards")
    where = arguments.model or fitted(texts, folder / "model")
    parameters = {"model": str(where), "unit": arguments.unit, "positive": arguments.positive}
    scorer = FastText(**parameters)
    model = scorer._loaded
    lines = (
        texts if scorer.unit == "document" else _pieces(pa.array(texts, pa.large_string()), scorer.unit)[0].to_pylist()
    )
    lines = [one_line(t) for t in lines]
    pairs = []
    for number in range(arguments.repeats + 1):  # the first warms caches and is not counted
        library = seconds(lambda: fasttext.load_model(str(locate(where))).predict(lines))
        ours = seconds(lambda: scored(folder / "shards", parameters, folder / f"run{number}"))  # noqa: B023
        pairs.append((library, ours))
    pairs = pairs[1:] or pairs
    found = written(folder / "run0", "score" if scorer.unit == "document" else "count")
    return {
        "documents": len(texts),
        "predicted": len(lines),
        "megabytes": megabytes,
        "unit": scorer.unit,
        "ratio": statistics.median(a[0] / b[0] for a, b in pairs),
        "ratios": [a[0] / b[0] for a, b in pairs],
        "wall_ratio": statistics.median(a[1] / b[1] for a, b in pairs),
        "mb_s": megabytes / statistics.median(b[0] for _, b in pairs),
        "library_mb_s": megabytes / statistics.median(a[0] for a, _ in pairs),
        "different": different(model, scorer, texts, found),
        "fasttext": importlib.metadata.version("fasttext"),
    }


def show(result: dict[str, Any]) -> None:
    title = (
        f"{result['documents']:,} documents, {result['megabytes']:.0f} MB, {result['predicted']:,} {result['unit']}s"
    )
    table = Table("", "MB/s of one core", title=title)
    table.add_row("the library, list prediction in memory", f"{result['library_mb_s']:.1f}")
    table.add_row("ours, shards to sidecars", f"{result['mb_s']:.1f}")
    console = Console(width=120)
    console.print(table)
    each = ", ".join(f"{r:.2f}" for r in result["ratios"])
    console.print(f"ratio {result['ratio']:.3f} (pairs: {each}); wall clock {result['wall_ratio']:.3f}; aim 0.9")
    console.print(f"documents that differ: {result['different']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="Parquet file or glob")
    parser.add_argument("--megabytes", type=float, default=300, help="of text to score")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unit", choices=["document", "line", "paragraph"], default="document")
    parser.add_argument("--model", type=Path, help="a model file or folder; one is fitted by default")
    parser.add_argument("--positive", help="its label, where no card names it")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        result = measure(arguments, Path(folder))
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
