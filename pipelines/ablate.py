"""Ablation of mixtures: which of a recipe's candidates is better, and is the difference real?

Every candidate trains models of the same config and seeds on the same number of tokens: `tokens` if given, else the
recipe's train.config.tokens, else the smallest of the candidates' passes, so that nobody repeats data for the sake of
the comparison. A larger mixture then gives part of a pass, a smaller one is repeated; the table tells the epochs.
Whatever their mixtures' own budgets are, candidates are made equal, never refused; a step is whole rows, so the tokens
trained on differ by less than a batch.

Models lie in RUN/ablation, apart from those of `corpusmill run`; one that the run has trained in the same way is used
where it is. The result is RUN/ablation.json. A killed ablation goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import store
from pipelines.comparison import ERROR, RESAMPLES, Comparison, Measure
from pipelines.measures import Folders, Heldout, task_measures
from pipelines.plan import Plan
from pipelines.recipe import HELDOUT, Recipe, RecipeError, Training, nearest, parse
from pipelines.run import STEPS, Run
from pipelines.shares import Mixture
from pipelines.train import Job, _jobs, target_of, train_all

OVERALL = "held-out loss"  # the measure by which mixtures are ranked: of the target, nats per token
METHOD = (
    f"Intervals are 95 %: {RESAMPLES:,} bootstrap resamples of held-out documents (or task items), the same for all "
    "mixtures, with Student's noise of the seeds. A difference is real if its p-value, corrected by Holm for all pairs "
    f"of the same measure, is below {ERROR}."
)


def ablate(
    recipe: Recipe,
    folder: str,
    options: Sequence[str] = (),
    workers: int = 1,
    mixtures: Sequence[str] | None = None,
    tokens: int | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[Run, dict[str, Any] | None]:
    """Run a recipe up to its mixtures, train and compare the candidates (all mixtures by default).

    Returns the run and what is written to RUN/ablation.json: mixtures (a row of the table each), pairs (of every
    measure), ranking, summary (in words), budget, seeds, method. None in its place: no shard can be read.

    Raises:
        RecipeError: fewer than two candidates, one that there is not, or nothing to measure by.
        TrainingError: a training process failed.
    """
    spec = candidates(recipe, mixtures, tokens, seeds)
    Plan(parse({**recipe.model_dump(mode="json"), "train": spec.model_dump(mode="json")}), folder)
    job = Run(recipe, folder, options, workers)
    job.start()
    for step in STEPS[: STEPS.index("mix") + 1] if job.splits else ():
        getattr(job, step)()
        job.balance()
    if not job.splits:
        return job, None
    spec = equalised(spec, job.manifests)
    heldout = f"{folder}/mixtures/{HELDOUT}" if HELDOUT in job.manifests else None
    jobs = [_apart(each, folder) for each in _jobs(folder, spec, job.manifests, heldout)]
    results = train_all(job.context, jobs, spec.tasks)
    folders: dict[str, list[Path]] = {mixture: [] for mixture in spec.mixtures}
    trained: dict[str, list[int]] = {mixture: [] for mixture in spec.mixtures}
    for each, result in zip(jobs, results, strict=True):
        folders[each.out.parent.name].append(each.out)
        trained[each.out.parent.name].append(result["tokens"])
    found = compared(folders, spec, trained)
    store.write_json(f"{folder}/ablation.json", found)
    return job, found


def candidates(
    recipe: Recipe, mixtures: Sequence[str] | None, tokens: int | None, seeds: Sequence[int] | None
) -> Training:
    """What to train: the recipe's `train`, for the mixtures, tokens and seeds asked for. Raises RecipeError."""
    chosen = list(dict.fromkeys(mixtures or recipe.mix))
    for name in chosen:
        if name not in recipe.mix:
            raise RecipeError(f"--mixtures: {name!r} is not under mix{nearest(name, recipe.mix)}")
    if len(chosen) < 2:
        raise RecipeError(f"an ablation compares mixtures; there is {', '.join(chosen) or 'none'}: give two or more")
    base = recipe.train or Training.model_validate({"mixtures": chosen})
    if recipe.holdout is None and not base.tasks:
        raise RecipeError("an ablation measures on held-out documents or tasks: give `holdout` or `train.tasks`")
    config = base.config if tokens is None else {**base.config, "tokens": tokens}
    return base.model_copy(update={"mixtures": chosen, "seeds": list(seeds or base.seeds), "config": config})


def asked(
    mixtures: str | None, tokens: str | None, seeds: str | None
) -> tuple[list[str] | None, int | None, list[int] | None]:
    """The options of the command as `ablate` takes them. Raises RecipeError."""
    try:
        number = tokens and Mixture(tokens=tokens).tokens  # type: ignore[arg-type]  # accepts 300k
    except ValueError:
        raise RecipeError(f"--tokens: {tokens!r} is no number of tokens; write 300000, 300k, 5M or 2B") from None
    if seeds is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", seeds):
        raise RecipeError(f"--seeds: {seeds!r} are no whole numbers; write them as 0,1,2")
    names = [name.strip() for name in mixtures.split(",")] if mixtures else None
    return names, number or None, [int(seed) for seed in seeds.split(",")] if seeds else None


def equalised(spec: Training, manifests: Mapping[str, Any]) -> Training:
    """The training with one budget for all: where none is given, the tokens of the smallest pass."""
    if spec.config.get("tokens"):
        return spec
    passes = [sum(s["asked"] for s in manifests[name]["sources"].values()) for name in spec.mixtures]
    return spec.model_copy(update={"config": {**spec.config, "tokens": min(passes)}})


def _apart(job: Job, folder: str) -> Job:
    """The job in RUN/ablation, unless the run has done the very same: models of the run are never overwritten."""
    if store.read_json(f"{job.out}/key.json") == job.key and (job.out / "result.json").exists():
        return job
    out = Path(folder) / "ablation" / job.out.relative_to(Path(folder) / "training")
    return replace(job, out=out, arguments={**job.arguments, "out": str(out)})


def compared(folders: Folders, spec: Training, trained: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What ablation.json holds. trained: tokens that the models of each mixture were trained on."""
    measures = _measures(folders, spec)
    lower = {name: not name.startswith("tasks.") for name in measures}
    comparisons = {name: Comparison(each) for name, each in measures.items()}
    pairs = {name: comparison.pairs() for name, comparison in comparisons.items()}
    first = next(iter(measures))
    rank = {m: comparisons[first].mean(m)["mean"] * (1 if lower[first] else -1) for m in spec.mixtures}
    ranking = sorted(spec.mixtures, key=lambda m: (rank[m], m))
    rows = {
        m: {**_made(folders[m], trained[m]), "measures": {n: c.mean(m) for n, c in comparisons.items()}}
        for m in ranking
    }
    return {
        "mixtures": rows,
        "pairs": pairs,
        "items": {name: comparison.items for name, comparison in comparisons.items()},
        "lower_is_better": lower,
        "ranking": {"by": first, "order": ranking},
        "by_seed": {m: comparisons[first].by_seed[k].tolist() for k, m in enumerate(comparisons[first].names)},
        "summary": [words(name, pairs[name], lower[name], rows) for name in _told(measures)],
        "budget": spec.config["tokens"],
        "seeds": spec.seeds,
        "method": METHOD + (" With one seed, nothing is known of other seeds." if len(spec.seeds) == 1 else ""),
    }


def _measures(folders: Folders, spec: Training) -> dict[str, dict[str, Measure]]:
    """Name -> mixture -> measure: held-out loss of the target, then of each source, then tasks."""
    found: dict[str, dict[str, Measure]] = {}
    if all((each / "evaluation.parquet").exists() for mine in folders.values() for each in mine):
        heldout = Heldout.read(folders)
        found[OVERALL] = heldout.of(target_of(heldout.sources, spec.target))
        found |= {f"{OVERALL}.{source}": heldout.of([source]) for source in heldout.sources}
    for task, metrics in task_measures(folders, list(spec.tasks)).items():
        found |= {f"tasks.{task}.{metric}": measures for metric, measures in metrics.items()}
    return found


def _made(folders: Sequence[Path], tokens: Sequence[int]) -> dict[str, Any]:
    """Of one mixture: tokens trained on (mean over seeds), and how often its sources were read in them."""
    data = store.read_json(f"{folders[0]}/data.json")
    epochs = {name: source["epochs"] * data["passes"] for name, source in data["sources"].items()}
    documents = sum(source["documents"] for source in data["sources"].values())
    return {
        "tokens": round(sum(tokens) / len(tokens)),
        "documents": documents,
        "passes": data["passes"],
        "epochs": epochs,
    }


def _told(measures: Mapping[str, Any]) -> list[str]:
    """The measures that the summary speaks of: not each source, and one for each task."""
    of_tasks = [name for name in measures if name.startswith("tasks.")]
    tasks = {name.rpartition(".")[0]: name for name in reversed(of_tasks)}  # names of tasks may have dots
    return [name for name in measures if name == OVERALL or name in tasks.values()]


def words(measure: str, pairs: Sequence[Mapping[str, Any]], lower: bool, rows: Mapping[str, Any]) -> str:
    """One sentence: who is best, whom it really beats, and whom not."""
    means = {name: row["measures"][measure]["mean"] for name, row in rows.items()}
    best = min(means, key=lambda name: means[name] if lower else -means[name])
    beaten: list[str] = []
    alike: list[str] = []
    for pair in pairs:
        if best in (pair["first"], pair["second"]):
            other = pair["second"] if pair["first"] == best else pair["first"]
            (beaten if pair["real"] else alike).append(other)
    says = [f"really better than {', '.join(beaten)}"] if beaten else []
    says += [f"no real difference from {', '.join(alike)}"] if alike else []
    return f"{measure}: {best} is {'lowest' if lower else 'highest'} ({means[best]:.4g}); {'; '.join(says)}"


def show(found: Mapping[str, Any]) -> None:
    """Print the table of the mixtures, the pairs, and the summary."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    rows = found["mixtures"]
    table = Table(
        "", *rows, title=f"Ablation: {found['budget']:,} tokens each, seeds {', '.join(map(str, found['seeds']))}"
    )
    table.add_row("tokens", *(f"{row['tokens']:,}" for row in rows.values()))
    table.add_row("epochs", *(_span(row["epochs"].values()) for row in rows.values()))
    for name in found["lower_is_better"]:
        values = (row["measures"][name] for row in rows.values())
        table.add_row(name, *(f"{v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" for v in values))
    console.print(table)
    differences = Table("measure", "difference", "mean", "95 % interval", "p, by Holm", "real", title="All pairs")
    for name, pairs in found["pairs"].items():
        for p in pairs:
            span = f"{p['low']:+.4f} to {p['high']:+.4f}"
            real = "yes" if p["real"] else "no"
            pair = f"{p['first']} - {p['second']}"
            differences.add_row(name, pair, f"{p['mean']:+.4f}", span, f"{p['p_holm']:.2g}", real)
    console.print(differences)
    for line in [*found["summary"], found["method"]]:
        console.print(line, markup=False)


def _span(values: Iterable[float]) -> str:
    """Of sources that were read equally often one number, else the least and the most."""
    low, *_, high = sorted([*values] * 2)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
