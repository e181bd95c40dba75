"""Training and measuring: one model per mixture and seed, each in its own process, and which differences are real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines import engine, progress, store
from pipelines.code import code_digest
from pipelines.recipe import Training
from pipelines.steps import Context

RESAMPLES = 2000


class TrainingError(RuntimeError):
    """A training process ended badly; the message is its own last words, the exit code its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code if exit_code == 2 else 1


@dataclass(frozen=True)
class Job:
    """One model to train: where, on what, and the key by which a rerun knows that nothing has changed."""

    name: str
    out: Path
    key: str
    arguments: dict[str, Any]  # of trainers.train
    processes: int = 1  # that train it together

    def run(self) -> dict[str, Any]:
        """Train in a process of its own unless it is done; returns the trainer's result."""
        if store.read_json(f"{self.out}/key.json") != self.key:
            shutil.rmtree(self.out, ignore_errors=True)  # another mixture or config: nothing in it can be used
        store.write_json(f"{self.out}/key.json", self.key)
        if (done := store.read_json(f"{self.out}/result.json")) is not None:
            return done
        store.write_json(f"{self.out}/job.json", self.arguments)
        together = ["torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}", "-m"]
        launcher = together if self.processes > 1 else []
        command = [sys.executable, "-m", *launcher, "trainers.train", f"{self.out}/job.json"]
        environment = {**os.environ, "PYTHONPATH": engine.import_path()}
        with (self.out / "output.txt").open("w") as output:
            process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        if process.returncode:
            words = (self.out / "output.txt").read_text().strip().splitlines() or ["no output"]
            text = f"training {self.name} ended with exit code {process.returncode}: {words[-1]}"
            raise TrainingError(text, process.returncode)
        return store.read_json(f"{self.out}/result.json")

    def progress(self) -> tuple[float, str]:
        """Share done and words for the progress bar, read from the trainer's log."""
        try:
            budget = json.loads((self.out / "data.json").read_text())["budget"]
            last = json.loads((self.out / "log.jsonl").read_text().splitlines()[-1])
        except (OSError, IndexError, ValueError):
            return 0.0, "waiting"  # it has not begun, or is writing the line
        return min(last["tokens"] / budget, 1.0), f"loss {last['loss']:.3f}, {last['tokens_s']:,.0f} tokens/s"


def train(context: Context, spec: Training, manifests: Mapping[str, Any], heldout: str | None) -> dict[str, Any]:
    """Train every mixture with every seed, as many side by side as there are cores; returns `heldout_loss` and more.

    A finished run of the same mixture, held-out set, config and trainer is kept; a killed one goes on
    from its checkpoint.
    """
    started = time.perf_counter()
    jobs = _jobs(context.run, spec, manifests, heldout)
    with progress.shown({job.name: job.progress for job in jobs}), ThreadPoolExecutor(min(_cores(), len(jobs))) as pool:
        results = list(pool.map(Job.run, jobs))
    context.seconds["train"] = time.perf_counter() - started
    told = ("steps", "tokens", "loss", "seconds", "tokens_per_second", "data_wait", "parameters")
    training = {job.name: {k: result[k] for k in told} for job, result in zip(jobs, results, strict=True)}
    return {"training": training} | (compare(context.run, spec) if heldout else {})


def _jobs(run: str, spec: Training, manifests: Mapping[str, Any], heldout: str | None) -> list[Job]:
    wanted = [(mixture, seed) for seed in spec.seeds for mixture in spec.mixtures]
    threads = max(1, _cores() // min(_cores(), len(wanted)))
    code = code_digest("trainers.train")
    held = manifests["heldout"]["digest"] if heldout else None
    jobs = []
    for mixture, seed in wanted:
        out = Path(run) / "training" / mixture / f"seed{seed}"
        config = {"threads": threads} | spec.config | {"seed": seed}
        start = _start(spec.config["start"], seed) if spec.config.get("start") else {}
        decisive = {k: v for k, v in config.items() if k != "threads"} | start
        config |= {"start": start["start"]} if start else {}
        end = store.folder_digest(f"{run}/mixtures/{mixture}/tokenizer")  # its config names the end token
        key = store.digest(manifests[mixture]["digest"], end, held, decisive, code)
        arguments = {"config": config, "mixture": f"{run}/mixtures/{mixture}", "out": str(out), "heldout": heldout}
        jobs.append(Job(f"{mixture} seed {seed}", out, key, arguments, spec.processes))
    return jobs


def _start(given: Any, seed: int) -> dict[str, str]:
    """What training goes on from, and its digest: of RUN/training/MIXTURE the run of the same seed."""
    folder = Path(given) / f"seed{seed}" if (Path(given) / f"seed{seed}").is_dir() else Path(given)
    finished = folder / "result.json"
    try:
        digest = store.file_digest(str(finished)) if finished.is_file() else store.folder_digest(str(folder))
    except FileNotFoundError as error:
        raise TrainingError(f"train.config.start: {error}; give a model folder, or RUN/training/MIXTURE", 2) from error
    return {"start": str(folder), "digest": digest}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Losses:
    """Losses of one mixture's models on the held-out documents, in the order of (source, shard, row)."""

    nats: np.ndarray  # float [seeds, documents]
    tokens: np.ndarray  # int [documents]
    source: np.ndarray  # str [documents]

    @classmethod
    def read(cls, run: str, mixture: str, seeds: list[int]) -> Losses:
        paths = [f"{run}/training/{mixture}/seed{seed}/evaluation.parquet" for seed in seeds]
        order = [(name, "ascending") for name in ("source", "shard", "row")]
        tables = [pq.read_table(path).sort_by(order) for path in paths]
        nats = np.stack([table["nats"].to_numpy() for table in tables])
        return cls(nats, tables[0]["tokens"].to_numpy(), tables[0]["source"].to_numpy())

    def of(self, sources: list[str]) -> Losses:
        mine = np.isin(self.source, sources)
        return Losses(self.nats[:, mine], self.tokens[mine], self.source[mine])

    def mean(self) -> float:
        """Nats per token, over all seeds."""
        return float(self.nats.mean(axis=0).sum() / self.tokens.sum())

    def drawn(self, picks: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """The same for each resample of (seeds, documents)."""
        return np.array([self.nats[seeds][:, d].mean(axis=0).sum() / self.tokens[d].sum() for seeds, d in picks])


def compare(run: str, spec: Training) -> dict[str, Any]:
    """Held-out loss of each mixture in nats per token, and of each against the last one named, with 95 % intervals.

    Bootstrap over held-out documents and over seeds (both resampled, percentile interval), paired by document and seed
    for differences: it tells whether another held-out draw or another seed would have said the same.

    Raises:
        TrainingError: no held-out document is of a target source.
    """
    everything = {name: Losses.read(run, name, spec.seeds) for name in spec.mixtures}
    sources = sorted(set(everything[spec.mixtures[0]].source))
    target = [source for source in sources if spec.target is None or source in spec.target]
    if not target:
        raise TrainingError(f"train.target: no held-out document is of {spec.target}; they are of {sources}", 2)
    losses = {name: each.of(target) for name, each in everything.items()}
    documents, seeds = len(losses[spec.mixtures[0]].tokens), len(spec.seeds)
    generator = np.random.default_rng(0)
    picks = [
        (generator.integers(seeds, size=seeds), generator.integers(documents, size=documents)) for _ in range(RESAMPLES)
    ]
    drawn = {name: each.drawn(picks) for name, each in losses.items()}
    base = spec.mixtures[-1]
    return {
        "heldout_loss": {name: _interval(each.mean(), drawn[name]) for name, each in losses.items()},
        "heldout_difference": {
            f"{name} - {base}": _interval(losses[name].mean() - losses[base].mean(), drawn[name] - drawn[base])
            for name in spec.mixtures[:-1]
        },
        "heldout_documents": documents,
        "heldout_sources": target,
        "heldout_by_source": {s: {n: each.of([s]).mean() for n, each in everything.items()} for s in sources},
    }


def _interval(mean: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high)}


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
