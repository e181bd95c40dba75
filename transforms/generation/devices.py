"""GPUs for worker processes of one machine: each takes some that no other holds, until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

from transforms.generation.engine import EngineUnavailable

_held: list[int] = []  # file descriptors whose locks last as long as this process


@cache
def visible() -> tuple[str, ...]:
    """Names of the GPUs that this process was started with."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch

    return tuple(str(k) for k in range(torch.cuda.device_count()))


def claim(count: int, devices: tuple[str, ...], folder: Path | None = None) -> list[str]:
    """Take `count` of the devices for this process: a lock on a file for each, which ends with the process.

    Raises EngineUnavailable: so many are not free.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"corpusmill-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    mine: dict[str, int] = {}
    for device in devices:
        file = os.open(folder / device.replace("/", "-"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        mine[device] = file
        if len(mine) == count:
            _held.extend(mine.values())
            return list(mine)
    for file in mine.values():
        os.close(file)
    raise EngineUnavailable(
        f"{count} GPUs for each worker process; of {len(devices)} here {len(mine)} are free, the others are held by "
        f"other processes of corpusmill: start at most {len(devices) // count} worker processes"
    )
