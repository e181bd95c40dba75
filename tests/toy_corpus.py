"""A toy corpus whose truth is planted.

Three sources: `books` (prose, two shards of several row groups), `forum` (prose with a column `votes`, no ids), `junk`
(pages that fail the FineWeb rules). Some documents of `books` stand again in another shard with other white space.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WHO = [
    "the old captain",
    "a young baker",
    "our neighbour",
    "every student",
    "the quiet librarian",
    "nobody",
    "my sister",
    "the mayor",
]
DID = [
    "carried",
    "forgot",
    "painted",
    "described",
    "repaired",
    "borrowed",
    "weighed",
    "counted",
    "sold",
    "measured",
]
WHAT = [
    "a wooden boat",
    "the long letter",
    "seven lamps",
    "the northern road",
    "an empty room",
    "the second map",
    "a bag of flour",
]
WHEN = [
    "before the rain",
    "after supper",
    "in the early spring",
    "without a word",
    "on the last day",
    "for the third time",
]


def prose(draw: np.random.Generator, lines: int) -> str:
    """Lines of two plain sentences each; passes the FineWeb rules."""

    def sentence() -> str:
        return (
            f"{draw.choice(WHO)} {draw.choice(DID)} {draw.choice(WHAT)} {draw.choice(WHEN)} in {draw.integers(9999)}."
        )

    return "\n".join(f"{sentence()} {sentence()}".capitalize() for _ in range(lines))


def junk(draw: np.random.Generator, lines: int) -> str:
    """A page of menu entries: short lines without punctuation at their end."""
    return "\n".join(f"menu {draw.choice(WHAT)} {draw.integers(9)}" for _ in range(lines))


def write(path: Path, columns: dict[str, Any] | pa.Table, group: int | None = None, **options: Any) -> Path:
    """One shard, in row groups of `group` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=group or max(table.num_rows, 1), **options)
    return path


@dataclass(frozen=True)
class Toy:
    """The toy corpus: where it lies and what is true of it."""

    folder: Path
    documents: dict[str, int]  # admitted, by source
    repeated: set[str]  # ids of documents that are white-space variants of one in books

    @property
    def sources(self) -> dict[str, str]:
        return {name: f"{self.folder}/{name}/**/*.parquet" for name in self.documents}


def build_toy(folder: Path) -> Toy:
    draw = np.random.default_rng(1)
    texts = [prose(draw, int(n)) for n in draw.integers(4, 12, 90)]
    ids = [f"book {i}" for i in range(90)]
    books = folder / "books"
    again = [text.replace(" ", "  ", 5) + " \n" for text in texts[:8]]
    write(books / "a.parquet", {"id": ids[:50], "text": texts[:50]}, group=20)
    write(books / "b.parquet", {"id": ids[50:] + [f"twin {i}" for i in range(8)], "text": texts[50:] + again}, group=20)
    votes = list(range(40))
    said = [prose(draw, int(n)) for n in draw.integers(4, 9, 38)]
    write(folder / "forum" / "2024" / "c.parquet", {"text": [*said, None, " \n"], "votes": votes}, group=15)
    write(
        folder / "junk" / "d.parquet",
        {"id": [f"junk {i}" for i in range(30)], "text": [junk(draw, 12) for _ in range(30)]},
    )
    return Toy(folder, {"books": 98, "forum": 38, "junk": 30}, {f"twin {i}" for i in range(8)})
