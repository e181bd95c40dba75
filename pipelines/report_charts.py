"""Charts of a report as plotly figures, all in one plain style. Labels are data of unknown origin and are escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from math import log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from pipelines.report_data import Histogram, Threshold

INK, MUTED, GRID = "#1c2733", "#66727f", "#e6eaee"
KEPT, REFUSED, MARK, LOST = "#2a7f9e", "#cdd4da", "#c2410c", "#d9825b"
SERIES = ("#2a7f9e", "#d08c2f", "#7a5ea8", "#4c9a6a", "#b8517a", "#5b7083", "#a3a02e", "#8c5a3c")
REASONS = ("#d9825b", "#e0b15e", "#a78bb5", "#83b09a", "#c98ba0", "#a8b2ba", "#bdb76b", "#b39c8a")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CONFIG = {"displayModeBar": False, "responsive": True}


def embedded(figure: go.Figure) -> str:
    """HTML of one chart below its title; the library itself stands once in the page."""
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, default_width="100%")
    return f'<div class="chart"><h4>{escape(figure.layout.meta["title"])}</h4>{drawn}</div>'


def _figure(title: str, x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    figure = go.Figure()
    axis = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True}
    figure.update_layout(
        meta={"title": title},
        font={"family": FONT, "size": 12, "color": MUTED},
        height=height,
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"font": {"family": FONT}},
        xaxis={"title": {"text": "<br>".join(map(escape, wrap(x, 52))), "font": {"size": 12}}, **axis},
        yaxis={"title": {"text": escape(y)}, **axis},
        bargap=0.3,
        **layout,
    )
    return figure


def flow(stages: Sequence[tuple[str, int, bool]]) -> go.Figure:
    """Documents from in to out. stages: (label, documents, whether they are lost here)."""
    figure = _figure("Documents from in to out", "documents", "", height=80 + 30 * len(stages), showlegend=False)
    first, left, bases = max(stages[0][1], 1), 0, []
    for _, count, lost in stages:
        left = left - count if lost else count
        bases.append(left if lost else 0)
    figure.add_bar(
        y=[escape(label) for label, _, _ in stages],
        x=[count for _, count, _ in stages],
        base=bases,
        orientation="h",
        marker_color=[LOST if lost else KEPT for _, _, lost in stages],
        text=[f"{'−' if lost else ''}{count:,} ({count / first:.1%})" for _, count, lost in stages],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="y+text",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(range=[0, first * 1.35], tickformat="~s")
    return figure


def histogram(h: Histogram, thresholds: Sequence[Threshold], grouped: bool) -> go.Figure:
    """Documents per bin, kept ones below the others, with every threshold drawn in."""
    figure = _figure(h.column, h.unit or h.column.rpartition(".")[2], "documents", height=260, barmode="stack")
    bins = list(pairwise(h.edges))
    centers = [(a + b) / 2 for a, b in bins]
    widths = [b - a for a, b in bins]
    ranges = [f"{a:.4g} to {b:.4g}" for a, b in bins]
    groups = [("kept", h.kept, KEPT), ("not kept", h.refused, REFUSED)] if grouped else [("documents", h.kept, KEPT)]
    for name, counts, color in groups:
        figure.add_bar(
            x=centers,
            y=counts,
            width=widths,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            customdata=ranges,
            hovertemplate="%{customdata}: %{y:,} " + name + "<extra></extra>",
        )
    for t in thresholds:
        at = h.edges[0] if h.logarithmic and t.value <= 0 else t.value
        figure.add_vline(x=at, line={"color": MARK, "width": 1.6, "dash": "dot"})
        place, low, high = (log10(v) if h.logarithmic else v for v in (at, h.edges[0], h.edges[-1]))
        right = place - low > 0.6 * (high - low)
        figure.add_annotation(
            x=place,
            y=1,
            yref="paper",
            text=_label(t),
            showarrow=False,
            font={"color": MARK, "size": 11},
            xanchor="right" if right else "left",
            yanchor="top",
            xshift=-4 if right else 4,
        )
    figure.update_layout(bargap=0, showlegend=grouped)
    figure.update_yaxes(tickformat="~s")
    if h.logarithmic:
        figure.update_xaxes(type="log", dtick=1, tickformat="~s")
    return figure


def _label(t: Threshold) -> str:
    sign = {">=": "≥", "<=": "≤"}.get(t.operator, t.operator)
    return escape(f"{t.rule} {sign} {t.value:.4g}")


def bars(
    title: str,
    unit: str,
    groups: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    stacked: bool = True,
    colors: Mapping[str, str] | None = None,
    share: bool = False,
) -> go.Figure:
    """Horizontal bars: one row per group, one colour per part. share: values are 0 to 1 and shown as per cent."""
    thick = 30 if stacked else 12 + 15 * len(parts)
    figure = _figure(title, unit, "", height=100 + thick * len(groups), barmode="stack" if stacked else "group")
    for k, (name, values) in enumerate(parts.items()):
        color = (colors or {}).get(name, SERIES[k % len(SERIES)])
        shown = "%{x:.1%}" if share else "%{x:,}"
        figure.add_bar(
            y=[escape(g) for g in groups],
            x=list(values),
            name=escape(name),
            orientation="h",
            marker_color=color,
            hovertemplate="%{y}, " + escape(name) + ": " + shown + "<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickformat=".0%" if share else "~s", rangemode="tozero")
    return figure


def intervals(
    title: str, unit: str, means: Mapping[str, tuple[float, float, float]], points: Mapping[str, Sequence[float]]
) -> go.Figure:
    """Means with 95 % intervals (mean, low, high), and single values (one for each seed) as small dots."""
    figure = _figure(title, unit, "", height=100 + 52 * len(means), showlegend=False)
    for k, (name, (mean, low, high)) in enumerate(means.items()):
        color = SERIES[k % len(SERIES)]
        error = {
            "type": "data",
            "array": [high - mean],
            "arrayminus": [mean - low],
            "thickness": 2,
            "width": 7,
            "color": color,
        }
        figure.add_scatter(
            x=[mean],
            y=[escape(name)],
            error_x=error,
            mode="markers",
            marker={"color": color, "size": 11},
            hovertemplate=f"{mean:.4f} [{low:.4f}, {high:.4f}]<extra></extra>",
        )
        own = list(points.get(name, ()))
        figure.add_scatter(
            x=own,
            y=[escape(name)] * len(own),
            mode="markers",
            marker={"color": color, "size": 8, "opacity": 0.55, "symbol": "line-ns-open"},
            hovertemplate="one seed: %{x:.4f}<extra></extra>",
        )
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return figure


def curves(
    title: str, x: str, y: str, lines: Mapping[tuple[str, int], tuple[Sequence[float], Sequence[float]]]
) -> go.Figure:
    """One line per (mixture, seed); a mixture has one colour."""
    figure = _figure(title, x, y, height=350)
    names = list(dict.fromkeys(name for name, _ in lines))
    shown: set[str] = set()
    for (name, seed), (xs, ys) in lines.items():
        color = SERIES[names.index(name) % len(SERIES)]
        figure.add_scatter(
            x=list(xs),
            y=list(ys),
            mode="lines",
            name=escape(name),
            legendgroup=escape(name),
            showlegend=name not in shown,
            opacity=0.8,
            line={"color": color, "width": 1.6},
            hovertemplate=f"{escape(name)}, seed {seed}: %{{y:.4f}} at %{{x:,}}<extra></extra>",
        )
        shown.add(name)
    figure.update_xaxes(tickformat="~s", rangemode="tozero")
    return figure


def calibration(points: Sequence[Mapping[str, float]]) -> go.Figure:
    """Mean score of each bin of held-out documents against their share of positives; perfect is on the diagonal."""
    figure = _figure(
        "Calibration on held-out documents", "mean score", "share of positives", height=270, showlegend=False
    )
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": REFUSED, "dash": "dot"}, hoverinfo="skip")
    largest = max((p["documents"] for p in points), default=1)
    sizes = [8 + 16 * (p["documents"] / largest) ** 0.5 for p in points]
    figure.add_scatter(
        x=[p["score"] for p in points],
        y=[p["good"] for p in points],
        mode="markers",
        marker={"size": sizes, "color": KEPT},
        customdata=[p["documents"] for p in points],
        hovertemplate="score %{x:.3f}, positives %{y:.1%}, %{customdata:,} documents<extra></extra>",
    )
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(range=[0, 1])
    return figure
