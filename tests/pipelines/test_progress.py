"""What the bar of a step shows: splits that are done, and parts of those that take long, each document once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.progress import _seen, report
from pipelines.shards import Split


def split(name: str, rows: int) -> Split:
    return Split("web", name, name, f"{name}.parquet", "", 0, (rows,), 0, 1000)


def test_parts_count_until_their_split_is_done(tmp_path: Path) -> None:
    run = str(tmp_path)
    report(run, "rewrite:w", split("a", 100), 100, 10)
    report(run, "rewrite:w", split("b", 80), 20, 3, part=True)
    report(run, "rewrite:w", split("b", 80), 20, 2, part=True)
    done, documents, size = _seen(run, 0.0)
    assert done == pytest.approx(1.5) and (documents, size) == (140, 15)
    report(run, "rewrite:w", split("b", 80), 80, 9)
    assert _seen(run, 0.0) == (2, 180, 19)
    assert _seen(run, 4e9) == (0, 0, 0), "what lies before the step began"
