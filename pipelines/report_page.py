"""The page of a report: one HTML document with its style, its charts' library and nothing from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
:root { --ink: #1c2733; --muted: #66727f; --line: #e3e8ec; --paper: #ffffff; --ground: #f5f7f9; --accent: #2a7f9e; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header > div { max-width: 1140px; margin: 0 auto; padding: 0 20px; }
header { background: var(--paper); padding: 34px 0 20px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .2rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 75ch; }
.muted, .caption, figcaption { color: var(--muted); }
.caption { margin: 1rem 0 0; font-size: .9rem; }
nav { position: sticky; top: 0; z-index: 5; background: rgba(255,255,255,.94); border-bottom: 1px solid var(--line);
  overflow-x: auto; white-space: nowrap; }
nav > div { max-width: 1140px; margin: 0 auto; padding: 9px 20px; }
nav a { color: var(--muted); text-decoration: none; margin-right: 18px; font-size: .9rem; }
nav a:hover { color: var(--accent); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: clamp(1.1rem, 4.5vw, 1.4rem); line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.verdict { border-left: 5px solid #8b97a3; }
.verdict.won { border-left-color: #3c8f5d; } .verdict.lost { border-left-color: #c2410c; }
.verdict strong { font-size: 1.1rem; } .verdict p { max-width: none; }
.charts, .sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 6px 26px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: min(100%, 380px); }
th { text-align: left; font-weight: 600; color: var(--muted); border-bottom: 1px solid #cfd6dc; }
th, td { padding: 5px 16px 5px 0; vertical-align: top; } td { border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; white-space: nowrap; }
td.long { overflow-wrap: anywhere; min-width: 220px; }
details { border-top: 1px solid var(--line); } details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: 9px 2px; } summary:hover { color: var(--accent); }
.sides { padding-bottom: 10px; }
h4 { margin: .6rem 0 .2rem; font-size: .95rem; } .chart { min-width: 0; margin: .6rem 0 1rem; }
.sample { margin: 0 0 12px; } .sample figcaption { font-size: .82rem; overflow-wrap: anywhere; }
pre { margin: 4px 0 0; padding: 10px 12px; background: var(--ground); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; max-height: 300px;
  overflow-y: auto; }
.ok { color: #2f7a4d; } .bad { color: #c2410c; }
footer { max-width: 1140px; margin: 0 auto; padding: 6px 20px 40px; color: var(--muted); font-size: .85rem; }
@media (max-width: 820px) { .charts, .sides { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 640px) {
  section { padding: 16px 14px; } main, header > div { padding: 0 12px; } h1 { font-size: 1.4rem; }
}
@media print { nav { display: none; } section { break-inside: avoid; } }
"""


class Html(str):
    """Text that is HTML already; every other string is escaped before it enters the page."""


@dataclass(frozen=True)
class Section:
    """One part of the page. `body` is HTML."""

    name: str
    title: str
    body: str


def shown(value: Any) -> str:
    """One value as HTML: numbers with separators, nothing for None, text escaped."""
    if isinstance(value, Html):
        return str(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return escape(str(value))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", long: Sequence[str] = ()) -> str:
    """A table. Numbers stand to the right, columns in `long` may break anywhere, those without a value are left out."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    filled = [k for k in range(len(headers)) if any(row[k] not in (None, "") for row in rows)]
    headers, rows = [headers[k] for k in filled], [[row[k] for k in filled] for row in rows]

    def kind(column: int) -> str:
        values = [row[column] for row in rows if row[column] is not None]
        number = bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        return ' class="n"' if number else ' class="long"' if headers[column] in long else ""

    kinds = [kind(k) for k in range(len(headers))]
    head = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kinds, headers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{shown(v)}</td>" for k, v in zip(kinds, row, strict=True)) + "</tr>" for row in rows
    )
    described = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f'{described}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(values: Iterable[tuple[str, Any]]) -> str:
    """Key numbers; those that are None are left out."""
    cells = "".join(
        f'<div class="tile"><b>{shown(v)}</b><span>{escape(name)}</span></div>' for name, v in values if v is not None
    )
    return f'<div class="tiles">{cells}</div>'


def sample(caption: str, text: str) -> str:
    """One document's beginning; its direction of writing is its own."""
    body = f'<pre dir="auto">{escape(text)}</pre>' if text else '<p class="muted">the text cannot be read</p>'
    return f'<figure class="sample"><figcaption>{escape(caption)}</figcaption>{body}</figure>'


def details(title: str, body: str, opened: bool = False) -> str:
    """Something to open by a click."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{body}</details>"


def page(title: str, lead: str, top: str, sections: Sequence[Section], script: str, foot: str) -> str:
    """The whole document. lead, top, foot: HTML; script: the charts' library, or nothing."""
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    body = "".join(f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<script>{script}</script></head><body><header><div><h1>{escape(title)}</h1>{lead}</div></header>"
        f"<nav><div>{links}</div></nav><main>{top}{body}</main><footer>{foot}</footer></body></html>"
    )
