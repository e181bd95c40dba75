"""What a run reads: sources, shards and splits, and the scan that finds them and sets aside those that cannot be read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import store

SPLIT_BYTES = 64 << 20
TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True)
class Shard:
    """One input file. `groups` holds (rows, bytes of text) of each row group; `cause` says why it cannot be read."""

    source: str
    name: str
    path: str
    size: int
    modified: int
    digest: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    cause: str | None = None

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.groups)


@dataclass(frozen=True)
class Split:
    """A range of row groups of one shard: the unit of work and of commit."""

    source: str
    shard: str
    name: str
    path: str
    digest: str
    first_group: int
    groups: tuple[int, ...]  # rows of each row group
    first_row: int
    text_bytes: int

    @property
    def rows(self) -> int:
        return sum(self.groups)

    def sidecar(self, folder: str) -> str:
        """Path of this split's file below a folder of the run."""
        return f"{folder}/{self.source}/{self.name}.parquet"

    def identity(self) -> list[Any]:
        """What a key must depend on: content and place of the rows, not where the file lies."""
        return [self.source, self.shard, self.digest, self.first_group, len(self.groups)]


def expand(sources: dict[str, str | list[str]]) -> list[Shard]:
    """Every file that the globs of the sources match, ordered by (source, name), not yet opened.

    Raises:
        ValueError: a glob matches nothing, or two files of a source would have the same shard name.
    """
    shards: dict[tuple[str, str], Shard] = {}
    for source, patterns in sources.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = _match(pattern)
            if not found:
                raise ValueError(f"sources.{source}: no file matches {pattern!r}")
            fixed = glob.escape(pattern) == pattern and pattern or pattern[: min(map(pattern.index, set(pattern) & set("*?[")))]
            root = fixed[: fixed.rfind("/") + 1]
            for path, size, modified in found:
                name = path[len(root) :].removesuffix(".parquet")
                shard = Shard(source, name, path, size, modified)
                other = shards.setdefault((source, name), shard)
                if other.path != path:
                    raise ValueError(f"sources.{source}: {other.path} and {path} would both be shard {name!r}; give each its own source")
    return [shards[key] for key in sorted(shards)]


def _match(pattern: str) -> list[tuple[str, int, int]]:
    if store.is_remote(pattern):
        from apache_beam.io.filesystems import FileSystems

        matched = FileSystems.match([pattern])[0].metadata_list
        return [(m.path, m.size_in_bytes, int(m.last_updated_in_seconds or 0)) for m in matched]
    paths = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    return [(p, (s := os.stat(p)).st_size, s.st_mtime_ns) for p in paths]


def scan(shard: Shard, text: str) -> Shard:
    """Open one shard: its digest, columns and row groups, or the cause why it is quarantined."""
    try:
        with store.open_read(shard.path) as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            if text not in schema.names:
                raise ValueError(f"no column {text!r}; there are {', '.join(schema.names) or 'none'}")
            kind = schema.field(text).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (any(is_text(kind) for is_text in TEXT_TYPES) or pa.types.is_string_view(kind)):
                raise ValueError(f"column {text!r} is {kind}, not text")
            groups = tuple(_group(metadata.row_group(g), text) for g in range(metadata.num_row_groups))
            columns = tuple((f.name, str(f.type)) for f in schema)
        return _replace(shard, digest=store.file_digest(shard.path), columns=columns, groups=groups)
    except (OSError, ValueError, pa.ArrowException) as error:
        return _replace(shard, cause=f"{type(error).__name__}: {error}".split("\n")[0])


def _group(group: Any, text: str) -> tuple[int, int]:
    columns = (group.column(i) for i in range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == text)
    return group.num_rows, size


def _replace(shard: Shard, **changes: Any) -> Shard:
    return Shard(**{**asdict(shard), **changes})


def splits(shards: Iterable[Shard]) -> list[Split]:
    """The splits of readable shards: whole row groups, together about SPLIT_BYTES of text."""
    result = []
    for shard in shards:
        if shard.cause is not None:
            continue
        ranges: list[list[int]] = [[]]
        for g, (_, size) in enumerate(shard.groups):
            held = sum(shard.groups[i][1] for i in ranges[-1])
            if ranges[-1] and held + size > SPLIT_BYTES:
                ranges.append([])
            ranges[-1].append(g)
        for groups in ranges:
            first = groups[0] if groups else 0
            name = shard.name if len(ranges) == 1 else f"{shard.name}.{first:05d}-{groups[-1]:05d}"
            rows = tuple(shard.groups[g][0] for g in groups)
            before = sum(r for r, _ in shard.groups[:first])
            size = sum(shard.groups[g][1] for g in groups)
            result.append(Split(shard.source, shard.name, name, shard.path, shard.digest, first, rows, before, size))
    return result


def schema_of(shards: Iterable[Shard]) -> dict[str, tuple[str, str]]:
    """Union of the shards' columns: name -> (type, path of a shard that has it).

    Raises:
        ValueError: two shards hold different types under one name; both are named.
    """
    union: dict[str, tuple[str, str]] = {}
    for shard in shards:
        for name, kind in shard.columns:
            plain = kind.replace("large_", "").replace("string_view", "string")
            first, path = union.setdefault(name, (plain, shard.path))
            if first != plain:
                raise ValueError(f"column {name!r} is {first} in {path} but {plain} in {shard.path}; make the shards agree")
    return union


def to_json(shards: Iterable[Shard]) -> list[dict[str, Any]]:
    return [asdict(shard) for shard in shards]


def from_json(items: Iterable[dict[str, Any]]) -> list[Shard]:
    return [
        Shard(**{**item, "columns": tuple(map(tuple, item["columns"])), "groups": tuple(map(tuple, item["groups"]))})
        for item in items
    ]
