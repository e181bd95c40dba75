"""What a run reads: sources, shards and splits, and the scan that sets aside those that cannot be read."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import store
from transforms.conversations import is_conversation

log = logging.getLogger("corpusmill")
SPLIT_BYTES = 64 << 20
IS_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


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
        ValueError: a glob matches nothing, two files of a source would have the same shard name, or one file two.
    """
    shards: dict[tuple[str, str], Shard] = {}
    seen: dict[str, tuple[str, str, str]] = {}  # file: source, name and glob that had it first
    shared = []
    for source, patterns in sources.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = _match(pattern)
            if not found:
                raise ValueError(f"sources.{source}: no file matches {pattern!r}{_meant(pattern)}")
            root = _root(pattern)
            for path, size, modified in found:
                name = path[len(root) :].removesuffix(".parquet")
                other = shards.setdefault((source, name), Shard(source, name, path, size, modified))
                if other.path != path:
                    both = f"{other.path} and {path} would both be shard {name!r}"
                    raise ValueError(f"sources.{source}: {both}; give each its own source")
                file = path if store.is_remote(path) else os.path.abspath(path)  # noqa: PTH100  (links stay as they are)
                first, named, before = seen.setdefault(file, (source, name, pattern))
                if first != source:
                    shared.append(f"{path} is in {first!r} and in {source!r}")
                elif named != name:
                    both = f"{path} is matched by {before!r} and by {pattern!r}"
                    raise ValueError(f"sources.{source}: {both} and would be read twice; let one glob match it")
    if shared:
        log.warning("files in more than one source, read for each: %d (%s)", len(shared), shared[0])
    return [shards[key] for key in sorted(shards)]


def _meant(pattern: str) -> str:
    """What was probably wanted where a glob matches nothing."""
    if store.is_remote(pattern):
        return ""
    if Path(pattern).is_dir():
        return f", which is a folder; did you mean '{pattern.rstrip('/')}/*.parquet'?"
    if pattern.startswith("corpus/") and not Path("corpus").exists():  # where the quickstart has its sources
        return "; make a corpus with `corpusmill sample-corpus --out corpus`"
    return ""


def _root(pattern: str) -> str:
    """The folder above the first wildcard of a glob, with its slash; empty if there is none."""
    fixed = pattern[: min((pattern.index(c) for c in "*?[" if c in pattern), default=len(pattern))]
    return fixed[: fixed.rfind("/") + 1]


def _match(pattern: str) -> list[tuple[str, int, int]]:
    if store.is_remote(pattern):
        from apache_beam.io.filesystems import FileSystems

        matched = FileSystems.match([pattern])[0].metadata_list
        return [(m.path, m.size_in_bytes, int(m.last_updated_in_seconds or 0)) for m in matched]
    paths = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207  (absolute ones too)
    return [(p, (s := Path(p).stat()).st_size, s.st_mtime_ns) for p in paths]


def at(source: str, name: str, path: str) -> Shard:
    """The shard of a file that is there, not yet opened."""
    if store.is_remote(path):
        ((_, size, modified),) = _match(path)
    else:
        state = Path(path).stat()
        size, modified = state.st_size, state.st_mtime_ns
    return Shard(source, name, path, size, modified)


def scan(shard: Shard, text: str) -> Shard:
    """Open one shard: its digest, columns and row groups, or the cause why it is quarantined."""
    try:
        with store.open_read(shard.path) as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            check_columns(schema, text)
            groups = tuple(_group(metadata.row_group(g), text) for g in range(metadata.num_row_groups))
            columns = tuple((f.name, type_text(f.type)) for f in schema)
        return _replace(shard, digest=store.file_digest(shard.path), columns=columns, groups=groups)
    except (OSError, ValueError, pa.ArrowException) as error:
        return _replace(shard, cause=f"{type(error).__name__}: {error}".split("\n")[0])


def check_columns(schema: pa.Schema, text: str) -> None:
    """Check the columns of a shard.

    Raises:
        ValueError: a column is missing, of a wrong type, or there are several of one name.
    """
    names = schema.names
    if text not in names:
        raise ValueError(f"no column {text!r}; there are {', '.join(names) or 'none'}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several columns are named {', '.join(map(repr, twice))}")
    plain = plain_type(schema.field(text).type)
    if not (is_text(plain) or is_conversation(plain)):
        raise ValueError(f"column {text!r} is {plain}, not text")
    if "id" in names and not is_text(plain := plain_type(schema.field("id").type)):
        try:
            pa.nulls(0, plain).cast(pa.large_string())
        except pa.ArrowException:
            raise ValueError(f"column 'id' is {plain}, neither text nor a number") from None


def is_text(kind: pa.DataType) -> bool:
    """Whether a type can hold documents."""
    return any(test(kind) for test in IS_TEXT)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, however they are encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def type_text(kind: pa.DataType) -> str:
    """A type as text: Arrow's short name, or for nested types, which have none, their serialized schema in hex."""
    try:
        if pa.type_for_alias(str(kind)) == kind:
            return str(kind)
    except ValueError:
        pass
    return pa.schema([pa.field("", kind)]).serialize().to_pybytes().hex()


def type_of(text: str) -> pa.DataType:
    """The type that `type_text` wrote."""
    try:
        return pa.type_for_alias(text)
    except ValueError:
        return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text))).field(0).type


def _group(group: Any, text: str) -> tuple[int, int]:
    columns = (group.column(i) for i in range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(f"{text}."))
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


def schema_of(shards: Iterable[Shard], text: str = "text") -> dict[str, tuple[str, str]]:
    """Union of the shards' columns: name -> (type as `type_text` has it, path of a shard that has it).

    Text and id may be of any type of text, since they are cast when read. A column without values (Arrow's null type)
    agrees with every other.

    Raises:
        ValueError: two shards hold different types under one name; both are named.
    """
    union: dict[str, tuple[str, str]] = {}
    for shard in shards:
        for name, kind in shard.columns:
            first, path = union.setdefault(name, (kind, shard.path))
            if kind == first or kind == "null":
                continue
            if first == "null":
                union[name] = (kind, shard.path)
            elif name not in (text, "id") and _essence(type_of(first)) != _essence(type_of(kind)):
                one, other = f"{type_of(first)} in {path}", f"{type_of(kind)} in {shard.path}"
                raise ValueError(f"column {name!r} is {one} but {other}; make the shards agree")
    return union


def _essence(kind: pa.DataType) -> pa.DataType:
    """What matters of a type: not how its values are encoded or how wide its offsets are."""
    kind = plain_type(kind)
    if is_text(kind):
        binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        return pa.binary() if any(test(kind) for test in binary) else pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_essence(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(f.name, _essence(f.type)) for f in kind])
    return kind


def to_json(shards: Iterable[Shard]) -> list[dict[str, Any]]:
    return [asdict(shard) for shard in shards]


def from_json(items: Iterable[dict[str, Any]]) -> list[Shard]:
    return [
        Shard(**{**item, "columns": tuple(map(tuple, item["columns"])), "groups": tuple(map(tuple, item["groups"]))})
        for item in items
    ]
