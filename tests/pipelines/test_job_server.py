"""The portable job service: graphs and files are all that client, service and workers share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import Metrics

from pipelines import engine, job_server, worker


def blocks(first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    batch = pa.record_batch({"id": range(first, first + 1000), "text": [f"text {i}" for i in range(1000)]})
    for start in range(0, 1000, 50):
        yield start % 7, batch.slice(start, 50)


def write(group: tuple[int, Iterable[pa.RecordBatch]], folder: str) -> str:
    Metrics.counter("test", "blocks").inc()
    key, batches = group
    table = pa.Table.from_batches(list(batches)).sort_by("id")
    path = Path(folder, f"{key}.parquet")
    pq.write_table(table.replace_schema_metadata({"process": str(os.getpid())}), path)
    return str(path)


def fail(number: int) -> int:
    raise ValueError(f"no shard {number}")


def run(folder: Path, options: list[str]) -> tuple[pa.Table, set[str], engine.Metrics]:
    """Shuffle Arrow blocks and write one file for each key; the rows, the processes that wrote, and the metrics."""
    folder.mkdir()
    keyed = beam.FlatMap(blocks).with_output_types(tuple[int, pa.RecordBatch])
    metrics = engine.run_graph(
        lambda p: p | beam.Create([0, 1000, 2000]) | keyed | beam.GroupByKey() | beam.Map(write, str(folder)), options
    )
    tables = [pq.read_table(file) for file in sorted(folder.iterdir())]
    processes = {table.schema.metadata[b"process"].decode() for table in tables}
    return pa.concat_tables(table.replace_schema_metadata() for table in tables), processes, metrics


@pytest.fixture(scope="module")
def options() -> Iterator[list[str]]:
    with job_server.job_server(workers=2) as options:
        yield options


def test_same_result_as_in_process(tmp_path: Path, options: list[str]) -> None:
    local, here, local_metrics = run(tmp_path / "local", [])
    remote, there, remote_metrics = run(tmp_path / "remote", options)
    assert local.num_rows == 3000
    assert remote.equals(local)
    assert here == {str(os.getpid())}
    assert len(there) == 2 and not there & here
    assert remote_metrics.runner == "PortableRunner"
    assert remote_metrics.counters == local_metrics.counters == {"blocks": 7}


def test_failure_names_the_first_cause(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(engine.JobFailed) as failed:
        engine.run_graph(lambda p: p | beam.Create([1]) | "Step" >> beam.Map(fail), options, label="scores")
    error = failed.value
    assert (error.kind, error.message, error.step) == ("ValueError", "no shard 1", "Step")
    assert error.where.startswith(f"{__file__}:")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("slow", ["[02468]", "[13579]"])  # the job ends before or after one of its workers has started
def test_failure_while_a_worker_is_starting(options: list[str], slow: str) -> None:
    late = f"case $WORKER_ID in *{slow}) sleep 4;; esac; {worker.COMMAND}"
    given = [*options, f"--environment_config={late}", "--job_server_timeout=60"]
    with pytest.raises(engine.JobFailed) as failed:
        engine.run_graph(lambda p: p | beam.Create([1, 2]) | "Step" >> beam.Map(fail), given)
    assert failed.value.kind == "ValueError"


def test_job_that_takes_longer_than_beams_client_waits(options: list[str]) -> None:
    with pytest.raises(engine.JobFailed, match="Deadline"):
        engine.run_graph(lambda p: p | beam.Create([6]) | beam.Map(time.sleep), [*options, "--job_server_timeout=3"])


def test_service_as_a_command_of_its_own(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "pipelines.job_server", "--port", "0", "--ready-file", str(ready)]
    environment = {**os.environ, "PYTHONPATH": engine.import_path()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        first = server.stderr.readline()
        try:
            options = job_server.client_options(first.split()[-1])
            assert run(tmp_path / "remote", options)[0].num_rows == 3000
            assert ready.read_text() == first.split()[-1]
        finally:
            server.terminate()
    assert server.returncode == 0


def test_service_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(engine.EngineError, match=r"did not start \(exit code 1\)"), job_server.job_server():
        pass
