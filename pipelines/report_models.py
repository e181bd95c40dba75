"""The sections of a report on models: what was trained, what was fitted, and which mixture won."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from html import escape

from pipelines import report_charts as charts
from pipelines import store
from pipelines.report_data import Facts
from pipelines.report_page import Section, table
from pipelines.train import verdict

TRAINED = ("steps", "tokens", "loss", "seconds", "tokens_per_second", "data_wait", "parameters")


def verdict_box(facts: Facts) -> str:
    """The answer to what everything is for, before all else."""
    differences = facts.summary.get("heldout_difference")
    if not differences:
        return ""
    won = next(iter(differences.values()))["high"] < 0
    lines = map(escape, verdict(differences))
    text = "".join(f"<p><strong>{line}.</strong></p>" for line in lines)
    note = "Held-out loss of models of the same size, trained on the same number of tokens."
    return f'<section class="verdict {"won" if won else "lost"}">{text}<p class="muted">{note}</p></section>'


def outcome(facts: Facts) -> Section | None:
    """Held-out loss of the mixtures and of each source, with intervals."""
    losses = facts.summary.get("heldout_loss")
    if not losses:
        return None
    single = _losses_by_seed(facts)
    means = {name: (v["mean"], v["low"], v["high"]) for name, v in losses.items()}
    unit = "nats per token (mean, 95 % interval; ticks: single seeds)"
    parts = [charts.embedded(charts.intervals("Mean loss of each mixture", unit, means, single))]
    documents, seeds = facts.summary.get("heldout_documents"), max(map(len, single.values()), default=0)
    if documents:
        note = f"Lower is better. {documents:,} held-out documents that no mixture and no fit has seen, {seeds} seeds."
        method = "Intervals: bootstrap over documents with the noise of the seeds; differences are paired by both."
        if target := facts.summary.get("heldout_sources"):
            method += f" Target: {escape(', '.join(target))}; the other sources stand in the table."
        parts.append(f'<p class="muted">{note} {method}</p>')
    differences = facts.summary.get("heldout_difference", {})
    rows = [[name, v["mean"], v["low"], v["high"]] for name, v in differences.items()]
    caption = "Differences of held-out loss; below 0 the first is better"
    parts.append(table(["difference", "nats per token", "95 % from", "to"], rows, caption))
    parts.append(_losses_by_source(facts, list(losses)))
    return Section("outcome", "Held-out loss", "".join(parts))


def tasks(facts: Facts) -> Section | None:
    """What the mixtures' models got on the recipe's tasks, and the differences from the last mixture."""
    rows, differences = [], []
    names: list[str] = []
    for task, metrics in facts.summary.get("tasks", {}).items():
        for metric, found in metrics.items():
            names = list(found["mean"])
            rows.append([task, metric, *(_spelled(v) for v in found["mean"].values())])
            differences += [[task, metric, pair, _spelled(v)] for pair, v in found["difference"].items()]
    if not rows:
        return None
    note = '<p class="muted">Mean over items and seeds, 95 % intervals; more is better.</p>'
    body = note + table(["task", "measure", *names], rows)
    caption = "Differences; above 0 the first is better"
    return Section("tasks", "Tasks", body + table(["task", "measure", "difference", "95 %"], differences, caption))


def ablation(facts: Facts) -> Section | None:
    """Candidate mixtures at one budget: the losses, all pairs as a forest plot, and every measure."""
    found = store.read_json(f"{facts.run}/ablation.json")
    if not found:
        return None
    by, rows = found["ranking"]["by"], found["mixtures"]
    said = "".join(f"<p><strong>{escape(line)}.</strong></p>" for line in found["summary"])
    budget = f"{found['budget']:,} tokens for each mixture, seeds {', '.join(map(str, found['seeds']))}."
    parts = [said, f'<p class="muted">{budget} {escape(found["method"])}</p>']
    means = {name: _bounds(row["measures"][by]) for name, row in rows.items()}
    unit = f"{by} (mean, 95 % interval; ticks: single seeds)"
    parts.append(charts.embedded(charts.intervals("Candidates", unit, means, found["by_seed"])))
    pairs = {f"{p['first']} - {p['second']}{', real' if p['real'] else ''}": _bounds(p) for p in found["pairs"][by]}
    parts.append(charts.embedded(charts.intervals("All pairs", f"difference of {by}, 95 % interval", pairs, {})))
    measured = [
        [name, *(_spelled(row["measures"][name]) for row in rows.values())] for name in found["lower_is_better"]
    ]
    tokens = [["tokens trained on", *(row["tokens"] for row in rows.values())]]
    passes = [["passes over the mixture", *(row["passes"] for row in rows.values())]]
    parts.append(table(["measure", *rows], [*tokens, *passes, *measured], "Every measure, with 95 % intervals"))
    listed = [
        [name, f"{p['first']} - {p['second']}", _spelled(p), p["p_holm"], p["real"]]
        for name, each in found["pairs"].items()
        for p in each
    ]
    headers = ["measure", "difference", "95 %", "p, by Holm", "real"]
    parts.append(table(headers, listed, "All pairs by every measure"))
    return Section("ablation", "Ablation", "".join(parts))


def _bounds(value: Mapping[str, float]) -> tuple[float, float, float]:
    return value["mean"], value["low"], value["high"]


def _spelled(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _losses_by_seed(facts: Facts) -> dict[str, list[float]]:
    single: dict[str, list[float]] = defaultdict(list)
    if "evaluation" in facts.views:
        query = """
            SELECT mixture, seed, source, nats_per_token * tokens AS nats, tokens
            FROM evaluation WHERE source IS NOT NULL ORDER BY mixture, seed"""
        target = facts.summary.get("heldout_sources")
        sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for row in facts.rows(query):
            if target is None or row["source"] in target:
                held = sums[row["mixture"], row["seed"]]
                held[0], held[1] = held[0] + row["nats"], held[1] + row["tokens"]
        for (mixture, _), (nats, tokens) in sums.items():
            single[mixture].append(nats / tokens)
    return single


def _losses_by_source(facts: Facts, names: list[str]) -> str:
    if "evaluation" not in facts.views:
        return ""
    query = """
        SELECT mixture, source, avg(nats_per_token) AS loss
        FROM evaluation WHERE source IS NOT NULL GROUP BY ALL ORDER BY source"""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in facts.rows(query):
        found[row["source"]][row["mixture"]] = row["loss"]
    first, last = names[0], names[-1]
    rows = [[s, *(v.get(n) for n in names), v[first] - v[last]] for s, v in found.items() if {first, last} <= v.keys()]
    headers = ["source", *names, f"{first} − {last}"]
    return table(headers, rows, "Held-out loss by source, nats per token, mean over seeds")


def training(facts: Facts) -> Section | None:
    """Loss curves of every seed and mixture, and what each training took."""
    if "training" not in facts.views or not facts.recipe.train:
        return None
    query = """
        WITH widths AS (SELECT mixture, seed, greatest(max(tokens) / 300, 1) AS width FROM training GROUP BY ALL)
        SELECT mixture, seed, max(tokens) AS tokens, avg(loss) AS loss
        FROM training JOIN widths USING (mixture, seed)
        GROUP BY mixture, seed, floor(tokens / width) ORDER BY mixture, seed, tokens"""
    lines: dict[tuple[str, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in facts.rows(query):
        xs, ys = lines[row["mixture"], row["seed"]]
        xs.append(row["tokens"])
        ys.append(row["loss"])
    order = facts.recipe.train.mixtures
    ordered = {key: lines[key] for key in sorted(lines, key=lambda key: (order.index(key[0]), key[1]))}
    chart = charts.embedded(charts.curves("Training loss", "tokens trained on", "nats per token", ordered))
    chart += _on_the_way(facts, order)
    rows = [[name, *(made.get(k) for k in TRAINED)] for name, made in facts.summary.get("training", {}).items()]
    headers = ["model", "steps", "tokens", "last loss", "seconds", "tokens/s", "waiting for data", "parameters"]
    note = (
        "Every line is one seed; last loss is the mean of the last tenth of the steps, waiting a share of the seconds"
    )
    return Section("training", "Training", chart + table(headers, rows, note))


def _on_the_way(facts: Facts, order: list[str]) -> str:
    """Held-out loss of each source while the models were trained, from before the first step, if it was measured."""
    if "heldout" not in facts.views:
        return ""
    lines: dict[str, dict[tuple[str, int], tuple[list[float], list[float]]]] = defaultdict(dict)
    for row in facts.rows("FROM heldout ORDER BY source, seed, tokens"):
        xs, ys = lines[row["source"]].setdefault((row["mixture"], row["seed"]), ([], []))
        xs.append(row["tokens"])
        ys.append(row["nats_per_token"])
    drawn = []
    for source, found in lines.items():
        ordered = {key: found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))}
        title = f"Held-out loss on the way: {source}"
        drawn.append(charts.embedded(charts.curves(title, "tokens trained on", "nats per token", ordered)))
    return f'<div class="charts">{"".join(drawn)}</div>'


def models(facts: Facts) -> Section | None:
    """Cards of the models that the run has fitted."""
    parts = []
    for name, spec in facts.recipe.fit.items():
        card = store.read_json(f"{facts.run}/models/{name}/card.json") or {}
        made = facts.summary.get("fits", {}).get(name, {})
        if not card and not made:
            continue
        held = card.get("holdout", {})
        rows = [("method", spec["method"]), *card.get("parameters", {}).items()]
        rows += [(f"documents, {label}", f"{n:,}") for label, n in card.get("documents", {}).items()]
        rows += [(f"weight of {source}", f"{share:.4f}") for source, share in card.get("weights", {}).items()]
        if "auc" in held:
            error = held.get("auc_standard_error") or 0
            rows.append(("held-out documents", f"{held['documents']:,}"))
            rows.append(("held-out AUC", f"{held['auc']:.3f} ± {error:.3f} (standard error)"))
        rows += [(k, made[k]) for k in ("digest", "seconds") if k in made]
        chart = charts.embedded(charts.calibration(held["calibration"])) if held.get("calibration") else ""
        own = table(["", ""], rows, long=[""])
        parts.append(f'<h3>{escape(name)}</h3><div class="charts"><div>{own}</div><div>{chart}</div></div>')
    return Section("models", "Fitted models", "".join(parts)) if parts else None
