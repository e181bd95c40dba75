"""Progress: workers append a line per finished split below the run folder, and where a split takes long one per batch;
the launcher follows the lines.

Plain files work with every runner that shares the run folder; for a remote one see the engine's own progress.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines import store
from pipelines.shards import Split


def _folder(run: str) -> Path:
    return Path(run) / "progress"


def report(run: str, step: str, split: Split, documents: int, size: int, part: bool = False) -> None:
    """Called by a worker when a split of a step is committed, or a `part` of it is done. One short append, atomic on
    local file systems."""
    if store.is_remote(run):
        return
    folder = _folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    item = {"step": step, "split": f"{split.source}/{split.name}", "documents": documents, "bytes": size}
    item |= {"part": documents / max(split.rows, 1)} if part else {}
    line = json.dumps({**item, "at": time.time()})
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(line + "\n")


def _seen(run: str, since: float) -> tuple[float, int, int]:
    """Splits, with those under way by the share that is done of them; documents; bytes."""
    whole: dict[tuple[str, str], tuple[float, int, int]] = {}
    parts: dict[tuple[str, str], tuple[float, int, int]] = {}
    for path in _folder(run).glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                item = json.loads(line)
            except json.JSONDecodeError:  # a line being written
                continue
            if item["at"] < since:
                continue
            into, share = (parts, item["part"]) if "part" in item else (whole, 1.0)
            place = (item["step"], item["split"])
            before = into.get(place, (0.0, 0, 0))
            into[place] = (before[0] + share, before[1] + item["documents"], before[2] + item["bytes"])
    done = list({**parts, **whole}.values())
    return sum(d[0] for d in done), sum(d[1] for d in done), sum(d[2] for d in done)


@contextmanager
def follow(run: str, label: str, splits: int) -> Iterator[None]:
    """Show documents/s, MB/s and the time left of a step while the body runs."""
    started = time.time()

    def state() -> tuple[float, str]:
        count, documents, size = _seen(run, started)
        seconds = max(time.time() - started, 1e-3)
        rate = f"{documents / seconds:,.0f} docs/s" if documents else ""
        rate += f", {size / 1e6 / seconds:.1f} MB/s" if size else ""
        return min(count, splits) / max(splits, 1), rate

    with shown({label: state}):
        yield


@contextmanager
def shown(tasks: Mapping[str, Callable[[], tuple[float, str]]]) -> Iterator[None]:
    """Bars on standard error for tasks that tell (share done, words). `tasks` may grow while the body runs.

    Without a terminal: a line when they end, and each minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    label, words_ = TextColumn("{task.description:<26}"), TextColumn("{task.fields[words]}")
    columns = (label, BarColumn(24), words_, TimeElapsedColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    done, started, said = threading.Event(), time.time(), time.time()

    def look() -> dict[str, tuple[float, str]]:
        states = {name: state() for name, state in list(tasks.items())}
        for name, (share, words) in states.items():
            bars.setdefault(name, progress.add_task(name, total=1.0, words=""))
            progress.update(bars[name], completed=share, words=words)
        return states

    def watch() -> None:
        nonlocal said
        while not done.wait(0.5):
            states = look()
            if not console.is_terminal and time.time() - said > 60:
                said = time.time()
                for name, (share, words) in states.items():
                    if not 0 < share < 1:
                        continue
                    console.print(f"{name}: {share:.0%} after {said - started:.0f} s  {words}", highlight=False)

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            for name, (_, words) in look().items():
                progress.update(bars[name], completed=1.0)
                if not console.is_terminal:
                    console.print(f"{name}: {time.time() - started:.1f} s  {words}", highlight=False)
