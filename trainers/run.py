"""The loop: a model, its optimiser and its data, from the newest checkpoint to the end of the token budget."""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from trainers import checkpoint
from trainers.average import MovingAverage
from trainers.config import TrainConfig
from trainers.data import Batch, Batches
from trainers.distributed import World, shard, whole
from trainers.evaluate import evaluate
from trainers.learner import Learner, make_learner
from trainers.mixture import Corpus
from trainers.model import check_packing, layers, training_flops
from trainers.optimiser import make_optimiser
from trainers.run_log import RunLog
from trainers.token_scores import Step
from transforms.draws import mix64

log = logging.getLogger(__name__)


class Losses(NamedTuple):
    """Of a step."""

    nats: float  # plain cross-entropy per token
    loss: float  # what was trained, per token
    norm: float  # of the gradient before clipping


class Run:
    """Model, optimiser and data of a run and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        out: Path,
        identity: dict[str, Any],
        world: World | None = None,
        held: Corpus | None = None,
    ) -> None:
        """held: documents held out, to measure on the way; the first process has to have them."""
        self.world = world or World(device=config.device)
        self.config, self.corpus, self.held, self.out, self.identity = config, corpus, held, out, identity
        self.batches = Batches(corpus, config.row_length, config.rows, config.seed)
        self.sharded = config.sharded and self.world.ranks > 1
        self.learner = self._learner()
        self.model = self.learner.model
        self.flops = training_flops(self.model)
        self.optimiser = make_optimiser(self.learner, config)
        self.average = MovingAverage(self.learner, config.average) if config.average else None
        self.budget = self._report()
        if config.masked_thought is not None:
            self.mask = config.masked_thought.mask_id(corpus.tokenizer)
        self.log = RunLog(out, config.tensorboard)
        self.step = self.tokens = 0
        self.seconds = self.waited = 0.0
        self.by_source = np.zeros(len(corpus.sources), np.int64)

    def _learner(self) -> Learner:
        learner = make_learner(self.config, self.corpus, self.world.device)
        if self.config.compile:
            for layer in layers(learner.model):
                layer.mlp.compile(dynamic=True)
        first = self.batches.batch(0)
        for model in (learner.model, learner.frozen):
            if model is not None:
                check_packing(model, first)
        if self.config.reweigh is not None:
            self.config.reweigh.check(str(learner.device), self.corpus.tokenizer, self.config.row_length, first)
        if self.sharded:
            shard(learner, layers(learner.model), self.world.device)
        return learner

    def _report(self) -> int:
        """Write what will be read; returns the budget of tokens."""
        plan = self.batches.plan_report()
        budget = self.config.tokens or int(plan["tokens"])
        report = {"budget": budget, "passes": budget / plan["tokens"], **plan, "sources": self.corpus.report()}
        report["realised"] = self.batches.realised(budget)
        if self.world.first:
            for number, phase in enumerate(report["realised"]):
                if not phase["tokens"]:
                    log.warning("phase %s of the mixture is never reached: the budget is %s tokens", number, budget)
            checkpoint.publish_json(self.out / "data.json", report)
            log.info("data: %s", json.dumps(report))
        return budget

    def resume(self) -> None:
        """Go on from the newest whole checkpoint; without one, begin, with the optimiser of `start` if it has one."""
        found = checkpoint.newest(self.out / "checkpoints") if self.world.first else None
        found = self.world.same(found)  # type: ignore[assignment]
        sizes: dict[str, int] = {}
        if found is None:
            before = checkpoint.of_run(self.config.start)
            if before is not None and checkpoint.same_parameters(before, self.learner):
                checkpoint.load(before, self.learner, self.optimiser)
            elif before is not None:
                log.warning("%s trained other parameters than this run: the optimiser begins anew", self.config.start)
        else:
            path, state = found
            check_identity(self.out, state["identity"], self.identity)
            if state["packages"] != checkpoint.packages():
                log.warning("resuming with %s what was trained with %s", checkpoint.packages(), state["packages"])
            self._restore(checkpoint.load(path, self.learner, self.optimiser))
            self.step, self.tokens, sizes = state["step"], state["tokens"], state["log_bytes"]
            self.seconds, self.waited = state["seconds"], state["waited"]
            self.by_source = np.array(state["by_source"], np.int64)
            log.info("resuming from %s", path)
        if self.world.first:
            self.log.open(sizes, self.step)

    def save(self) -> None:
        """Write a checkpoint; every process has to come here, the first one writes."""
        tensors = replace(checkpoint.collect(self.learner, self.optimiser), more=self._more())
        if self.world.first:
            self.log.flush()
            state = {"step": self.step, "tokens": self.tokens, "by_source": self.by_source.tolist()}
            state |= {"seconds": self.seconds, "waited": self.waited, "log_bytes": self.log.sizes}
            state |= {"identity": self.identity, "processes": self.world.ranks}
            checkpoint.save(self.out / "checkpoints", tensors, state)
        self.world.wait()

    def _more(self) -> dict[str, torch.Tensor]:
        """Tensors besides parameters and moments that a resumed run has to find again."""
        parts = [part.extra() for part in (self.learner.adapted, self.average) if part is not None]
        return {name: tensor for part in parts for name, tensor in part.items()}

    def _restore(self, more: dict[str, torch.Tensor]) -> None:
        for part in (self.learner.adapted, self.average):
            if part is not None:
                part.restore(more)

    def whole_model(self) -> PreTrainedModel:
        """The model, put together again where it was dealt out; every process has to ask, the first one gets it."""
        if not self.sharded:
            return self.model
        tensors = checkpoint.collect(self.learner, self.optimiser).parameters
        if not self.world.first:
            return self.model
        made = make_learner(self.config, self.corpus, self.world.device)
        made.load_state_dict(tensors, strict=False)
        return made.model

    def train(self) -> None:
        """Steps until the token budget is spent, with a line of log each and a checkpoint now and then."""
        reported = time.monotonic()
        self.learner.train()
        if self.step == 0:
            self._measure()
        while self.tokens < self.budget:
            line = self._step()
            if self.world.first:
                self.log.write(line)
            self._measure()
            if self.step % self.config.checkpoint_every == 0 or self.tokens >= self.budget:
                self.save()
            if time.monotonic() - reported > 5 or self.tokens >= self.budget:
                reported = time.monotonic()
                eta = (self.budget - self.tokens) * self.seconds / self.tokens
                if self.world.first:
                    log.info("%s, %.0f %%, ETA %.0f s", line, 100 * self.tokens / self.budget, eta)
        if self.world.first:
            self.log.close()

    def _measure(self) -> None:
        """Every so many steps, and before the first, add the held-out loss of each source to the log."""
        every = self.config.evaluate_every
        if not every or self.step % every or not self.world.first or self.held is None:
            return
        found, _ = evaluate(self.model, self.held, self.config.row_length, bf16=self.config.bf16)
        losses = {name: source["nats_per_token"] for name, source in found["sources"].items()}
        self.log.write({"step": self.step, "tokens": self.tokens, "nats_per_token": losses}, "heldout")

    def _step(self) -> dict[str, Any]:
        """One optimiser step; its line of the log."""
        begin = time.perf_counter()
        batch = self.batches.batch(self.step, self.budget - self.tokens)
        waited = time.perf_counter() - begin
        tokens = self.tokens + len(batch.targets)
        lr = self.config.schedule(tokens, self.budget, self.config.lr, self.config.batch_tokens)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self._seed()
        try:
            learned = self._learned(batch)
        except FloatingPointError as error:
            raise FloatingPointError(self._not_finite(batch, str(error))) from error
        mine = learned.share(self.world.rank, self.world.ranks)
        losses = backward(self.learner, mine, self.config, self.tokens / self.budget, self.world)
        if not (math.isfinite(losses.loss) and math.isfinite(losses.norm)):
            found = f"loss {losses.loss}, gradient norm {losses.norm} at step {self.step + 1}"
            raise FloatingPointError(self._not_finite(batch, found))
        self.optimiser.step()
        if self.learner.adapted is not None:
            self.learner.adapted.allocate(self.step + 1)
        if self.average is not None:
            self.average.update(len(batch.targets))
        self.optimiser.zero_grad(set_to_none=False)
        seconds = time.perf_counter() - begin
        self.step, self.tokens = self.step + 1, tokens
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        self._count(batch)
        line = {"step": self.step, "tokens": tokens, "loss": losses.nats, "lr": lr, "grad_norm": losses.norm}
        line |= {"tokens_s": round(len(batch.targets) / seconds, 1), "data_wait": round(waited / seconds, 5)}
        line |= {"flop_s": round(self.flops(learned.lengths) / seconds)}
        line["objective"] = losses.loss
        if learned.weights is not None:
            line["targets"] = int((learned.weights > 0).sum())
        return line | {"by_source": dict(zip(self.corpus.sources, self.by_source.tolist(), strict=True))}

    def _learned(self, batch: Batch) -> Batch:
        """What is learned of a batch: inputs hidden, weights decided or made equal, what has none left out."""
        config = self.config
        step = Step(self.step, self.tokens, self.budget, config.seed, config.part_tokens, self.world)
        weights = batch.weights
        if config.reweigh is not None:
            with precision(self.learner.device, config):
                weights = config.reweigh.weights(self.model, batch, step)
        if config.masked_thought is not None:
            batch = config.masked_thought.corrupt(batch, step, self.mask)
        learned = replace(batch, weights=weights).trained()
        return learned.equal() if config.format.equal else learned

    def _seed(self) -> None:
        """Dropout draws are a function of seed, step and process, so that a resumed run needs no state of them."""
        place = np.array([self.config.seed % 2**32, self.step, self.world.rank], np.uint64)
        torch.manual_seed(int(mix64(place[0] ^ mix64(place[1] ^ mix64(place[2])))) % 2**63)

    def _count(self, batch: Batch) -> None:
        source = self.corpus.source[batch.documents]
        self.by_source += np.bincount(source, weights=batch.lengths, minlength=len(self.by_source)).astype(np.int64)

    def _not_finite(self, batch: Batch, found: str) -> str:
        documents = np.unique(batch.documents)
        names = ", ".join(self.corpus.names(documents[:20])) + (" …" if len(documents) > 20 else "")
        kept = checkpoint.newest(self.out / "checkpoints")
        return (
            f"{found}; last good checkpoint: {kept[0] if kept else None}. Lower lr (now {self.config.lr}) "
            f"or look at the documents of the batch: {names}"
        )


def backward(
    learner: Learner, batch: Batch, config: TrainConfig, progress: float = 0.0, world: World | None = None
) -> Losses:
    """Accumulate and clip the gradient of the mean loss per token (by weight) of the batches of all processes.

    Raises:
        ValueError: no target of the batch weighs anything.
    """
    world = world or World()
    device, weight = learner.device, world.total(batch.weight)
    if not weight:
        raise ValueError("no token of the batch is to be learned, all weigh 0; raise tokens or batch_tokens")
    loss, nats = (torch.zeros((), device=device) for _ in range(2))
    parts = batch.parts(config.part_tokens)
    sharded = config.sharded and world.ranks > 1
    if sharded:  # all processes have to exchange parameters equally often
        parts += [Batch.nothing()] * (world.most(len(parts)) - len(parts))
    for part in parts:
        with precision(device, config):
            sums = learner(part, progress)
        (sums.loss / weight).backward()
        loss += sums.loss.detach()
        nats += sums.nats
    penalty = learner.adapted.penalty() if learner.adapted else None
    if penalty is not None:
        (penalty / world.ranks).backward()
    if not sharded:
        world.sum_gradients(learner.parameters())
    norm = whole(torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip))
    return Losses(world.total(float(nats)) / weight, world.total(float(loss)) / weight, float(norm))


def precision(device: torch.device, config: TrainConfig) -> AbstractContextManager[Any]:
    """In which products are in the type that the config asks for."""
    return torch.autocast(device.type, torch.bfloat16) if config.bf16 else nullcontext()


def check_identity(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError naming the fields in which the run in `out` differs from the one asked for."""
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names:
        differences = "; ".join(f"{name}: there {found.get(name)}, now {wanted[name]}" for name in names)
        raise ValueError(f"{out} holds a run with other settings or data ({differences}); remove it or change `out`")
