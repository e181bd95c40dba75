"""Training and measuring: one model per mixture and seed, each in a process of its own, and which differences are real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import progress, store
from pipelines.code import code_digest
from pipelines.recipe import Training
from pipelines.steps import Context

RESAMPLES = 2000


class TrainingError(RuntimeError):
    """A training process ended badly; the message is its own last words, the exit code its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code if exit_code == 2 else 1


def train(context: Context, spec: Training, manifests: Mapping[str, Any], heldout: str | None) -> dict[str, Any]:
    """Train every mixture with every seed, as many side by side as there are cores; returns `heldout_loss` and `training`.

    A finished run of the same mixture, held-out set, config and trainer is kept. A killed one goes on from its checkpoint.
    """
    started = time.perf_counter()
    jobs = [(name, seed) for seed in spec.seeds for name in spec.mixtures]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    side_by_side = min(cores, len(jobs))
    settings = {"threads": max(1, cores // side_by_side)} | spec.config
    watched: dict[str, Callable[[], tuple[float, str]]] = {}
    with progress.shown(watched), ThreadPoolExecutor(side_by_side) as pool:
        futures = [pool.submit(_one, context.run, name, seed, settings, manifests, heldout, watched) for name, seed in jobs]
        results = [future.result() for future in futures]
    trained = {f"{name}/seed{seed}": result for (name, seed), result in zip(jobs, results, strict=True)}
    context.seconds["train"] = time.perf_counter() - started
    training = {name: {k: r[k] for k in ("steps", "tokens", "loss", "seconds", "tokens_per_second", "data_wait", "parameters")} for name, r in trained.items()}
    return {"training": training} | (compare(context.run, spec) if heldout else {})


def _one(run: str, name: str, seed: int, settings: dict[str, Any], manifests: Mapping[str, Any], heldout: str | None, watched: dict[str, Any]) -> dict[str, Any]:
    out = Path(run) / "training" / name / f"seed{seed}"
    held = manifests["heldout"]["digest"] if heldout else None
    decisive = {k: v for k, v in settings.items() if k != "threads"}
    key = store.digest(manifests[name]["digest"], held, decisive, seed, code_digest("trainers.pretrain"))
    if store.read_json(f"{out}/key.json") != key:
        shutil.rmtree(out, ignore_errors=True)  # another mixture or config: nothing in it can be used
    store.write_json(f"{out}/key.json", key)
    if (done := store.read_json(f"{out}/result.json")) is not None:
        return done
    job = {"config": {**settings, "seed": seed}, "mixture": f"{run}/mixtures/{name}", "out": str(out), "heldout": heldout}
    store.write_json(f"{out}/job.json", job)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])}
    environment["OMP_NUM_THREADS"] = str(settings["threads"])
    with (out / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.pretrain", f"{out}/job.json"], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        watched[f"train {name} seed {seed}"] = partial(_progress, out)
        if process.wait():
            words = (out / "output.txt").read_text().strip().splitlines() or ["no output"]
            raise TrainingError(f"training {name}, seed {seed}, ended with exit code {process.returncode}: {words[-1]}", process.returncode)
    return store.read_json(f"{out}/result.json")


def _progress(out: Path) -> tuple[float, str]:
    """How far a training process is, read from its log."""
    try:
        budget = json.loads((out / "data.json").read_text())["budget"]
        last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return 0.0, "starting"  # it has not begun, or is writing the line
    return min(last["tokens"] / budget, 1.0), f"loss {last['loss']:.3f}, {last['tokens_s']:,.0f} tokens/s"


def compare(run: str, spec: Training) -> dict[str, Any]:
    """Held-out loss of each mixture in nats per token, and of each against the last one named, with 95 % intervals.

    Bootstrap over held-out documents and over seeds (both resampled, percentile interval), paired by document and seed
    for differences: it tells whether another held-out draw or another seed would have said the same.
    """
    losses = {name: _losses(run, name, spec.seeds) for name in spec.mixtures}
    tokens = next(iter(losses.values()))[1]
    generator = np.random.default_rng(0)
    documents, seeds = len(tokens), len(spec.seeds)
    picks = [(generator.integers(seeds, size=seeds), generator.integers(documents, size=documents)) for _ in range(RESAMPLES)]
    drawn = {name: np.array([nats[s][:, d].sum() / (tokens[d].sum() * seeds) for s, d in picks]) for name, (nats, _) in losses.items()}
    mean = {name: float(nats.sum() / (tokens.sum() * seeds)) for name, (nats, _) in losses.items()}
    result = {name: _interval(mean[name], drawn[name]) for name in losses}
    base = spec.mixtures[-1]
    differences = {f"{name} - {base}": _interval(mean[name] - mean[base], drawn[name] - drawn[base]) for name in spec.mixtures[:-1]}
    return {"heldout_loss": result, "heldout_difference": differences, "heldout_documents": documents}


def _interval(mean: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _losses(run: str, name: str, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """nats float [seeds, documents], tokens int [documents], in the order of (source, shard, row)."""
    tables = [_sorted(pq.read_table(f"{run}/training/{name}/seed{seed}/evaluation.parquet")) for seed in seeds]
    return np.stack([t["nats"].to_numpy() for t in tables]), tables[0]["tokens"].to_numpy()


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("source", "shard", "row")])


def verdict(differences: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One plain sentence per comparison, whatever it says."""
    lines = []
    for names, d in differences.items():
        first, second = names.split(" - ")
        span = f"{d['mean']:+.4f} nats per token, 95 % interval {d['low']:+.4f} to {d['high']:+.4f}"
        if d["high"] < 0:
            lines.append(f"{first} is better than {second}: {span}")
        elif d["low"] > 0:
            lines.append(f"{first} did not win: it is worse than {second}: {span}")
        else:
            lines.append(f"{first} did not win: no real difference from {second}: {span}")
    return lines
