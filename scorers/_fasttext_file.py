"""What a fastText file says of itself, read without loading it: labels, kind, and whether it is whole.

Walks the dictionary at the file's start: about 0.3 s for a million words, once per file and process. The layout is
that of fastText 0.2 to 0.9 (file versions 11 and 12).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MAGIC, VERSIONS = 793712314, (11, 12)
SUPERVISED = 3
ENTRY_TAIL = 9  # after the zero that ends a word: its count, int64, and its type, int8
CENTROIDS = 256 * 4  # bytes of them per dimension of a product quantizer


@dataclass(frozen=True)
class Header:
    """`labels` in the order of the file; `quantised` matrices cannot be written to."""

    labels: tuple[str, ...]
    quantised: bool


def locate(model: Path) -> Path:
    """The model file that a path means: itself, `model.bin` in a folder, or the only `.bin` or `.ftz` there.

    Raises:
        ValueError: there is none, or several.
    """
    if model.is_file():
        return model
    if not model.is_dir():
        raise ValueError(f"no fastText model at {model}; give a .bin file or a folder with one")
    found = sorted(p for p in model.iterdir() if p.suffix in (".bin", ".ftz"))
    named = [p for p in found if p.name == "model.bin"] or found
    if len(named) != 1:
        there = f"it holds {', '.join(p.name for p in named)}" if named else "it holds no .bin and no .ftz file"
        raise ValueError(f"no fastText model in {model} ({there}); give a .bin file or a folder with one")
    return named[0]


def read(file: Path) -> Header:
    """The header of a supervised model.

    Raises:
        ValueError: it is no fastText file, not a classifier, or ends before its matrices do.
    """
    stat = file.stat()
    return _read(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(file: Path, size: int, modified: int) -> Header:
    if size < 92:  # magic number, arguments and the counts of an empty dictionary
        raise ValueError(f"{file} is no fastText model: it has {size} bytes; fetch or copy it again")
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version = struct.unpack_from("<2i", data, 0)
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"{file} is no fastText model: it does not start with fastText's number and version")
        if struct.unpack_from("<i", data, 36)[0] != SUPERVISED:
            raise ValueError(f"{file} holds word vectors; expected a classifier, as `fasttext supervised` makes them")
        try:
            labels, at = _labels(data)
            quantised = bool(data[at])
            end = _after_matrix(data, at)  # of words, then of labels; a byte before each tells its form
            end = _after_matrix(data, end)
        except (struct.error, IndexError):
            end = size + 1
        if end > size:
            raise ValueError(f"{file} is truncated: {size} bytes are too few for its matrices; fetch or copy it again")
    return Header(labels, quantised)


def _labels(data: mmap.mmap) -> tuple[tuple[str, ...], int]:
    """The labels, which follow the words, and where the dictionary ends."""
    _, words, labels, _, pruned = struct.unpack_from("<3i2q", data, 64)
    at, found = 92, []
    for number in range(words + labels):
        stop = data.find(b"\0", at)
        if stop < 0:
            raise IndexError
        if number >= words:
            found.append(data[at:stop].decode("utf-8", "replace"))
        at = stop + 1 + ENTRY_TAIL
    return tuple(found), at + 8 * max(pruned, 0)


def _after_matrix(data: mmap.mmap, at: int) -> int:
    """Where a matrix ends whose form, quantised or not, is told by the byte at `at`."""
    if not data[at]:
        rows, columns = struct.unpack_from("<2q", data, at + 1)
        return at + 17 + 4 * rows * columns
    normed, rows, _, codes = struct.unpack_from("<?2qi", data, at + 1)
    at = _after_quantizer(data, at + 22 + codes)
    return _after_quantizer(data, at + rows) if normed else at


def _after_quantizer(data: mmap.mmap, at: int) -> int:
    return at + 16 + CENTROIDS * struct.unpack_from("<i", data, at)[0]
