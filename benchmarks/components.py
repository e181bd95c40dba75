"""Memory and time of connected components as a function of the number of documents.

    python benchmarks/components.py [--documents 1 3 10] [--json]

For each number (millions) a process of its own makes synthetic band hashes (14 bands; a third of the documents have
near duplicates, in clusters of 2 to thousands that only some bands show), writes them as signatures of a run, and takes
them through the pipeline's stages: star edges of the buckets over the engine, edge files, union-find, labels.
`resident_mb` is the peak of that process after the signatures are written; `before_mb` is what it had then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

SPLIT = 250_000  # documents
LIMIT_MB = 2000


def hashes(first: int, count: int, documents: int) -> np.ndarray:
    """uint64 [count, 14] of documents first to first + count - 1: a band shows a document's family, or itself alone."""
    from transforms.draws import mix64

    number = np.arange(first, first + count, dtype=np.uint64)
    draw = mix64(number)
    in_family = draw % np.uint64(3) == 0
    families = max(1, documents // 12)
    rank = (draw >> np.uint64(20)).astype(np.float64) / 2**44
    family = (rank**2 * families).astype(np.uint64)  # crowded at the lower end: some are large
    result = np.empty((count, 14), np.uint64)
    for band in range(14):
        salt = np.uint64((band + 1) * 0x9E3779B97F4A7C15 % 2**64)
        shows = in_family & (mix64(number + salt) % np.uint64(4) == 0)
        result[:, band] = mix64(np.where(shows, family, number + np.uint64(1 << 40)) ^ mix64(salt[None])[0])
    return result


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return float("nan")


class Peak(threading.Thread):
    """Highest resident size, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb, self.done = 0.0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.mb = max(self.mb, resident_mb())


def measure(documents: int) -> dict[str, Any]:
    from pipelines import clusters, near, store
    from pipelines.clusters import Part, Scratch
    from pipelines.steps import Context

    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for number, first in enumerate(range(0, documents, SPLIT)):
            count = min(SPLIT, documents - first)
            path = f"{folder}/signatures/{number}.parquet"
            bands = hashes(first, count, documents)
            packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(112), count, [None, pa.py_buffer(bands)])
            store.write_sidecar(path, "", pa.table({"minhash": pa.StructArray.from_arrays([packed], ["bands"])}), {})
            parts.append(Part(number, first, count, path, None))
        del bands, packed
        pa.default_memory_pool().release_unused()
        before, peak = resident_mb(), Peak()
        peak.start()
        context, scratch = Context(folder), Scratch(f"{folder}/scratch")
        started = time.perf_counter()
        files = near._buckets(context, parts, near.Near(), scratch)
        edges_at = time.perf_counter()
        labels = clusters.components(context, parts, files, scratch)
        ended = time.perf_counter()
        peak.done.set()
        return {
            "documents": documents,
            "edges": sum(f["rows"] for f in files),
            "in_clusters": sum(f["rows"] for f in labels.values()),
            "bucket_seconds": edges_at - started,
            "component_seconds": ended - edges_at,
            "before_mb": before,
            "resident_mb": peak.mb,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, nargs="+", default=[1, 3, 10], help="millions")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    found = []
    for millions in arguments.documents:
        command = [sys.executable, __file__, "--one", str(round(millions * 1e6))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    worst = max(item["resident_mb"] for item in found)
    if not arguments.json:
        table = Table(title=f"At most {worst:.0f} MB; the limit is {LIMIT_MB}")
        for name in found[0]:
            table.add_column(name)
        for item in found:
            table.add_row(*(f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" for v in item.values()))
        Console().print(table)
    print(json.dumps({"resident_mb": worst, "limit_mb": LIMIT_MB, "within": worst <= LIMIT_MB, "measured": found}))


if __name__ == "__main__":
    main()
