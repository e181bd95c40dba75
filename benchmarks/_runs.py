"""Training jobs of a benchmark: processes of the trainer, as many side by side as there are cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.comparison import Comparison
from pipelines.measures import Heldout

ROOT = Path(__file__).parents[1]


def train_all(jobs: dict[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Train each job (folder of the run -> config, mixture, heldout) with one thread; results by folder."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        return dict(zip(jobs, pool.map(lambda out: _train(out, jobs[out]), jobs), strict=True))


def _train(out: Path, job: dict[str, Any]) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    given = {**job, "out": str(out), "config": {"threads": 1, "tensorboard": False} | job["config"]}
    (out / "job.json").write_text(json.dumps(given, default=str))
    command = [sys.executable, "-m", "trainers.train", str(out / "job.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{out}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    print(f"{out.parent.name} {out.name}: {found['seconds']:.0f} s, loss {found['loss']:.3f}", file=sys.stderr)
    return found


def heldout(outs: dict[str, list[Path]], source: str | None = None) -> Comparison:
    """Held-out loss per token of named groups of runs, one run per seed."""
    found = Heldout.read(outs)
    return Comparison(found.of([source] if source else found.sources))
