"""Progress: workers append a line per finished split below the run folder; the launcher follows the lines.

Plain files work with every runner that shares the run folder; a remote run folder shows the engine's own progress instead.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import store
from pipelines.shards import Split


def _folder(run: str) -> Path:
    return Path(run) / "progress"


def report(run: str, step: str, split: Split, documents: int, size: int) -> None:
    """Called by a worker when a split of a step is committed. One short append, atomic on local file systems."""
    if store.is_remote(run):
        return
    folder = _folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": step, "split": f"{split.source}/{split.name}", "documents": documents, "bytes": size, "at": time.time()})
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(line + "\n")


def _seen(run: str, since: float) -> tuple[int, int, int]:
    splits = documents = size = 0
    for path in _folder(run).glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                item = json.loads(line)
            except json.JSONDecodeError:  # a line being written
                continue
            if item["at"] >= since:
                splits, documents, size = splits + 1, documents + item["documents"], size + item["bytes"]
    return splits, documents, size


@contextmanager
def follow(run: str, label: str, splits: int) -> Iterator[None]:
    """Show documents/s, MB/s and the time left of a step on standard error while the body runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("splits {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started, done = time.time(), threading.Event()
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task(label, total=splits, rate="")

        def watch() -> None:
            while not done.wait(0.5):
                count, documents, size = _seen(run, started)
                seconds = max(time.time() - started, 1e-3)
                bar.update(task, completed=min(count, splits), rate=f"{documents / seconds:,.0f} docs/s {size / 1e6 / seconds:.1f} MB/s")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(task, completed=splits)
        finally:
            done.set()
            watcher.join()
