"""Kernels over the UTF-8 bytes of a batch: decoding, hashing, lines, characters.

Every kernel takes `data` (uint8, the documents end to end) and `offsets` (int64 [documents + 1]). Places in `data` are
int32, so a batch holds less than 2 GiB. Kernels that find pieces reserve room for the most there can be; pages that are
not written cost no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from transforms.characters import BREAK, IDEOGRAPH, LIMIT, SPACE

# For functions that allocate nothing: numba then counts no references to arrays, which costs more than the work.
inner = njit(cache=True, nogil=True, _nrt=False)
NONE = 0xFFFD  # stands for bytes that are no UTF-8
_K0, _K1, _K2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F)
_HALF, _BYTE = np.uint64(32), np.uint64(8)


@inner
def decode(data: np.ndarray, i: int, stop: int) -> tuple[Any, Any]:
    """The code point that starts at byte `i` and its length in bytes; never reads at or past `stop`."""
    c = np.int64(data[i])
    if c < 0x80:
        return c, 1
    if 0xC0 <= c < 0xE0 and i + 1 < stop:
        return (c & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if 0xE0 <= c < 0xF0 and i + 2 < stop:
        return (c & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F), 3
    if c >= 0xF0 and i + 3 < stop:
        high = (c & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
        return high | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4
    return NONE, 1


@inner
def flags_at(data: np.ndarray, i: int, stop: int, classes: np.ndarray) -> tuple[Any, Any]:
    """The class flags of the character at byte `i` (0 at `stop`) and its length in bytes."""
    if i >= stop:
        return 0, 0
    code, length = decode(data, i, stop)
    if code < LIMIT:
        return np.int64(classes[code]), length
    return (IDEOGRAPH if code < 2 * LIMIT else 0), length


@inner
def flags_before(data: np.ndarray, start: int, i: int, classes: np.ndarray) -> tuple[Any, Any]:
    """The class flags of the character that ends before byte `i` (0 at `start`) and its length in bytes."""
    j = i
    while j > start:
        j -= 1
        if data[j] & 0xC0 != 0x80:
            break
    return flags_at(data, j, i, classes)


@inner
def strip(data: np.ndarray, start: int, stop: int, classes: np.ndarray) -> tuple[Any, Any]:
    """`start` and `stop` moved inwards over white space, as ``str.strip`` does."""
    while start < stop:
        flags, length = flags_at(data, start, stop, classes)
        if not flags & SPACE:
            break
        start += length
    while stop > start:
        flags, length = flags_before(data, start, stop, classes)
        if not flags & SPACE:
            break
        stop -= length
    return start, stop


@inner
def hash_bytes(data: np.ndarray, start: int, stop: int) -> Any:
    """A 64-bit hash of ``data[start:stop]``: eight bytes, little endian, per multiply and fold.

    The same on every machine. Pieces of one length up to 8 bytes never collide.
    """
    h = np.uint64(stop - start) * _K0
    i = start
    while i + 8 <= stop:
        block = np.uint64(0)
        for k in range(8):
            block |= np.uint64(data[i + k]) << np.uint64(8 * k)
        h = (h ^ block) * _K1
        h ^= h >> _HALF
        i += 8
    block = np.uint64(0)
    for k in range(stop - i):
        block |= np.uint64(data[i + k]) << np.uint64(8 * k)
    h = (h ^ block) * _K1
    h ^= h >> _HALF
    h *= _K2
    return h ^ (h >> _HALF)


@njit(cache=True, nogil=True)
def hash_pieces(data: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """uint64 [pieces]: `hash_bytes` of every piece."""
    out = np.empty(start.size, np.uint64)
    for i in range(start.size):
        out[i] = hash_bytes(data, start[i], end[i])
    return out


@njit(cache=True, nogil=True)
def count_characters(data: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64 [pieces]: code points of every piece."""
    out = np.empty(start.size, np.int64)
    for i in range(start.size):
        n = 0
        for c in data[start[i] : end[i]]:
            n += (c & 0xC0) != 0x80
        out[i] = n
    return out


@njit(cache=True, nogil=True)
def split_lines(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Pieces between "\n", as ``str.split("\n")``: start, end (int32 [lines]) and offsets of the documents."""
    documents = offsets.size - 1
    count = documents
    for c in data:
        count += c == 10
    start, end = np.empty(count, np.int32), np.empty(count, np.int32)
    first = np.empty(documents + 1, np.int64)
    n = 0
    for d in range(documents):
        first[d] = n
        start[n] = offsets[d]
        for i in range(offsets[d], offsets[d + 1]):
            if data[i] == 10:
                end[n] = i
                n += 1
                start[n] = i + 1
        end[n] = offsets[d + 1]
        n += 1
    first[documents] = n
    return start, end, first


@inner
def next_line(data: np.ndarray, i: int, stop: int, classes: np.ndarray) -> tuple[Any, Any]:
    r"""Where the line that starts at `i` ends and where the next one starts, as ``str.splitlines`` has it.

    A line ends at any of the ten Unicode line breaks; "\r\n" is one of them.
    """
    while i < stop:
        if 32 <= data[i] < 0x80:
            i += 1
            continue
        flags, length = flags_at(data, i, stop, classes)
        if flags & BREAK:
            after = i + length
            if data[i] == 13 and after < stop and data[after] == 10:
                after += 1
            return i, after
        i += length
    return stop, stop


def hash_words(words: Sequence[str]) -> np.ndarray:
    """uint64 [words]: the hashes these words have in a batch."""
    texts = [word.encode() for word in words]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    starts = ends - [len(text) for text in texts]
    return hash_pieces(np.frombuffer(b"".join(texts), np.uint8), starts, ends)
