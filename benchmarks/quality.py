"""How well each column of each scorer tells documents that people found good from the others, and what it costs.

    python benchmarks/quality.py --labels FILE [--positives GLOB --negatives GLOB [--documents 5000]]
                                 [--scorer NAME:KEY=VALUE,...] [--json]

FILE is Parquet with the columns `text` and `good` (true or false). Every scorer that needs no model is run, those that
do are named with what they lack; `--scorer` gives them one, as for `corpusmill score`. Every number and truth value of
their structs is ranked against `good`. With `--positives` and `--negatives` (shards with a column `text`) a fastText
classifier is fitted to these, as `corpusmill fit fasttext` does, and judged as the others are; texts that are among the
labels are left out of the fit.

    auc             ROC-AUC by column, ties count half, of the documents where it is not null; below 0.5 lower is better
    low, high       95 % interval by DeLong's variance (DeLong et al. 1988; the documents are the sample)
    seconds_per_mb  of the scorer, all its columns together, in processor seconds on text that is in memory

The columns are many and the labels few: of columns that tell nothing one in twenty lies outside its interval by chance.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import scorers
from pipelines.recipe import RecipeError, explain
from pipelines.steps_alone import parameters
from scorers import Scorer
from trainers import fits
from transforms.batch import Batch

LEAST_SECONDS = 0.3  # a scorer is run again until it took so long


def labelled(path: str) -> tuple[Batch, np.ndarray]:
    """The documents that have a text and a label, and which of them are good, bool [documents]."""
    table = pq.read_table(path)
    if missing := {"text", "good"} - set(table.column_names):
        raise SystemExit(f"{path} has no column {' and no '.join(sorted(missing))}; it has {table.column_names}")
    table = table.filter(pc.and_(table["text"].is_valid(), table["good"].is_valid())).combine_chunks()
    good = table["good"].cast(pa.bool_()).to_numpy()
    if good.all() or not good.any():
        raise SystemExit(f"{path}: of {len(good)} labels all are {bool(good.any())}; both are needed")
    return Batch(table.to_batches()[0]), good


def auc(values: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """ROC-AUC by midranks and its standard error (DeLong et al. 1988, by the ranks of Sun and Xu 2014)."""
    from scipy.stats import rankdata

    x, y = values[good], values[~good]
    together = rankdata(np.concatenate([x, y]))
    above = (together[: len(x)] - rankdata(x)) / len(y)  # share of the others that each good one stands above
    below = 1 - (together[len(x) :] - rankdata(y)) / len(x)
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else np.nan for part in (above, below))
    return float(above.mean()), float(np.sqrt(variance))


def columns(name: str, found: pa.StructArray) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers and truth values of a struct by their SQL names, float64 [documents], NaN for null."""
    for field, values in zip(found.type, found.flatten(), strict=True):
        if pa.types.is_struct(field.type):
            yield from columns(f"{name}.{field.name}", values)
        elif pa.types.is_boolean(field.type) or pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            yield f"{name}.{field.name}", values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def timed(scorer: Scorer, batch: Batch) -> tuple[pa.StructArray, float]:
    """What a scorer gives, and its processor seconds per MB once its kernels are compiled."""
    scorer.setup()
    found = scorer.score(batch)
    seconds, times = 0.0, 0
    while seconds < LEAST_SECONDS:
        fresh = Batch(batch.records)  # so that words and lines count for each scorer that needs them
        started = time.process_time()
        scorer.score(fresh)
        seconds, times = seconds + time.process_time() - started, times + 1
    return found, seconds / times / (len(batch.bytes) / 1e6)


def judge(name: str, scorer: Scorer, batch: Batch, good: np.ndarray) -> dict[str, dict[str, Any]]:
    found, seconds_per_mb = timed(scorer, batch)
    judged = {}
    for column, values in columns(name, found):
        known = np.isfinite(values)
        if not good[known].any() or good[known].all():
            continue
        area, error = auc(values[known], good[known])
        interval = {"low": max(0.0, area - 1.96 * error), "high": min(1.0, area + 1.96 * error)}
        judged[column] = {"auc": area, **interval, "documents": int(known.sum()), "seconds_per_mb": seconds_per_mb}
    return judged


def every(given: dict[str, dict[str, Any]]) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The scorers that can be made, by name, and why the others cannot."""
    made, absent = {}, {}
    for name in [*scorers.names(), *(n for n in given if n not in scorers.names())]:
        wanted = dict(given.get(name, {}))
        kind = wanted.pop("scorer", name)
        try:
            made[name] = scorers.make(kind, wanted)
        except (ValidationError, LookupError) as error:
            if name in given:
                raise SystemExit(f"--scorer {name}: {error}") from error
            assert isinstance(error, ValidationError)
            absent[name] = "; ".join(explain(error, scorers.find(kind), wanted))
        except ImportError as error:
            absent[name] = str(error)
    return made, absent


def fitted(arguments: argparse.Namespace, batch: Batch, out: Path) -> dict[str, Any]:
    """Fit a classifier to both globs without the labelled texts; returns its card."""
    known = set(batch.text.to_pylist())
    samples = {}
    for side in ("positives", "negatives"):
        pattern = getattr(arguments, side)
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
        if not paths:
            raise SystemExit(f"--{side}: no file matches {pattern!r}")
        texts = [t for p in paths for t in pq.read_table(p, columns=["text"]).column("text").to_pylist()]
        texts = [t for t in texts if t and t.strip() and t not in known]
        chosen = np.random.default_rng(0).permutation(len(texts))[: arguments.documents]
        samples[side] = pa.table({"text": pa.array([texts[i] for i in chosen], pa.large_string())})
    return fits.find("fasttext").model_validate({"positives": "true"}).fit(samples, out, seed=0)


def show(result: dict[str, Any]) -> None:
    title = f"{result['documents']} documents, {result['good']} of them good, {result['megabytes']:.2f} MB"
    table = Table(title=f"{title}: ROC-AUC by column, ↓ where lower is better")
    for heading in ("column", "AUC", "95 % interval", "documents", "s/MB"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    telling = {name: row for name, row in result["columns"].items() if row["low"] < row["high"] or row["auc"] != 0.5}
    for name, row in sorted(telling.items(), key=lambda item: -abs(item[1]["auc"] - 0.5)):
        down = row["auc"] < 0.5
        low, high = (1 - row["high"], 1 - row["low"]) if down else (row["low"], row["high"])
        area = f"{1 - row['auc']:.3f} ↓" if down else f"{row['auc']:.3f}  "
        chance = "" if low > 0.5 else " *"
        numbers = [f"{low:.3f} to {high:.3f}{chance:2}", str(row["documents"]), f"{row['seconds_per_mb']:.4f}"]
        table.add_row(name, area, *numbers)
    console = Console(width=120)
    console.print(table)
    outside = sum(not row["low"] <= 0.5 <= row["high"] for row in telling.values())
    same = len(result["columns"]) - len(telling)
    console.print(f"* chance cannot be ruled out; {outside} of {len(telling)} columns are without it")
    console.print(f"{same} more columns have one value for all documents, or tell them apart without fault")
    for name, why in result["skipped"].items():
        console.print(f"skipped {name}: {why}", markup=False)
    if card := result["fitted"]:
        counts, held = card["documents"], card["holdout"]
        console.print(f"fitted on {counts}; hold-out AUC {held['auc']:.3f} ± {held['auc_standard_error']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="Parquet file with text and good")
    parser.add_argument("--positives", help="glob of shards with good text to fit a classifier on")
    parser.add_argument("--negatives", help="glob of shards with other text")
    parser.add_argument("--documents", type=int, default=5000, help="of each side, to fit on")
    parser.add_argument("--scorer", action="append", default=[], help="NAME:KEY=VALUE,… of a scorer; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    if (arguments.positives is None) != (arguments.negatives is None):
        parser.error("--positives and --negatives go together")
    try:
        made, absent = every(parameters(arguments.scorer))
    except RecipeError as error:
        parser.error(str(error))
    batch, good = labelled(arguments.labels)
    judged: dict[str, dict[str, Any]] = {}
    for name, scorer in made.items():
        if missing := set(scorer.needs) - set(batch.records.schema.names):
            absent[name] = f"{arguments.labels} has no column {' and no '.join(sorted(missing))}"
            continue
        try:
            judged |= judge(name, scorer, batch, good)
        except (KeyError, ValueError, ImportError) as error:  # a column or package that it needs and that is not there
            absent[name] = f"{type(error).__name__}: {error}"
    card = None
    if arguments.positives:
        with tempfile.TemporaryDirectory() as folder:
            card = fitted(arguments, batch, Path(folder))
            judged |= judge("fitted", scorers.make("fasttext", {"model": folder}), batch, good)
    result = {
        "auc": {name: row["auc"] for name, row in judged.items()},
        "documents": len(good),
        "good": int(good.sum()),
        "megabytes": len(batch.bytes) / 1e6,
        "columns": judged,
        "skipped": absent,
        "fitted": card,
    }
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
