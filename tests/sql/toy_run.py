"""Toy shards and a recipe for them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.recipe import Recipe, parse

WORDS = [
    "the",
    "old",
    "river",
    "keeps",
    "a",
    "red",
    "stone",
    "near",
    "one",
    "tree",
    "and",
    "then",
    "finds",
    "another",
    "under",
    "blue",
    "snow",
    "by",
    "night",
]


def text(k: int) -> str:
    """The k-th text: lengths, line ends and repeats differ, so that scores do; every seventh is the same."""
    if k % 7 == 3:
        return "A line that stands in many documents.\n" * 3
    lines = [" ".join(WORDS[(k * 3 + i * j) % len(WORDS)] for j in range(4 + k % 9)) for i in range(2 + k % 6)]
    return f"Number {k}.\n" + "\n".join(line + ("." if k % 3 else "") for line in lines)


def write(path: Path, texts: list, rows: int = 10, **columns: list) -> None:
    """A shard in row groups of `rows` rows. Bytes go into a string column as they are, valid or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = pa.array([t.encode() if isinstance(t, str) else t for t in texts], pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
    pq.write_table(pa.table({"text": column, **columns}), path, row_group_size=rows)


def recipe(folder: Path, **changes: object) -> Recipe:
    return parse(
        {
            "name": "toy",
            "sources": {"books": f"{folder}/books/*.parquet", "web": f"{folder}/web/*.parquet"},
            "score": {"fineweb": {}},
            "dedupe": {"exact": {}},
            "fit": {"tokenizer": {"method": "tokenizer", "vocabulary": 300}},
            "tokenizer": "fit:tokenizer",
            "select": {
                "unique": "exact.keep",
                "short": "characters >= 60",
                "lines": "fineweb.line_punct_ratio >= quantile(fineweb.line_punct_ratio, 0.25)",
                "size": "tokens.count <= quantile(tokens.count, 0.9)",
            },
            "mix": {"curated": {}, "all": {"where": "true"}},
            **changes,
        }
    )
