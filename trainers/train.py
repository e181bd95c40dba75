"""Train a language model on a mixture folder: `python -m trainers.train JOB.json`, or `train(…)`.

The loop is this project's own, on torch; transformers gives the model and the file formats. Three things that decide
whether two mixtures can be compared are awkward inside a general trainer: the order of the data as a pure function of
the step (resume without re-reading), documents of a packed row that provably do not see each other, and one loss, the
sum over all target tokens of the batch divided by their number, however the batch is cut.

Files of a run: out/log.jsonl (one line per step), out/data.json (what will be read, written before the first step),
out/checkpoints/, out/model/, out/evaluation.json, out/evaluation.parquet, and out/result.json, which comes last: with
it the run is complete. A killed run goes on from its newest whole checkpoint, on a CPU with the same bits as if it had
not been killed. Tokens are cached in `tokens-…` folders beside `out`, shared by all seeds.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from trainers import checkpoint
from trainers.config import Job, Result, TrainConfig
from trainers.distributed import world
from trainers.evaluate import evaluate, write_losses
from trainers.mixture import Corpus, open_mixture
from trainers.model import save_model
from trainers.run import Run, check_identity

log = logging.getLogger(__name__)


def train(config: TrainConfig, mixture: Path, out: Path, heldout: Path | None = None) -> Result:
    """Train on the mixture folder, evaluate on the held-out one, write `out` (see the module); resume what is there.

    A finished run is returned as it is. Raises ValueError for unusable or changed data and for an `out` that holds a
    run of another config or mixture, FloatingPointError (naming the documents) when the loss is no longer a number.
    """
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    with world(config.device) as processes, checkpoint.alone(out) if processes.first else nullcontext():
        if processes.first:
            open_mixture(mixture, out.parent, config.format)  # tokenised once, by one process
        processes.wait()
        corpus = open_mixture(mixture, out.parent, config.format)
        held = open_mixture(heldout, out.parent, config.heldout_format) if heldout and processes.first else None
        mine = {"data": corpus.digest, "heldout": held.digest if held else None}
        identity = processes.same(config.identity() | mine if processes.first else None)
        assert isinstance(identity, dict)
        if processes.same((out / "result.json").exists()):
            result = Result.model_validate_json((out / "result.json").read_text())
            check_identity(out, result.identity, identity)
            return result
        run = Run(config, corpus, out, identity, processes, held)
        run.resume()
        run.train()
        model = run.whole_model()
        if processes.first:
            finish(run, model, held)
        processes.wait()
        return Result.model_validate_json((out / "result.json").read_text())


def finish(run: Run, model: PreTrainedModel, held: Corpus | None) -> None:
    """Model folder, evaluation, and the result that marks the run complete."""
    out = run.out
    average = export_average(run, held) if run.average is not None else None
    if run.learner.adapted is not None:
        checkpoint.publish(out / "adapter", run.learner.adapted.save)
        model = run.learner.adapted.merged()
    corpus = run.corpus
    write = partial(save_model, model, corpus.tokenizer, conversations=corpus.conversations)
    checkpoint.publish(out / "model", write)
    evaluation = measure(run.config, model, held, out, "evaluation") if held else None
    last = [line["loss"] for line in run.log.lines()]
    result = Result(
        steps=run.step,
        tokens=run.tokens,
        loss=float(np.mean(last[-max(1, len(last) // 10) :])),
        seconds=run.seconds,
        tokens_per_second=run.tokens / run.seconds,
        data_wait=run.waited / run.seconds,
        tokens_by_source=dict(zip(run.corpus.sources, run.by_source.tolist(), strict=True)),
        parameters=sum(p.numel() for p in model.parameters()),
        bf16=run.config.bf16,
        packages=checkpoint.packages(),
        identity=run.identity,
        evaluation=evaluation,
        average_evaluation=average,
    )
    checkpoint.publish_json(out / "result.json", result.model_dump(mode="json"))


def export_average(run: Run, held: Corpus | None) -> dict[str, Any] | None:
    """Write out/average, the model or the adapter with averaged weights; returns its loss on held-out documents."""
    assert run.average is not None
    adapted, corpus = run.learner.adapted, run.corpus
    plain = partial(save_model, run.model, corpus.tokenizer, conversations=corpus.conversations)
    write = adapted.save if adapted else plain
    with run.average.in_place():
        checkpoint.publish(run.out / "average", write)
        return measure(run.config, run.model, held, run.out, "average_evaluation") if held else None


def measure(config: TrainConfig, model: PreTrainedModel, held: Corpus, out: Path, name: str) -> dict[str, Any]:
    """Held-out loss of a model, written to out/NAME.json and, by document, out/NAME.parquet."""
    evaluation, losses = evaluate(model, held, config.row_length, bf16=config.bf16)
    write_losses(losses, out / f"{name}.parquet")
    checkpoint.publish_json(out / f"{name}.json", evaluation)
    return evaluation


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks: else every large tensor of every step is mapped and zeroed by the kernel anew.

    Measured: steps of 4,096 tokens take about a tenth less time, in the same memory. Without glibc it does nothing.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass


def main(arguments: list[str]) -> int:
    """Run the job in the file that is named; the result is the last line of standard output. 2: the job is at fault."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        (path,) = arguments
        job = Job.model_validate_json(Path(path).read_text())
        result = train(job.config, job.mixture, job.out, job.heldout)
    except (ValueError, ValidationError, OSError) as error:
        print(f"trainers.train: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result.model_dump(mode="json")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
