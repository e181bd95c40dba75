"""What fits have in common that serve a target: where it and a run's documents come from, and both as vectors.

The samples are held in memory: texts, and 512 bytes per document with the hashing encoder.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from trainers.fits import Fit, Wanted
from transforms.draws import draws
from transforms.embedding import Embedding

FORMS = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Embedded:
    """Vectors of both sides (int16 [documents, dimensions], none zero), draws and rows of the pool's documents in their
    sample, and how many had no words."""

    target: np.ndarray
    pool: np.ndarray
    draw: np.ndarray  # uint64 [pool]
    row: np.ndarray  # int64 [pool]
    without_words: int

    def documents(self) -> dict[str, int]:
        """For a card."""
        return {"target": len(self.target), "pool": len(self.pool), "without words": self.without_words}


class FromTarget(Fit):
    """A fit on a target and a seeded sample of the documents where `pool` holds.

    The target is either `target`, an SQL condition over the run's documents, or `files`: paths, folders or globs of
    Parquet or JSONL files with a `column` of text. Documents drawn as the target are not in the sample of the pool.
    """

    target: str | None = None
    files: tuple[Path, ...] = ()
    column: str = "text"
    target_documents: int = Field(1000, ge=1, description="at most so many")
    pool: str = "true"
    pool_documents: int = Field(10_000, ge=2, description="at most so many")

    @field_validator("files", mode="before")
    @classmethod
    def _expanded(cls, given: Any) -> Any:
        """Globs and folders as the files they hold, so that a model's key depends on the content of each."""
        given = [given] if isinstance(given, str | Path) else given
        if not isinstance(given, list | tuple):
            return given
        return tuple(dict.fromkeys(file for one in given for file in _files(str(one))))

    @model_validator(mode="after")
    def _one_target(self) -> FromTarget:
        if (self.target is None) == (not self.files):
            raise ValueError("the target is either `target`, an SQL condition, or `files`; give one of them")
        for file in self.files:
            _read(file, self.column, rows=1)
        return self

    def samples(self) -> dict[str, Wanted]:
        pool = Wanted(self.pool, documents=self.pool_documents, without="target" if self.target else None)
        if self.target is None:
            return {"pool": pool}
        return {"target": Wanted(self.target, documents=self.target_documents), "pool": pool}

    def targets(self, samples: Mapping[str, pa.Table], seed: int) -> pa.Array | pa.ChunkedArray:
        """Texts of the target, in an order that follows from seed and content."""
        return samples["target"].column("text") if self.target else self._texts(seed)

    def _texts(self, seed: int) -> pa.Array:
        """Texts of the files: those of lowest draw, in order of it, where there are more than are wanted."""
        texts = pa.concat_arrays([_read(file, self.column) for file in self.files])
        draw = draws(seed, texts)
        order = np.lexsort((pc.rank(texts, tiebreaker="dense").to_numpy(), draw))
        return texts.take(pa.array(order[: self.target_documents]))


class TargetFit(FromTarget):
    """Such a fit that compares the two as vectors."""

    embedding: Embedding = Embedding()

    def embedded(self, samples: Mapping[str, pa.Table], seed: int) -> Embedded:
        """Both sides in an order that follows from seed and content.

        Raises:
            ValueError: fewer than one target document or two of the pool have words.
        """
        texts = (self.targets(samples, seed), samples["pool"].column("text"))
        sides = [self.embedding.vectors(some) for some in texts]
        with_words = [side.any(axis=1) for side in sides]
        here, there = (int(some.sum()) for some in with_words)
        if here < 1 or there < 2:
            given = f"{here} of {len(sides[0])} target documents and {there} of {len(sides[1])} of the pool have words"
            raise ValueError(f"{given}; expected at least 1 and 2: widen the target's condition or files, or `pool`")
        draw = samples["pool"].column("draw").to_numpy()[with_words[1]]
        left = len(sides[0]) + len(sides[1]) - here - there
        return Embedded(sides[0][with_words[0]], sides[1][with_words[1]], draw, np.flatnonzero(with_words[1]), left)


def quoted(column: str) -> str:
    """SQL of a column's name."""
    return '"' + column.replace('"', '""') + '"'


def class_numbers(column: pa.ChunkedArray, name: str) -> tuple[list[str], np.ndarray]:
    """The different values as text, in order, and the number of each document's among them, int64.

    Raises:
        ValueError: fewer than two values, or values that cannot be written as text.
    """
    try:
        values = column.cast(pa.large_string())
    except pa.ArrowException:
        raise ValueError(f"classes: {name} is {column.type}; expected text or numbers") from None
    names = sorted(values.unique().to_pylist())
    if len(names) < 2:
        given = f"{len(values)} documents with words have {len(names)} different values"
        raise ValueError(f"classes: {name}: {given}; expected at least two")
    return names, pc.index_in(values, pa.array(names, pa.large_string())).to_numpy().astype(np.int64)


def _files(path: str) -> Iterator[Path]:
    """The Parquet and JSONL files that a path, a folder or a glob means, by name. Raises ValueError: there is none."""
    there = [Path(path)] if Path(path).exists() else sorted(map(Path, glob.glob(path, recursive=True)))  # noqa: PTH207
    found = [f for p in there for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.suffix in FORMS]
    if not found:
        raise ValueError(f"no target documents at {path}; give a .parquet or .jsonl file, a folder or a glob of some")
    yield from found


def _read(file: Path, column: str, rows: int | None = None) -> pa.LargeStringArray:
    """The texts of one file, of its first rows or all, without nulls. Raises ValueError naming the file."""
    import polars

    try:
        lines = file.suffix != ".parquet"
        frame = polars.scan_ndjson(file, infer_schema_length=None) if lines else polars.scan_parquet(file)
        schema = frame.collect_schema()
        if column not in schema:
            raise ValueError(f"{file} has no column {column!r}; its columns are {', '.join(schema) or 'none'}")
        if schema[column] != polars.String:
            raise ValueError(f"{file}: column {column!r} is {schema[column]}, expected strings")
        found = (frame if rows is None else frame.head(rows)).select(column).collect().to_series()
    except (OSError, polars.exceptions.PolarsError) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix.removeprefix('.')}: {error}") from error
    return found.drop_nulls().to_arrow().cast(pa.large_string())
