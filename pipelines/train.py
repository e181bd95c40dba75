"""Training and measuring: one model per mixture and seed, each in its own process, and which differences are real."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import engine, progress, store
from pipelines.code import code_digest
from pipelines.measures import Folders, Heldout, against, task_measures
from pipelines.recipe import Training
from pipelines.steps import Context
from pipelines.trainable import start_of
from trainers.tasks import Tasks

log = logging.getLogger(__name__)

# Of train.config, what decides the speed alone: a run that was killed for want of memory goes on with smaller parts.
HOW = ("threads", "checkpoint_every", "part_tokens", "sharded", "compile")


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
    jobs = _jobs(context.run, spec, manifests, heldout)
    results = train_all(context, jobs, spec.tasks)
    told = ("steps", "tokens", "loss", "seconds", "tokens_per_second", "data_wait", "parameters")
    training = {job.name: {k: result[k] for k in told} for job, result in zip(jobs, results, strict=True)}
    for job in jobs[: len(spec.mixtures)]:  # of one seed: the others read the same documents
        if lost := unread(store.read_json(f"{job.out}/data.json") or {}):
            log.warning("%s: %s", job.name, lost)
    compared = compare(context.run, spec) if heldout else {}
    return {"training": training} | compared | (compare_tasks(context.run, spec) if spec.tasks else {})


def unread(data: Mapping[str, Any]) -> str | None:
    """What of a pass is not read since rows are too short, from data.json of a training run; None: nothing."""
    ends = sum(source["cut_off"] for phase in data.get("phases", ()) for source in phase["sources"].values())
    tokens, dropped = data.get("tokens_truncated", 0) - ends, data.get("documents_dropped", 0)
    if tokens <= 0 and not dropped:
        return None
    return (
        f"rows are too short for documents; {dropped:,} are left out, and {tokens:,} tokens cut off others "
        f"({data['tokens']:,} tokens of a pass are read): raise row_length, or see `long` in docs/sft.md"
    )


def train_all(context: Context, jobs: list[Job], tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run the jobs, as many side by side as there are cores, and evaluate each model on the tasks; their results."""
    started = time.perf_counter()

    def run(job: Job) -> dict[str, Any]:
        result = job.run()
        if tasks:
            _evaluate(job, tasks)
        return result

    with progress.shown({job.name: job.progress for job in jobs}), ThreadPoolExecutor(min(_cores(), len(jobs))) as pool:
        results = list(pool.map(run, jobs))
    context.seconds["train"] = time.perf_counter() - started
    return results


def _evaluate(job: Job, tasks: Mapping[str, Any]) -> None:
    """Write tasks.json and tasks/ beside a finished model, in a process of its own, unless they are current.

    What the model is asked is no part of its own key: another task does not train it again.
    """
    checked = Tasks.model_validate({"tasks": tasks})
    key = store.digest(job.key, store.content(checked), code_digest("trainers.tasks"))
    if (store.read_json(f"{job.out}/tasks.json") or {}).get("key") == key:
        return
    shutil.rmtree(job.out / "tasks", ignore_errors=True)
    given = {"model": f"{job.out}/model", "out": str(job.out), "key": key, "config": job.arguments["config"]}
    store.write_json(f"{job.out}/tasks_job.json", {**checked.model_dump(mode="json"), **given})
    command = [sys.executable, "-m", "trainers.tasks", f"{job.out}/tasks_job.json"]
    environment = {**os.environ, "PYTHONPATH": engine.import_path()}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        words = process.stderr.strip().splitlines() or ["no output"]
        text = f"evaluating {job.name} on its tasks ended with exit code {process.returncode}: {words[-1]}"
        raise TrainingError(text, process.returncode)


def _jobs(run: str, spec: Training, manifests: Mapping[str, Any], heldout: str | None) -> list[Job]:
    wanted = [(mixture, seed) for seed in spec.seeds for mixture in spec.mixtures]
    threads = max(1, _cores() // min(_cores(), len(wanted)))
    code = code_digest("trainers.train")
    held = None
    if heldout:
        held = manifests["heldout"]["digest"]
        target_of(sorted(manifests["heldout"]["sources"]), spec.target)  # a mistake is told before models are trained
    jobs = []
    for mixture, seed in wanted:
        out = Path(run) / "training" / mixture / f"seed{seed}"
        config = {"threads": threads} | spec.config | {"seed": seed}
        start = _start(spec.config["start"], seed) if spec.config.get("start") else {}
        decisive = {k: v for k, v in config.items() if k not in HOW} | start
        read = [_contents({k: v for k, v in spec.config.items() if k != "start"})]
        if "format" in spec.config:  # it reads more columns than the manifest's digest knows
            read += [f["digest"] for source in manifests[mixture]["sources"].values() for f in source["files"]]
        config |= {"start": start["start"]} if start else {}
        end = store.folder_digest(f"{run}/mixtures/{mixture}/tokenizer")  # its config names the end token
        key = store.digest(manifests[mixture]["digest"], end, held, decisive, read, code)
        arguments = {"config": config, "mixture": f"{run}/mixtures/{mixture}", "out": str(out), "heldout": heldout}
        jobs.append(Job(f"{mixture} seed {seed}", out, key, arguments, spec.processes))
    return jobs


def _start(given: Any, seed: int) -> dict[str, str]:
    """What training goes on from, and its digest: of RUN/training/MIXTURE the run of the same seed."""
    folder = start_of(Path(given), seed)
    finished = folder / "result.json"
    try:
        digest = store.file_digest(str(finished)) if finished.is_file() else store.folder_digest(str(folder))
    except FileNotFoundError as error:
        raise TrainingError(f"train.config.start: {error}; give a model folder, or RUN/training/MIXTURE", 2) from error
    return {"start": str(folder), "digest": digest}


def _contents(value: Any) -> list[str]:
    """Digests of the folders that a config names, as those of teachers and of token weights."""
    if isinstance(value, Mapping):
        return [digest for _, held in sorted(value.items()) for digest in _contents(held)]
    return [store.folder_digest(value)] if isinstance(value, str) and Path(value).is_dir() else []


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare(run: str, spec: Training) -> dict[str, Any]:
    """Held-out loss of each mixture in nats per token, and of each against the last one named, with 95 % intervals.

    Intervals and differences are paired by document and seed (see pipelines/comparison.py): they tell whether another
    held-out draw or another seed would have said the same.

    Raises:
        TrainingError: no held-out document is of a target source.
    """
    heldout = Heldout.read(folders(run, spec))
    target = target_of(heldout.sources, spec.target)
    found = against(heldout.of(target), spec.mixtures[-1])
    return {
        "heldout_loss": found["mean"],
        "heldout_difference": found["difference"],
        "heldout_documents": int(np.isin(heldout.source, target).sum()),
        "heldout_sources": target,
        "heldout_by_source": {
            s: {name: float(measure.by_seed.mean()) for name, measure in heldout.of([s]).items()}
            for s in heldout.sources
        },
    }


def compare_tasks(run: str, spec: Training) -> dict[str, Any]:
    """The same for the recipe's tasks: {"tasks": {task: {metric: {"mean": …, "difference": …}}}}."""
    measured = task_measures(folders(run, spec), list(spec.tasks))
    base = spec.mixtures[-1]
    return {
        "tasks": {
            task: {metric: against(measures, base) for metric, measures in metrics.items()}
            for task, metrics in measured.items()
        }
    }


def folders(run: str, spec: Training) -> Folders:
    """Where the models of each mixture are."""
    return {m: [Path(run) / "training" / m / f"seed{seed}" for seed in spec.seeds] for m in spec.mixtures}


def target_of(sources: Sequence[str], target: list[str] | None) -> list[str]:
    """Those of the held-out sources that a recipe's target names; all where it names none. Raises TrainingError."""
    found = [source for source in sources if target is None or source in target]
    if not found:
        given = f"no held-out document is of {target}; they are of {sources}"
        raise TrainingError(f"train.target: {given}; name some of these, or widen holdout.where", 2)
    return found


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
