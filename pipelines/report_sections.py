"""The sections of a report. Each is a function of the run's facts and gives None where the run has nothing to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pipelines import ledger
from pipelines import report_charts as charts
from pipelines.report_data import Facts, Sample, Threshold, around, histograms, largest_clusters, quoted, with_texts
from pipelines.report_page import Html, Section, details, sample, table, tiles

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
        if not step.startswith(ledger.ASIDE)
    ]
    headers = ["step", "in", "out", "dropped", "quarantined", "repaired", "splits", "reused", "balances"]
    parts.append(
        table(
            headers,
            rows,
            f"Ledger, in {ledger.counted_in(steps)}: in = out + dropped + quarantined, in every split of every step",
            long=["dropped", "repaired"],
        )
    )
    return Section("flow", "Documents in and out", "".join(parts))


def _mark(good: bool) -> Html:
    return Html('<span class="ok">yes</span>' if good else '<span class="bad">no</span>')


def _ledger(facts: Facts) -> dict[str, dict[str, Any]]:
    query = f"""
        SELECT step, sum("in")::BIGINT AS "in", sum("out")::BIGINT AS "out", sum(quarantined)::BIGINT AS quarantined,
               count(*) AS splits, sum(reused::INT)::BIGINT AS reused, {BALANCE} AS balanced,
               list(dropped) AS dropped, list(repaired) AS repaired
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
        stages += [(f"select: {r}", select["dropped"][r], True) for r in reasons]
        stages.append(("selected", select["out"], False))
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
    drawn = []
    for h in found:
        own = [t for t in thresholds if t.column == h.column]
        chart = charts.embedded(charts.histogram(h, own, facts.selected))
        drawn.append(f"<div>{chart}{_missing(h.missing)}</div>")
    note = (
        "Dotted lines are thresholds, named by the clause of select or the scorer that applies them: "
        "documents on the side that the sign names pass. The outermost bins hold everything beyond."
    )
    return Section("scores", "Scores", f'<p class="muted">{note}</p><div class="charts">{"".join(drawn)}</div>')


def _missing(documents: int) -> str:
    return f'<p class="muted">{documents:,} documents have no value.</p>' if documents else ""


def selection(facts: Facts) -> Section | None:
    """What is kept of each source, and by which rule the rest was refused; and what each rule set would refuse."""
    parts = []
    weight, unit = facts.weight
    if facts.selected:
        rows = _reasons(facts, "selection", "kept", weight)
        reasons = ["kept", "holdout", *facts.recipe.select]
        parts.append(_by_reason(f"{unit.capitalize()} kept, and refused by rule", unit, rows, reasons, "weight"))
        parts.append(_pivot(f"{unit.capitalize()} by the first rule that refused", rows, reasons, "weight"))
        parts.append(_pivot("Documents by the first rule that refused", rows, reasons, "documents"))
        parts.append(table(["rule", "condition"], facts.recipe.select.items(), long=["condition"]))
    for name in facts.rule_sets():
        rows = _reasons(facts, name, "passed", weight)
        reasons = ["passed", *sorted({row["reason"] for row in rows} - {"passed"})]
        title = "Documents that pass, and the first rule that the others fail"
        parts.append(f"<h3>Rules of {escape(name)}</h3>")
        parts.append(_by_reason(title, "documents", rows, reasons, "documents"))
        parts.append(_pivot("Documents by the first rule they fail", rows, reasons, "documents"))
    return Section("selection", "Selection", "".join(parts)) if parts else None


def _reasons(facts: Facts, struct: str, none: str, weight: str) -> list[dict[str, Any]]:
    """Documents and weight by source and `reason` of a struct; `none` stands for no reason."""
    query = f"""
        SELECT source, coalesce({quoted(struct)}.reason, ?) AS reason, count(*) AS documents,
               sum({weight})::BIGINT AS weight
        FROM documents GROUP BY ALL ORDER BY source"""
    return facts.rows(query, [none])


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
    methods = [name for name in facts.recipe.dedupe if name in facts.schema.names]
    parts = [part for name in methods for part in _method(facts, name)]
    return Section("dedupe", "Duplicates", "".join(parts)) if parts else None


def _method(facts: Facts, name: str) -> Iterator[str]:
    size, keep = f"{quoted(name)}.size", f"{quoted(name)}.keep"
    query = f"""
        SELECT CASE WHEN {size} < 4 THEN {size}::VARCHAR WHEN {size} < 8 THEN '4 to 7' WHEN {size} < 16 THEN '8 to 15'
                    ELSE '16 and more' END AS sizes,
               count(*) FILTER ({keep}) AS kept, count(*) FILTER (NOT {keep}) AS lost
        FROM documents GROUP BY 1 ORDER BY min({size})"""
    yield f"<h3>Method {escape(name)}</h3>"
    rows = [(r["sizes"], r["kept"], r["lost"]) for r in facts.rows(query)]
    headers = ["documents in cluster", "clusters (documents kept)", "duplicates"]
    yield table(headers, rows, "Clusters of equal documents by size")
    query = (
        f"SELECT source, count(*) FILTER (NOT {keep}) / count(*) AS share FROM documents GROUP BY ALL ORDER BY source"
    )
    found = facts.rows(query)
    parts = {"duplicates": [r["share"] for r in found]}
    colors = {"duplicates": charts.LOST}
    sources = [r["source"] for r in found]
    chart = charts.bars("Duplicates by source", "share of documents", sources, parts, share=True, colors=colors)
    yield charts.embedded(chart)
    for s in with_texts(facts, largest_clusters(facts, name)):
        yield details(f"{s.value:,.0f} copies, kept: {s.source}, {s.id}", sample(_where(s), s.text))


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
            r["realised"],
            round(100 * r["weight"], 1),
            round(r["epochs"], 3),
            r["effective_tokens"],
            r["marginal"] and round(100 * r["marginal"], 1),
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
        "read by the trainer",
        "share, %",
        "epochs",
        "worth in new tokens",
        "worth of one more, %",
    ]
    note = (
        "A pass takes documents as often as `epochs` says; repeats are not copied on disk. "
        "What they are worth in tokens of new text is estimated by the law of arXiv 2305.16264."
    )
    digests = table(
        ["mixture", "digest"],
        sorted({(r["mixture"], r["mixture_digest"]) for r in rows}, key=lambda r: names.index(r[0])),
    )
    return Section("mixtures", "Mixtures", chart + table(headers, lines, note) + _phases(facts) + digests)


def _phases(facts: Facts) -> str:
    """What is asked of each source in each phase, and what the trainer reads, of mixtures that have several."""
    if "phases" not in facts.views:
        return ""
    query = """
        FROM phases SELECT mixture, phase, source, available, asked, realised, round(100 * weight, 1), round(epochs, 3),
            effective_tokens, condition
        WHERE mixture IN (FROM phases SELECT mixture WHERE phase > 0) ORDER BY mixture, phase, source"""
    headers = ["mixture", "phase", "source", "eligible", "tokens", "read by the trainer", "share, %", "epochs so far"]
    lines = [list(row.values()) for row in facts.rows(query)]
    return table([*headers, "worth in new tokens", "condition"], lines, "Phases of a pass", long=["condition"])


def samples(facts: Facts, thresholds: list[Threshold]) -> Section | None:
    """The documents just below and just above each threshold: where one sees whether it is set well."""
    found = [(t, *around(facts, t)) for t in thresholds]
    flat = with_texts(facts, list(dict.fromkeys(s for _, below, above in found for s in (*below, *above))))
    texts = {(s.source, s.shard, s.row): s.text for s in flat}
    blocks: list[str] = []
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


def key_numbers(facts: Facts) -> str:
    """What the run took in and gave out, and whether anything is missing."""
    summary = facts.summary
    tokens = list((summary.get("tokens_by_source") or {}).values())
    shards = summary.get("shards", {})
    balanced = None
    if "ledger" in facts.views:
        query = f"SELECT {BALANCE} AS balanced FROM ledger GROUP BY step, source, split"
        balanced = all(row["balanced"] for row in facts.rows(query))
    return tiles(
        [
            ("documents in", summary.get("documents_in")),
            ("documents in the mixture", summary.get("documents_out")),
            ("tokens in", sum(t["before"] for t in tokens) if tokens else None),
            ("tokens in one pass", sum(t["after"] for t in tokens) if tokens else None),
            ("shards read", shards.get("read")),
            ("shards quarantined", len({q["path"] for q in shards["quarantined"]}) if shards else None),
            ("ledger balances", balanced),
            ("duplicate ids", summary.get("duplicate_ids")),
            ("seconds", summary.get("seconds", {}).get("total")),
        ]
    )
