"""Fit steps: a seeded sample of a run's documents, a model from `trainers`, a key that tells whether it is current."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines import store
from pipelines.code import code_digest
from pipelines.plan import model_folder
from pipelines.recipe import FitFastText, FitTokenizer
from pipelines.sample import Sample, draw
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables

Spec = FitTokenizer | FitFastText


def fit(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, spec: Spec, documents: int
) -> dict[str, Any]:
    """Fit one model into RUN/models/NAME unless it is current; returns {key, digest, seconds, reused}."""
    started = time.perf_counter()
    samples = _samples(context, tables, splits, name, spec, documents)
    parts = [
        table.column(2).to_numpy().tobytes() + "\0".join(table.column("id").to_pylist()).encode() for table in samples
    ]
    module = "trainers.fit_tokenizer" if isinstance(spec, FitTokenizer) else "trainers.fit_fasttext"
    drawn = store.digest([part.hex() for part in parts])
    bases = tables.base({tables.text})
    key = store.digest(
        spec.model_dump(), tables.seed, drawn, bases, sorted(s.identity() for s in splits), code_digest(module)
    )
    path, folder = f"{context.run}/models/{name}.json", model_folder(context.run, name)
    held = store.read_json(path)
    if held and held["key"] == key and folder.is_dir() and store.folder_digest(str(folder)) == held["digest"]:
        return {**held, "reused": True}
    texts = [table.column(tables.text).to_pylist() for table in samples]
    if isinstance(spec, FitTokenizer):
        from trainers.fit_tokenizer import fit_tokenizer

        fit_tokenizer(texts[0], folder, spec.vocabulary)
    else:
        from trainers.fit_fasttext import FastTextParameters, fit_fasttext

        good, other = texts
        fit_fasttext(good, other, folder, FastTextParameters(**spec.parameters), tables.seed)
    seconds = time.perf_counter() - started
    context.seconds[f"fit {name}"] = seconds
    made = {"key": key, "digest": store.folder_digest(str(folder)), "seconds": seconds}
    store.write_json(path, made)
    return {**made, "reused": False}


def _samples(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, spec: Spec, documents: int
) -> list[pa.Table]:
    """What the model is fitted on. No document of a classifier's positives is among its random ones."""
    if isinstance(spec, FitTokenizer):
        whole = Sample(name, spec.where, weight="bytes", total=round(spec.megabytes * 1e6))
        return [draw(context, tables, splits, whole, documents)]
    wanted = Sample(f"{name}.positives", spec.positives, total=spec.documents)
    positives = draw(context, tables, splits, wanted, documents)
    last = positives.column("draw")[-1]
    others = f"({spec.negatives}) AND NOT (({spec.positives}) AND draw <= {last})"
    negatives = draw(context, tables, splits, Sample(f"{name}.negatives", others, total=spec.documents), documents)
    return [positives, negatives]
