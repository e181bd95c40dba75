"""Files of a run folder: written under a temporary name, renamed when whole, found current by the key in their footer.

A rename is the commit. Whatever kills a run leaves at most files that end in ``.tmp``, which nothing reads and the
next run removes. Remote folders (gs://, s3://, hdfs://) go through Beam's file systems, local ones through the kernel.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

KEY = b"corpusmill.key"
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")  # the names that `commit` gives
RECORD = b"corpusmill.record"


def digest(*parts: Any) -> str:
    """128-bit hex digest of JSON-able parts, stable across machines and runs."""
    payload = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(payload.encode(), digest_size=16).hexdigest()


def is_remote(path: str) -> bool:
    return "://" in path


def open_read(path: str) -> Any:
    """A seekable file for reading; local files are memory-mapped by the reader."""
    if is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return pa.OSFile(path, "rb")


@contextmanager
def commit(path: str) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: the body writes to a temporary file, renamed when the body ends well."""
    if is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as sink:
                yield sink
            FileSystems.rename([temporary], [path])
        except BaseException:
            with suppress(OSError):
                FileSystems.delete([temporary])
            raise
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    local = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        with local.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        local.replace(path)
    finally:
        local.unlink(missing_ok=True)


def write_json(path: str, value: Any) -> None:
    with commit(path) as sink:
        sink.write(json.dumps(value, indent=1, default=str).encode())


def read_json(path: str) -> Any:
    """The value in a JSON file, or None where there is no such file."""
    try:
        with open_read(path) as source:
            return json.loads(source.read())
    except FileNotFoundError:
        return None


class Sidecar:
    """Parquet writer of one split's sidecar: batches go to a temporary file; `close` puts key and record in the footer.

    End it with `close` or `abandon`. Whatever fails on the way, nothing is left that has the sidecar's name.
    """

    def __init__(self, path: str, schema: pa.Schema, key: str) -> None:
        self.path, self.key = path, key
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._manager = commit(path)
        self._sink = self._manager.__enter__()
        with self._abandoned():
            self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd", compression_level=1)

    def write(self, batch: pa.RecordBatch) -> None:
        assert self._writer is not None
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self, record: dict[str, Any]) -> None:
        """Commit. `record` is what a later run reads instead of computing the split again.

        Its seconds are left out, so that equal work gives equal bytes.
        """
        assert self._writer is not None
        with self._abandoned():
            timeless = json.dumps({**record, "seconds": 0.0}).encode()
            self._writer.add_key_value_metadata({KEY: self.key.encode(), RECORD: timeless})
            self._writer.close()
        self._manager.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Drop the temporary file. Calling it again, or after `close`, does nothing."""
        if self._writer is not None and self._writer.is_open:
            with suppress(Exception):  # a full disk refuses the footer too
                self._writer.close()
        with suppress(Exception):
            self._manager.__exit__(type(error), error, error.__traceback__)

    @contextmanager
    def _abandoned(self) -> Iterator[None]:
        """What fails inside drops the temporary file."""
        try:
            yield
        except BaseException as error:
            self.abandon(error)
            raise


def write_sidecar(path: str, key: str, batch: pa.RecordBatch | pa.Table, record: dict[str, Any]) -> None:
    """Commit one sidecar whose rows are already at hand."""
    sidecar = Sidecar(path, batch.schema, key)
    try:
        for piece in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
            sidecar.write(piece)
    except BaseException as error:
        sidecar.abandon(error)
        raise
    sidecar.close(record)


def committed(path: str, key: str) -> dict[str, Any] | None:
    """The record of a sidecar that is whole and has this key; None if it must be (re)computed."""
    try:
        with open_read(path) as source:
            metadata = pq.read_metadata(source).metadata or {}
    except (FileNotFoundError, OSError, pa.ArrowInvalid):
        return None
    return json.loads(metadata[RECORD]) if metadata.get(KEY) == key.encode() else None


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    with open_read(path) as source:
        return pq.read_table(source, columns=columns)


def write_array(path: str, array: np.ndarray) -> None:
    with commit(path) as sink:
        np.save(sink, array)


def read_array(path: str) -> np.ndarray:
    with open_read(path) as source:
        return np.load(io.BytesIO(source.read()))


def file_digest(path: str) -> str:
    """128-bit digest of a file's bytes (xxh3; about 5 GB/s, so the disk is the limit)."""
    import xxhash

    state = xxhash.xxh3_128()
    with open_read(path) as source:
        while block := source.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def folder_digest(path: str) -> str:
    """Digest of a model file, or of every file below a model folder with its relative name."""
    root = Path(path)
    if root.is_file():
        return file_digest(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no model at {path}")
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return digest([(str(p.relative_to(root)), file_digest(str(p))) for p in files])


def content(model: BaseModel) -> Any:
    """A model's parameters in JSON form, with the digest of its content for every path; without excluded fields."""
    dumped = model.model_dump(mode="json")
    return {name: _content(getattr(model, name), value) for name, value in dumped.items()}


def _content(value: Any, dumped: Any) -> Any:
    if isinstance(value, Path):
        return folder_digest(str(value))
    if isinstance(value, BaseModel):
        return content(value)
    if isinstance(value, Mapping):
        return {key: _content(v, d) for v, (key, d) in zip(value.values(), dumped.items(), strict=True)}
    if isinstance(value, list | tuple):
        return [_content(v, d) for v, d in zip(value, dumped, strict=True)]
    return dumped


def remove_temporaries(folder: str) -> int:
    """Remove what `commit` of a killed run left half-written, and nothing else; returns how many files."""
    if is_remote(folder) or not Path(folder).is_dir():
        return 0
    left = [path for path in Path(folder).rglob("*.tmp") if TEMPORARY.search(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def exists(path: str) -> bool:
    if is_remote(path):
        from apache_beam.io.filesystems import FileSystems

        return bool(FileSystems.exists(path))
    return Path(path).exists()


def remove(path: str) -> None:
    """Remove a file that may not exist."""
    if is_remote(path):
        from apache_beam.io.filesystems import FileSystems

        FileSystems.delete([path])
    else:
        Path(path).unlink(missing_ok=True)


class FolderError(RuntimeError):
    """A run folder that cannot be worked in: another process is there, or it cannot be written."""

    exit_code = 2


def lock(folder: str) -> Any:
    """Hold a run folder until the returned file is closed or the process dies; remote folders are not locked.

    Raises:
        FolderError: another process holds it, or it cannot be made or written.
    """
    if is_remote(folder):
        return None
    import fcntl

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise FolderError(f"cannot write to the run folder {folder}: {error.strerror}; choose another --run") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FolderError(f"another corpusmill process is at work in {folder}; wait or choose another --run") from None
    return file
