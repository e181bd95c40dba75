"""The four rule sets against datatrove 0.10 on the same documents: documents per second and core, and decisions.

    python benchmarks/rules.py --input FILE_OR_GLOB [--limit N] [--json] [--peer-python PYTHON]

Parquet files with a column `text`. datatrove is installed once, into ~/.cache/corpusmill-bench. Each side runs in one
process; seconds are those of the processor (`time.process_time`), so other work on the machine counts for neither. The
last line of standard output is one JSON object. A disagreement is a document that one side passes and the other drops;
it is explained by tokenisation where the words of both sides differ.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import scorers
from transforms.batch import Batch

RULE_SETS = ("fineweb", "gopher_quality", "gopher_repetition", "c4")
CACHE = Path.home() / ".cache" / "corpusmill-bench" / "datatrove-0.10"
BATCH_BYTES = 32 << 20
REPEATS = 3


def peer_python() -> Path:
    """The interpreter of datatrove's environment, which is made if it is not there."""
    python = CACHE / "bin" / "python"
    ready = CACHE / "installed"
    if not ready.exists():
        print(f"installing datatrove 0.10 into {CACHE}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", CACHE], check=True)
        packages = ["datatrove[processing]==0.10.*", "spacy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def read(pattern: str, limit: int | None) -> list[pa.RecordBatch]:
    """The texts in record batches of at most about `BATCH_BYTES`, without null and blank ones."""
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
    if not paths:
        raise SystemExit(f"no file matches {pattern!r}")
    tables = [pq.read_table(path, columns=["text"]).cast(pa.schema([("text", pa.large_string())])) for path in paths]
    table = pa.concat_tables(tables).drop_null()
    table = table.filter(pa.compute.not_equal(pa.compute.utf8_trim_whitespace(table["text"]), ""))
    table = table.slice(0, limit).combine_chunks()
    rows = max(1, int(len(table) * BATCH_BYTES / max(table.nbytes, 1)))
    return table.to_batches(max_chunksize=rows)


def run_peer(python: Path, batches: list[pa.RecordBatch]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "documents.jsonl"), Path(folder, "result.json")
        with source.open("w") as out:
            out.writelines(json.dumps(text) + "\n" for batch in batches for text in batch.column("text").to_pylist())
        subprocess.run(
            [python, Path(__file__).with_name("_peer_rules.py"), source, target], check=True, stdout=sys.stderr
        )
        return json.loads(target.read_text())


def run_ours(batches: list[pa.RecordBatch]) -> tuple[float, dict[str, list[str | None]]]:
    """Mean seconds of `REPEATS` runs with compiled kernels, and the reasons."""
    rule_sets = [scorers.make(name) for name in RULE_SETS]

    def score(records: pa.RecordBatch) -> list[pa.StructArray]:
        batch = Batch(records)
        return [one.score(batch) for one in rule_sets]

    score(batches[0])
    started = time.process_time()
    for _ in range(REPEATS):
        found = [score(records) for records in batches]
    seconds = (time.process_time() - started) / REPEATS
    columns = zip(RULE_SETS, zip(*found, strict=True), strict=True)
    return seconds, {
        name: [r for array in arrays for r in array.field("reason").to_pylist()] for name, arrays in columns
    }


def word_digests(batches: list[pa.RecordBatch]) -> list[int]:
    """A digest of every document's words, as the peer's."""
    found = []
    for records in batches:
        batch = Batch(records)
        data, words = batch.bytes.tobytes(), batch.words
        pieces = [data[a:b] for a, b in zip(words.start.tolist(), words.end.tolist(), strict=True)]
        ends = words.offsets.tolist()
        found += [zlib.crc32(b"\n".join(pieces[a:b])) for a, b in itertools.pairwise(ends)]
    return found


def compare(ours: dict[str, list[str | None]], peer: dict[str, Any], digests: list[int]) -> dict[str, Any]:
    """Agreement of each rule set, its disagreements by rule, and how many of those tokenisation explains."""
    agreement, disagreements, explained = {}, {}, {}
    differ = np.array(digests) != np.array(peer["words"])
    for name in RULE_SETS:
        pairs = list(zip(ours[name], peer["reasons"][name], strict=True))
        at = [i for i, (a, b) in enumerate(pairs) if (a is None) != (b is None)]
        agreement[name] = 1 - len(at) / len(pairs)
        disagreements[name] = dict(
            Counter(f"ours {a or 'passed'}, peer {b or 'passed'}" for a, b in (pairs[i] for i in at))
        )
        explained[name] = int(differ[at].sum())
    return {
        "agreement": agreement,
        "disagreements": disagreements,
        "explained_by_tokenisation": explained,
        "documents_with_other_words": int(differ.sum()),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['documents']} documents, {result['bytes'] / 1e6:.1f} MB")
    for heading in ("rule set", "agreement", "disagreements", "with other words"):
        table.add_column(heading)
    for name in RULE_SETS:
        rules = ", ".join(f"{rule} ({n})" for rule, n in result["disagreements"][name].items())
        table.add_row(
            name, f"{result['agreement'][name]:.2%}", rules or "none", str(result["explained_by_tokenisation"][name])
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"ours {result['docs_s_core']:,.0f} documents/s/core ({result['mb_s_core']:.1f} MB/s), "
        f"datatrove {result['peer_docs_s_core']:,.1f}: {result['speedup']:.0f} times as fast"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="Parquet file or glob")
    parser.add_argument("--limit", type=int, help="documents to read")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter of an environment that has datatrove 0.10 and spaCy"
    )
    arguments = parser.parse_args()
    batches = read(arguments.input, arguments.limit)
    documents, size = sum(map(len, batches)), sum(len(Batch(records).bytes) for records in batches)
    if not documents:
        raise SystemExit(f"{arguments.input} holds no document that is not blank")
    seconds, ours = run_ours(batches)
    peer = run_peer(arguments.peer_python or peer_python(), batches)
    result = {
        "documents": documents,
        "bytes": size,
        "speedup": peer["seconds"] / seconds,
        "docs_s_core": documents / seconds,
        "peer_docs_s_core": documents / peer["seconds"],
        "mb_s_core": size / seconds / 1e6,
        **compare(ours, peer, word_digests(batches)),
    }
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
