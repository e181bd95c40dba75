"""Dataflow without an account: builds the job that would be submitted, and writes it as a template.

`construct` runs everything that submission runs short of the service: type hints, shuffle coders, pickling, containers,
resource hints. `write_template` adds the files that a classic template consists of. Takes about 2 s and no credentials;
needs `apache-beam[gcp]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import engine

if TYPE_CHECKING:
    import apache_beam as beam

__all__ = ["construct", "write_template"]


def construct(build: Callable[[beam.Pipeline], object], options: Sequence[str], label: str = "") -> Any:
    """The Dataflow job that `run_graph` with these options would submit; `.proto_pipeline` is Beam's portable graph.

    `options` need --project, --region and --temp_location (or --staging_location) under gs://.
    Raises EngineError if options are missing or refused, or if `apache-beam[gcp]` is not installed.
    """
    with engine.quiet(), engine.own_temporary_folder():
        return _construct(build, options, label)


def write_template(
    build: Callable[[beam.Pipeline], object], options: Sequence[str], folder: Path, label: str = ""
) -> Path:
    """Write a classic template into `folder`: `job.json`, `pipeline.pb` and what is staged with them; returns job.json.

    The template names its files as lying in --staging_location (or --temp_location): copy the folder's content there,
    then `gcloud dataflow jobs run NAME --gcs-location=STAGING/job.json`. Raises what `construct` raises.
    """
    with engine.quiet(), engine.own_temporary_folder():
        job = _construct(build, options, label)
        from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

        cloud = job.options.view_as(GoogleCloudOptions)
        cloud.staging_location = job.root_staging_location  # without the time stamp that Beam appends
        cloud.template_location = f"{cloud.staging_location}/job.json"

        class LocalClient(DataflowApplicationClient):
            def stage_file(self, location: str, name: str, stream: Any, *_: Any, **__: Any) -> None:
                path = folder / Path(location).relative_to(Path(cloud.staging_location)) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stream.read())

        client = LocalClient(job.options, job.root_staging_location)
        # Workers get the options too: they must neither think that it is a dry run nor go without credentials.
        cloud.no_auth, job.options.view_as(TestOptions).dry_run = False, False
        client.create_job(job)
    return folder / "job.json"


def _construct(build: Callable[[beam.Pipeline], object], options: Sequence[str], label: str) -> Any:
    plan = engine.resolve([*options, "--runner=DataflowRunner"], label=label)
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        import apache_beam.runners.dataflow.internal.apiclient
    except ImportError as error:
        raise engine.EngineError('Dataflow needs more packages: pip install "apache-beam[gcp]"') from error
    from pipelines import coders

    coders.register()
    try:
        pipeline = beam.Pipeline(options=PipelineOptions([*plan.flags, "--dry_run=true", "--no_auth"]))
    except ValueError as error:  # Beam's validation, one line for each option
        raise engine.EngineError(f"Dataflow: {error}") from error
    build(pipeline)
    return pipeline.run().job
