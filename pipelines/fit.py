"""Fit steps: a seeded sample of a run's documents, a model from `trainers`, a key that tells whether it is current."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import store
from pipelines.code import code_digest
from pipelines.plan import model_folder
from pipelines.sample import Sample, SampleError, draw
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables
from trainers.fits import Fit, Wanted
from transforms.draws import hashes


def fit(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, spec: Fit, documents: int
) -> dict[str, Any]:
    """Fit one model into RUN/models/NAME unless it is current; returns {key, digest, seconds, reused}."""
    started = time.perf_counter()
    samples = _samples(context, tables, splits, name, spec, documents)
    drawn = [_digest(table) for table in samples.values()]
    bases = tables.base({tables.text})
    identities = sorted(s.identity() for s in splits)
    code = code_digest(type(spec).__module__)
    key = store.digest(spec.method, store.content(spec), tables.seed, drawn, bases, identities, code)
    path, folder = f"{context.run}/models/{name}.json", model_folder(context.run, name)
    held = store.read_json(path)
    if held and held["key"] == key and folder.is_dir() and store.folder_digest(str(folder)) == held["digest"]:
        return {**held, "reused": True}
    context.computes(f"fit {name}")
    _replace(spec, samples, folder, f"{context.run}/scratch/fit", tables.seed, name)
    seconds = time.perf_counter() - started
    context.seconds[f"fit {name}"] = seconds
    made = {"key": key, "digest": store.folder_digest(str(folder)), "seconds": seconds}
    store.write_json(path, made)
    return {**made, "reused": False}


def _replace(spec: Fit, samples: dict[str, pa.Table], folder: Path, scratch: str, seed: int, name: str) -> None:
    """Fit into a folder of its own, then put it in the place of the model before: of that no file stays."""
    shutil.rmtree(scratch, ignore_errors=True)
    Path(scratch).mkdir(parents=True)
    try:
        spec.fit(samples, Path(scratch), seed)
    except ValueError as error:  # what a fit says of samples that do not serve
        raise SampleError(f"fit {name!r}: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(scratch).rename(folder)


def _samples(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, spec: Fit, documents: int
) -> dict[str, pa.Table]:
    """What the model is fitted on, by the names of its samples."""
    wanted = spec.samples()
    drawn: dict[str, pa.Table] = {}
    for sample, want in wanted.items():
        where = want.where
        if want.without:
            last = drawn[want.without].column("draw")[-1]
            where = f"({where}) AND (({wanted[want.without].where}) AND draw <= {last}) IS NOT TRUE"
        label = name if len(wanted) == 1 else f"{name}.{sample}"
        try:
            drawn[sample] = draw(context, tables, splits, _sample(label, where, want), documents)
        except SampleError as error:
            beside = f" besides those of {want.without!r}" if want.without else ""
            message = f"fit {name!r}: no document satisfies {want.where!r} and is not held out{beside}"
            raise SampleError(message) from error
    return drawn


def _sample(name: str, where: str, want: Wanted) -> Sample:
    columns = tuple(want.columns.items())
    if want.megabytes is not None:
        return Sample(name, where, weight="bytes", total=round(want.megabytes * 1e6), columns=columns)
    return Sample(name, where, total=want.documents or np.iinfo(np.int64).max, columns=columns)


def _digest(table: pa.Table) -> str:
    """Of the texts drawn, in their order, and what came along with them; two texts may have one id."""
    texts = hashes(table.column("text").combine_chunks()).tobytes()
    values = [table.column(name).to_pylist() for name in table.column_names[3:] if name != "text"]
    return store.digest(texts.hex(), repr(values))
