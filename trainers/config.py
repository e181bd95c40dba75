"""What is asked of a run of the trainer and what it answers: TrainConfig, Job, Result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainers.adapters import Adapter
from trainers.average import Averaging
from trainers.checkpoint import model_of
from trainers.formats import Format
from trainers.future_heads import FutureHeadsConfig
from trainers.half import HalfFineTuning
from trainers.masked_thought import MaskedThought
from trainers.model import ModelConfig, model_digest
from trainers.objectives import CrossEntropy, Objective
from trainers.reweigh import QTuning, SSToken
from trainers.reweigh_dynamic import Dynamic
from trainers.schedules import Schedule

Reweigh = Annotated[Dynamic | QTuning | SSToken, Field(discriminator="method")]

HOW = {"threads", "checkpoint_every", "part_tokens", "precision", "sharded", "compile", "tensorboard", "evaluate_every"}


class TrainConfig(BaseModel):
    """What decides the result of a run, besides the data. Unknown names are refused.

    The defaults are the best of those tried for about a minute on one core (0.9 M tokens): there, many small steps of
    a small model win. Longer runs want larger ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig = ModelConfig()  # size of a new model; not used with `start`
    start: Path | None = None  # model to go on from: a folder, or a run of the trainer, whose optimiser goes on too
    format: Format = Format()  # what documents become and what of them is learned
    objective: Objective = CrossEntropy()
    future_heads: FutureHeadsConfig | None = None
    reweigh: Reweigh | None = None  # which tokens of a batch are learned, decided at every step
    window: int = Field(default=1, ge=1)  # batches pooled into one step, for `reweigh` to choose from
    masked_thought: MaskedThought | None = None
    adapter: Adapter | None = None  # train this instead of the model
    half: HalfFineTuning | None = None  # or this half of it
    average: Averaging | None = None  # of the weights over the steps, kept and measured beside the model
    tokens: int | None = Field(default=None, gt=0)  # to train on; None: one pass over the mixture
    row_length: int = Field(default=256, ge=2)  # tokens; the longest context
    batch_tokens: int = Field(default=1024, gt=0)  # per optimiser step, in whole rows
    part_tokens: int = Field(default=16384, gt=0)  # per forward pass; bounds memory, not the result
    lr: float = Field(default=2e-3, gt=0)  # peak
    schedule: Schedule = Schedule(warmup=0.05, final=0.05)
    weight_decay: float | None = Field(default=None, ge=0)  # decoupled, of matrices; None: 0.1, of an adapter 0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)  # largest norm of the gradient
    seed: int = 0  # of weights and data order
    precision: Literal["fp32", "bf16", "auto"] = "auto"  # of products; auto: bf16 where the processor has it
    device: str = "cpu"  # cuda: of several processes, each has its own
    sharded: bool = False  # processes of torchrun share out the model (FSDP); otherwise each holds a copy
    compile: bool = False  # the MLPs, by torch.compile
    tensorboard: bool = True  # out/tensorboard, besides the log
    threads: int | None = Field(default=None, gt=0)  # None: torch's choice; bits are reproducible for a fixed number
    checkpoint_every: int = Field(default=500, gt=0)  # steps
    evaluate_every: int | None = Field(default=None, gt=0)  # steps; measure held-out documents on the way too

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if (self.adapter or self.half) and self.start is None:
            raise ValueError("adapter and half change a trained model: give it as `start`")
        if self.adapter and self.half:
            raise ValueError("adapter and half exclude each other: an adapter leaves the whole model as it is")
        if self.format.equal and isinstance(self.reweigh, Dynamic):
            raise ValueError("reweigh by dynamic losses decides what documents count; leave format.equal out")
        if self.sharded and (self.reweigh or self.average or self.adapter or self.evaluate_every):
            raise ValueError("reweigh, average, adapter and evaluate_every need the whole model: leave `sharded` out")
        return self

    @property
    def heldout_format(self) -> Format:
        """How held-out documents are read: every document weighs the same there."""
        return self.format.model_copy(update={"weights": None, "document_weight": None})

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return max(1, self.batch_tokens // self.row_length) * self.window

    @property
    def bf16(self) -> bool:
        """Whether products are in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and has_bf16(self.device))

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share: the fields that decide, and the content of the models that are read."""
        fields = self.model_dump(mode="json", exclude=HOW) | {"bf16": self.bf16}
        named = [(self.objective, "teacher"), (self.objective, "base"), (self.reweigh, "history")]
        folders = [getattr(part, name, None) for part, name in named]
        folders.append(model_of(self.start) if self.start else None)
        digests = {str(folder): model_digest(folder) for folder in folders if folder is not None}
        return fields | ({"models": digests} if digests else {})


class Result(BaseModel):
    """out/result.json."""

    steps: int
    tokens: int
    loss: float  # mean of the last tenth of the steps, nats per token
    seconds: float  # of the steps of this process and the ones it resumed
    tokens_per_second: float
    data_wait: float  # share of the seconds spent on waiting for batches
    tokens_by_source: dict[str, int]
    parameters: int
    bf16: bool
    packages: dict[str, str]
    identity: dict[str, Any]
    evaluation: dict[str, Any] | None
    average_evaluation: dict[str, Any] | None = None  # of the averaged weights


class Job(BaseModel):
    """The arguments of `train` as a file."""

    model_config = ConfigDict(extra="forbid")

    config: TrainConfig
    mixture: Path
    out: Path
    heldout: Path | None = None


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 faster than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("amx_tile"))
