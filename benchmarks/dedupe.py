"""Near-duplicate removal against datatrove 0.10: whole jobs from shards to shards, and accuracy on planted duplicates.

    python benchmarks/dedupe.py [--input GLOB] [--megabytes N] [--repeats N] [--json] [--peer-python PYTHON]

Speed: both sides read the same shards and write the documents that stay (`fineweb` parameters: 14 bands of 8 rows, word
5-grams), as commands of their own, imports and worker starts included, one after the other. datatrove has two worker
processes; corpusmill runs in one, as 300 MB take it little more time than workers take to start (--workers for more).
The ratio of processor seconds is given too: other work on the machine counts little for it.

Accuracy: pairs of documents and their edited copies (words replaced or inserted, paragraphs in another order, the end
cut off) whose true Jaccard similarity is counted from their sets of shingles; corpusmill, datatrove and datasketch find
clusters in the same documents. A pair is a near duplicate from the threshold of the bands on, (1/14)^(1/8) = 0.72.
Cluster F1 is B-cubed. The expectation is that of the banding, 1 - (1 - s^8)^14, over the same pairs.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from rules import peer_python

from transforms.batch import Batch
from transforms.components import connected_components, edges_from_bands
from transforms.minhash import PRESETS

FINEWEB = PRESETS["fineweb"]
KINDS = ("replaced", "inserted", "reordered", "truncated")
PLANTED_SHARDS = 4


class Job(NamedTuple):
    seconds: float
    processor_seconds: float
    resident_mb: float


def timed(command: list[str | Path], folder: Path) -> Job:
    """Run a command; its output goes to a file, which is shown if it fails."""
    log = folder / "output.log"
    with log.open("w") as out:
        started = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=out, cwd=Path(__file__).parents[1])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{log.read_text()[-3000:]}")
    return Job(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def ours(pattern: str, folder: Path, workers: int) -> Job:
    recipe = {
        "name": "dedupe",
        "sources": {"all": pattern},
        "dedupe": {"minhash": {"preset": "fineweb"}},
        "select": {"unique": "minhash.keep"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    places = ["--run", folder / "run", "--out", folder / "out", "--workers", str(workers)]
    return timed([sys.executable, "-m", "pipelines.cli", "export", folder / "recipe.yaml", *places], folder)


def peer(python: Path, shards: Path, folder: Path, workers: int) -> Job:
    script = Path(__file__).with_name("_peer_dedupe.py")
    return timed([python, script, shards, folder / "out", folder / "work", str(workers)], folder)


def documents_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def measure_jobs(shards: Path, python: Path, repeats: int, workers: int, scratch: Path) -> dict[str, Any]:
    """Both jobs in turn. The first of ours, which may compile kernels, is not counted."""
    pattern = f"{shards}/**/*.parquet"
    pairs = []
    for number in range(-1, repeats):
        here, there = scratch / f"ours-{number}", scratch / f"peer-{number}"
        here.mkdir(), there.mkdir()
        mine = ours(pattern, here, workers)
        if number >= 0:
            load = os.getloadavg()[0]
            theirs = peer(python, shards, there, 2)
            pairs.append((mine, theirs, load))
            kept = {"kept": documents_in(here / "out"), "peer_kept": documents_in(there / "out")}
    return {
        "speedup": statistics.median(theirs.seconds / mine.seconds for mine, theirs, _ in pairs),
        "processor_speedup": statistics.median(t.processor_seconds / m.processor_seconds for m, t, _ in pairs),
        "seconds": [m.seconds for m, _, _ in pairs],
        "peer_seconds": [t.seconds for _, t, _ in pairs],
        "processor_seconds": [m.processor_seconds for m, _, _ in pairs],
        "peer_processor_seconds": [t.processor_seconds for _, t, _ in pairs],
        "resident_mb": max(m.resident_mb for m, _, _ in pairs),
        "load": [load for _, _, load in pairs],
        "documents": documents_in(shards),
        **kept,
    }


def measure_signatures(shards: Path) -> float:
    """MB (10^6 bytes) of text per second of processor time, band hashes included, one thread."""
    batches = []
    for path in sorted(shards.rglob("*.parquet")):
        for records in pq.ParquetFile(path).iter_batches(batch_size=1000, columns=["text"]):
            batches.append(Batch(records.filter(records.column("text").is_valid())))
            _ = batches[-1].bytes
    FINEWEB.sketch(batches[0])
    started = time.process_time()
    for batch in batches:
        FINEWEB.sketch(batch)
    return sum(len(batch.bytes) for batch in batches) / (time.process_time() - started) / 1e6


class Planted(NamedTuple):
    texts: list[str]
    pairs: np.ndarray  # [pairs, 2] document numbers
    kinds: list[str]
    jaccard: np.ndarray


def plant(pairs: int, seed: int = 0) -> Planted:
    """Pairs in random order. Words are of small letters alone, so that every tool sees the same ones."""
    draw = np.random.default_rng(seed)
    letters = draw.integers(97, 123, (4000, 7)).astype(np.uint8)
    vocabulary = [bytes(row[:n]).decode() for row, n in zip(letters, draw.integers(3, 8, 4000), strict=True)]

    def words(count: int) -> list[str]:
        return [vocabulary[i] for i in draw.integers(0, len(vocabulary), count)]

    texts, kinds, jaccard = [], [], []
    for _ in range(pairs):
        kind = KINDS[draw.integers(len(KINDS))]
        paragraphs = [words(int(draw.integers(15, 60))) for _ in range(draw.integers(3, 9))]
        copy = edited(draw, paragraphs, kind, words)
        texts += ["\n\n".join(" ".join(p) for p in version) for version in (paragraphs, copy)]
        kinds.append(kind)
        jaccard.append(similarity(texts[-2], texts[-1]))
    place = draw.permutation(2 * pairs)
    order = np.argsort(place)
    return Planted([texts[i] for i in order], place.reshape(-1, 2), kinds, np.array(jaccard))


def edited(draw: np.random.Generator, paragraphs: list[list[str]], kind: str, words: Any) -> list[list[str]]:
    share = 0.01 * 40 ** draw.random()  # 1 to 40 % of the words
    if kind == "replaced":
        return [[words(1)[0] if draw.random() < share else w for w in p] for p in paragraphs]
    if kind == "inserted":
        return [[x for w in p for x in ([w, *words(1)] if draw.random() < share else [w])] for p in paragraphs]
    if kind == "reordered":
        return [paragraphs[i] for i in draw.permutation(len(paragraphs))]
    count = sum(map(len, paragraphs))
    kept = [w for p in paragraphs for w in p][: max(5, round(count * (1 - share)))]
    return [kept]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + FINEWEB.ngram]) for i in range(len(words) - FINEWEB.ngram + 1)}


def similarity(first: str, second: str) -> float:
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def write(planted: Planted, folder: Path) -> None:
    folder.mkdir()
    numbers = np.arange(len(planted.texts))
    for k, mine in enumerate(np.array_split(numbers, PLANTED_SHARDS)):
        ids = [f"{i:08d}" for i in mine]
        pq.write_table(pa.table({"id": ids, "text": [planted.texts[i] for i in mine]}), folder / f"{k}.parquet")


def clusters_ours(folder: Path, count: int) -> np.ndarray:
    labels = np.full(count, -1, np.int64)
    for path in (folder / "run" / "dedupe").rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        cluster = table.column("minhash").combine_chunks().field("cluster").to_numpy()
        labels[np.array(table.column("id").to_pylist(), int)] = cluster.astype(np.int64)
    return labels


def clusters_peer(folder: Path, count: int) -> np.ndarray:
    labels = -1 - np.arange(count)
    first = 0
    for found, size in zip(
        json.loads((folder / "work" / "clusters.json").read_text()).values(),
        map(len, np.array_split(np.arange(count), PLANTED_SHARDS)),
        strict=True,
    ):
        for row, cluster in found:
            labels[first + row] = cluster
        first += size
    return labels


def clusters_datasketch(texts: list[str]) -> np.ndarray:
    from datasketch import MinHash

    bands = np.empty((len(texts), FINEWEB.bands), np.uint64)
    for i, text in enumerate(texts):
        sketch = MinHash(num_perm=FINEWEB.permutations, seed=1)
        sketch.update_batch([" ".join(s).encode() for s in shingles(text)])
        rows = sketch.hashvalues.reshape(FINEWEB.bands, FINEWEB.rows)
        bands[i] = [hash((k, row.tobytes())) & (2**64 - 1) for k, row in enumerate(rows)]
    return connected_components(*edges_from_bands(bands, np.arange(len(texts))), len(texts))


def accuracy(labels: np.ndarray, planted: Planted) -> dict[str, float]:
    """Over pairs: those found are all that share a cluster, planted or not. Expected recall is the banding's."""
    u, v = planted.pairs.T
    joined, true = labels[u] == labels[v], planted.jaccard >= FINEWEB.threshold
    sizes = np.array(list(Counter(labels.tolist()).values()))
    found = int((sizes * (sizes - 1) // 2).sum())
    return {
        "precision": float((joined & true).sum() / max(found, 1)),
        "recall": float(joined[true].mean()),
        "strangers_joined": found - int(joined.sum()),
        "cluster_f1": b_cubed(labels, planted, true),
        "found": float(joined.mean()),
        **{f"found_{k}": float(joined[np.array(planted.kinds) == k].mean()) for k in KINDS},
    }


def differences(mine: np.ndarray, theirs: np.ndarray, planted: Planted) -> dict[str, list[float]]:
    """Recall and precision of ours less the peer's: estimate, and 95 % of 2,000 bootstraps over the pairs."""
    u, v = planted.pairs.T
    joined, true = np.stack([mine[u] == mine[v], theirs[u] == theirs[v]]), planted.jaccard >= FINEWEB.threshold
    draw = np.random.default_rng(0)
    weights = np.vstack([np.ones(len(true), int), draw.multinomial(len(true), np.full(len(true), 1 / len(true)), 2000)])
    hits = (joined & true) @ weights.T  # [tools, 1 + bootstraps]
    result = {}
    for name, whole in (("recall", true @ weights.T), ("precision", joined @ weights.T)):
        difference = np.subtract(*(hits / whole))
        result[f"{name}_less_peer"] = [float(difference[0]), *map(float, np.quantile(difference[1:], [0.025, 0.975]))]
    return result


def b_cubed(labels: np.ndarray, planted: Planted, true: np.ndarray) -> float:
    """F1 of B-cubed precision and recall (Bagga and Baldwin 1998) against the pairs that are near duplicates."""
    truth = np.arange(len(labels))
    u, v = planted.pairs[true].T
    truth[u] = truth[v]
    groups: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels.tolist()):
        groups[label].append(i)
    size = Counter(truth.tolist())
    precision = recall = 0.0
    for members in groups.values():
        shared = Counter(truth[members].tolist())
        for label, count in shared.items():
            precision += count * count / len(members)
            recall += count * count / size[label]
    return 2 * precision * recall / (precision + recall) / len(labels)


def measure_accuracy(pairs: int, python: Path, scratch: Path) -> dict[str, Any]:
    planted = plant(pairs)
    shards, here, there = scratch / "planted", scratch / "planted-ours", scratch / "planted-peer"
    write(planted, shards)
    here.mkdir(), there.mkdir()
    ours(f"{shards}/*.parquet", here, 1)
    peer(python, shards, there, 2)
    labels, peers = clusters_ours(here, len(planted.texts)), clusters_peer(there, len(planted.texts))
    mine, theirs = accuracy(labels, planted), accuracy(peers, planted)
    library = accuracy(clusters_datasketch(planted.texts), planted)
    expected = np.array([FINEWEB.recall(s) for s in planted.jaccard])
    true = planted.jaccard >= FINEWEB.threshold
    return {
        **mine,
        **{f"peer_{k}": v for k, v in theirs.items()},
        **{f"datasketch_{k}": v for k, v in library.items()},
        **differences(labels, peers, planted),
        "expected_found": float(expected.mean()),
        "expected_recall": float(expected[true].mean()),
        "near_duplicates": int(true.sum()),
        "pairs": pairs,
    }


def show(result: dict[str, Any]) -> None:
    console = Console(width=120)
    table = Table(title=f"{result['pairs']} planted pairs, {result['near_duplicates']} of them near duplicates")
    for heading in ("", "corpusmill", "datatrove", "datasketch", "expected"):
        table.add_column(heading)
    for name in ("precision", "recall", "cluster_f1", "strangers_joined", "found", *(f"found_{k}" for k in KINDS)):
        values = [result[p + name] for p in ("", "peer_", "datasketch_")]
        table.add_row(name, *(f"{v:.4g}" for v in values), f"{result.get(f'expected_{name}', ''):.4}")
    console.print(table)
    for name in ("recall", "precision"):
        found, low, high = result[f"{name}_less_peer"]
        console.print(f"{name} less datatrove's: {found:+.4f}, 95 % of bootstraps from {low:+.4f} to {high:+.4f}")
    console.print(
        f"{result['documents']} documents, {result['megabytes']:.1f} MB: corpusmill "
        f"{statistics.median(result['seconds']):.1f} s (keeps {result['kept']}), datatrove "
        f"{statistics.median(result['peer_seconds']):.1f} s (keeps {result['peer_kept']}): "
        f"{result['speedup']:.1f} times as fast; by processor time {result['processor_speedup']:.1f} times; "
        f"signatures {result['signature_mb_s_core']:.0f} MB/s/core; load of the machine {result['load']}"
    )


def copy_shards(pattern: str, folder: Path) -> None:
    """Columns id and text of a glob's shards. datatrove's writer refuses columns that are null in its first batch."""
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
    if not paths:
        raise SystemExit(f"no file matches {pattern!r}")
    folder.mkdir()
    for number, path in enumerate(paths):
        file = pq.ParquetFile(path)
        table = file.read(columns=[name for name in ("id", "text") if name in file.schema_arrow.names])
        pq.write_table(table, folder / f"{number:05d}.parquet", row_group_size=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="glob of Parquet shards with a column text; a sample corpus is made without")
    parser.add_argument("--megabytes", type=float, default=300, help="size of that sample corpus")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of whole jobs")
    parser.add_argument("--pairs", type=int, default=10_000, help="planted pairs")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of corpusmill")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with datatrove 0.10 and spaCy")
    arguments = parser.parse_args()
    python = arguments.peer_python or peer_python()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shards = scratch / "shards"
        if not arguments.input:
            from pipelines.sample_corpus import build

            build(scratch / "corpus", arguments.megabytes)
        copy_shards(arguments.input or f"{scratch}/corpus/**/*.parquet", shards)
        columns = [pq.read_table(p, columns=["text"]).column("text") for p in sorted(shards.rglob("*.parquet"))]
        result = {
            "megabytes": sum(pc.sum(pc.binary_length(c)).as_py() or 0 for c in columns) / 1e6,
            "signature_mb_s_core": measure_signatures(shards),
            **measure_jobs(shards, python, arguments.repeats, arguments.workers, scratch),
            **measure_accuracy(arguments.pairs, python, scratch),
        }
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
