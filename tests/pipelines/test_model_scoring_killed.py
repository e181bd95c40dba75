"""A language model scores for hours: what a killed run has finished is not scored again, and nothing is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from toy_corpus import write

ROOT = Path(__file__).parents[2]
SHARDS = 12


def command(folder: Path, run: str, model: Path) -> list[str]:
    scorer = f"perplexity:model={model},window=128,stride=64"
    given = ["score", f"{folder}/corpus/*.parquet", "--scorer", scorer, "--run", str(folder / run)]
    return [sys.executable, "-m", "pipelines.cli", *given]


def test_a_scoring_run_killed_halfway_goes_on_with_the_shards_that_are_left(toy_causal: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = np.array(["the", "cat", "sat", "on", "a", "red", "mat", "and", "saw", "one", "old", "dog", "near", "house"])
    for shard in range(SHARDS):
        texts = [" ".join(draw.choice(words, int(draw.integers(50, 900)))) for _ in range(60)]
        write(tmp_path / "corpus" / f"{shard}.parquet", {"id": [f"{shard}-{i}" for i in range(60)], "text": texts})
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(tmp_path, "killed", toy_causal), start_new_session=True, **quiet)
    scores = tmp_path / "killed" / "scores" / "perplexity"
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline and len(list(scores.rglob("*.parquet"))) < 3:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    assert 3 <= len(before) < SHARDS, "killed too late: nothing was left to score"
    subprocess.run(command(tmp_path, "killed", toy_causal), check=True, **quiet)
    subprocess.run(command(tmp_path, "straight", toy_causal), check=True, **quiet)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished shards were scored again"
    after = sorted(scores.rglob("*.parquet"))
    straight = sorted((tmp_path / "straight" / "scores" / "perplexity").rglob("*.parquet"))
    assert [path.name for path in after] == [path.name for path in straight] and len(after) == SHARDS
    assert all(pq.read_table(a).equals(pq.read_table(b)) for a, b in zip(after, straight, strict=True))
