"""What a run did, in one JSON object: counts, tokens by source, held-out losses, seconds, and where things lie."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from pipelines import ledger, store
from pipelines.ledger import PIECES
from pipelines.recipe import HELDOUT

if TYPE_CHECKING:
    from pipelines.run import Run

SHARES = ("asked", "epochs", "effective_tokens", "marginal")  # of a source in a mixture


def summarise(job: Run) -> dict[str, Any]:
    """The summary of a run as far as it went, and what is known of later steps; written to RUN/summary.json."""
    records = job.context.records
    steps = {step: ledger.totals(mine) for step, mine in records.items()}
    curated = next(iter(job.recipe.mix), None)
    manifest = job.manifests.get(curated or "")
    summary: dict[str, Any] = {
        "recipe": job.recipe.name,
        "run": job.folder,
        "documents_in": sum(s.rows for s in job.given),
        "documents_out": manifest and sum(s["documents"] for s in manifest["sources"].values()),
        "ledger_balanced": _balanced(job),
        "ledger": steps,
        "shards": {
            "read": sum(s.cause is None for s in job.given),
            "quarantined": _quarantined(job),
            "quarantined_share": job.quarantined_share(),
        },
        "rewrites": _rewrites(steps),
        "duplicate_ids": _duplicate_ids(job),
        "tokens_by_source": _tokens(job, manifest),
        "mixtures": {
            name: {
                "digest": m["digest"],
                "tokens": m["tokens"],
                **{k: {s: v.get(k) for s, v in m["sources"].items()} for k in SHARES},
            }
            for name, m in job.manifests.items()
        },
        "mixture_digest": manifest and manifest["digest"],
        "thresholds": job.thresholds,
        "fits": {name: {k: v for k, v in made.items() if k != "key"} for name, made in job.fits.items()},
        "seconds": {
            **{k: round(v, 2) for k, v in job.context.seconds.items()},
            "total": round(time.perf_counter() - job.started, 2),
        },
        **job.trained,
        "decided_by": {"digest": _decisive(job, job.recipe.score), "scores": sorted(job.recipe.score)},
        "columns": {struct.folder: struct.base for struct in job.tables.structs.values()},
    }
    summary = _carried(job, summary)
    store.write_json(f"{job.folder}/summary.json", summary)
    return summary


def _balanced(job: Run) -> bool | None:
    """Whether every record balances and steps took in what was let through; None where no step ran."""
    records = job.context.records
    if not records:
        return None
    try:
        job.balance()
    except ledger.LedgerError:
        return False
    return all(r.balances for mine in records.values() for r in mine)


def _decisive(job: Run, scores: Iterable[str]) -> str:
    """Digest of the shards and the recipe, of its scorers only `scores`: one more changes nothing that is there."""
    recipe = job.recipe.model_dump(mode="json")
    recipe["score"] = {name: recipe["score"].get(name) for name in scores}
    return store.digest(recipe, [(s.source, s.name, s.digest, s.cause) for s in job.given])


def _rewrites(steps: dict[str, Any]) -> dict[str, Any]:
    """Of each rewriter: pieces asked for, documents made of them, and what became of the others by reason."""
    found = {step.removeprefix(PIECES): row for step, row in steps.items() if step.startswith(PIECES)}
    return {
        name: {"pieces": row["in"], "documents": row["out"], "left_out": row["dropped"]} for name, row in found.items()
    }


def _carried(job: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary, with what the one before it knows of steps that this run left out, if that still holds."""
    held = store.read_json(f"{job.folder}/summary.json") or {}
    before = held.get("decided_by")
    if before is None or _decisive(job, before["scores"]) != before["digest"]:
        return summary
    hidden = {name.lower() for s in job.shards for name, _ in s.columns}  # a new scorer hides a column of its name
    if any(name.lower() in hidden for name in set(job.recipe.score).difference(before["scores"])):
        return summary
    if any(held["columns"].get(folder, base) != base for folder, base in summary["columns"].items()):
        return summary
    for key in held.keys() - {"report"}:  # the page that was written tells nothing of this run
        if isinstance(held[key], dict):
            mine = summary.get(key) or {}
            summary[key] = mine | {k: v for k, v in held[key].items() if k not in mine}
        elif summary.get(key) is None:
            summary[key] = held[key]
    return summary


def _quarantined(job: Run) -> list[dict[str, str | None]]:
    whole: list[dict[str, str | None]] = [{"path": s.path, "cause": s.cause} for s in job.shards if s.cause]
    paths = {(s.source, s.name): s.path for s in job.shards}
    return whole + [
        {"path": paths[r.source, r.shard], "cause": r.cause}
        for r in job.context.records.get("index", [])
        if r.quarantined
    ]


def _duplicate_ids(job: Run) -> int:
    """Documents whose id another one before them has. Both live on; who joins by id should know."""
    import duckdb

    paths = [s.sidecar(f"{job.folder}/index") for s in job.splits]
    if not paths or store.is_remote(job.folder) or "index" not in job.context.records:
        return 0
    query = "SELECT count(*) - count(DISTINCT id) FROM read_parquet(?) WHERE status = 'ok'"
    with duckdb.connect(config={"memory_limit": "1GB"}) as connection:
        return int(connection.execute(query, [paths]).fetchall()[0][0])


def _tokens(job: Run, manifest: dict[str, Any] | None) -> dict[str, dict[str, int]]:
    """Tokens of all documents of each source, and those that one pass over the recipe's first mixture gives."""
    if manifest is None:
        return {}
    before: dict[str, int] = {}
    for split in job.splits:
        counts = store.read_table(split.sidecar(f"{job.folder}/scores/tokens"), ["tokens"]).column("tokens")
        before[split.source] = before.get(split.source, 0) + (pc.sum(pc.struct_field(counts, "count")).as_py() or 0)
    return {
        source: {"before": n, "after": manifest["sources"].get(source, {}).get("asked", 0)}
        for source, n in before.items()
    }


def _ledger_table(steps: dict[str, Any], balanced: bool | None) -> Any:
    from rich.table import Table

    state = {True: "balanced", False: "NOT balanced", None: "nothing was read"}[balanced]
    table = Table(title=f"Ledger, in {ledger.counted_in(steps)}: {state}")
    for name in ("step", "in", "out", "dropped", "quarantined", "splits", "reused"):
        table.add_column(name, no_wrap=name == "step", justify="left" if name in ("step", "dropped") else "right")
    for step, row in steps.items():
        if step.startswith(ledger.ASIDE):
            continue
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in row["dropped"].items())
        numbers = [f"{row[k]:,}" for k in ("in", "out", "quarantined", "splits", "reused")]
        table.add_row(step, *numbers[:2], dropped, *numbers[2:])
    return table


def _token_table(sources: dict[str, Any], mixtures: dict[str, Any]) -> Any:
    """Tokens of each source in the corpus and in one pass over each mixture, with the epochs of what is repeated."""
    from rich.table import Table

    table = Table(title="Tokens by source")
    table.add_column("source")
    shown = {name: mixture for name, mixture in mixtures.items() if name != HELDOUT}
    for name in ("in the corpus", *shown):
        table.add_column(name, justify="right")
    for source, count in sources.items():
        cells = [f"{count['before']:,}"]
        for mixture in shown.values():
            asked, epochs = mixture["asked"].get(source) or 0, mixture["epochs"].get(source) or 0
            cells.append(f"{asked:,}" + (f" ({epochs:.1f} epochs)" if epochs > 1 else ""))
        table.add_row(source, *cells)
    return table


def _loss_table(summary: dict[str, Any]) -> Any:
    """Held-out loss of each mixture: the target with its interval, then every source."""
    from rich.table import Table

    sources = summary["heldout_by_source"]
    target = ", ".join(summary["heldout_sources"])
    table = Table(title=f"Held-out loss, nats per token; target: {target} ({summary['heldout_documents']} documents)")
    for name in ("mixture", "target", "95 % interval", *sources):
        table.add_column(name, justify="left" if name == "mixture" else "right")
    for name, value in summary["heldout_loss"].items():
        interval = f"{value['low']:.4f} to {value['high']:.4f}"
        table.add_row(name, f"{value['mean']:.4f}", interval, *(f"{sources[s][name]:.3f}" for s in sources))
    return table


def _task_table(tasks: dict[str, Any]) -> Any:
    """Each measure of each task: the mixtures, then the differences from the last one."""
    from rich.table import Table

    table = Table("task", "measure", "mixture, or difference", "mean", "95 % interval", title="Tasks; more is better")
    for task, metrics in tasks.items():
        for metric, found in metrics.items():
            for name, value in {**found["mean"], **found["difference"]}.items():
                table.add_row(task, metric, name, f"{value['mean']:.4f}", f"{value['low']:.4f} to {value['high']:.4f}")
    return table


def show(summary: dict[str, Any]) -> None:
    """Print the ledger, the tokens by source, the held-out losses and where the report is."""
    from rich.console import Console

    from pipelines.train import verdict

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # logs need not wrap at 80 columns
    console.print(_ledger_table(summary["ledger"], summary["ledger_balanced"]))
    for item in summary["shards"]["quarantined"]:
        console.print(f"quarantined {item['path']}: {item['cause']}", markup=False)
    if summary["duplicate_ids"]:
        console.print(f"{summary['duplicate_ids']:,} documents carry the id of another one; all of them live on")
    if summary["tokens_by_source"]:
        console.print(_token_table(summary["tokens_by_source"], summary["mixtures"]))
    if "heldout_loss" in summary:
        console.print(_loss_table(summary))
        for line in verdict(summary["heldout_difference"]):
            console.print(line)
    if "tasks" in summary:
        console.print(_task_table(summary["tasks"]))
    if "report" in summary:
        console.print(f"report: {summary['report']}")
