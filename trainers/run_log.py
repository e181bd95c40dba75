"""What a run tells while it trains: one line of JSON per step, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """out/log.jsonl, and out/tensorboard if asked for. `size` is the bytes written: what a resumed run keeps."""

    def __init__(self, out: Path, tensorboard: bool) -> None:
        self.path, self.folder = out / "log.jsonl", out / "tensorboard"
        self.size = 0
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None

    def open(self, size: int, step: int) -> None:
        """Go on after the first `size` bytes; TensorBoard is told to forget what it saw after `step`."""
        self.size = size
        with self.path.open("ab") as file:
            file.truncate(size)
        if not size:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._tensorboard:
            self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if size else None)
        self._file = self.path.open("ab")

    def write(self, line: dict[str, Any]) -> None:
        """Add the line of a step; numbers, and mappings of numbers."""
        self.size += self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if self._writer is None:
            return
        for name, value in line.items():
            for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                self._writer.add_scalar(f"{name}/{part}" if part else name, number, line["step"])

    def close(self) -> None:
        """Leave the files whole."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]
