"""The command line: `corpusmill`. The steps of a run and looking into it are here, models in cli_models.py."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command import Folder, Input, Json, Named, Options, Workers, app, finished, guarded, one_step
from transforms import rewriters

BUNDLED = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"A recipe file, or the name of a bundled one: {', '.join(BUNDLED)}.")],
    options: Options = None,
    folder: Folder = None,
    workers: Workers = 1,
    until: Annotated[
        str,
        typer.Option(help="Stop after this step: score, dedupe, clean, fit, rewrite, select, mix, train or report."),
    ] = "report",
    as_json: Json = False,
) -> None:
    """Run a recipe. What is already there and current is not computed again."""
    guarded(lambda: _run(recipe, folder, options or [], workers, until), as_json)


def _run(recipe: str, folder: str | None, options: list[str], workers: int, until: str) -> dict[str, Any]:
    from pipelines import summary
    from pipelines.recipe import RecipeError, load, nearest
    from pipelines.run import STEPS
    from pipelines.run import run as run_recipe

    if until not in STEPS:
        raise RecipeError(f"--until: no step {until!r}{nearest(until, STEPS)}")
    checked = load(recipe)
    return finished(checked, run_recipe(checked, folder or f"runs/{checked.name}", options, workers, until), summary)


@app.command()
def score(
    data: Input,
    options: Options = None,
    scorer: Annotated[Named, typer.Option(help="NAME, or NAME:KEY=VALUE,…; may be repeated.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Compute scorers for shards or for a run: what is there already is not computed again."""
    from pipelines.steps_alone import parameters

    guarded(lambda: one_step(data, "score", {"score": parameters(scorer or [])}, folder, options, workers), as_json)


@app.command()
def dedupe(
    data: Input,
    options: Options = None,
    method: Annotated[str, typer.Option(help="exact, or minhash for near duplicates.")] = "exact",
    prefer: Annotated[
        str | None,
        typer.Option(help="SQL: of equal documents, the one with the highest value stays; bytes by default."),
    ] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Flag duplicates. Nothing is removed: `exact.keep` and `minhash.keep` are columns for select."""
    from pipelines.steps_alone import given

    parts = {"dedupe": {method: given(prefer=prefer)}}
    guarded(lambda: one_step(data, "dedupe", parts, folder, options, workers), as_json)


@app.command()
def rewrite(
    data: Input,
    options: Options = None,
    rewriter: Annotated[str, typer.Option(help=f"What writes: {', '.join(rewriters.names())}.")] = "wrap",
    settings: Annotated[
        Named, typer.Option("--set", help="KEY=VALUE, as style=qa, engine.model=FOLDER or engine.engine=vllm.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new source; that of the rewriter by default.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Write new documents from those there are, by a language model or another rewriter. The originals stay."""
    guarded(lambda: _rewrite(rewriter, data, settings or [], name or rewriter, folder, options, workers), as_json)


def _rewrite(
    kind: str, data: str, texts: list[str], name: str, folder: str | None, options: list[str] | None, workers: int
) -> dict[str, Any]:
    from pipelines.steps_alone import rewriting

    return one_step(data, "rewrite", {"rewrite": {name: rewriting(kind, texts)}}, folder, options, workers)


@app.command()
def select(
    data: Input,
    options: Options = None,
    where: Annotated[Named, typer.Option(help="NAME=SQL condition; all must hold. May be repeated.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Select documents by SQL conditions over their columns and scores."""
    from pipelines.steps_alone import conditions

    guarded(lambda: one_step(data, "select", {"select": conditions(where or [])}, folder, options, workers), as_json)


@app.command()
def mix(
    data: Input,
    options: Options = None,
    name: Annotated[str, typer.Option(help="Name of the mixture.")] = "mixture",
    where: Annotated[str | None, typer.Option(help="SQL condition; selection.keep by default.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens of one pass, as 300k or 5M; all there are by default.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer.json, or a folder with one.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Write a mixture: shards and a manifest that a trainer needs nothing else than."""
    from pipelines.steps_alone import given

    parts = {"mix": {name: given(where=where, tokens=tokens)}, **given(tokenizer=tokenizer)}
    guarded(lambda: one_step(data, "mix", parts, folder, options, workers), as_json)


@app.command()
def train(
    data: Input, options: Options = None, folder: Folder = None, workers: Workers = 1, as_json: Json = False
) -> None:
    """Train and measure what the recipe of a run asks for."""
    guarded(lambda: one_step(data, "train", {}, folder, options, workers), as_json)


@app.command()
def export(
    data: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run folder.")],
    options: Options = None,
    out: Annotated[str, typer.Option(help="Folder for the shards, one folder per source.")] = "export",
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Write the selected documents as Parquet shards. What the run lacks up to its selection is computed first."""
    guarded(lambda: _export(data, options or [], out, folder, workers), as_json)


def _export(data: str, options: list[str], out: str, folder: str | None, workers: int) -> dict[str, Any]:
    from pipelines import ledger, summary
    from pipelines.export import export
    from pipelines.recipe import load
    from pipelines.run import STEPS, Run
    from pipelines.steps_alone import recipe_for

    recipe, run = recipe_for(data, {}, folder) if Path(data).is_dir() else (load(data), folder)
    job = Run(recipe, run or f"runs/{recipe.name}", options, workers)
    job.start()
    for step in STEPS[: STEPS.index("select") + 1] if job.splits else ():
        getattr(job, step)()
        job.balance()
    records = export(job.context, job.tables, job.splits, out) if job.splits else []
    result = {**summary.summarise(job), "export": {"folder": out, **ledger.totals(records)}}
    return finished(recipe, result, summary)


@app.command()
def estimate(
    data: Input,
    sample_mb: Annotated[float, typer.Option(help="Megabytes of text to read.", min=0.1)] = 64,
    text: Annotated[str, typer.Option(help="Column of the texts, with a glob.")] = "text",
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Estimate duplicates, seconds, memory and disk of exact and near dedupe from a sample, before the full run."""

    def ask() -> dict[str, Any]:
        from pipelines.estimate import estimate, show

        result = estimate(data, sample_mb, text, workers)
        show(result)
        return result

    guarded(ask, as_json)


@app.command("sample-corpus")
def sample_corpus(
    out: Annotated[Path, typer.Option(help="Folder for the shards, one folder per source.")],
    target_mb: Annotated[float, typer.Option(help="Megabytes of text aimed at.", min=0.1)] = 60,
    as_json: Json = False,
) -> None:
    """Make a corpus of real text found on this machine: sources, docstrings, manuals, READMEs, licences."""

    def build() -> dict[str, Any]:
        from pipelines.sample_corpus import build

        made = asdict(build(out, target_mb))
        for source, documents in made["documents"].items():
            megabytes = made["bytes"][source] / 1e6
            typer.echo(f"{out}/{source}: {documents:,} documents, {megabytes:.1f} MB")
        for source in made["absent"]:
            typer.echo(f"{source}: none on this machine")
        skipped = ", ".join(f"{reason} {n:,}" for reason, n in made["skipped"].items())
        typer.echo(f"{len(made['shards'])} shards; files skipped: {skipped or 'none'}; cut at 200 kB: {made['cut']}")
        return made

    guarded(build, as_json)


@app.command()
def sql(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    query: Annotated[
        str,
        typer.Argument(
            help="SQL over documents, index, ledger, shards, mixture, mixtures, phases, training, evaluation, heldout."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON object.")] = False,
) -> None:
    """Query a run with DuckDB. A condition tried here as WHERE means the same under `select` in a recipe."""

    def ask() -> dict[str, Any]:
        from sql.views import query as ask_run

        table = ask_run(folder, query)
        if not as_json:
            _print_table(table)
            return {}
        names: list[str] = []
        for name in table.column_names:  # SQL may name two columns alike, a JSON object may not
            free = (name, *(f"{name}_{k}" for k in range(1, table.num_columns + 1)))
            names.append(next(n for n in free if n not in names and (n == name or n not in table.column_names)))
        return {"rows": table.num_rows, "columns": names, "data": _plain(table.rename_columns(names).to_pylist())}

    guarded(ask, as_json)


@app.command()
def report(folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")], as_json: Json = False) -> None:
    """Write RUN/report.html: one page that opens offline."""

    def write() -> dict[str, Any]:
        from pipelines.report import write_report

        return {"report": write_report(folder)}

    guarded(write, as_json, show=True)


def _print_table(table: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table()
    for name in table.column_names:
        shown.add_column(escape(name))
    columns = [column.to_pylist() for column in table.slice(0, 200).columns]  # by position: names may stand twice
    for row in zip(*columns, strict=True):
        shown.add_row(*(escape(str(v)[:400]) if v is not None else "" for v in row))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(shown)
    if table.num_rows > 200:
        typer.echo(f"… {table.num_rows - 200} more rows; add LIMIT, or --json for all", err=True)


def _plain(value: Any) -> Any:
    """Values of a query as JSON has them: NaN and infinities are null, bytes hexadecimal."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.hex() if isinstance(value, bytes) else value


from pipelines import cli_models  # noqa: E402, F401  (so that its commands come last in the help)


def main() -> None:
    """Entry point of the `corpusmill` command."""
    app()


if __name__ == "__main__":
    main()
