"""The command line. Progress goes to standard error; `--json` ends standard output with a line of JSON.

Exit codes: 0 done, 1 failed, 2 a mistake in the command or recipe, 3 more of the input is
unreadable than the recipe allows.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from trainers import fits

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Curate training corpora at the speed of columns, with a ledger that balances "
    "and a trainer that measures the result.",
)
BUNDLED = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
Workers = Annotated[int, typer.Option(help="Worker processes on this machine; 1 runs in this process.", min=1)]
Folder = Annotated[str | None, typer.Option("--run", help="Run folder; runs/NAME of the recipe by default.")]
Options = Annotated[list[str] | None, typer.Argument(help="After --: options of Beam, as --runner=DataflowRunner.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"A recipe file, or the name of a bundled one: {', '.join(BUNDLED)}.")],
    options: Options = None,
    folder: Folder = None,
    workers: Workers = 1,
    until: Annotated[
        str, typer.Option(help="Stop after this step: score, dedupe, clean, fit, select, mix, train or report.")
    ] = "report",
    as_json: Json = False,
) -> None:
    """Run a recipe. What is already there and current is not computed again."""
    _guarded(lambda: _run(recipe, folder, options or [], workers, until), as_json)


def _run(recipe: str, folder: str | None, options: list[str], workers: int, until: str) -> dict[str, Any]:
    from pipelines import summary
    from pipelines.recipe import RecipeError, load, nearest
    from pipelines.run import STEPS
    from pipelines.run import run as run_recipe

    if until not in STEPS:
        raise RecipeError(f"--until: no step {until!r}{nearest(until, STEPS)}")
    checked = load(recipe)
    return _finish(checked, run_recipe(checked, folder or f"runs/{checked.name}", options, workers, until), summary)


def _finish(checked: Any, result: dict[str, Any], summary: Any) -> dict[str, Any]:
    """Show what was done; exit code 3 if more shards were unreadable than the recipe allows, or all."""
    summary.show(result)
    share = result["shards"]["quarantined_share"]
    if share > checked.quarantine or not result["shards"]["read"]:
        result["exit_code"] = 3
        text = f"{share:.1%} of the shards could not be read whole; the recipe allows {checked.quarantine:.1%}"
        typer.echo(text if result["shards"]["read"] else "no shard can be read; nothing was done", err=True)
    return result


Input = Annotated[str, typer.Argument(metavar="INPUT", help="A run folder, or a quoted glob of Parquet shards.")]
Named = list[str] | None


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

    _guarded(lambda: _step(data, "score", {"score": parameters(scorer or [])}, folder, options, workers), as_json)


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
    _guarded(lambda: _step(data, "dedupe", parts, folder, options, workers), as_json)


@app.command(help=f"Fit the model of a scorer to the documents of shards or of a run: {', '.join(fits.names())}.")
def fit(
    method: Annotated[str, typer.Argument(help=f"What to fit: {', '.join(fits.names())}.")],
    data: Input,
    options: Options = None,
    settings: Annotated[
        Named,
        typer.Option("--set", help="KEY=VALUE of the method, as 'positives=good' or parameters.epoch=3; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the fit: fit:NAME in recipes; METHOD by default.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to copy the model to, besides RUN/models/NAME.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    _guarded(lambda: _fit(method, data, settings or [], name or method, out, folder, options, workers), as_json)


def _fit(
    method: str,
    data: str,
    texts: list[str],
    name: str,
    out: str | None,
    folder: str | None,
    options: list[str] | None,
    workers: int,
) -> dict[str, Any]:
    from pipelines import store
    from pipelines.plan import model_folder
    from pipelines.steps_alone import check_out, copy_model, settings

    check_out(out)
    result = _step(data, "fit", {"fit": {name: settings(method, texts)}}, folder, options, workers)
    if name not in result["fits"]:  # no shard could be read
        return result
    model = model_folder(result["run"], name)
    card = store.read_json(str(model / "card.json")) or {}
    made = {"method": method, "name": name, "model": str(copy_model(model, out)), "card": card}
    _show_fit(made, result["fits"][name]["reused"])
    return {**result, "fit": {**made, "reused": result["fits"][name]["reused"]}}


def _show_fit(made: dict[str, Any], reused: bool) -> None:
    """Where the model lies, what it was fitted on, and what it is worth on documents held out."""
    card = made["card"]
    typer.echo(f"model: {made['model']}{' (as it was: nothing has changed)' if reused else ''}")
    documents = card.get("documents", {})
    counts = documents.items() if isinstance(documents, dict) else [("all", documents)]
    if counts:
        typer.echo("documents: " + ", ".join(f"{label} {count:,}" for label, count in counts))
    if weights := card.get("weights"):
        typer.echo("weights: " + ", ".join(f"{source} {share:.4f}" for source, share in weights.items()))
    held = {k: v for k, v in (card.get("holdout") or {}).items() if isinstance(v, int | float)}
    counted = f"({held.pop('documents', 0):,} documents)"
    if "auc" in held:
        typer.echo(f"hold-out AUC: {held['auc']:.4f} ± {held.get('auc_standard_error', math.nan):.4f} {counted}")
    elif held:
        typer.echo(f"hold-out: {', '.join(f'{k} {v:.4f}' for k, v in held.items())} {counted}")


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

    _guarded(lambda: _step(data, "select", {"select": conditions(where or [])}, folder, options, workers), as_json)


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
    _guarded(lambda: _step(data, "mix", parts, folder, options, workers), as_json)


@app.command()
def train(
    data: Input, options: Options = None, folder: Folder = None, workers: Workers = 1, as_json: Json = False
) -> None:
    """Train and measure what the recipe of a run asks for."""
    _guarded(lambda: _step(data, "train", {}, folder, options, workers), as_json)


@app.command()
def prune(
    method: Annotated[
        str, typer.Argument(help="q_tuning, sstoken, excess_loss, critical_tokens, key_tokens or adverse_turns.")
    ],
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE", help="A mixture folder, as RUN/mixtures/NAME.")],
    settings: Annotated[
        Named, typer.Option("--set", help="KEY=VALUE of the method, as model=FOLDER; also format.kind=…; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder under MIXTURE/weights; METHOD by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or as cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Decide which tokens of a mixture to learn and how much each counts: weights that training reads."""

    def decide() -> dict[str, Any]:
        from pipelines import prune

        card = prune.prune(mixture, method, settings or [], name or method, device)
        prune.show(card)
        return card

    _guarded(decide, as_json)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or a finished run of the trainer.")],
    mixture: Annotated[Path | None, typer.Option(help="Folder of a mixture: loss per source.")] = None,
    tasks: Annotated[list[Path] | None, typer.Option(help="Parquet file of a task; may be repeated.")] = None,
    harness: Annotated[Named, typer.Option(help="Task of lm-evaluation-harness, or its YAML; may be repeated.")] = None,
    row_length: Annotated[
        int | None, typer.Option(help="Tokens read at once; what the model was made for (2048 at most) by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or as cuda.")] = "cpu",
    kind: Annotated[str | None, typer.Option("--format", help="text, prompt_completion or messages.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the losses and items, one by one, as Parquet.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model: held-out loss per source, tasks from files, or the evaluation harness."""

    def measure() -> dict[str, Any]:
        from pipelines import evaluate

        found = evaluate.evaluate(model, mixture, tasks or [], harness or [], row_length, device, out, kind)
        evaluate.show(found)
        return found

    _guarded(measure, as_json)


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one.")],
    options: Options = None,
    mixtures: Annotated[str | None, typer.Option(help="Candidates, as a,b,c; all of the recipe by default.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens to train each on, as 300k; train.config.tokens, or the smallest pass.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="As 0,1,2; the recipe's by default.")] = None,
    folder: Folder = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Train candidate mixtures on equal budgets and compare all pairs: which differences are real?"""
    asked = (mixtures, tokens, seeds)
    _guarded(lambda: _ablate(recipe, options or [], asked, folder, workers), as_json)


def _ablate(path: str, options: list[str], asked: Any, folder: str | None, workers: int) -> dict[str, Any]:
    from pipelines import ablate, summary
    from pipelines.recipe import load
    from pipelines.report import write_report

    recipe = load(path)
    job, found = ablate.ablate(recipe, folder or f"runs/{recipe.name}", options, workers, *ablate.asked(*asked))
    result = _finish(recipe, summary.summarise(job), summary)
    if found is None:
        return result
    ablate.show(found)
    result["report"] = write_report(job.folder)
    return {**result, "ablation": found}


def _step(
    data: str, step: str, parts: dict[str, Any], folder: str | None, options: list[str] | None, workers: int
) -> dict[str, Any]:
    from pipelines import summary
    from pipelines.run import run as run_recipe
    from pipelines.steps_alone import recipe_for, recipe_kept

    recipe, run = recipe_for(data, parts, folder)
    with recipe_kept(run):
        result = run_recipe(recipe, run, options or [], workers, step)
    return _finish(recipe, result, summary)


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
    _guarded(lambda: _export(data, options or [], out, folder, workers), as_json)


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
    return _finish(recipe, result, summary)


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

    _guarded(ask, as_json)


@app.command()
def merge(
    out: Annotated[str, typer.Argument(help="Folder of the merged model; must not be there yet.")],
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Model folders; MODEL:LAMBDA with --add.")],
    average: Annotated[bool, typer.Option("--average", help="Average the models.")] = False,
    weights: Annotated[str | None, typer.Option(help="Of the average, as 2,1,1; equal by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Model that the others came from.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add LAMBDA times (MODEL - BASE) of each to the base.")] = False,
    density: Annotated[
        float | None, typer.Option(help="TIES: of each difference keep this share, and of these the common sign.")
    ] = None,
    drop: Annotated[float | None, typer.Option(help="DARE: of each difference drop this share at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of what DARE drops.")] = 0,
    as_json: Json = False,
) -> None:
    """Merge model folders: an average, or a base with what fine-tuned models learned added to it."""
    from pipelines import merge as command

    _guarded(lambda: command.run(out, models, average, weights, base, add, density, drop, seed), as_json)


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

    _guarded(build, as_json)


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

    _guarded(ask, as_json)


@app.command()
def report(folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")], as_json: Json = False) -> None:
    """Write RUN/report.html: one page that opens offline."""

    def write() -> dict[str, Any]:
        from pipelines.report import write_report

        return {"report": write_report(folder)}

    _guarded(write, as_json, show=True)


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


def _guarded(work: Callable[[], dict[str, Any]], as_json: bool, show: bool = False) -> None:
    """Run a command; mistakes and known failures become one message, everything else is a bug: exit 1 and traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        result = work()
    except Exception as error:
        from pipelines.ledger import LedgerError

        code = _code(error)
        if not (isinstance(error, OSError | LedgerError) or code == 2 or hasattr(error, "exit_code")):
            raise
        typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(json.dumps({"error": str(error), "exit_code": code}))
        raise typer.Exit(code) from None
    code = result.get("exit_code", 0)
    if as_json:
        typer.echo(
            json.dumps({"exit_code": code, "seconds": round(time.perf_counter() - started, 3), **result}, default=str)
        )
    elif show:
        for name, value in result.items():
            typer.echo(f"{name}: {value}")
    raise typer.Exit(code)


def _code(error: Exception) -> int:
    """The error's own code where it has one, 2 for other mistakes of the user, 1 for the rest."""
    from pipelines.recipe import RecipeError
    from sql.expressions import ExpressionError

    if hasattr(error, "exit_code"):
        return int(error.exit_code)
    if isinstance(error, FileNotFoundError):  # with a number, from the system: a file of the run itself is gone
        return 1 if error.errno else 2
    mistakes = (RecipeError, ExpressionError, FileExistsError, PermissionError, NotADirectoryError)
    return 2 if isinstance(error, mistakes) else 1


def main() -> None:
    """Entry point of the `corpusmill` command."""
    app()


if __name__ == "__main__":
    main()
