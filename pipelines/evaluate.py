"""`corpusmill evaluate`: measure a model folder on a held-out mixture, on task files, or by the evaluation harness."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import store


class EvaluationError(ValueError):
    """A model, mixture or task that cannot be used."""

    exit_code = 2


def evaluate(
    model: Path,
    mixture: Path | None,
    tasks: Sequence[Path],
    harness: Sequence[str],
    row_length: int | None = None,
    device: str = "cpu",
    out: Path | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """{"model", "row_length", "heldout": …, "tasks": {name: …}, "harness": …}, of which there is what was asked for.

    The texts of the mixture are tokenised with the model's own tokenizer, so bits per byte compare any two models.
    kind: of the mixture's documents, as in trainers/formats.py; what a run of the trainer learned, or text, by default.
    Products are in float32. `out`: folder for heldout.parquet (losses of documents) and tasks/NAME.parquet.

    Raises:
        EvaluationError: nothing to measure by, or something of it cannot be used; found before any work.
    """
    if not (mixture or tasks or harness):
        raise EvaluationError("nothing to measure by; give --mixture, --tasks or --harness")
    if len({path.stem for path in tasks}) < len(tasks):
        raise EvaluationError("--tasks: two files have one name, by which the results are told apart; rename one")
    try:
        return _evaluate(model, mixture, tasks, harness, row_length, device, out, kind)
    except (EvaluationError, MemoryError):
        raise
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def _evaluate(
    folder: Path,
    mixture: Path | None,
    tasks: Sequence[Path],
    harness: Sequence[str],
    row_length: int | None,
    device: str,
    out: Path | None,
    kind: str | None,
) -> dict[str, Any]:
    from trainers import harness as outside
    from trainers.evaluate import evaluate, open_model
    from trainers.mixture import open_mixture
    from trainers.tasks import of_file, run_tasks
    from transforms.model_folder import check_device

    if harness:
        outside.open_tasks(harness)
    asked = {path.stem: of_file(path) for path in tasks}
    format = _format(folder, kind)
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    model, row_length = open_model(folder, row_length, check_device(device))
    found: dict[str, Any] = {"model": str(folder), "row_length": row_length}
    if mixture:
        with tempfile.TemporaryDirectory() as cache:
            corpus = open_mixture(with_tokenizer(mixture, folder, Path(cache)), Path(cache), format)
            found["heldout"], losses = evaluate(model, corpus, row_length)
        _write(out, "heldout", losses)
    if asked:
        found["tasks"], tables = run_tasks(model, folder, asked, row_length)
        for name, table in tables.items():
            _write(out and out / "tasks", name, table)
    if harness:
        found["harness"] = outside.run_harness(model, folder, harness, row_length)
        del found["harness"]["samples"]
    return found


def _format(folder: Path, kind: str | None) -> Any:
    """The format of documents: of the kind that is named, else what the run of the trainer in `folder` learned."""
    from trainers.config import TrainConfig
    from trainers.formats import Format

    if kind:
        return Format.model_validate({"kind": kind})
    job = store.read_json(f"{folder}/job.json") or store.read_json(f"{folder.parent}/job.json") or {}
    return TrainConfig.model_validate(job.get("config", {})).heldout_format


def with_tokenizer(mixture: Path, tokenizer: Path, out: Path) -> Path:
    """A folder whose manifest names the files of a mixture, but another tokenizer (a folder). Raises ValueError."""
    from trainers.mixture import file_digest, read_manifest

    manifest = read_manifest(mixture)
    for source in manifest["sources"].values():
        for file in source["files"]:
            file["path"] = str((mixture / file["path"]).resolve())
    digest = file_digest(tokenizer / "tokenizer.json")
    manifest["tokenizer"] = {"path": str(tokenizer.resolve()), "digest": digest}
    made = out / "mixture"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def _write(folder: Path | None, name: str, table: Any) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")


def show(found: Mapping[str, Any]) -> None:
    """Print a table for each kind of measure."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    if "heldout" in found:
        overall, sources = found["heldout"]["overall"], found["heldout"]["sources"]
        units = [unit for unit in ("nats_per_token", "bits_per_byte") if unit in overall]
        table = Table("source", "documents", "tokens", *units, title="Held-out loss, with 95 % intervals")
        for name, entry in {**sources, "all": overall}.items():
            values = [_with_interval(entry, unit) for unit in units]
            table.add_row(name, f"{entry['documents']:,}", f"{entry['tokens']:,}", *values)
        console.print(table)
    if "tasks" in found:
        table = Table("task", "items", "measure", "value", title="Tasks, with 95 % intervals")
        for name, entry in found["tasks"].items():
            for measure in (key for key in entry if f"{key}_interval" in entry):
                table.add_row(name, f"{entry['items']:,}", measure, _with_interval(entry, measure))
            if "chance" in entry:
                table.add_row(name, "", "chance", f"{entry['chance']:.4f}")
        console.print(table)
    if "harness" in found:
        table = Table("task", "measure", "value", title=f"lm-evaluation-harness {found['harness']['version']}")
        for name, entry in found["harness"]["results"].items():
            for measure, value in entry.items():
                if isinstance(value, float):
                    table.add_row(name, measure, f"{value:.4f}")
        console.print(table)


def _with_interval(entry: Mapping[str, Any], name: str) -> str:
    low, high = entry[f"{name}_interval"]
    return f"{entry[name]:.4f} [{low:.4f}, {high:.4f}]"
