"""Commands about models: fitting, token weights, evaluation, ablations, merging."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command import Folder, Input, Json, Named, Options, Workers, app, finished, guarded, one_step
from trainers import fits


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
    guarded(lambda: _fit(method, data, settings or [], name or method, out, folder, options, workers), as_json)


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
    result = one_step(data, "fit", {"fit": {name: settings(method, texts)}}, folder, options, workers)
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

    guarded(decide, as_json)


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

    guarded(measure, as_json)


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
    guarded(lambda: _ablate(recipe, options or [], asked, folder, workers), as_json)


def _ablate(path: str, options: list[str], asked: Any, folder: str | None, workers: int) -> dict[str, Any]:
    from pipelines import ablate, summary
    from pipelines.recipe import load
    from pipelines.report import write_report

    recipe = load(path)
    job, found = ablate.ablate(recipe, folder or f"runs/{recipe.name}", options, workers, *ablate.asked(*asked))
    result = finished(recipe, summary.summarise(job), summary)
    if found is None:
        return result
    ablate.show(found)
    result["report"] = write_report(job.folder)
    return {**result, "ablation": found}


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

    guarded(lambda: command.run(out, models, average, weights, base, add, density, drop, seed), as_json)
