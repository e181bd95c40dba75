"""Programs that mean harm: each ends with a verdict, leaves nothing behind and reaches nothing outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import sandbox
from transforms.sandbox import Limits, Program, Run, Runner, Sandbox, SandboxUnavailable

ROOT = Path(__file__).parents[2]
LIMITS = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=256 << 20, output_bytes=10_000, file_bytes=1 << 16)


def isolations() -> list[str]:
    try:
        Sandbox().check()
    except SandboxUnavailable:
        return ["limits"]
    return ["namespaces", "limits"]


HERE = isolations()
needs_namespaces = pytest.mark.skipif("namespaces" not in HERE, reason="no namespaces on this machine")


@pytest.fixture(params=HERE)
def box(request: pytest.FixtureRequest) -> Sandbox:
    return Sandbox(isolation=request.param, limits=LIMITS)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, in which nothing is left, as no process is."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not psutil.Process().children(recursive=True)
    assert not list(folder.iterdir())


def once(box: Sandbox, source: str, stdin: str = "") -> Run:
    (run,) = box.run(Program(source, [stdin]))
    return run


def runs_of(run: Runner, program: Program) -> list[Run]:
    return run(program)


def strict() -> Sandbox:
    return Sandbox(limits=LIMITS)


def test_a_program_reads_and_writes(box: Sandbox) -> None:
    run = once(box, "import sys\nname = input()\nprint(f'hello {name}', sys.argv, __name__)", "wörld\nrest")
    assert run.output == "hello wörld ['program.py'] __main__\n" and run.status == "ok" and run.error == ""
    assert 0 < run.seconds < 1


def test_runs_are_in_order_and_none_follows_one_that_is_not_ok(box: Sandbox) -> None:
    programs = [Program(f"print(int(input()) * {k})", ["1", "2", "x", "4"][: k + 1]) for k in range(4)]
    found = [[(run.status, run.output) for run in runs] for runs in box.each(runs_of, programs)]
    first = [[("ok", "0\n")], [("ok", "1\n"), ("ok", "2\n")]]
    assert found == [
        *first,
        [("ok", "2\n"), ("ok", "4\n"), ("crashed", "")],
        [("ok", "3\n"), ("ok", "6\n"), ("crashed", "")],
    ]
    alone = Sandbox(isolation=box.isolation, limits=LIMITS, parallel=1)
    assert [len(runs) for runs in alone.each(runs_of, programs)] == [1, 2, 3, 3]


def test_an_error_of_the_function_ends_the_rest() -> None:
    done = []

    def odd(run: Runner, number: int) -> int:
        if number == 1:
            raise ValueError("one")
        done.append(run(Program("pass", [""])))
        return number

    with pytest.raises(ValueError, match="one"):
        Sandbox(isolation=HERE[0], parallel=2).each(odd, range(100))
    assert len(done) < 50
    assert Sandbox(isolation=HERE[0]).each(odd, []) == []


@settings(max_examples=4)
@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=6))
def test_bytes_pass_as_they_are(texts: list[str]) -> None:
    echo = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"
    runs = Sandbox(isolation=HERE[0]).run(Program(echo, texts))
    assert [(run.status, run.output) for run in runs] == [("ok", text) for text in texts]


ENDS = {
    "held = bytearray(1 << 30)": "out of memory",
    "held = []\nwhile True: held.append(bytes(1 << 23))": "out of memory",
    "while True: print('x' * 1000)": "too much output",
    "import sys\nwhile True: sys.stderr.write('x' * 1000)": "too much output",
    "raise SystemExit(3)": "crashed",
    "def broken(:": "crashed",
    "import ctypes\nctypes.string_at(0)": "crashed",
    "import os\nos.abort()": "crashed",
    "import os\nos.kill(os.getpid(), 9)": "crashed",
    "def deeper(): deeper()\ndeeper()": "crashed",
    "with open('big', 'wb') as file:\n    for _ in range(1000): file.write(bytes(1 << 20))": "crashed",
    "import os\nos.open('/', os.O_RDONLY)\nheld = [os.dup(0) for _ in range(1000)]": "crashed",
    "import sys\nsys.exit(0)": "ok",
    "exit()": "ok",
}


def test_every_end_has_its_verdict(box: Sandbox) -> None:
    statuses = box.each(lambda run, source: run(Program(source, [""]))[0].status, ENDS)
    assert dict(zip(ENDS, statuses, strict=True)) == ENDS


def test_one_that_waits_is_ended_by_the_clock(box: Sandbox) -> None:
    quick = Sandbox(isolation=box.isolation, limits=LIMITS.model_copy(update={"wall_seconds": 2.0}))
    closed = "import os, time\nprint('said', flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(100)"
    assert [(r.status, r.output) for r in (once(quick, closed), once(quick, "import time\ntime.sleep(100)"))] == [
        ("timed out", "said\n"),
        ("timed out", ""),
    ]


def test_a_program_may_have_less_time_than_the_sandbox_grants() -> None:
    patient = Sandbox(isolation=HERE[0], limits=LIMITS.model_copy(update={"cpu_seconds": 1000.0, "wall_seconds": 30.0}))
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    runs = patient.run(Program(stubborn, ["", ""], cpu_seconds=0.5))
    assert [run.status for run in runs] == ["timed out"] and 0.5 < runs[0].seconds < 4


def test_output_is_what_was_said_and_no_more_than_the_limit(box: Sandbox) -> None:
    assert once(box, "while True: print('x' * 99)").output == ("x" * 99 + "\n") * 100
    assert once(box, "import sys\nsys.stdout.buffer.write(b'a\\xff\\xfeb')").output == "a\ufffd\ufffdb"
    early = once(box, "import os\nprint('seen', flush=True)\nprint('kept back')\nos._exit(0)")
    assert (early.status, early.output) == ("ok", "seen\n")
    assert once(box, "import os\nos.close(1)\nos.close(2)").status == "ok"


def test_input_that_nobody_reads_holds_nothing_up(box: Sandbox) -> None:
    assert once(box, "print('done')", "x" * 5_000_000).output == "done\n"


def test_errors_end_with_what_was_raised(box: Sandbox) -> None:
    run = once(box, "import sys\nsys.stderr.write('x' * 9000)\nraise ValueError('why')")
    assert run.error.endswith("ValueError: why\n") and len(run.error) == 4000


def test_names_that_were_not_imported_stay_unknown(box: Sandbox) -> None:
    names = ["sys", "os", "json", "builtins", "__boot__", "Quitter", "program", "source"]
    assert once(box, f"print([name for name in {names} if name in globals()])").output == "[]\n"
    assert "NameError: name 'sys'" in once(box, "print(sys)").error


def test_packages_are_not_there_and_hashes_repeat(box: Sandbox) -> None:
    assert "ModuleNotFoundError" in once(box, "import pydantic").error
    assert len({once(box, "print(hash('a'), {*'some letters'})").output for _ in range(2)}) == 1


def test_runs_begin_in_an_empty_folder(box: Sandbox) -> None:
    source = "import os, pathlib\nprint(os.listdir('.'))\npathlib.Path('left').write_text('x')\nprint(os.listdir('.'))"
    runs = box.run(Program(source, ["", ""]))
    assert [run.output for run in runs] == ["[]\n['left']\n"] * 2


SHARED = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.shmget(0x1234, 4096, 0o600), libc.msgget(0x1234, 0o600))
assert libc.shmget(0x1234, 4096, 0o1600) >= 0 and libc.msgget(0x1234, 0o1600) >= 0
"""


@needs_namespaces
def test_shared_memory_and_queues_are_gone_before_the_next_run() -> None:
    alone = Sandbox(limits=LIMITS, parallel=1)
    found = alone.each(runs_of, [Program(SHARED, ["", ""]), Program(SHARED, [""])])
    assert [(run.status, run.output) for runs in found for run in runs] == [("ok", "-1 -1\n")] * 3


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(100)
    os._exit(0)
os.wait()
time.sleep(0.2)
"""


def test_a_daemon_does_not_outlive_its_program(box: Sandbox) -> None:
    started = time.monotonic()
    run = once(box, DAEMON)
    assert run.status == "ok" and time.monotonic() - started < 50
    if box.isolation == "limits":  # elsewhere it is a number of the namespace's own
        assert not psutil.pid_exists(int(run.output))


def test_threads_have_room_and_a_fork_bomb_has_none(box: Sandbox) -> None:
    threads = (
        "import threading\nthreading.stack_size(1 << 26)\nt = threading.Thread(target=print, args=(7,))\nt.start()"
    )
    assert once(box, threads).output == "7\n"
    forks = "import os, time\nfor k in range(30):\n    if os.fork() == 0:\n        time.sleep(100)\nprint(k + 1)"
    run = once(box, forks)
    if box.isolation == "namespaces" or os.geteuid():
        assert run.status == "crashed" and "BlockingIOError" in run.error
    else:
        assert run.output == "30\n"  # root is held by no number of processes


@needs_namespaces
def test_a_fork_bomb_that_ignores_refusals_is_ended() -> None:
    """A process that has spent its time makes room for another one, so the clock has to end it."""
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    quick = Sandbox(limits=LIMITS.model_copy(update={"wall_seconds": 1.0}))
    assert once(quick, bomb).status == "timed out"


def test_its_guardian_killed(box: Sandbox) -> None:
    run = once(box, "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(0.2)\nprint('still here')")
    if box.isolation == "namespaces":  # process 1 takes no signals from its own namespace, and is another user's
        assert run.status == "crashed" or run.output == "still here\n"
    else:
        assert run.status == "sandbox lost"


FORGED = [b"no answer\n", b"ended\n", b"\xff\xfe\n", b"ended 0 0.1 x 0 \n", b"ended 0 0.1 -1 0 \n", b"started -1\n"]
FORGED += [b"x" * 60_000, b"ended 0 1.5 99999999999 0 \n", b"\n"]
FORGED += [b"done\n", b"ready\n", b"ended 0 0.1 0 0 \n"]


@pytest.mark.parametrize("forged", FORGED)
def test_what_a_program_says_in_its_guardians_name_is_not_believed(forged: bytes) -> None:
    box = Sandbox(isolation="limits", limits=LIMITS, parallel=1)
    write = f"import os\nwith open(f'/proc/{{os.getppid()}}/fd/1', 'wb') as pipe: pipe.write({forged!r})"
    found = box.each(runs_of, [Program(write, [""]), Program("print(1)", [""])])
    assert [[run.status for run in runs] for runs in found] == [["sandbox lost"], ["ok"]]


def test_its_guardian_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "PATIENCE", 3.0)
    box = Sandbox(isolation="limits", limits=LIMITS.model_copy(update={"wall_seconds": 2.0}))
    assert once(box, "import os, time\nos.kill(os.getppid(), 19)\ntime.sleep(100)").status == "sandbox lost"


@needs_namespaces
def test_everything_it_can_see_killed() -> None:
    """The number of its process shows that it is in a namespace before it does."""
    assert once(strict(), "import os\nassert os.getpid() < 9\nos.kill(-1, 9)").status in ("ok", "crashed")


@needs_namespaces
def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.1)
        run = once(strict(), f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
        assert run.status == "crashed" and "OSError" in run.error
        with pytest.raises(TimeoutError):
            server.accept()


@needs_namespaces
def test_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    (tmp_path / "secret").write_text("hidden")
    box = strict()
    assert (
        once(box, "import os\nprint(sorted(os.environ))").output == "['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'TMPDIR']\n"
    )
    for file in (
        tmp_path / "secret",
        f"/../{tmp_path}/secret",
        f"/proc/{os.getpid()}/environ",
        "/proc/1/environ",
        "/etc/passwd",
        __file__,
    ):
        assert "FileNotFoundError" in once(box, f"print(open({str(file)!r}, 'rb').read())").error


@needs_namespaces
@pytest.mark.parametrize("folder", ["/", sys.base_prefix, "/dev", "/usr/lib"])
def test_nothing_but_its_folder_can_be_written(folder: str) -> None:
    run = once(strict(), f"open({folder!r} + '/planted', 'w')")
    assert "Read-only file system" in run.error and not (Path(folder) / "planted").exists()


@needs_namespaces
def test_many_files_are_bounded_together() -> None:
    many = "for k in range(100):\n    with open(str(k), 'wb') as file: file.write(bytes(1 << 12))"
    assert "No space left" in once(strict(), many).error


@needs_namespaces
def test_no_way_to_privileges() -> None:
    calls = "unshare(0x10000000) unshare(0x20000) mount(b'a',b'/tmp',b'tmpfs',0,None) chroot(b'/tmp') setuid(0)"
    told = [f"libc.{called}" for called in [*calls.split(), "prctl(39,0,0,0,0)"]]  # whether new privileges are barred
    run = once(strict(), f"import ctypes\nlibc = ctypes.CDLL(None)\nprint({', '.join(told)})")
    assert run.output == "-1 -1 -1 -1 -1 1\n"


@pytest.mark.parametrize("isolation", HERE)
def test_all_ends_when_the_process_that_asked_is_killed(isolation: str, temporary: Path) -> None:
    script = f"""
from transforms.sandbox import Program, Sandbox
box = Sandbox(isolation={isolation!r})
box.each(lambda run, program: run(program), [Program('import time; time.sleep(50)', [''])] * 2)
"""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    asking = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment)
    started, wanted = psutil.Process(asking.pid), 6 if isolation == "namespaces" else 4
    until(lambda: len(started.children(recursive=True)) == wanted)
    left = started.children(recursive=True)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in left))
    until(lambda: not list(temporary.iterdir()))


def until(holds) -> None:  # type: ignore[no-untyped-def]
    for _ in range(200):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to be in 20 s")


@needs_namespaces
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare command")
def test_without_namespaces_nothing_runs_and_the_message_says_what_to_do() -> None:
    script = "from transforms.sandbox import Sandbox; Sandbox().check()"
    forbid = f"echo 0 > /proc/sys/user/max_user_namespaces; exec {sys.executable} -c '{script}'"
    ran = subprocess.run(["unshare", "-Ur", "sh", "-c", forbid], capture_output=True, text=True, cwd=ROOT)
    assert "SandboxUnavailable: programs cannot be isolated here:" in ran.stderr and "unshare (" in ran.stderr
    assert "set isolation: limits" in ran.stderr


def test_python_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox(isolation=HERE[0])
    monkeypatch.setitem(box.job, "python", "/bin/false")
    with pytest.raises(SandboxUnavailable):
        box.check()
