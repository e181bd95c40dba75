"""The sections of a report. Each is a function of the run's facts and gives None where the run has nothing to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pipelines import report_charts as charts
from pipelines import store
from pipelines.report_data import Facts, Sample, Threshold, around, histograms, largest_clusters, with_texts
from pipelines.report_page import Html, Section, details, sample, table
from pipelines.train import verdict

PACKAGES = (
    "corpusmill",
    "apache-beam",
    "pyarrow",
    "duckdb",
    "polars",
    "numba",
    "numpy",
    "fasttext",
    "tokenizers",
    "torch",
    "transformers",
    "plotly",
)
BALANCE = 'sum("in") = sum("out") + sum(coalesce(list_sum(map_values(dropped)), 0)) + sum(quarantined)'


def outcome(facts: Facts) -> Section | None:
    """Held-out loss of the mixtures, and in plain words which differences are real."""
    losses = facts.summary.get("heldout_loss")
    if not losses:
        return None
    differences = facts.summary.get("heldout_difference", {})
    single: dict[str, list[float]] = defaultdict(list)
    by_source: dict[str, dict[str, float]] = defaultdict(dict)
    if "evaluation" in facts.views:
        for row in facts.rows(
            "SELECT mixture, nats_per_token AS loss FROM evaluation WHERE source IS NULL ORDER BY ALL"
        ):
            single[row["mixture"]].append(row["loss"])
        query = "SELECT mixture, source, avg(nats_per_token) AS loss FROM evaluation WHERE source IS NOT NULL GROUP BY ALL ORDER BY source"
        for row in facts.rows(query):
            by_source[row["source"]][row["mixture"]] = row["loss"]
    means = {name: (v["mean"], v["low"], v["high"]) for name, v in losses.items()}
    parts = [
        charts.embedded(
            charts.intervals(
                "Mean loss of each mixture", "nats per token (mean, 95 % interval; ticks: single seeds)", means, single
            )
        )
    ]
    documents = facts.summary.get("heldout_documents")
    if documents:
        seeds = max(map(len, single.values()), default=0)
        note = f"Lower is better. {documents:,} held-out documents that no mixture and no fit has seen, {seeds} seeds."
        parts.append(
            f'<p class="muted">{note} Intervals: bootstrap over documents and seeds; differences are paired by both.</p>'
        )
    rows = [(name, v["mean"], v["low"], v["high"]) for name, v in differences.items()]
    parts.append(
        table(
            ["difference", "nats per token", "95 % from", "to"],
            rows,
            "Differences of held-out loss; below 0 the first is better",
        )
    )
    names, (first, last) = list(losses), (next(iter(losses)), list(losses)[-1])
    rows = [
        [s, *(v.get(n) for n in names), v[first] - v[last]] for s, v in by_source.items() if first in v and last in v
    ]
    parts.append(
        table(["source", *names, f"{first} − {last}"], rows, "Held-out loss by source, nats per token, mean over seeds")
    )
    return Section("outcome", "Held-out loss", "".join(parts))


def verdict_box(facts: Facts) -> str:
    """The answer to what everything is for, before all else."""
    differences = facts.summary.get("heldout_difference")
    if not differences:
        return ""
    lines = verdict(differences)
    won = next(iter(differences.values()))["high"] < 0
    text = "".join(f"<p><strong>{shown}</strong></p>" for shown in map(_sentence, lines))
    return f'<section class="verdict {"won" if won else "lost"}">{text}<p class="muted">Held-out loss of models of the same size, trained on the same number of tokens.</p></section>'


def _sentence(line: str) -> str:
    return escape(line[:1].upper() + line[1:]) + "."


def flow(facts: Facts) -> Section | None:
    """Documents from in to out by step and reason, and the ledger."""
    if "ledger" not in facts.views:
        return None
    steps = _ledger(facts)
    stages = _stages(facts, steps)
    parts = [charts.embedded(charts.flow(stages))] if stages else []
    rows = [
        [
            step,
            s["in"],
            s["out"],
            ", ".join(f"{reason} {n:,}" for reason, n in s["dropped"].items()),
            s["quarantined"],
            ", ".join(f"{reason} {n:,}" for reason, n in s["repaired"].items()),
            s["splits"],
            s["reused"],
            _mark(s["balanced"]),
        ]
        for step, s in steps.items()
    ]
    headers = ["step", "in", "out", "dropped", "quarantined", "repaired", "splits", "reused", "balances"]
    parts.append(
        table(
            headers,
            rows,
            "Ledger, in documents: in = out + dropped + quarantined, in every split of every step",
            long=["dropped", "repaired"],
        )
    )
    return Section("flow", "Documents in and out", "".join(parts))


def _mark(good: bool) -> Html:
    return Html('<span class="ok">yes</span>' if good else '<span class="bad">no</span>')


def _ledger(facts: Facts) -> dict[str, dict[str, Any]]:
    query = f"""
        SELECT step, sum("in")::BIGINT AS "in", sum("out")::BIGINT AS "out", sum(quarantined)::BIGINT AS quarantined, count(*) AS splits,
               sum(reused::INT)::BIGINT AS reused, {BALANCE} AS balanced, list(dropped) AS dropped, list(repaired) AS repaired
        FROM ledger GROUP BY step"""
    found = {row["step"]: row for row in facts.rows(query)}
    for row in found.values():
        for part in ("dropped", "repaired"):
            total: dict[str, int] = defaultdict(int)
            for counts in row[part]:
                for reason, n in (counts or {}).items():
                    total[reason] += n
            row[part] = dict(sorted(total.items(), key=lambda item: -item[1]))
    order = {step: n for n, step in enumerate(facts.summary.get("ledger", {}))}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _stages(facts: Facts, steps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, bool]]:
    """Rows read -> documents -> selected -> first mixture, with what is lost between."""
    index = steps.get("index")
    if index is None:
        return []
    stages = [("rows", index["in"], False), *((reason, n, True) for reason, n in index["dropped"].items())]
    stages += [("quarantined", index["quarantined"], True)] if index["quarantined"] else []
    stages.append(("documents", index["out"], False))
    mixture = next(iter(facts.recipe.mix), None)
    mixed, select = steps.get(f"mix:{mixture}"), steps.get("select")
    refused = index["out"] - select["out"] if select else 0
    if select and (mixed is None or mixed["dropped"].get("not eligible", 0) == refused):
        order = ["holdout", *facts.recipe.select]
        reasons = sorted(select["dropped"], key=lambda r: order.index(r) if r in order else len(order))
        stages += [*((f"select: {r}", select["dropped"][r], True) for r in reasons), ("selected", select["out"], False)]
        mixed = mixed and {**mixed, "dropped": {k: n for k, n in mixed["dropped"].items() if k != "not eligible"}}
    if mixed:
        stages += [
            *((f"mix: {reason}", n, True) for reason, n in mixed["dropped"].items()),
            (f"mixture {mixture}", mixed["out"], False),
        ]
    return stages


def scores(facts: Facts, thresholds: list[Threshold]) -> Section | None:
    """A histogram for each score, with thresholds."""
    found = histograms(facts, thresholds)
    if not found:
        return None
    drawn = "".join(
        f"<div>{charts.embedded(charts.histogram(h, [t for t in thresholds if t.column == h.column], facts.selected))}{_missing(h.missing)}</div>"
        for h in found
    )
    note = "Documents by score. Dotted lines are thresholds, named by the clause of select or by the scorer that applies them, and hold for what passes."
    return Section(
        "scores",
        "Scores",
        f'<p class="muted">{note} The outermost bins hold everything beyond.</p><div class="charts">{drawn}</div>',
    )


def _missing(documents: int) -> str:
    return f'<p class="muted">{documents:,} documents have no value.</p>' if documents else ""


def selection(facts: Facts) -> Section | None:
    """What is kept of each source, and by which rule the rest was refused; and what each rule set would refuse."""
    parts = []
    weight, unit = facts.weight
    if facts.selected:
        query = f"""
            SELECT source, coalesce(selection.reason, 'kept') AS reason, count(*) AS documents, sum({weight})::BIGINT AS weight
            FROM documents GROUP BY ALL ORDER BY source"""
        rows = facts.rows(query)
        parts.append(
            _by_reason(
                f"{unit.capitalize()} kept, and refused by rule",
                unit,
                rows,
                ["kept", "holdout", *facts.recipe.select],
                "weight",
            )
        )
        parts.append(
            _pivot(
                f"{unit.capitalize()} by the first rule that refused",
                rows,
                ["kept", "holdout", *facts.recipe.select],
                "weight",
            )
        )
        parts.append(
            _pivot(
                "Documents by the first rule that refused", rows, ["kept", "holdout", *facts.recipe.select], "documents"
            )
        )
        conditions = [(name, text) for name, text in facts.recipe.select.items()]
        parts.append(table(["rule", "condition"], conditions, long=["condition"]))
    for name in facts.rule_sets():
        quoted = '"' + name.replace('"', '""') + '"'
        query = f"SELECT source, coalesce({quoted}.reason, 'passed') AS reason, count(*) AS documents FROM documents GROUP BY ALL ORDER BY source"
        rows = facts.rows(query)
        reasons = sorted({row["reason"] for row in rows} - {"passed"})
        parts.append(f"<h3>Rules of {escape(name)}</h3>")
        parts.append(
            _by_reason(
                "Documents that pass, and the first rule that the others fail",
                "documents",
                rows,
                ["passed", *reasons],
                "documents",
            )
        )
        parts.append(_pivot("Documents by the first rule they fail", rows, ["passed", *reasons], "documents"))
    return Section("selection", "Selection", "".join(parts)) if parts else None


def _by_reason(title: str, unit: str, rows: list[dict[str, Any]], reasons: list[str], value: str) -> str:
    sources = list(dict.fromkeys(row["source"] for row in rows))
    found = {(row["source"], row["reason"]): row[value] for row in rows}
    parts = {reason: [found.get((s, reason), 0) or 0 for s in sources] for reason in reasons}
    parts = {reason: counts for reason, counts in parts.items() if any(counts)}
    colors = {
        reason: charts.KEPT if reason in ("kept", "passed") else charts.REASONS[k % len(charts.REASONS)]
        for k, reason in enumerate(parts, -1)
    }
    return charts.embedded(charts.bars(title, unit, sources, parts, colors=colors))


def _pivot(caption: str, rows: list[dict[str, Any]], reasons: list[str], value: str) -> str:
    found = {(row["source"], row["reason"]): row[value] for row in rows}
    reasons = [r for r in reasons if any(key[1] == r for key in found)]
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        counts = [found.get((source, reason), 0) or 0 for reason in reasons]
        lines.append([source, *counts, sum(counts)])
    lines.append(["all", *(sum(line[k] for line in lines) for k in range(1, len(reasons) + 2))])
    return table(["source", *reasons, "sum"], lines, caption)


def dedupe(facts: Facts) -> Section | None:
    """Sizes of the clusters of duplicates, what they cost, and the largest ones."""
    parts = []
    for name in facts.recipe.dedupe:
        if name not in facts.schema.names:
            continue
        q = '"' + name.replace('"', '""') + '"'
        query = f"""
            SELECT CASE WHEN {q}.size < 4 THEN {q}.size::VARCHAR WHEN {q}.size < 8 THEN '4 to 7' WHEN {q}.size < 16 THEN '8 to 15' ELSE '16 and more' END AS size,
                   min({q}.size) AS smallest, count(*) FILTER ({q}.keep) AS kept, count(*) FILTER (NOT {q}.keep) AS duplicates
            FROM documents GROUP BY 1 ORDER BY smallest"""
        rows = facts.rows(query)
        parts.append(f"<h3>Method {escape(name)}</h3>")
        rows_shown = [(r["size"], r["kept"], r["duplicates"]) for r in rows]
        parts.append(
            table(
                ["documents in cluster", "clusters (documents kept)", "duplicates"],
                rows_shown,
                "Clusters of equal documents by size",
            )
        )
        per_source = facts.rows(
            f"SELECT source, count(*) FILTER (NOT {q}.keep) / count(*) AS share FROM documents GROUP BY source ORDER BY source"
        )
        chart = charts.bars(
            "Duplicates by source",
            "share of documents",
            [r["source"] for r in per_source],
            {"duplicates": [r["share"] for r in per_source]},
            share=True,
            colors={"duplicates": charts.LOST},
        )
        parts.append(charts.embedded(chart))
        largest = with_texts(facts, largest_clusters(facts, name))
        parts += [
            details(f"{s.value:,.0f} copies, kept: {s.source}, {s.id}", sample(_where(s), s.text)) for s in largest
        ]
    return Section("dedupe", "Duplicates", "".join(parts)) if parts else None


def mixtures(facts: Facts) -> Section | None:
    """Share of each source before and in every mixture."""
    if "mixtures" not in facts.views:
        return None
    rows = facts.rows("SELECT * FROM mixtures ORDER BY mixture, source")
    before = {}
    if "tokens" in facts.schema.names:
        before = {
            r["source"]: r["tokens"]
            for r in facts.rows(
                "SELECT source, sum(tokens.count)::BIGINT AS tokens FROM documents GROUP BY source ORDER BY source"
            )
        }
    sources = list(before) or sorted({r["source"] for r in rows})
    total = sum(before.values()) or 1
    shares: dict[str, list[float]] = {"before": [before[s] / total for s in sources]} if before else {}
    for name in facts.recipe.mix:
        weights = {r["source"]: r["weight"] for r in rows if r["mixture"] == name}
        shares |= {name: [weights.get(s, 0.0) for s in sources]} if weights else {}
    colors = {"before": "#b4bec7"} | {
        name: charts.SERIES[k % len(charts.SERIES)] for k, name in enumerate(facts.recipe.mix)
    }
    chart = charts.embedded(
        charts.bars(
            "Share of tokens by source", "share of tokens", sources, shares, stacked=False, colors=colors, share=True
        )
    )
    names = [*facts.recipe.mix, "heldout"]
    rows.sort(key=lambda r: (names.index(r["mixture"]), r["source"]))
    lines = [
        [
            r["mixture"],
            r["source"],
            before.get(r["source"]),
            r["available"],
            r["documents"],
            r["tokens"],
            r["asked"],
            round(100 * r["weight"], 1),
            round(r["epochs"], 3),
        ]
        for r in rows
    ]
    headers = [
        "mixture",
        "source",
        "tokens before",
        "eligible",
        "documents",
        "tokens on disk",
        "tokens per pass",
        "share, %",
        "epochs",
    ]
    note = "A pass takes documents as often as `epochs` says; repeats are not copied on disk."
    digests = table(
        ["mixture", "digest"],
        sorted({(r["mixture"], r["mixture_digest"]) for r in rows}, key=lambda r: names.index(r[0])),
    )
    return Section("mixtures", "Mixtures", chart + table(headers, lines, note) + digests)


def training(facts: Facts) -> Section | None:
    """Loss curves of every seed and mixture, and what each training took."""
    if "training" not in facts.views:
        return None
    query = """
        WITH widths AS (SELECT mixture, seed, greatest(max(tokens) / 300, 1) AS width FROM training GROUP BY ALL)
        SELECT mixture, seed, max(tokens) AS tokens, avg(loss) AS loss, avg(grad_norm) AS norm, max(lr) AS lr
        FROM training JOIN widths USING (mixture, seed) GROUP BY mixture, seed, floor(tokens / width) ORDER BY mixture, seed, tokens"""
    lines: dict[tuple[str, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in facts.rows(query):
        xs, ys = lines[row["mixture"], row["seed"]]
        xs.append(row["tokens"])
        ys.append(row["loss"])
    order = facts.recipe.train.mixtures if facts.recipe.train else []
    lines = {key: lines[key] for key in sorted(lines, key=lambda key: (order.index(key[0]), key[1]))}  # type: ignore[assignment]
    chart = charts.embedded(charts.curves("Training loss", "tokens trained on", "nats per token", lines))
    headers = ["model", "steps", "tokens", "last loss", "seconds", "tokens/s", "waiting for data", "parameters"]
    keys = ("steps", "tokens", "loss", "seconds", "tokens_per_second", "data_wait", "parameters")
    rows = [[name, *(made.get(k) for k in keys)] for name, made in facts.summary.get("training", {}).items()]
    return Section(
        "training",
        "Training",
        chart + table(headers, rows, "Every line is one seed; last loss is the mean of the last tenth of the steps"),
    )


def samples(facts: Facts, thresholds: list[Threshold]) -> Section | None:
    """The documents just below and just above each threshold: where one sees whether it is set well."""
    found = [(t, *around(facts, t)) for t in thresholds]
    flat = with_texts(facts, list(dict.fromkeys(s for _, below, above in found for s in (*below, *above))))
    texts = {(s.source, s.shard, s.row): s.text for s in flat}
    blocks = []
    for t, below, above in found:
        names = (
            (("Just below", below), ("At it, or just above", above))
            if t.sides[0] == "<"
            else (("At it, or just below", below), ("Just above", above))
        )
        sides = "".join(f"<div><h4>{title}</h4>{_samples(side, texts)}</div>" for title, side in names)
        blocks.append(
            details(
                f"{t.rule}: {t.column} {t.operator} {t.value:.6g}",
                f'<div class="sides">{sides}</div>',
                opened=not blocks,
            )
        )
    return Section("samples", "Around the thresholds", "".join(blocks)) if blocks else None


def _samples(side: Iterable[Sample], texts: Mapping[tuple[str, str, int], str]) -> str:
    return (
        "".join(sample(f"{s.value:.6g}, {_where(s)}", texts[s.source, s.shard, s.row]) for s in side)
        or '<p class="muted">no document</p>'
    )


def _where(s: Sample) -> str:
    return f"{s.source}/{s.shard}, row {s.row:,}, {s.id}"


def models(facts: Facts) -> Section | None:
    """Cards of the models that the run has fitted."""
    parts = []
    for name, spec in facts.recipe.fit.items():
        card = store.read_json(f"{facts.run}/models/{name}/card.json") or {}
        held = card.get("holdout", {})
        made = facts.summary.get("fits", {}).get(name)
        if not card and not made:
            continue
        rows = [("method", spec.method), *((k, v) for k, v in card.get("parameters", {}).items())]
        rows += [(f"documents, {label}", f"{n:,}") for label, n in card.get("documents", {}).items()]
        if "auc" in held:
            error = held.get("auc_standard_error") or 0
            rows += [
                ("held-out documents", f"{held['documents']:,}"),
                ("held-out AUC", f"{held['auc']:.3f} ± {error:.3f} (standard error)"),
            ]
        rows += [(k, made[k]) for k in ("digest", "seconds") if made and k in made]
        chart = charts.embedded(charts.calibration(held["calibration"])) if held.get("calibration") else ""
        own = table(["", ""], rows, long=[""])
        parts.append(f'<h3>{escape(name)}</h3><div class="charts"><div>{own}</div><div>{chart}</div></div>')
    return Section("models", "Fitted models", "".join(parts)) if parts else None


def provenance(facts: Facts) -> Section:
    """What could not be read, what it took, and with what it was made."""
    parts = []
    quarantined = [(q["path"], q["cause"]) for q in facts.summary.get("shards", {}).get("quarantined", [])]
    parts.append(
        table(
            ["shard", "cause"],
            quarantined,
            "Quarantined: could not be read, wholly or in part",
            long=["shard", "cause"],
        )
    )
    seconds = {k: v for k, v in facts.summary.get("seconds", {}).items() if k != "total"}
    if seconds:
        parts.append(
            charts.embedded(
                charts.bars(
                    "Time by step of the last run", "seconds", list(seconds), {"seconds": list(seconds.values())}
                )
            )
        )
    parts.append(table(["package", "version"], [(p, v) for p in PACKAGES if (v := _version(p))]))
    recipe = yaml.safe_dump(
        facts.recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    parts.append(details("Recipe", f"<pre>{escape(recipe)}</pre>"))
    return Section("provenance", "How it was made", "".join(parts))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def title(facts: Facts) -> tuple[str, str]:
    """Headline and lead of the page."""
    return f"Corpus {facts.recipe.name}", f'<p class="muted">corpusmill run in {escape(str(Path(facts.run)))}</p>'
