"""The report's section on rewriters: what became of the pieces, and some of them beside what they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines import report_charts as charts
from pipelines.report_data import SNIPPET, Facts, Sample, quoted, with_texts
from pipelines.report_page import Section, details, sample, table
from transforms.rewriters import FAILED, OK, REJECTED

SHOWN = {OK: 3, REJECTED: 3, FAILED: 1}  # pieces of each status
COLORS = {OK: charts.KEPT, REJECTED: charts.LOST, FAILED: "#b4bec7"}


def rewrites(facts: Facts) -> Section | None:
    """Pieces of each rewriter by what became of them."""
    names = [name for name in facts.recipe.rewrite if name in facts.schema.names]
    if not names:
        return None
    rows = [row for name in names for row in _counts(facts, name)]
    if not rows:
        return Section("rewrites", "Rewritten", '<p class="muted">nothing was rewritten</p>')
    totals = {name: sum(row["pieces"] for row in rows if row["name"] == name) for name in names}
    shares = {status: [sum(r["pieces"] for r in rows if (r["name"], r["status"]) == (name, status))
                       / max(totals[name], 1) for name in names] for status in SHOWN}  # fmt: skip
    chart = charts.bars("Pieces by what became of them", "share", names, shares, share=True, colors=COLORS)
    lines = [[row[key] for key in rows[0]] for row in rows]
    headers = ["rewriter", "status", "reason", "documents", "pieces", "tokens read", "tokens written"]
    note = "A piece is what was made, or tried, of one part of a document; those that are ok become new documents."
    parts = [charts.embedded(chart), table(headers, lines, note)]
    for name in names:
        parts += _examples(facts, name)
    return Section("rewrites", "Rewritten", "".join(parts))


def _pieces(name: str) -> str:
    column = quoted(name)
    return f"""(SELECT source, shard, row, id, piece, piece.status AS status FROM (
        SELECT source, shard, row, id, unnest({column}.pieces) AS piece FROM documents WHERE len({column}.pieces) > 0))
    """


def _counts(facts: Facts, name: str) -> list[dict[str, Any]]:
    query = f"""
        SELECT ? AS name, status, piece.reason AS reason, count(DISTINCT (source, shard, row)) AS documents,
            count(*) AS pieces, sum(piece.prompt_tokens)::BIGINT AS read, sum(piece.output_tokens)::BIGINT AS written
        FROM {_pieces(name)} GROUP BY status, piece.reason ORDER BY status = '{OK}' DESC, pieces DESC, reason"""
    return facts.rows(query, [name])


def _examples(facts: Facts, name: str) -> Iterator[str]:
    """Pieces drawn by a hash, each beside the beginning of its document."""
    for status, most in SHOWN.items():
        query = f"""
            SELECT source, shard, row, id, 0.0 AS value, left(piece.text, {SNIPPET}) AS text, piece.chunk AS chunk,
                piece.reason AS reason
            FROM {_pieces(name)} WHERE status = ? ORDER BY hash(id, piece.chunk), source, shard, row LIMIT {most}"""
        found = facts.rows(query, [status])
        written = [(row.pop("chunk"), row.pop("reason"), row.pop("text")) for row in found]
        for original, (chunk, reason, text) in zip(
            with_texts(facts, [Sample(**row) for row in found]), written, strict=True
        ):
            shown = sample(f"written: part {chunk}", text) if text else "<p>nothing was written</p>"
            sides = f"<div>{sample(f'{original.source}, {original.id}', original.text)}</div><div>{shown}</div>"
            said = status if reason is None else f"{status}: {reason}"
            yield details(f"{name}, {said}", f'<div class="sides">{sides}</div>', opened=status == OK)
