"""The report of a run: one HTML file that opens offline, with charts, tables and samples of whatever the run has made.

It costs a few queries over the scores and some row groups of text; the charts' library makes up most of its 5 MB.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pipelines import store

if TYPE_CHECKING:
    from pipelines.report_data import Facts
    from pipelines.report_page import Section


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
    from pipelines.report_data import Facts
    from pipelines.report_models import verdict_box
    from pipelines.report_page import page
    from pipelines.report_sections import key_numbers, title

    facts = Facts(run)
    with closing(facts.connection):
        sections = [section for section in _sections(facts) if section]
        name, lead = title(facts)
        top = verdict_box(facts) + key_numbers(facts)
    html = page(name, lead, top, sections, get_plotlyjs(), "One file; it needs no network.")
    path = f"{run}/report.html"
    with store.commit(path) as sink:
        sink.write(html.encode("utf-8", "replace"))
    return path


def _sections(facts: Facts) -> list[Section | None]:
    from pipelines import report_models as models
    from pipelines import report_sections as parts
    from pipelines.report_rewrites import rewrites as rewritten

    thresholds = facts.thresholds()
    return [
        models.outcome(facts),
        models.tasks(facts),
        models.ablation(facts),
        parts.flow(facts),
        parts.scores(facts, thresholds),
        parts.selection(facts),
        parts.dedupe(facts),
        rewritten(facts),
        parts.mixtures(facts),
        models.training(facts),
        parts.samples(facts, thresholds),
        models.models(facts),
        parts.provenance(facts),
    ]
