"""The report of a run: one HTML file that opens offline, with charts, tables and samples of whatever the run has made.

It costs a few queries over the scores and some row groups of text; the charts' library makes up most of its 5 MB.
"""

from __future__ import annotations

from typing import Any

from pipelines import store


class ReportError(RuntimeError):
    """Charts cannot be drawn here."""

    exit_code = 2


def write_report(run: str) -> str:
    """Write RUN/report.html and return its path. What the run has not made is left out.

    Raises:
        sql.views.QueryError: there is no run in this folder. ReportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ReportError("charts need plotly; install it with: pip install 'corpusmill[report]'") from error
    from pipelines import report_sections as parts
    from pipelines.report_data import Facts
    from pipelines.report_page import Section, page

    facts = Facts(run)
    thresholds = facts.thresholds()
    sections: list[Section | None] = [
        parts.outcome(facts),
        parts.flow(facts),
        parts.scores(facts, thresholds),
        parts.selection(facts),
        parts.dedupe(facts),
        parts.mixtures(facts),
        parts.training(facts),
        parts.samples(facts, thresholds),
        parts.models(facts),
        parts.provenance(facts),
    ]
    title, lead = parts.title(facts)
    top = parts.verdict_box(facts) + _key_numbers(facts)
    html = page(title, lead, top, [s for s in sections if s], get_plotlyjs(), "One file; it needs no network.")
    facts.connection.close()
    path = f"{run}/report.html"
    with store.commit(path) as sink:
        sink.write(html.encode("utf-8", "replace"))
    return path


def _key_numbers(facts: Any) -> str:
    from pipelines.report_page import tiles
    from pipelines.report_sections import BALANCE

    summary = facts.summary
    tokens = summary.get("tokens_by_source") or {}
    shards = summary.get("shards", {})
    balanced = (
        all(
            row["balanced"]
            for row in facts.rows(f"SELECT {BALANCE} AS balanced FROM ledger GROUP BY step, source, split")
        )
        if "ledger" in facts.views
        else None
    )
    numbers = [
        ("documents in", summary.get("documents_in")),
        ("documents in the mixture", summary.get("documents_out")),
        ("tokens in", sum(t["before"] for t in tokens.values()) if tokens else None),
        ("tokens in one pass", sum(t["after"] for t in tokens.values()) if tokens else None),
        ("shards read", shards.get("read")),
        ("shards quarantined", len({q["path"] for q in shards["quarantined"]}) if "quarantined" in shards else None),
        ("ledger balances", balanced),
        ("duplicate ids", summary.get("duplicate_ids")),
        ("seconds", summary.get("seconds", {}).get("total")),
    ]
    return tiles(numbers)
