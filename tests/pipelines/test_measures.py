"""What trained models got, read from their folders: tasks in summary and report, held-out documents that count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import summary
from pipelines.measures import Heldout
from pipelines.recipe import Training
from pipelines.train import compare_tasks


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two mixtures with three seeds: `good` is right on 8 of 10 items of a quiz, `bad` on half of those."""
    right = {"good": [1] * 160 + [0] * 40, "bad": [1, 0] * 80 + [0] * 40}
    for mixture, values in right.items():
        for seed in range(3):
            out = tmp_path / "training" / mixture / f"seed{seed}"
            (out / "tasks").mkdir(parents=True)
            table = {"item": np.arange(200), "accuracy": np.array(values, np.int8), "answer": np.zeros(200, np.int64)}
            pq.write_table(pa.table(table), out / "tasks" / "quiz.parquet")
            rows = {"source": ["b", "a", "a"], "shard": ["0"] * 3, "row": [0, 1, 0]}
            rows |= {"nats": [4.0 + seed, 6.0, 0.0], "tokens": [2, 3, 0]}
            pq.write_table(pa.table(rows), out / "evaluation.parquet")
    return tmp_path


def spec(**more: Any) -> Training:
    return Training.model_validate({"mixtures": ["good", "bad"], "seeds": [0, 1, 2], **more})


def test_tasks_are_compared_with_the_last_mixture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_tasks(str(run), spec(tasks={"quiz": {}}))
    (accuracy,) = found["tasks"]["quiz"].values()  # the answer is no measure
    assert accuracy["mean"]["good"]["mean"] == pytest.approx(0.8) and accuracy["mean"]["bad"]["mean"] == pytest.approx(
        0.4
    )
    gap = accuracy["difference"]["good - bad"]
    assert gap["mean"] == pytest.approx(0.4) and 0.3 < gap["low"] < 0.4 < gap["high"] < 0.5
    from rich.console import Console

    Console(width=120).print(summary._task_table(found["tasks"]))
    printed = capsys.readouterr().out
    assert "good - bad" in printed and f"{gap['low']:.4f} to {gap['high']:.4f}" in printed


def test_the_report_shows_the_tasks(run: Path) -> None:
    pytest.importorskip("plotly")
    from pipelines import report_models

    facts: Any = SimpleNamespace(summary=compare_tasks(str(run), spec(tasks={"quiz": {}})))
    section = report_models.tasks(facts)
    assert section is not None and "good - bad" in section.body and "0.8000 [" in section.body
    facts.summary = {}
    assert report_models.tasks(facts) is None


def test_documents_without_a_target_do_not_count(run: Path) -> None:
    heldout = Heldout.read({"good": [run / "training" / "good" / f"seed{seed}" for seed in range(3)]})
    assert heldout.sources == ["a", "b"] and heldout.tokens.tolist() == [3, 2]
    assert heldout.of(["b"])["good"].by_seed.tolist() == [2.0, 2.5, 3.0]
    assert heldout.of(["a", "b"])["good"].by_seed.tolist() == pytest.approx([2.0, 2.2, 2.4])
