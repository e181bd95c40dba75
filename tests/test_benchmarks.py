"""What benchmarks share, and what the documentation says of all of them."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _runs import heldout
from continual import measured

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_script_takes_json(script: Path) -> None:
    assert '"--json"' in script.read_text()


def test_losses_of_runs_are_ratios_of_sums_whatever_the_order_of_rows(tmp_path: Path) -> None:
    rows = {"source": ["a", "a", "b"], "shard": ["s"] * 3, "row": [0, 1, 0], "tokens": [10, 30, 10]}
    runs: dict[str, list[Path]] = {"one": [], "two": []}
    for name, scale in (("one", 1.0), ("two", 2.0)):
        for seed in range(2):
            out = tmp_path / name / str(seed)
            out.mkdir(parents=True)
            table = pa.table(rows | {"nats": scale * np.array([20.0, 30.0, 70.0])})
            pq.write_table(table.take(np.random.default_rng(seed).permutation(3)), out / "evaluation.parquet")
            runs[name].append(out)
    assert heldout(runs).mean("one")["mean"] == pytest.approx(120 / 50)
    assert heldout(runs, "a").difference("two", "one")["mean"] == pytest.approx(50 / 40)


def test_a_glob_without_a_folder_per_domain_is_refused(tmp_path: Path) -> None:
    """Both domains would be the same files."""
    with pytest.raises(SystemExit, match=r"expected FOLDER/\*/\*\.parquet"):
        measured(Namespace(corpus=f"{tmp_path}/*.parquet"), tmp_path)
