"""The ledger: for every step and split, `in = out + dropped by reason + quarantined`; unbalanced runs do not finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import store
from pipelines.shards import Split

PIECES = "pieces:"  # steps that count pieces of documents in, and new documents out
ASIDE = ("sample:", "inherit:")  # steps that tables leave out: drawn for a fit, or columns taken over from parents
COUNTS = pa.map_(pa.string(), pa.int64())
SCHEMA = pa.schema(
    [
        ("step", pa.string()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("split", pa.string()),
        ("in", pa.int64()),
        ("out", pa.int64()),
        ("dropped", COUNTS),
        ("quarantined", pa.int64()),
        ("cause", pa.string()),
        ("repaired", COUNTS),
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("reused", pa.bool_()),
        ("key", pa.string()),
    ]
)


class LedgerError(Exception):
    """Rows went missing or came out of nothing. The run stops; its committed splits stay."""


@dataclass
class Record:
    """One row of the ledger: what a step did to a split. `rows_in = rows_out + dropped + quarantined`, in documents."""

    step: str
    source: str
    shard: str
    split: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    cause: str | None = None
    repaired: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    reused: bool = False
    key: str = ""
    detail: dict[str, Any] = field(default_factory=dict)  # what the step itself wants to find again; not in the ledger

    @classmethod
    def of(cls, step: str, split: Split, rows_in: int, rows_out: int, **rest: Any) -> Record:
        return cls(step, split.source, split.shard, split.name, rows_in, rows_out, **rest)

    @property
    def balances(self) -> bool:
        return self.rows_in == self.rows_out + sum(self.dropped.values()) + self.quarantined

    def json(self) -> dict[str, Any]:
        return asdict(self)


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """Sums over the splits of one step."""
    records = list(records)
    dropped: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    for record in records:
        dropped.update(record.dropped)
        repaired.update(record.repaired)
    return {
        "in": sum(r.rows_in for r in records),
        "out": sum(r.rows_out for r in records),
        "dropped": dict(sorted(dropped.items())),
        "quarantined": sum(r.quarantined for r in records),
        "repaired": dict(sorted(repaired.items())),
        "bytes": sum(r.bytes for r in records),
        "splits": len(records),
        "reused": sum(r.reused for r in records),
    }


def check(step: str, sent: Iterable[Split], records: Iterable[Record]) -> None:
    """Every split that was sent came back once, and balances.

    Raises:
        LedgerError: naming the step, the splits and the counts.
    """
    expected = Counter((s.source, s.name) for s in sent)
    records = list(records)
    came = Counter((r.source, r.split) for r in records)
    if came != expected:
        lost = [f"{source}/{name}" for source, name in (expected - came)]
        extra = [f"{source}/{name}" for source, name in (came - expected)]
        raise LedgerError(
            f"step {step}: {len(lost)} splits did not come back ({', '.join(lost[:5]) or '-'}), {len(extra)} came "
            f"twice or unasked ({', '.join(extra[:5]) or '-'}). The engine lost or doubled elements; run again."
        )
    for r in records:
        if not r.balances:
            raise LedgerError(
                f"step {step}, {r.source}/{r.split}: {r.rows_in} in, but {r.rows_out} out + {sum(r.dropped.values())} "
                f"dropped + {r.quarantined} quarantined. This is a bug of the step: please report it with the recipe."
            )


def chain(
    before: Iterable[Record],
    after: Iterable[Record],
    count: Callable[[Record], int] = attrgetter("rows_out"),
    what: str = "documents",
) -> None:
    """What one step let through is what the next one took in, split by split.

    Args:
        count: how many a step let through, as its record tells. what: these are.

    Raises:
        LedgerError: naming the split and both counts.
    """
    let_through = {(r.source, r.split): count(r) for r in before}
    for r in after:
        came = let_through.get((r.source, r.split))
        if came != r.rows_in:
            seen = f"{came} {what} were let through before step {r.step}, which saw {r.rows_in}"
            raise LedgerError(f"{r.source}/{r.split}: {seen}")


def born(pieces: Iterable[Record], index: Iterable[Record], source: str) -> None:
    """The new documents of a rewriter are all rows of its source, split by split.

    Raises:
        LedgerError: naming the split and both counts.
    """
    written = {f"{r.source}/{r.split}": r.rows_out for r in pieces}
    read: Counter[str] = Counter()
    for r in index:
        if r.source == source:
            read[r.shard] += r.rows_in
    for name in sorted(written.keys() | read.keys()):
        wrote = written.get(name, 0)
        if read[name] != wrote:
            raise LedgerError(f"{name}: {wrote} new documents of {source} were written, {read[name]} were read")


def counted_in(steps: Iterable[str]) -> str:
    """What the steps of a table count."""
    return "documents, and pieces of them" if any(step.startswith(PIECES) for step in steps) else "documents"


def write(path: str, records: Iterable[Record]) -> None:
    rows = []
    for r in sorted(records, key=lambda r: (r.step, r.source, r.split)):
        row = r.json()
        del row["detail"]
        row["in"], row["out"] = row.pop("rows_in"), row.pop("rows_out")
        row["dropped"], row["repaired"] = list(r.dropped.items()), list(r.repaired.items())
        rows.append(row)
    with store.commit(path) as sink:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
