"""Runs Beam graphs: names the runner, guards against lost elements, and turns a failure into one readable error.

In process the overhead is about 0.3 s per graph; several worker processes take 2 s to start. Beam is imported when a
graph is run, not before.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import logging
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

__all__ = [
    "EngineError",
    "JobFailed",
    "Metrics",
    "Plan",
    "deal",
    "guard_against_lost_elements",
    "import_path",
    "is_local",
    "job_failed",
    "own_temporary_folder",
    "quiet",
    "remember_state_specs",
    "resolve",
    "run_graph",
]

RUNNERS = ("FnApiRunner", "PortableRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")
OURS = ("--workers", "--until", "--run", "--json")  # options of corpusmill, not of Beam
# These submit to a job server, which may know options that Beam's Python package does not.
PORTABLE = ("PortableRunner", "FlinkRunner", "SparkRunner")

_UNSETTLED = (
    "is not one engine: it becomes Prism or one of two others, depending on the network and on what the graph holds. "
    "Leave --runner out for FnApiRunner in this process, or add --workers for several processes"
)
REFUSED = {
    "DirectRunner": _UNSETTLED,
    "SwitchingDirectRunner": _UNSETTLED,
    "PrismRunner": "downloads a binary and runs all Python in one process, under one interpreter lock. If you want it, "
    "start Prism yourself and pass --runner=PortableRunner --job_endpoint=HOST:PORT",
    "DaskRunner": "loses data without an error in Beam 2.77: it drops what finish_bundle emits, merges tagged outputs "
    "and runs only the last branch of a graph. For a cluster use FlinkRunner, SparkRunner or DataflowRunner",
    "BundleBasedDirectRunner": "is a test runner without worker processes. Leave --runner out for FnApiRunner",
}
# These log as errors the tracebacks that JobFailed sums up; the root logger does so for a client of a job service.
_REPEATING = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
    "root",
)
# The first warns of saved main sessions, the second of workers that go unused in memory; neither knows our ways.
_MISTAKEN = ("apache_beam.runners.worker.sdk_worker_main", "apache_beam.runners.portability.fn_api_runner.fn_runner")
# Beam's client gives a job up after `job_server_timeout` seconds (300), though it says otherwise.
_LONGEST_JOB = 30 * 24 * 3600
_ANSWER_SECONDS = 30
_TRACEBACK = "Traceback (most recent call last):\n"


class EngineError(Exception):
    """The engine cannot do what the options ask for."""

    exit_code = 2


class JobFailed(EngineError):  # noqa: N818
    """A graph ran and failed. `kind`, `message`, `where` and `step` name the first cause, as far as it is known."""

    exit_code = 1

    def __init__(self, text: str, kind: str = "", message: str = "", where: str = "", step: str = "") -> None:
        super().__init__(text)
        self.kind, self.message, self.where, self.step = kind, message, where, step


@dataclass(frozen=True)
class Metrics:
    """What a finished graph counted. Counters of the same name are summed over the graph's steps."""

    runner: str
    state: str
    seconds: float
    counters: dict[str, int] = field(default_factory=dict)
    distributions: dict[str, dict[str, int]] = field(default_factory=dict)  # name → count, sum, min, max


@dataclass(frozen=True)
class Plan:
    """What `run_graph` hands to Beam. `processes` are FnApiRunner's worker processes, 0 for none but this."""

    runner: str
    flags: list[str]
    processes: int = 0


def run_graph(
    build: Callable[[beam.Pipeline], object],
    options: Sequence[str] = (),
    workers: int = 1,
    label: str = "",
) -> Metrics:
    """Build a graph, run it and wait for its end.

    `build` adds transforms to the pipeline that it is given. `options` are Beam's, as on a command line. `workers`
    counts the processes of FnApiRunner; 1 runs everything in this one. `label` names the graph in errors and jobs.
    Raises EngineError if the options ask for what is refused or unknown, JobFailed if the graph fails.
    """
    plan = resolve(options, workers, label)
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipelines import coders

    coders.register()
    guard_against_lost_elements()
    remember_state_specs()
    started = time.monotonic()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if plan.processes else {}  # a core for each
    with quiet(), own_temporary_folder(), _environment(PYTHONPATH=import_path(), **threads):
        beam_options = PipelineOptions(plan.flags)
        _check_endpoint(beam_options)
        runner = _process_runner(beam_options) if plan.processes else plan.runner
        pipeline = beam.Pipeline(runner=runner, options=beam_options)
        build(pipeline)
        try:
            result = pipeline.run()
            state = result.wait_until_finish() or result.state
        except Exception as error:
            raise job_failed(error, label) from error
        if state != "DONE":
            raise JobFailed(f"{label or 'graph'}: the engine ended it as {state}; its own log says why")
        return _metrics(result, plan.runner, state, time.monotonic() - started)


def _check_endpoint(options: PipelineOptions) -> None:
    """Whether a job service answers where the options say; Beam would wait as long as for the job."""
    from apache_beam.options.pipeline_options import PortableOptions

    endpoint = options.view_as(PortableOptions).job_endpoint or ""
    if ":" not in endpoint:
        return
    import grpc

    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise EngineError(
                f"no job service answers at --job_endpoint={endpoint} within {_ANSWER_SECONDS} s; start one "
                "(python -m pipelines.job_server --port 8099), or give the host and port of yours"
            ) from None


def guard_against_lost_elements() -> None:
    """Switch off the time-based flush between FnApiRunner and its workers, for this process.

    Beam 2.77 flushes output buffers from a timer thread ("read, send, clear") while another thread writes to them, and
    what is written in between is lost; the job still ends as done. Without the timer, buffers go out when they are full
    and when a bundle ends. Raises EngineError if this Beam keeps the limit elsewhere.
    """
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    if not hasattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS"):
        import apache_beam as beam

        raise EngineError(
            f"apache-beam {beam.__version__} keeps its flush timer in an unknown place, so lost elements cannot be "
            "ruled out; install apache-beam 2.77"
        )
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0


def remember_state_specs() -> None:
    """Let Beam look once at what state each DoFn has, for this process: it asks eight times, by reflection on all its
    methods, which is a third of the time that a graph takes to build."""
    from apache_beam.transforms import userstate

    if hasattr(userstate.get_dofn_specs, "__wrapped__"):
        return
    known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    ask = userstate.get_dofn_specs

    @wraps(ask)
    def specs(dofn: Any) -> Any:
        if dofn not in known:
            known[dofn] = ask(dofn)
        return known[dofn]

    userstate.get_dofn_specs = specs


def resolve(options: Sequence[str], workers: int = 1, label: str = "") -> Plan:
    """Beam options completed with what corpusmill decides: runner, worker processes, job name, no pickled main session.

    Raises EngineError for unknown or refused runners and options, with the nearest name and the reason.
    """
    given, unknown, names = _parse(tuple(options))
    runner = _check_runner(given.runner)
    _check_unknown(unknown, names, runner)
    if any(str(e).startswith("data_buffer_time_limit_ms") for e in given.experiments or []):
        raise EngineError("--experiments=data_buffer_time_limit_ms brings back a flush timer that loses elements")
    if given.dry_run or given.template_location:
        raise EngineError("--dry_run and --template_location run nothing; templates: pipelines.dataflow.write_template")
    flags = [*options, f"--runner={runner}", "--no_save_main_session"]
    if runner != "FnApiRunner":
        if given.job_endpoint and not re.search("--job[-_]server[-_]timeout", " ".join(options)):
            flags.append(f"--job_server_timeout={_LONGEST_JOB}")
        if label and not given.job_name:
            name = re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")
            flags.append(f"--job_name=corpusmill-{name}-{time.time_ns()}")
        return Plan(runner, flags)
    processes = _processes(given, workers)
    # FnApiRunner is handed its worker processes (`_process_runner`), so its own modes stay out of it.
    local = ["--direct_running_mode=in_memory", f"--direct_num_workers={max(processes, 1)}"]
    return Plan(runner, [*flags, *local], processes)


def is_local(options: Sequence[str]) -> bool:
    """Whether the options leave the work on this machine, with FnApiRunner."""
    return resolve(options).runner == "FnApiRunner"


def deal(elements: Sequence[Any], sizes: Sequence[int], workers: int) -> beam.PTransform:
    """A source of `elements`, dealt out so that the sums of `sizes` of all worker processes are about equal.

    FnApiRunner gives element i of a `Create` to worker i mod `workers`, whatever its size, and with `reshuffle=False`
    gives all to one worker; on other engines this is a plain `Create`. Largest first, each to the worker that has
    least (Graham 1969: at most 4/3 of the best possible).
    """
    import apache_beam as beam

    rounds = itertools.zip_longest(*_hands(elements, sizes, workers))  # None fills shorter hands: the turns stay right
    return beam.Create([e for turn in rounds for e in turn]) | beam.Filter(_is_element)


def _hands(elements: Sequence[Any], sizes: Sequence[int], workers: int) -> list[list[Any]]:
    hands: list[list[Any]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for i in sorted(range(len(elements)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        hands[least].append(elements[i])
        loads[least] += sizes[i]
    return hands


def _is_element(element: Any) -> bool:
    return element is not None


@lru_cache  # each time 350 options are made: 10 ms
def _parse(options: tuple[str, ...]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Beam's own parser over the options: what it knows, what it does not, and the names of all it knows."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[Any] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parser = parsers[0]

    def refuse(message: str) -> None:
        raise EngineError(f"Beam options: {message}")

    parser.error = refuse
    given, unknown = parser.parse_known_args([*options])
    return given, unknown, list(parser._option_string_actions)


def _check_runner(name: str | None) -> str:
    if not name:
        return "FnApiRunner"
    known = {n.lower().removesuffix("runner"): n for n in (*RUNNERS, *REFUSED)}
    short = name.rsplit(".", 1)[-1].lower().removesuffix("runner")
    runner = known.get(short)
    if runner in REFUSED:
        raise EngineError(f"--runner={name} {REFUSED[runner]}")
    if runner is None:
        near = difflib.get_close_matches(short, known, n=1)
        meant = f" (did you mean {known[near[0]]}?)" if near else ""
        raise EngineError(f"unknown runner {name}{meant}; one of {', '.join(RUNNERS)}")
    return runner


def _check_unknown(unknown: Sequence[str], names: Sequence[str], runner: str) -> None:
    for i, word in enumerate(unknown):
        name = word.split("=", 1)[0]
        if not name.startswith("--"):
            if runner in PORTABLE and i and unknown[i - 1].startswith("--"):
                continue  # the value of an option that only the job server knows
            raise EngineError(f"{word!r} is no Beam option; write options as --name=value")
        if name in OURS:
            raise EngineError(f"{name} is an option of corpusmill, not of Beam: it goes before `--`")
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.85 if runner in PORTABLE else 0.6)
        if near or runner not in PORTABLE:
            meant = f"; did you mean {near[0]}?" if near else ""
            raise EngineError(f"{runner} knows no option {name}{meant}")


def _processes(given: argparse.Namespace, workers: int) -> int:
    """Worker processes of FnApiRunner; 0: everything runs in this process."""
    mode, asked = given.direct_running_mode, given.direct_num_workers
    if mode == "multi_threading":
        raise EngineError(
            "--direct_running_mode=multi_threading is refused: one interpreter lock gives it no speed, and Beam 2.77 "
            "loses elements in it without an error. Use --workers=N, which starts processes"
        )
    if asked == 0:  # Beam's way to say: one for each core
        asked = os.cpu_count() or 1
    if workers < 1 or asked < 1 or (workers > 1 and asked not in (1, workers)):
        raise EngineError(f"{workers} workers and --direct_num_workers={asked}: give one number, at least 1")
    workers = max(workers, asked)
    return workers if workers > 1 or mode == "multi_processing" else 0


def _process_runner(options: PipelineOptions) -> Any:
    """FnApiRunner with our own worker processes, which are watched and get the options (log levels, file systems)."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    from pipelines import worker

    worker.register()
    for_workers = JobServiceHandle.encode_pipeline_options(options.get_all_options(drop_default=True))
    provision = beam_provision_api_pb2.ProvisionInfo(retrieval_token="unused", pipeline_options=for_workers)
    return FnApiRunner(
        default_environment=SubprocessSDKEnvironment.from_command_string(worker.COMMAND),
        provision_info=ExtendedProvisionInfo(provision),
    )


def job_failed(error: Exception, label: str) -> JobFailed:
    """One line for a failed graph: what was raised, where in whose code, in which step.

    An exception in this process comes as itself, one in another process as the text of its traceback.
    """
    text = str(error)
    if died := re.search("WorkerDied: (.+)", text):  # from pipelines/worker.py
        return JobFailed(f"{label or 'graph'} failed: {died[1]}", "WorkerDied", died[1])
    if _TRACEBACK not in text:
        text = "".join(traceback.format_exception(error))
    last = text.rsplit(_TRACEBACK, 1)[-1]
    frames = re.findall(r'^ +File "(.+)", line (\d+), in (.+)$', last, flags=re.MULTILINE)
    ours = [f for f in frames if "apache_beam" not in f[0]] or frames
    where = "{}:{} in {}".format(*ours[-1]) if frames else ""
    # What follows the last indented line is the exception itself.
    raised = re.split(r"^ +.*\n", last, flags=re.MULTILINE)[-1].strip() or str(error)
    step = "".join(re.findall(r" \[while running '(.+?)(?:-ptransform-\d+)?'\]", raised)[-1:])
    raised = re.sub(r" \[while running '.+?'\]", "", raised)
    kind, _, message = raised.partition(": ")
    summary = f"{label or 'graph'} failed: {raised}"
    summary += f" (at {where}" + (f", step {step!r})" if step else ")") if where else ""
    return JobFailed(summary, kind.rsplit(".", 1)[-1], message, where, step)


@contextmanager
def quiet() -> Iterator[None]:
    """Of Beam's log keep warnings and errors, but not the tracebacks that JobFailed sums up."""
    levels = {"apache_beam": logging.WARNING, **dict.fromkeys(_MISTAKEN, logging.ERROR)}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for name in _REPEATING:
        logging.getLogger(name).addFilter(_not_repeated)
    hook = threading.excepthook
    # Beam's reader threads die with a traceback when a worker does.
    threading.excepthook = lambda args: None if args.exc_type.__module__.startswith("grpc") else hook(args)
    try:
        yield
    finally:
        threading.excepthook = hook
        for name in _REPEATING:
            logging.getLogger(name).removeFilter(_not_repeated)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _not_repeated(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or (record.name == "root" and record.module != "portable_runner")


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Staging folders, which Beam leaves behind, go into a folder of our own that is removed."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="corpusmill-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            with _environment(TMPDIR=folder):
                yield
        finally:
            tempfile.tempdir = before


def import_path() -> str:
    """PYTHONPATH for worker processes: what this process imports from, so that a checkout works as an install does."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(dict.fromkeys([*(entry or str(Path.cwd()) for entry in sys.path), root]))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _metrics(result: Any, runner: str, state: str, seconds: float) -> Metrics:
    found = result.metrics().query()
    counters: dict[str, int] = {}
    for metric in found["counters"]:
        name = metric.key.metric.name
        counters[name] = counters.get(name, 0) + metric.result
    distributions: dict[str, dict[str, int]] = {}
    for metric in found["distributions"]:
        new, old = metric.result, distributions.get(metric.key.metric.name)
        distributions[metric.key.metric.name] = {
            "count": new.count + (old["count"] if old else 0),
            "sum": new.sum + (old["sum"] if old else 0),
            "min": min(new.min, old["min"]) if old else new.min,
            "max": max(new.max, old["max"]) if old else new.max,
        }
    return Metrics(runner, state, seconds, counters, distributions)
