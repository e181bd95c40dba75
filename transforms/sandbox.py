"""Runs Python programs that nobody has read: standard input in, standard output and a verdict out.

Every program gets processes of its own and is held by limits on processor time, waiting, memory, output, files and
processes. Around these stands one of two isolations:

`namespaces` (Linux 5.14 or newer, where users may make namespaces): no network, no sight of other processes, and of
files only Python's own, read-only, beside an empty folder in memory; what a program starts ends with it. `limits`:
nothing of the kind. It is for containers that hold nothing else and have no network, and has to be asked for.

A guard against accidents and mischief of programs that language models write, not against one that exploits the kernel.
"""

from __future__ import annotations

import contextlib
import marshal
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from transforms import _sandbox_child
from transforms.parameters import Parameters

OK, CRASHED, TIMED_OUT, MEMORY, OUTPUT, LOST = (
    "ok", "crashed", "timed out", "out of memory", "too much output", "sandbox lost",
)  # fmt: skip
ADVICE = (
    "Let users make namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; Docker: --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined), or, in a container that holds nothing else and has no "
    "network, set isolation: limits"
)
PATIENCE, GRACE = 20.0, 5.0  # seconds that a child may take besides the runs in it, and to end
ANSWER = re.compile(rb"(?:ready|done|started [1-9]\d{0,8}|ended -?\d+ \d+(?:\.\d+)?(?:e-\d+)? \d+ \d+ [a-z ]*)\n")
LONGEST = 200  # bytes of an answer's line
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")


Item = TypeVar("Item")
Result = TypeVar("Result")
Runner = Callable[["Program"], list["Run"]]


class SandboxUnavailable(RuntimeError):  # noqa: N818
    """This machine gives no isolation; the message says why and what to do."""


class Limits(Parameters):
    """What one run may take.

    Attributes:
        cpu_seconds: of processor time, for each process; whole seconds, rounded up. wall_seconds: on the clock, for
            those that wait. memory_bytes: address space of each process. output_bytes: of standard output, and of
            standard error. file_bytes: of one file and, with namespaces, of all that is written. processes: threads
            and its own included.
    """

    cpu_seconds: float = Field(10.0, gt=0)
    wall_seconds: float = Field(60.0, gt=0)
    memory_bytes: int = Field(1 << 30, ge=64 << 20)
    output_bytes: int = Field(4 << 20, ge=1)
    file_bytes: int = Field(16 << 20, ge=1 << 12)
    processes: int = Field(8, ge=1)
    open_files: int = Field(64, ge=16)


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        status: `ok`: it ended by itself with exit status 0; `crashed`, `timed out`, `out of memory`, `too much output`;
            `sandbox lost`: what watches over it was killed, by the program or for want of memory.
        output: of standard output, as much as the limit lets through; bytes that are no UTF-8 are U+FFFD.
        error: the end of standard error. seconds: of processor time, Python's start included.
    """

    status: str
    output: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Program:
    """A program and the standard inputs to run it on, in order, until a run is not ok. `cpu_seconds`: of each run,
    where that is less than the sandbox grants."""

    source: str
    inputs: Sequence[str]
    cpu_seconds: float = float("inf")


class Sandbox(Parameters):
    """`parallel`: programs that run at one time; results do not depend on it, nor on how busy the machine is unless a
    run waits for `wall_seconds`."""

    isolation: Literal["namespaces", "limits"] = "namespaces"
    limits: Limits = Limits.model_validate({})
    parallel: int = Field(4, ge=1, exclude=True)

    def check(self) -> None:
        """Raises SandboxUnavailable: programs cannot be isolated here as asked."""
        (run,) = self.run(Program("print(1)", [""]))
        if run.status != OK or run.output != "1\n":
            raise SandboxUnavailable(f"Python does not start in the sandbox: {run.status}: {run.error}")

    def each(self, function: Callable[[Runner, Item], Result], items: Iterable[Item]) -> list[Result]:
        """What a function makes of each item, in their order, `parallel` of them at one time. It is given what runs a
        program: the runs, in order of the inputs, come back; the last of them may be other than `ok`, and inputs after
        it were not tried. Nothing that a program does raises.

        Raises SandboxUnavailable: see `check`.
        """
        todo, results = enumerate(items), dict[int, Result]()
        lock, stopped = threading.Lock(), threading.Event()

        def work() -> None:
            with Child(self) as child:
                while not stopped.is_set():
                    with lock:
                        if (taken := next(todo, None)) is None:
                            return
                    results[taken[0]] = function(child.run, taken[1])

        with ThreadPoolExecutor(self.parallel, "sandbox") as pool:
            try:
                workers = [pool.submit(work) for _ in range(self.parallel)]
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()  # what is under way is waited for
        for worker in workers:
            worker.result()
        return [results[place] for place in range(len(results))]

    def run(self, program: Program) -> list[Run]:
        """The runs of one program; see `each`."""
        with Child(self) as child:
            return child.run(program)

    @cached_property
    def job(self) -> dict[str, Any]:
        """What a child has to know before the first program."""
        python, prefix = str(Path(sys.executable).resolve()), str(Path(sys.base_prefix).resolve())
        visible = [path for path in (prefix, python, *LIBRARIES) if Path(path).exists()]
        within = [path for path in visible if any(path.startswith(f"{other}/") for other in visible)]
        own = {"python": python, "visible": [path for path in visible if path not in within]}
        return {**self.limits.model_dump(), **own, "namespaces": self.isolation == "namespaces"}


class Child:
    """The processes of one sandbox, in which programs run one after the other."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.limits, self.job = sandbox.limits, sandbox.job
        own = not self.job["namespaces"]  # else nothing comes to lie there
        self.folder = tempfile.mkdtemp(prefix="sandbox") if own else tempfile.gettempdir()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if not self.job["namespaces"]:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: Program) -> list[Run]:
        """See `Sandbox.each`."""
        process = self._process or self._start()
        cpu = max(1, math.ceil(min(program.cpu_seconds, self.limits.cpu_seconds)))
        given = {"source": _encoded(program.source), "inputs": [_encoded(stdin) for stdin in program.inputs]}
        started, runs, wanted = 0, list[Run](), len(program.inputs)
        with _bounded(process, wanted * (self.limits.wall_seconds + 1)):
            _send(process, {**given, "cpu_seconds": cpu})
            while (answer := self._answer(process)) is not None:
                (word, *words), parts = answer
                if word == "started":
                    started = int(words[0])
                elif word == "ended" and len(runs) < wanted:
                    runs.append(_read(words, parts, cpu))
                elif word == "done" and (len(runs) == wanted or (runs and runs[-1].status != OK)):
                    return runs
                else:
                    break  # who says that?
        self._end()
        if started:
            _kill_group(started)
        return [*runs[: wanted - 1], Run(LOST)]

    def _start(self) -> subprocess.Popen[bytes]:
        command, pipe = [self.job["python"], "-I", "-S", _sandbox_child.__file__], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, process_group=0)
        self._process = process
        with _bounded(process, 0):
            _send(process, {**self.job, "folder": self.folder})
            if self._answer(process) is None:
                assert process.stderr
                error = process.stderr.read(4096).decode(errors="replace").strip()
                raise SandboxUnavailable(f"programs cannot be isolated here: {error}. {ADVICE}")
        return process

    def _answer(self, process: subprocess.Popen[bytes]) -> tuple[list[str], list[bytes]] | None:
        """Words of the next answer and the parts of which it says the lengths, or null: it is gone, or what comes is no
        answer, as without namespaces a program may write in its place."""
        assert process.stdout
        line = process.stdout.readline(LONGEST)
        if not ANSWER.fullmatch(line):
            return None
        words = line.decode().strip().split(" ", 5)
        lengths = [int(word) for word in words[3:5]]
        if any(length > max(self.limits.output_bytes, _sandbox_child.ERRORS) for length in lengths):
            return None
        parts = [process.stdout.read(length) for length in lengths]
        return (words, parts) if [len(part) for part in parts] == lengths else None

    def _end(self) -> None:
        """Close its standard input, at which it ends all that runs, and itself."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it was stopped
            _kill_group(process.pid)
        with process:
            pass  # closes its pipes and waits for it


@contextlib.contextmanager
def _bounded(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Without namespaces a program may stop what watches over it for good."""
    timer = threading.Timer(PATIENCE + seconds, _kill_group, [process.pid])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _send(process: subprocess.Popen[bytes], what: dict[str, Any]) -> None:
    assert process.stdin
    sent = marshal.dumps(what)
    with contextlib.suppress(BrokenPipeError):  # it is gone, and will not answer
        process.stdin.write(len(sent).to_bytes(8, "big") + sent)
        process.stdin.flush()


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")  # lone surrogates


def _read(words: list[str], parts: list[bytes], cpu: int) -> Run:
    """What an answer `ended CODE SECONDS LENGTH LENGTH WHY_CUT` says."""
    code, seconds, cut = int(words[0]), float(words[1]), "".join(words[4:])
    output, error = (part.decode(errors="replace") for part in parts)
    spent = seconds > cpu / 2  # what a process used and what it is limited by are measured in different ways
    return Run(cut or _status(code, spent, error), output, error, seconds)


def _status(code: int, spent: bool, error: str) -> str:
    if code == 0:
        return OK
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent):
        return TIMED_OUT
    raised = error.rstrip().rpartition("\n")[2]
    return MEMORY if raised.startswith("MemoryError") else CRASHED


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
