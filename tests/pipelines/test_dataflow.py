"""Dataflow, as far as it can be seen from here: the job that would be submitted, which runs from its files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

from pipelines import coders, dataflow, engine

pytest.importorskip("google.cloud.dataflow_v1beta3", reason="needs apache-beam[gcp]")

IMAGE = "europe-docker.pkg.dev/my-project/images/corpusmill:0.1.0"
OPTIONS = [
    "--project=my-project",
    "--region=europe-west4",
    "--temp_location=gs://my-bucket/tmp",
    "--staging_location=gs://my-bucket/staging",
    f"--sdk_container_image={IMAGE}",
    "--sdk_location=container",
    "--worker_machine_type=n2-highmem-4",
    "--experiments=no_use_multiple_sdk_containers",
]
ACCELERATOR = "type:nvidia-l4;count:1;install-nvidia-driver"


class Read(beam.DoFn):
    """Path of a Parquet file → (key, slice) for slices of ten rows."""

    def process(self, path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        for batch in pq.ParquetFile(path).iter_batches():
            for start in range(0, len(batch), 10):
                yield start // 10 % 3, batch.slice(start, 10)


class Write(beam.DoFn):
    """(key, slices) → one Parquet file."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        key, batches = group
        path = f"{self.folder}/{key}.parquet"
        pq.write_table(pa.Table.from_batches(list(batches)).sort_by("id"), path)
        yield path


class Graph:
    """Reader, keyed Arrow shuffle, and a writer that asks for a GPU."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = str(source), str(folder)

    def __call__(self, pipeline: beam.Pipeline) -> object:
        read = beam.ParDo(Read()).with_output_types(tuple[int, pa.RecordBatch])
        write = beam.ParDo(Write(self.folder)).with_resource_hints(accelerator=ACCELERATOR, min_ram="30GB")
        return pipeline | beam.Create([self.source]) | "Read" >> read | beam.GroupByKey() | "Write" >> write


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    pq.write_table(pa.table({"id": range(100), "text": ["a"] * 100}), tmp_path / "in.parquet")
    (tmp_path / "out").mkdir()
    return Graph(tmp_path / "in.parquet", tmp_path / "out")


def step(proto: Any, label: str) -> Any:
    """The primitive transform whose label ends with `label`."""
    found = [t for t in proto.components.transforms.values() if t.unique_name.endswith(label) and not t.subtransforms]
    assert len(found) == 1, [t.unique_name for t in proto.components.transforms.values()]
    return found[0]


def test_containers_and_resource_hints(graph: Graph) -> None:
    proto = dataflow.construct(graph, OPTIONS).proto_pipeline
    environments = {name: proto.components.environments[step(proto, name).environment_id] for name in ("Read", "Write")}
    for environment in environments.values():
        assert beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image == IMAGE
    assert not environments["Read"].resource_hints
    assert environments["Write"].resource_hints == {
        "beam:resources:accelerator:v1": ACCELERATOR.encode(),
        "beam:resources:min_ram_bytes:v1": b"30000000000",
    }


def test_hints_for_a_whole_job(graph: Graph) -> None:
    options = [*OPTIONS, f"--resource_hint=accelerator={ACCELERATOR}", "--resource_hint=min_ram=30GB"]
    proto = dataflow.construct(graph, options).proto_pipeline
    hints = proto.components.environments[step(proto, "Read").environment_id].resource_hints
    assert hints["beam:resources:accelerator:v1"] == ACCELERATOR.encode()
    assert hints["beam:resources:min_ram_bytes:v1"] == b"30000000000"


def test_shuffle_uses_the_arrow_coder(graph: Graph) -> None:
    proto = dataflow.construct(graph, OPTIONS).proto_pipeline
    (shuffled,) = step(proto, "GroupByKey").inputs.values()
    coder = PipelineContext(proto.components).coders.get_by_id(proto.components.pcollections[shuffled].coder_id)
    assert coder.value_coder() == coders.RecordBatchCoder()


def test_functions_are_pickled_by_reference(graph: Graph) -> None:
    proto = dataflow.construct(graph, OPTIONS).proto_pipeline
    for name, expected in (("Read", Read), ("Write", Write)):
        payload = beam_runner_api_pb2.ParDoPayload.FromString(step(proto, name).spec.payload).do_fn.payload
        assert type(pickler.loads(payload)[0]) is expected
        assert len(payload) < 3_000  # the class's name, not its code


def test_template(graph: Graph, tmp_path: Path) -> None:
    path = dataflow.write_template(graph, OPTIONS, tmp_path / "template", label="dedupe")
    job = json.loads(path.read_text())
    environment, options = job["environment"], job["environment"]["sdkPipelineOptions"]["options"]
    assert job["name"].startswith("corpusmill-dedupe-")
    assert options["pipelineUrl"] == "gs://my-bucket/staging/pipeline.pb"
    assert not options["save_main_session"] and not options["no_auth"] and not options["dry_run"]
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == "n2-highmem-4"
    assert {image["containerImage"] for image in pool["sdkHarnessContainerImages"]} == {IMAGE}
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    staged = {package["name"] for package in pool["packages"]}
    assert "pickled_main_session" not in staged
    assert {file.name for file in path.parent.iterdir()} == staged | {"job.json", "pipeline.pb"}


RUN_TEMPLATE = """
import sys
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment
proto = beam_runner_api_pb2.Pipeline.FromString(open(sys.argv[1], "rb").read())
for environment in proto.components.environments.values():
    environment.CopyFrom(EmbeddedPythonEnvironment.default().to_runner_api(None))
assert FnApiRunner().run_via_runner_api(proto, PipelineOptions([])).wait_until_finish() == "DONE"
"""


def test_template_runs_in_another_process_from_its_file(graph: Graph, tmp_path: Path) -> None:
    path = dataflow.write_template(graph, OPTIONS, tmp_path / "template")
    environment = {**os.environ, "PYTHONPATH": engine.import_path()}
    command = [sys.executable, "-c", RUN_TEMPLATE, str(path.with_name("pipeline.pb"))]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    rows = pa.concat_tables(pq.read_table(file) for file in Path(graph.folder).iterdir())
    assert len(list(Path(graph.folder).iterdir())) == 3
    assert sorted(rows["id"].to_pylist()) == list(range(100))


def test_missing_options_are_named(graph: Graph) -> None:
    with pytest.raises(engine.EngineError, match="project") as refused:
        dataflow.construct(graph, ["--region=europe-west4", "--temp_location=gs://my-bucket/tmp"])
    assert refused.value.exit_code == 2
