"""Several processes that train one model together, started by torchrun; one process is the same without any of it.

Every process plans the same batch and takes its share of the pieces, so what a step learns from does not depend on how
many there are: a run may go on with another number. Sums over more processes are added in another order, so the bits
then differ in the last place, and dropout draws other numbers; with the same number of processes all is the same.

Whole models (the default): every process holds the model, gradients are added in one exchange per step. Sharded: each
holds a part of every matrix and of the optimiser's moments (FSDP), for models that do not fit one device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

PATIENCE = timedelta(days=7)  # others wait while the first process tokenises and evaluates; torchrun sees who died


@dataclass(frozen=True)
class World:
    """The processes of a run: this one is `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum of a number over the processes."""
        return float(self._reduced(value, distributed.ReduceOp.SUM))

    def most(self, value: int) -> int:
        """Largest of a number over the processes."""
        return int(self._reduced(value, distributed.ReduceOp.MAX))

    def gather(self, values: np.ndarray) -> np.ndarray:
        """The values of all processes, one after the other; each may give another number of them."""
        if self.ranks == 1:
            return values
        parts: list[np.ndarray | None] = [None] * self.ranks
        distributed.all_gather_object(parts, values)
        return np.concatenate([part for part in parts if part is not None])

    def same(self, value: object) -> object:
        """The first process's value, in all of them."""
        if self.ranks == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.ranks > 1:
            self.total(0.0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one exchange per type; those of no gradient count as zero."""
        if self.ranks == 1:
            return
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([g.flatten() for g in gradients])
            distributed.all_reduce(flat)
            for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _reduced(self, value: float, how: distributed.ReduceOp.RedOpType) -> float:
        if self.ranks == 1:
            return value
        held = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        distributed.all_reduce(held, how)
        return held.item()


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes that torchrun has started, or this one alone. `cuda` means this process's own GPU.

    Raises:
        ValueError: more processes than GPUs.
    """
    rank, ranks, local = (
        int(os.environ.get(name, given)) for name, given in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if ranks == 1:
        yield World(device=device)
        return
    kind = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(kind, rank=rank, world_size=ranks, timeout=PATIENCE)
    try:
        yield World(rank, ranks, device)
    finally:
        distributed.destroy_process_group()


def shard(learner: torch.nn.Module, layers: Iterable[torch.nn.Module], device: str) -> None:
    """Deal the parameters out to the processes (FSDP2, `fully_shard`): each layer by itself, the rest together.

    Gradients come back as sums over the processes, as `World.sum_gradients` gives them.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = distributed.init_device_mesh(device.partition(":")[0], (distributed.get_world_size(),))
    for module in (*layers, learner):
        fully_shard(module, mesh=mesh)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that is dealt out to the processes; every process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, dealt out as `like` is."""
    if not hasattr(like, "device_mesh"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
