"""Beam's job service on this machine: clients send it serialized graphs, it runs them with workers in other processes.

Client, service and workers exchange nothing but the graph and files, as on Flink or Dataflow, so a graph that runs here
is known not to lean on shared memory. `python -m pipelines.job_server --port 8099` serves until it is ended;
`job_server()` starts one for the length of a `with` block. The service starts in 2 s, the workers of each job in 2 s.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer

from pipelines import engine, worker

__all__ = ["client_options", "job_server", "main", "serve"]

_START_SECONDS = 60


def client_options(endpoint: str, workers: int = 1) -> list[str]:
    """Beam options that send graphs to the job service at `endpoint` (host:port) and ask for `workers` processes."""
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={endpoint}",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config={worker.COMMAND}",
        f"--direct_num_workers={workers}",
    ]


@contextmanager
def job_server(workers: int = 1) -> Iterator[list[str]]:
    """Run a job service in a process of its own; yields the Beam options that send graphs to it.

    Raises EngineError if the service does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="corpusmill-jobs-") as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "pipelines.job_server", f"--ready-file={ready}", "--until-stdin-closes"]
        environment = {**os.environ, "PYTHONPATH": engine.import_path(), "TMPDIR": folder}
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as server:
            try:
                yield client_options(_wait_for(ready, server), workers)
            finally:
                server.terminate()


def serve(port: int, ready: Path | None, stop: threading.Event) -> None:
    """Serve until `stop` is set. Port 0 takes a free one; the file `ready` gets `localhost:<port>`."""
    engine.guard_against_lost_elements()
    worker.register()
    # Errors go to the client, which reports them.
    logging.getLogger(LocalJobServicer.__module__).addFilter(lambda record: not record.exc_info)
    service = LocalJobServicer(beam_job_type=_Job)
    endpoint = f"localhost:{service.start_grpc_server(port)}"
    print(f"job service at {endpoint}", *client_options(endpoint), sep="\n  ", file=sys.stderr)
    if ready:
        partial = ready.with_suffix(".partial")
        partial.write_text(endpoint)
        partial.rename(ready)
    try:
        stop.wait()
    finally:
        service.stop()


class _Job(BeamJob):
    """Beam's local job, which would ignore the number of workers that the client asks for."""

    def _invoke_runner(self) -> Any:
        self.set_state(beam_job_api_pb2.JobState.RUNNING)
        options = self.pipeline_options()
        runner = FnApiRunner(provision_info=self._provision_info)
        runner._num_workers = int(options.view_as(DirectOptions).direct_num_workers) or os.cpu_count()
        return runner.run_via_runner_api(self._pipeline_proto, options)


def _wait_for(ready: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while not ready.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise engine.EngineError(f"the job service did not start (exit code {server.poll()}); its output says why")
        time.sleep(0.05)
    return ready.read_text()


def _stop_at_end_of_stdin(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.job_server", description="Run Beam's job service here.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="gets localhost:PORT once the service answers")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started this one")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: stop.set())
    if given.until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_stdin, args=(stop,), daemon=True).start()
    with engine.quiet():
        serve(given.port, given.ready_file, stop)


if __name__ == "__main__":
    main()
