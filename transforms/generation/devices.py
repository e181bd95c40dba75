"""GPUs for worker processes of one machine: each takes some that no other holds, until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

from transforms.generation.engine import EngineUnavailable

_held: dict[Path, int] = {}  # files whose locks last as long as this process, and their descriptors


@cache
def visible() -> tuple[str, ...]:
    """Names of the GPUs that this process was started with."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch

    return tuple(str(k) for k in range(torch.cuda.device_count()))


def claim(count: int, devices: tuple[str, ...], folder: Path | None = None) -> list[str]:
    """Take `count` of the devices for this process: a lock on a file for each, which ends with the process. What the
    process holds already comes first: its engines share devices, each with its part of the memory.

    Raises EngineUnavailable: so many are not free.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"corpusmill-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {device: folder / device.replace("/", "-") for device in devices}
    mine = [device for device in devices if files[device] in _held][:count]
    taken: dict[Path, int] = {}
    for device in devices:
        if len(mine) == count:
            break
        if device in mine:
            continue
        descriptor = os.open(files[device], os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        mine.append(device)
        taken[files[device]] = descriptor
    if len(mine) == count:
        _held.update(taken)
        return mine
    for descriptor in taken.values():
        os.close(descriptor)
    raise EngineUnavailable(
        f"{count} GPUs for each worker process; of {len(devices)} here {len(mine)} are free, the others are held by "
        f"other processes of corpusmill: start at most {len(devices) // count} worker processes"
    )
