"""GPUs are dealt out among processes, none to two; what a process has started ends with it, killed or not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from ast import literal_eval
from pathlib import Path

import pytest

from transforms.generation.children import descendants
from transforms.generation.devices import claim
from transforms.generation.engine import EngineUnavailable

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from transforms.generation.devices import claim
print(claim(2, tuple("01234"), Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""

PARENT = """
import subprocess, sys
from transforms.generation.children import watch
watcher = watch()
child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
watcher.stdin.write(b"all\\n")
watcher.stdin.flush()
sys.stdin.read()
"""


def test_processes_take_different_devices_until_they_end(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    first, second = start(), start()
    assert first.stdout and second.stdout
    taken = [set(literal_eval(process.stdout.readline())) for process in (first, second)]
    assert len(taken[0] | taken[1]) == 4
    with pytest.raises(EngineUnavailable, match=r"of 5 here 1 are free.*at most 2 worker processes"):
        claim(2, tuple("01234"), tmp_path)
    first.kill()
    first.wait()
    mine = claim(2, tuple("01234"), tmp_path)
    assert len(mine) == 2 and claim(1, tuple("01234"), tmp_path) == mine[:1], "engines of a process share"
    assert set(claim(3, tuple("01234"), tmp_path)) > set(mine)
    second.communicate("")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux only")
def test_what_a_killed_process_has_started_ends_with_it() -> None:
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout
    started = {int(name) for name in parent.stdout.readline().split()}
    assert len(started) == 2 and started <= set(descendants(os.getpid()))
    time.sleep(0.2)
    parent.kill()
    deadline = time.monotonic() + 30
    while (left := [p for p in started if running(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
