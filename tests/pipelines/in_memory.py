"""`thresholds.find` over tables in memory, without the engine: the same counting, encoding, merging and narrowing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipelines import thresholds
from pipelines.shards import Split
from pipelines.thresholds import CountSplit, Groups, MergeBins, Statistic


class InMemory:
    """Documents of splits that are tables already; what `find` asks of Tables."""

    text = "text"

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.tables = tables

    def schema(self) -> pa.Schema:
        return self.tables[0].schema

    def load(self, split: Split, names: set[str]) -> pa.Table:
        return self.tables[int(split.shard)]


def search(
    tables: Sequence[pa.Table],
    statistics: Sequence[Statistic],
    exact: bool,
    order: Sequence[int],
    sources: str = "",
    rounds: int = 20,
) -> dict[str, Groups]:
    """`thresholds.find` without the engine: the same counting, encoding and narrowing, merged in any order."""

    def count(_: Any, tables: Any, splits: Any, searches: Any, exact: bool) -> Any:
        nonlocal rounds
        rounds -= 1
        assert rounds >= 0
        counter, merge = CountSplit(tables, searches, exact), MergeBins()
        halves = [merge.create_accumulator(), merge.create_accumulator()]
        for i, part in enumerate(bins for split in splits for bins in counter.process(split)):
            halves[i % 2] = merge.add_input(halves[i % 2], part)
        bins = merge.extract_output(merge.merge_accumulators(halves))
        return thresholds.decode(json.loads(json.dumps(thresholds.encode(bins))))

    splits = [Split(sources[i] if sources else "s", str(i), str(i), "", "", 0, (), 0, 0) for i in order]
    documents = thresholds.EXACT_DOCUMENTS + (not exact)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "_count", count)
        return thresholds.find(None, InMemory(tables), splits, statistics, documents)  # type: ignore[arg-type]
