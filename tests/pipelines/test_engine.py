"""The engine: which runner, how many processes, what is lost without the guard, and how failures read."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
from apache_beam.metrics import Metrics
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker import data_plane

from pipelines import engine

ROOT = Path(engine.__file__).parents[1]


def count(number: int) -> int:
    Metrics.counter("test", "rows").inc()
    Metrics.distribution("test", "values").update(number)
    return number


def fail(number: int) -> int:
    try:
        return {0: 1}[number]
    except KeyError as error:
        raise ValueError(f"no shard {number}") from error


def die(number: int) -> int:
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sign(number: int, folder: str) -> int:
    Path(folder, str(number)).write_text(str(os.getpid()))
    return number


def wait(number: int, folder: str) -> int:
    sign(number, folder)
    time.sleep(120)
    return number


def rows_of(block: int) -> Iterator[dict[str, object]]:
    for k in range(5_000):
        yield {"id": 5_000 * block + k, "text": "x" * 1000}


def after_barrier(row: dict[str, object], total: int) -> object:
    Metrics.counter("test", "rows").inc()
    return row["id"]


def build_with(function: Callable[..., object], *arguments: object) -> Callable[[beam.Pipeline], object]:
    """A graph that maps 0..9 with `function`."""
    return lambda pipeline: pipeline | beam.Create(range(10)) | "Step" >> beam.Map(function, *arguments)


# Which runner, which options


def test_default_is_the_in_process_runner() -> None:
    plan = engine.resolve([])
    assert (plan.runner, plan.processes) == ("FnApiRunner", 0)
    assert "--no_save_main_session" in plan.flags


@pytest.mark.parametrize(
    ("options", "workers", "processes"),
    [
        ([], 3, 3),
        (["--direct_num_workers=3"], 1, 3),
        (["--direct_num_workers", "3"], 3, 3),
        (["--direct_num_workers=0"], 1, 0 if os.cpu_count() == 1 else os.cpu_count()),
        (["--direct_running_mode=multi_processing"], 1, 1),
        (["--runner=fnapi"], 2, 2),
    ],
)
def test_number_of_worker_processes(options: list[str], workers: int, processes: int) -> None:
    assert engine.resolve(options, workers).processes == processes


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--direct_running_mode=multi_threading", "loses elements"),
        ("--experiments=data_buffer_time_limit_ms=5", "loses elements"),
        ("--direct_running_mode=quick", "invalid choice"),
        ("--direct_num_workers=-1", "at least 1"),
        ("--dry_run=true", "write_template"),
        ("--template_location=gs://bucket/job.json", "write_template"),
        ("--runner=DirectRunner", "not one engine"),
        ("--runner=PrismRunner", "one process"),
        ("--runner=DaskRunner", "finish_bundle"),
        ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner", "finish_bundle"),
        ("--runner=DataflowRuner", "did you mean DataflowRunner"),
        ("--runner=Spork", "did you mean SparkRunner"),
        ("--direct_num_worker=2", "did you mean --direct_num_workers"),
        ("--zzzzz=2", "knows no option --zzzzz"),
        ("workers=2", "--name=value"),
        ("--workers=2", "before `--`"),
        ("--run=x", "before `--`"),
    ],
)
def test_refused_options_say_why(option: str, reason: str) -> None:
    with pytest.raises(engine.EngineError, match=reason) as refused:
        engine.resolve([option])
    assert refused.value.exit_code == 2


def test_two_different_numbers_of_workers_are_refused() -> None:
    with pytest.raises(engine.EngineError, match="one number"):
        engine.resolve(["--direct_num_workers=3"], 2)


@pytest.mark.parametrize("runner", ["PortableRunner", "FlinkRunner", "SparkRunner"])
def test_options_of_a_job_server_pass_but_near_misses_do_not(runner: str) -> None:
    options = [f"--runner={runner}", "--checkpointing_interval=5", "--state_backend", "rocksdb"]
    plan = engine.resolve(options, label="A b")
    assert plan.runner == runner
    assert {"--checkpointing_interval=5", "rocksdb"} <= set(plan.flags)
    assert any(flag.startswith("--job_name=corpusmill-a-b-") for flag in plan.flags)
    with pytest.raises(engine.EngineError, match="did you mean --job_endpoint"):
        engine.resolve([f"--runner={runner}", "--job_endpont=localhost:1"])


def test_a_job_on_a_service_may_take_days_unless_a_limit_is_given() -> None:
    options = ["--runner=PortableRunner", "--job_endpoint=localhost:1"]
    assert any(flag.startswith("--job_server_timeout=") for flag in engine.resolve(options).flags)
    given = engine.resolve([*options, "--job_server_timeout=7"]).flags
    assert [flag for flag in given if "timeout" in flag] == ["--job_server_timeout=7"]


def test_a_service_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_ANSWER_SECONDS", 0.5)
    options = ["--runner=PortableRunner", "--job_endpoint=localhost:1"]
    with pytest.raises(engine.EngineError, match="no job service answers at --job_endpoint=localhost:1 "):
        engine.run_graph(lambda p: p, options)


def test_import_is_light() -> None:
    code = "import sys, pipelines.engine; sys.exit('apache_beam' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Running


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics(workers: int) -> None:
    metrics = engine.run_graph(build_with(count), workers=workers)
    assert (metrics.runner, metrics.state) == ("FnApiRunner", "DONE")
    assert metrics.counters == {"rows": 10}
    assert metrics.distributions == {"values": {"count": 10, "sum": 45, "min": 0, "max": 9}}


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_names_the_first_cause(workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(engine.JobFailed) as failed:
        engine.run_graph(build_with(fail), workers=workers, label="scores")
    error = failed.value
    assert error.exit_code == 1
    assert error.kind == "ValueError"
    assert error.message.startswith("no shard ")
    assert error.step == "Step"
    assert error.where.startswith(f"{__file__}:") and error.where.endswith(" in fail")
    assert str(error) == f"scores failed: ValueError: {error.message} (at {error.where}, step 'Step')"
    assert "Traceback" not in capfd.readouterr().err


def test_a_lost_worker_fails_the_job() -> None:
    with pytest.raises(engine.JobFailed, match=r"worker process was lost.*-9") as failed:
        engine.run_graph(build_with(die), workers=2)
    assert failed.value.kind == "WorkerDied"


def test_workers_end_with_their_launcher(tmp_path: Path) -> None:
    code = "import sys, test_engine as t; t.engine.run_graph(t.build_with(t.wait, sys.argv[1]), workers=2)"
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
    try:
        _until(lambda: len(list(tmp_path.iterdir())) == 2 and all(f.read_text() for f in tmp_path.iterdir()))
        workers = [int(f.read_text()) for f in tmp_path.iterdir()]
        assert launcher.pid not in workers
    finally:
        launcher.kill()
        launcher.wait()
    _until(lambda: not any(_runs(pid) for pid in workers))


def test_temporary_files_and_environment_are_left_as_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    engine.run_graph(build_with(count), workers=2)
    assert list(tmp_path.iterdir()) == []
    assert tempfile.tempdir == str(tmp_path)
    assert dict(os.environ) == before


# The guard against lost elements


def _bytes_lost(time_limit_ms: int) -> int:
    """Write to Beam's output stream while a consumer takes what it flushes; how many bytes do not arrive?"""
    arrived: queue.Queue[bytes] = queue.Queue()

    def send(data: bytes) -> None:
        time.sleep(0.001)  # sending waits for the channel, and the writer goes on meanwhile
        arrived.put(data)

    stream = data_plane.ClosableOutputStream.create(send, send, time_limit_ms)
    record, written = b"x" * 64, 0
    end = time.monotonic() + 0.25
    while time.monotonic() < end:
        stream.write(record)
        stream.maybe_flush()
        written += len(record)
    stream.close()
    return written - sum(len(arrived.get()) for _ in range(arrived.qsize()))


def test_without_the_guard_elements_are_lost_and_with_it_none() -> None:
    assert any(_bytes_lost(20) > 0 for _ in range(40)), "this Beam no longer loses elements: the guard may go"
    engine.guard_against_lost_elements()
    assert worker_handlers.DATA_BUFFER_TIME_LIMIT_MS == 0
    assert [_bytes_lost(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS) for _ in range(4)] == [0, 0, 0, 0]


def test_worker_processes_lose_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # With this timer, and no guard, about a third of the 100,000 rows do not reach the stage after the barrier.
    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 5)

    def build(pipeline: beam.Pipeline) -> None:
        rows = pipeline | beam.Create(range(20)) | beam.FlatMap(rows_of)
        total = rows | beam.combiners.Count.Globally()
        _ = rows | "After" >> beam.Map(after_barrier, beam.pvalue.AsSingleton(total))

    assert engine.run_graph(build, workers=2).counters == {"rows": 100_000}


# Balance


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_are_dealt_even_loads(tmp_path: Path, workers: int) -> None:
    sizes = [1, 1, 9, 1, 1, 9, 1, 1, 3, 9]  # even only if one worker gets 9 + 9 and the other the rest
    engine.run_graph(
        lambda p: p | engine.deal(range(10), sizes, workers) | beam.Map(sign, str(tmp_path)), workers=workers
    )
    loads: Counter[str] = Counter()
    for file in tmp_path.iterdir():
        loads[file.read_text()] += sizes[int(file.name)]
    assert sorted(loads.values()) == [36 // workers] * workers
    assert len(list(tmp_path.iterdir())) == 10


def test_nothing_to_deal() -> None:
    assert engine.run_graph(lambda p: p | engine.deal([], [], 2) | beam.Map(count)).counters == {}


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute in vain"
        time.sleep(0.1)
