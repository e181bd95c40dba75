"""Ends what a process has started when that process is killed. vLLM's own processes outlive a killed parent, and keep
the GPU's memory.

`watch` starts a small process (10 MB) that holds the other end of a pipe: when the pipe closes, whatever closed it, it
kills the descendants of its parent that are still there. Linux only, as vLLM is.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path


def watch() -> subprocess.Popen[bytes]:
    """Watch over this process from now on. Write a line to `stdin` of what is returned once all has been started."""
    # Isolated: the folder of this file shall not be searched for modules.
    return subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE, start_new_session=True)


def descendants(process: int) -> dict[int, str]:
    """Processes below this one, with the time at which each began: numbers of processes are used again."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(folder.name)] = (int(fields[1]), fields[19])
    found: dict[int, str] = {}
    todo = [process]
    while todo:
        above = todo.pop()
        for child, (parent, began) in parents.items():
            if parent == above and child != os.getpid():
                found[child] = began
                todo.append(child)
    return found


def _began(process: int) -> str | None:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def main() -> None:
    """Remember what the parent starts, until it says that this is all; at its end, kill what is left of it."""
    parent, told = os.getppid(), b""
    seen: dict[int, str] = {}
    while not told:
        ready = select.select([0], [], [], 0.5)[0]
        seen |= descendants(parent)
        if ready:
            told = os.read(0, 100)
            if not told:
                break
    while told:
        told = os.read(0, 100)
    for process, began in seen.items():
        if _began(process) == began:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
