"""What ways of cleaning leave of web pages: phrases that must stay, and phrases that must go.

    python benchmarks/prox_pages.py --pages FILE [--json] [--environment .venv-vllm] [--start MODEL | --writer FOLDER]

FILE is Parquet with columns `text` (a page as lines), `must_keep` and `must_drop` (lists of phrases), and perhaps `url`
(pages of one host fall on one side), `id` and `article` (the text that was meant: lines of it are the ones that stay).
Half of the hosts, by a hash, are learned from; all figures are of the other half. `kept` is the share of phrases that
must stay and still stand in what is left, `gone` that of phrases that must go and do not; intervals (95 %) resample
pages. Seconds are those of the processor. The last line of standard output is one JSON object.

Two refiners learn from the same phrases: the light one, and a small language model that writes programs (`writer`),
taught by the bundled trainer: a new one as NEW says, or the given MODEL as TUNED says; `--writer` takes a folder that
was taught before. It is run by vLLM, in an environment of its own: the one given, or one that
`tests/vllm_environment.sh` makes outside of the checkout (3.5 GB, once).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _vllm import in_environment
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainers.fit_refiner import SHARES, FitRefiner, c4_goes, fineweb_goes, repeated_goes
from trainers.fit_refiner_lm import FitRefinerLM
from transforms.batch import Batch
from transforms.cut import cut
from transforms.draws import hashes, ranges, seeded
from transforms.line_features import filled_lines
from transforms.programs import STATUSES, Rules, cut_lines, execute
from transforms.refiner import Refiner, load

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES = 2000
REPEATS = 3
NEW: dict[str, Any] = {
    "draws": 12,
    "prompts": {"system": "", "chunk_tokens": 260, "line": 30, "numbers": "after"},
    "lesson": {
        "vocabulary": 4096,
        "reading": 1,
        "train": {"tokens": 2_000_000, "row_length": 640, "batch_tokens": 1280, "lr": 2e-3, "weight_decay": 0.5}
        | {"model": {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}},
    },
}
TUNED: dict[str, Any] = {
    "draws": 3,
    "hide": 0.1,
    "prompts": {"system": "Clean the page.", "chunk_tokens": 420, "line": 40, "numbers": "after"},
    "lesson": {
        "train": {"tokens": 330_000, "row_length": 768, "batch_tokens": 1536, "lr": 2e-4}
        | {"precision": "bf16", "threads": 2}
    },
}
COLUMNS = {"text": "text", "keep": "must_keep", "drop": "must_drop", "group": "group"}
RULES = {"c4": c4_goes, "fineweb_lines": fineweb_goes, "repeated_lines": repeated_goes}
Method = Callable[[Batch], pa.LargeStringArray]


def halves(pages: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Pages to learn from and pages to measure on, with a column `group`: the host, or the id or place without one."""
    urls = pages.column("url").to_pylist() if "url" in pages.column_names else [None] * len(pages)
    ids = pages.column("id").to_pylist() if "id" in pages.column_names else list(range(len(pages)))
    groups = pa.array([host(url) or f"page {i}" for url, i in zip(urls, ids, strict=True)], pa.large_string())
    side = ranges(seeded(seed, hashes(groups)), 2)
    pages = pages.append_column("group", groups)
    learned, measured = (pages.filter(pa.array(side == k)) for k in (0, 1))
    return learned, measured


def host(url: str | None) -> str:
    """Host of an address; of a page in a web archive, that of the page."""
    try:
        found = urlsplit(url or "").netloc
        inner = (url or "").find("/http", 8)
        return urlsplit(url[inner + 1 :]).netloc or found if url and inner > 0 else found
    except ValueError:
        return ""


def fitted(learned: pa.Table, folder: Path, seed: int) -> tuple[Refiner, dict[str, Any], float]:
    """The light refiner, its card, and the seconds it took."""
    sample = pa.table({name: learned.column(given) for name, given in COLUMNS.items()})
    fit = FitRefiner(keep="must_keep", drop="must_drop", group="host", documents=max(5, len(learned)))
    started = time.process_time()
    card = fit.fit({"documents": sample}, folder, seed)
    return load(folder), card, time.process_time() - started


def taught(learned: pa.Table, folder: Path, seed: int, start: Path | None) -> Path:
    """Teach a language model to write programs; its folder."""
    sample = pa.table({name: learned.column(given) for name, given in COLUMNS.items()})
    how = {**TUNED, "lesson": {**TUNED["lesson"], "start": start}} if start else NEW
    labels = {"keep": "must_keep", "drop": "must_drop", "group": "host", "documents": len(learned)}
    FitRefinerLM.model_validate(labels | how).fit({"documents": sample}, folder, seed)
    return folder


def by_vllm(texts: pa.LargeStringArray, writer: Path, environment: str | None) -> tuple[list[str], dict[str, Any]]:
    """What the programs of a language model leave of the texts, and what is told of them; see `inside`."""
    with tempfile.TemporaryDirectory() as work:
        pq.write_table(pa.table({"text": texts}), f"{work}/texts.parquet")
        # Not this file as a script: vLLM's own processes would import it again.
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import prox_pages; prox_pages.inside()"
        told = json.loads(in_environment(environment, ["-c", code, work, str(writer.resolve())]))
        left = pq.read_table(f"{work}/left.parquet")["text"].to_pylist()
    return left, told


def inside() -> None:
    """In the environment with vLLM: clean the texts of a file as `clean: {prox: {engine: …}}` does."""
    from pipelines.clean_prox import Prox

    work, writer = map(Path, sys.argv[1:])
    tuned = json.loads((writer / "card.json").read_text())["lesson"]["train"].get("precision") == "bf16"
    engine = {"engine": "vllm", "model": writer, "dtype": "bfloat16" if tuned else "float32"}
    prox = Prox.model_validate({"engine": engine})
    assert prox.engine is not None
    prox.engine.setup()
    batch = Batch(pq.read_table(work / "texts.parquet").combine_chunks().to_batches()[0])
    started = time.perf_counter()
    told = prox.cuts(batch)
    spent = time.perf_counter() - started
    pq.write_table(pa.table({"text": cut(batch, told.cuts)}), work / "left.parquet")
    status, _, errors, failures = told.columns
    counts = {
        name: Counter(values.to_pylist()) for name, values in (("status", status), ("failures", failures.flatten()))
    }
    counts["pages_by_errors"] = Counter(errors.to_pylist())
    print(json.dumps({**counts, "wall_documents_s": len(batch) / spent}))


def methods(refiner: Refiner) -> dict[str, Method]:
    """Name -> what is left of the texts."""

    def by_rule(name: str) -> Method:
        def left(batch: Batch) -> pa.LargeStringArray:
            lines = filled_lines(batch)
            gone = np.zeros(len(batch.lines), bool)
            gone[lines.number] = RULES[name](batch, lines)
            return cut(batch, cut_lines(batch, gone))

        return left

    def light(keep: float) -> Method:
        threshold = refiner.threshold(keep)
        return lambda batch: cut(batch, execute(batch, refiner.edits(batch, threshold), Rules()).cuts)

    rules = {name: by_rule(name) for name in RULES}
    return {"nothing": lambda batch: batch.text, **rules, **{f"refiner_{share:g}": light(share) for share in SHARES}}


def phrases(pages: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Page (int64) and whether it must stay (bool) of every phrase, and the phrases."""
    page, stays, found = [], [], []
    for name, stay in (("must_keep", True), ("must_drop", False)):
        for number, given in enumerate(pages.column(name).to_pylist()):
            page += [number] * len(given or ())
            stays += [stay] * len(given or ())
            found += given or []
    return np.array(page, np.int64), np.array(stays, bool), found


def measure(left: list[str], page: np.ndarray, stays: np.ndarray, wanted: list[str], pages: int) -> dict[str, Any]:
    """Shares of phrases, with their intervals."""
    there = np.array([phrase in left[number] for phrase, number in zip(wanted, page.tolist(), strict=True)], bool)
    right = np.where(stays, there, ~there)
    weights = np.random.default_rng(0).multinomial(pages, np.full(pages, 1 / pages), RESAMPLES)
    result: dict[str, Any] = {}
    for name, side in (("kept", stays), ("gone", ~stays)):
        good, every = (np.bincount(page[side], right[side] if k else None, pages) for k in (1, 0))
        shares = (weights @ good) / np.maximum(weights @ every, 1)
        result[name] = float(right[side].mean())
        result[f"{name}_interval"] = [float(v) for v in np.quantile(shares, (0.025, 0.975))]
    return result


def line_set(pages: pa.Table, left: list[str]) -> dict[str, float]:
    """Precision, recall and F1 of the lines that went, where those of `article` are the ones to stay."""
    both = found = truth = 0
    for text, article, rest in zip(pages["text"].to_pylist(), pages["article"].to_pylist(), left, strict=True):
        lines = {line.strip() for line in text.split("\n")} - {""}
        noise = lines - {line.strip() for line in (article or "").split("\n")}
        removed = lines - {line.strip() for line in rest.split("\n")}
        both, found, truth = both + len(noise & removed), found + len(removed), truth + len(noise)
    return {"precision": both / max(1, found), "recall": both / max(1, truth), "f1": 2 * both / max(1, found + truth)}


def seconds(method: Method, records: pa.RecordBatch) -> float:
    """Of the processor, mean of `REPEATS` runs with compiled kernels."""
    method(Batch(records.slice(0, 1)))
    started = time.process_time()
    for _ in range(REPEATS):
        method(Batch(records))
    return (time.process_time() - started) / REPEATS


def run(
    pages: pa.Table,
    seed: int,
    most: int | None,
    teach: Callable[[pa.Table, Path], Path] | None,
    environment: str | None,
) -> dict[str, Any]:
    learned, measured = halves(pages, seed)
    order = np.argsort(hashes(pa.array([f"{k}" for k in range(len(measured))], pa.large_string())))
    measured = measured.take(np.sort(order[:most]))
    with tempfile.TemporaryDirectory() as folder:
        refiner, card, fit_seconds = fitted(learned, Path(folder), seed)
    records = measured.select(["text"]).combine_chunks().to_batches()[0]
    batch = Batch(records)
    page, stays, wanted = phrases(measured)
    result: dict[str, Any] = {"pages": len(pages), "learned": len(learned), "measured": len(measured)}
    result |= {"bytes": len(batch.bytes), "phrases": {"stay": int(stays.sum()), "go": int((~stays).sum())}}
    found: dict[str, dict[str, Any]] = {}

    def measured_as(name: str, left: list[str]) -> None:
        found[name] = measure(left, page, stays, wanted, len(batch))
        found[name]["bytes_left"] = sum(len(text.encode()) for text in left) / len(batch.bytes)
        if "article" in pages.column_names:
            found[name] |= line_set(measured, left)

    for name, method in methods(refiner).items():
        measured_as(name, method(batch).to_pylist())
        if name in ("refiner_0.95", "c4", "repeated_lines"):
            spent = seconds(method, records)
            found[name] |= {"documents_s": len(batch) / spent, "mb_s": len(batch.bytes) / spent / 1e6}
    status = execute(batch, refiner.edits(batch, refiner.threshold(0.95))).status
    counts = dict(zip(STATUSES, np.bincount(status, minlength=len(STATUSES)).tolist(), strict=True))
    result |= {"fit_seconds": fit_seconds, "holdout_of_fit": card["holdout"], "status_at_0.95": counts}
    if teach:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            writer = teach(learned, Path(folder))
            spent = time.perf_counter() - started
            left, told = by_vllm(batch.text, writer, environment)
            card = json.loads((writer / "card.json").read_text())
        measured_as("writer", left)
        found["writer"] |= told
        result["writer"] = {name: card[name] for name in ("taught", "documents", "holdout")} | {"fit_seconds": spent}
    kept, gone = ({name: one[side] for name, one in found.items()} for side in ("kept", "gone"))
    return {**result, "kept": kept, "gone": gone, "methods": found}


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['measured']} pages, {result['bytes'] / 1e6:.1f} MB; {result['learned']} learned from")
    for heading in ("method", "must stay, and does", "must go, and does", "bytes left", "MB/s"):
        table.add_column(heading)
    for name, one in result["methods"].items():
        shares = [
            f"{one[s]:.3f} ({one[f'{s}_interval'][0]:.3f} to {one[f'{s}_interval'][1]:.3f})" for s in ("kept", "gone")
        ]
        table.add_row(name, *shares, f"{one['bytes_left']:.2f}", f"{one['mb_s']:.1f}" if "mb_s" in one else "")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", required=True, help="Parquet file with text, must_keep and must_drop")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of the fit")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument("--environment", help="folder of an environment with vLLM and corpusmill")
    parser.add_argument("--measure", type=int, help="measure on so many pages of the other half, drawn; else on all")
    parser.add_argument("--start", type=Path, help="model folder to teach; else a new model")
    parser.add_argument("--writer", type=Path, help="folder of a language model taught before, with this seed")
    parser.add_argument("--without-writer", action="store_true", help="no language model")
    arguments = parser.parse_args()
    pages = pq.read_table(arguments.pages)
    if missing := {"text", "must_keep", "must_drop"} - set(pages.column_names):
        raise SystemExit(f"{arguments.pages} lacks the columns {sorted(missing)}; it has {pages.column_names}")
    pages = pages.filter(pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(pages["text"], "")), ""))

    def teach(learned: pa.Table, folder: Path) -> Path:
        return arguments.writer or taught(learned, folder, arguments.seed, arguments.start)

    result = run(
        pages, arguments.seed, arguments.measure, None if arguments.without_writer else teach, arguments.environment
    )
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
