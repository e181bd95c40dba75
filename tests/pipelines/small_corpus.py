"""A corpus and a recipe small enough for tests that run the whole road: real text statistics, planted duplicates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUBJECTS = ["The river", "A quiet engineer", "Our library", "This parser", "The old harbour", "Each of the kernels"]
VERBS = ["carries", "describes", "often repeats", "rarely explains", "measures", "keeps"]
OBJECTS = ["the weight of stones", "a table of numbers", "what was said before", "every line of the file", "the tide"]
NOISE = ["buy now", "click here", "404 not found", "lorem", "{ }", "menu | home | about"]


def prose(draw: np.random.Generator, sentences: int) -> str:
    """Sentences that end in a full stop, some to a line."""
    parts = [
        f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)} {draw.integers(1000)}."
        for _ in range(sentences)
    ]
    return "\n".join(" ".join(parts[i : i + 3]) for i in range(0, len(parts), 3))


def noise(draw: np.random.Generator, lines: int) -> str:
    return "\n".join(f"{draw.choice(NOISE)} {draw.integers(100)}" for _ in range(lines))


def documents(count: int, seed: int = 0, share_of_noise: float = 0.3) -> list[str]:
    """Distinct documents, then every tenth again with other white space."""
    draw = np.random.default_rng(seed)
    made = [
        noise(draw, draw.integers(3, 30)) if draw.random() < share_of_noise else prose(draw, draw.integers(4, 40))
        for _ in range(count)
    ]
    return made + ["  " + text.replace(" ", "  ", 3) + "\n" for text in made[::10]]


def write(path: Path, texts: list[str | None], ids: list[str] | None = None, group: int = 40) -> None:
    """One shard in row groups of `group` rows; an id is a hash of text and place unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = ids or [hashlib.sha1(f"{path.stem}{i}{text}".encode()).hexdigest() for i, text in enumerate(texts)]
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string())}), path, row_group_size=group)


def place(folder: Path, texts: list[str], order: list[int], shards: int, group: int) -> Path:
    """Texts in the given order, dealt to shards of a source `web`; a text's id is its place in five digits."""
    for k in range(shards):
        mine = order[k::shards]
        write(folder / "web" / f"{k}.parquet", [texts[i] for i in mine], [f"{i:05d}" for i in mine], group)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of every Parquet file below a folder, file by file."""
    return [row for p in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(p).read().to_pylist()]


def mixed(out: Path) -> dict[str, str]:
    """The texts of the mixture `all` of a run, by id."""
    return {row["id"]: row["text"] for row in rows(out / "mixtures" / "all")}


def corpus(folder: Path, count: int = 150) -> Path:
    """Three sources in five shards; web/a and books/x share documents, and some rows are no documents."""
    shared = documents(20, seed=9, share_of_noise=0.0)
    write(folder / "web" / "a.parquet", [*documents(count, 1, 0.5), *shared, None, "", " \n"])
    write(folder / "web" / "b.parquet", [*documents(count, 2, 0.5), "nul\0 byte in the middle of it"])
    write(folder / "web" / "c.parquet", documents(count // 2, 3, 0.5))
    write(folder / "books" / "x.parquet", [*shared, *documents(count, 4, 0.1)])
    write(folder / "code" / "k.parquet", documents(count, 5, 0.7))
    return folder


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Every step but training: rules, a fitted classifier, a fitted tokenizer, exact dedupe, a quantile, a budget."""
    return {
        "name": "small",
        "sources": {name: f"{folder}/{name}/*.parquet" for name in ("web", "books", "code")},
        "score": {"fineweb": {}, "quality": {"scorer": "fasttext", "model": "fit:quality"}},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.05, "where": "exact.keep"},
        "fit": {
            "quality": {
                "method": "fasttext",
                "positives": "source = 'books'",
                "documents": 100,
                "parameters": {"dim": 44},  # fastText leaves small tables partly uninitialised
            },
            "tokenizer": {"method": "tokenizer", "vocabulary": 400, "megabytes": 0.05},
        },
        "select": {"unique": "exact.keep", "quality": "quality.score >= quantile(quality.score, 0.3)"},
        "tokenizer": "fit:tokenizer",
        "mix": {"curated": {"tokens": 60_000, "weights": {"web": 0.2, "books": 0.2, "code": 0.6}}},
        **changes,
    }
