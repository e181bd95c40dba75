"""Words: white space, punctuation at the edges, exceptions, URLs and infixes, as spaCy's English tokenizer has them.

One pass over the bytes, linear in their number. The order of rules is that of spaCy's documentation ("How spaCy's
tokenizer works"); letters, quotes and symbols of every script come from the table of `transforms.characters`. Left out
is spaCy's last step, which joins an emoticon again that the rules took apart in the middle of a word.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from transforms.characters import BEFORE_STOP, DIGIT, ICON, LETTER, LOWER, PREFIX, QUOTE, SPACE, SPLITS, SUFFIX, UPPER
from transforms.english import exceptions, units
from transforms.text import decode, flags_at, flags_before, hash_bytes, inner

LONGEST_LISTED = 16  # bytes
_PLUS, _COMMA, _HYPHEN, _STOP, _SLASH, _COLON, _QUESTION, _AT = 43, 44, 45, 46, 47, 58, 63, 64
_NUMBER_SIGN, _STAR, _CARET, _UNDERSCORE, _TILDE, _EQUALS, _SECTION = 35, 42, 94, 95, 126, 61, 0xA7
_EN_DASH, _EM_DASH, _ELLIPSIS, _APOSTROPHE = 0x2013, 0x2014, 0x2026, 0x2019


def _listed(words: dict[str, tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Open-addressed table of hashes, and beside each where its word is cut: two places in bytes, 8 bits each."""
    size = 1 << (4 * len(words)).bit_length()
    keys, cuts = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for word, parts in words.items():
        data = np.frombuffer(word.encode(), np.uint8)
        if data.size > LONGEST_LISTED:
            raise ValueError(f"{word!r} has more than {LONGEST_LISTED} bytes")
        lengths = [len(part.encode()) for part in parts]
        places = [sum(lengths[:i]) for i in range(1, len(parts))]
        key = hash_bytes(data, 0, data.size)
        slot = int(key) & (size - 1)
        while keys[slot]:
            slot = (slot + 1) & (size - 1)
        keys[slot], cuts[slot] = key, sum(place << (8 * i) for i, place in enumerate(places))
    return keys, cuts


@inner
def _ends(data: np.ndarray, a: int, b: int) -> Any:
    """16 bits that tell most words from the exceptions: of the length, the first two bytes and the last."""
    second = np.int64(data[a + 1]) if b - a > 1 else 0
    key = np.int64(data[a]) | second << 8 | np.int64(data[b - 1]) << 16 | min(b - a, 255) << 24
    return (key * 0x9E3779B1 >> 20) & 0xFFFF


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of the exceptions, their cuts, the hashes of the units, and which `_ends` an exception may have."""
    words = exceptions()
    keys, cuts = _listed(words)
    unit_keys, _ = _listed({unit: (unit,) for unit in units()})
    ends = np.zeros(1 << 16, np.bool_)
    for word in words:
        data = np.frombuffer(word.encode(), np.uint8)
        ends[_ends(data, 0, data.size)] = True
    return keys, cuts, unit_keys, ends


@inner
def _find(data: np.ndarray, a: int, b: int, keys: np.ndarray) -> Any:
    """The slot of ``data[a:b]`` among `keys`, or -1."""
    if b - a > LONGEST_LISTED or a >= b:
        return -1
    key = hash_bytes(data, a, b)
    slot = np.int64(key) & (keys.size - 1)
    while keys[slot] != 0:
        if keys[slot] == key:
            return slot
        slot = (slot + 1) & (keys.size - 1)
    return -1


@inner
def _run(data: np.ndarray, i: int, stop: int, byte: int) -> int:
    """How many times `byte` stands at `i` in a row."""
    j = i
    while j < stop and data[j] == byte:
        j += 1
    return j - i


@inner
def _prefix(data: np.ndarray, a: int, b: int, classes: np.ndarray) -> int:
    """Bytes of the prefix of ``data[a:b]``; 0 where there is none."""
    c = data[a]
    flags, length = flags_at(data, a, b, classes)
    if flags & PREFIX:
        return length
    if c == _STOP:
        dots = _run(data, a, b, _STOP)
        return dots if dots > 1 else 0
    if c == _PLUS:
        return 0 if flags_at(data, a + 1, b, classes)[0] & DIGIT else 1
    if c == 85 and b - a > 2 and data[a + 1] == 83 and data[a + 2] == 36:  # US$
        return 3
    if (c == 65 or c == 67) and b - a > 1 and data[a + 1] == 36:  # A$, C$
        return 2
    return 0


@inner
def _suffix_stop(data: np.ndarray, a: int, b: int, classes: np.ndarray) -> int:
    """Bytes of the full stops that come off the end of ``data[a:b]``."""
    i = b
    while i > a and data[i - 1] == _STOP:
        i -= 1
    if b - i > 1:
        return b - i
    flags, length = flags_before(data, a, i, classes)
    if flags & BEFORE_STOP:
        return 1
    return 1 if flags & UPPER and flags_before(data, a, i - length, classes)[0] & UPPER else 0


@inner
def _suffix(data: np.ndarray, a: int, b: int, classes: np.ndarray, units: np.ndarray) -> int:
    """Bytes of the longest suffix of ``data[a:b]``; 0 where there is none."""
    if a >= b:
        return 0
    if data[b - 1] == _STOP:
        return _suffix_stop(data, a, b, classes)
    flags, length = flags_before(data, a, b, classes)
    if flags & SUFFIX:
        doubled = b - a >= 6 and decode(data, b - 3, b)[0] == _ELLIPSIS and decode(data, b - 6, b)[0] == _ELLIPSIS
        return 6 if doubled else length
    if data[b - 1] | 32 == 115:  # s
        before = data[b - 2] if b - a > 1 else 0
        if before == 39:
            return 2
        if before == 0x99 and b - a > 3 and decode(data, b - 4, b)[0] == _APOSTROPHE:
            return 4
    currency = flags & PREFIX and decode(data, b - length, b)[0] not in (_EQUALS, _SECTION)
    if data[b - 1] == _PLUS or currency:
        return length if flags_before(data, a, b - length, classes)[0] & DIGIT else 0
    i = b
    while i > a and b - i < 10 and not 48 <= data[i - 1] <= 57:
        i -= 1
    return b - i if i > a and 48 <= data[i - 1] <= 57 and _find(data, i, b, units) >= 0 else 0


@inner
def _hyphens(data: np.ndarray, i: int, stop: int, code: int, length: int, classes: np.ndarray) -> int:
    """Bytes of the hyphen or dash at `i` that joins to the letter behind it; 0 where it joins nothing."""
    end = i + length
    if code == _HYPHEN:
        end = i + _run(data, i, min(stop, i + 3), _HYPHEN)
    elif code == _EM_DASH and decode(data, end, stop)[0] == _EM_DASH if end < stop else False:
        end += 3
    return end - i if flags_at(data, end, stop, classes)[0] & LETTER else 0


@inner
def _infix(data: np.ndarray, i: int, stop: int, before: int, classes: np.ndarray) -> tuple[int, int]:
    """Bytes of the infix at `i` (0: none) and of the character there; `before` are the flags of the one before."""
    flags, length = flags_at(data, i, stop, classes)
    if not flags & SPLITS:
        return 0, length
    code, _ = decode(data, i, stop)
    if flags & ICON or code == _ELLIPSIS:
        return length, length
    after = flags_at(data, i + length, stop, classes)[0]
    if code == _STOP:
        dots = _run(data, i, stop, _STOP)
        if dots > 1:
            return dots, 1
        return (1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0), 1
    follows = data[i + 1] if i + 1 < stop else 0
    if before & DIGIT and code in (_PLUS, _HYPHEN, _STAR, _CARET) and (after & DIGIT or follows == _HYPHEN):
        return 1, 1
    if code == _COMMA:
        return (1 if before & LETTER and after & LETTER else 0), 1
    if not before & (LETTER | DIGIT):
        return 0, length
    if code in (_HYPHEN, _EN_DASH, _EM_DASH, _TILDE):
        return _hyphens(data, i, stop, code, length, classes), length
    if code in (_SLASH, _COLON, 60, 61, 62):  # / : < = >
        return (1 if after & LETTER else 0), 1
    return 0, length


@inner
def _in_name(code: int) -> bool:
    """Whether a character is an ASCII letter, a digit, a hyphen or an underscore."""
    return bool(48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122 or code in (_HYPHEN, _UNDERSCORE))


@inner
def _host_end(data: np.ndarray, i: int, stop: int, classes: np.ndarray) -> int:
    """Where the host name or IPv4 address at `i` ends, or -1: labels joined by dots, the last in lower-case letters."""
    label, dots, octets = i, 0, 0
    small = digits = True  # the label so far is lower case, is a number
    j = i
    while True:
        code, length = decode(data, j, stop) if j < stop else (0, 0)
        if not (_in_name(code) or 0xA1 <= code < 0x10000):
            if j == label or j - label > 252 or data[j - 1] == _HYPHEN or data[label] in (_HYPHEN, _UNDERSCORE):
                return -1
            octets += digits and j - label <= 3
            if code != _STOP:
                break
            dots += 1
            label, small, digits = j + 1, True, True
        else:
            small = small and flags_at(data, j, stop, classes)[0] & LOWER != 0
            digits = digits and 48 <= code <= 57
        j += max(length, 1)
    if octets == 4 and dots == 3:
        return j
    return j if dots and small and j - label > 1 else -1


@inner
def _is_address(data: np.ndarray, a: int, b: int, classes: np.ndarray) -> bool:
    """Whether ``data[a:b]`` is a URL, a bare domain with or without a path, or an e-mail address."""
    start = a
    for i in range(a, b - 2):
        if data[i] == _COLON:
            if data[i + 1] == _SLASH and data[i + 2] == _SLASH and i - a > 1:
                start = i + 3
            break
        if not (_in_name(data[i]) or data[i] in (_PLUS, _STOP)):
            break
    host = start
    while True:
        end = _host_end(data, host, b, classes)
        if end >= 0:
            if end < b and data[end] == _COLON:
                digits = 1
                while end + digits < b and 48 <= data[end + digits] <= 57:
                    digits += 1
                end = end + digits if 3 <= digits <= 6 else end
            if end == b or data[end] in (_SLASH, _QUESTION, _NUMBER_SIGN):
                return True
        host = max(host, start + 1)
        while host < b and data[host] != _AT:
            host += 1
        host += 1
        if host >= b:
            return False


@inner
def _split_infixes(
    data: np.ndarray, a: int, b: int, classes: np.ndarray, start: np.ndarray, end: np.ndarray, n: int
) -> int:
    """Writes the pieces of ``data[a:b]`` and returns their number."""
    piece, i, before, found = a, a, 0, False
    while i < b:
        infix, length = _infix(data, i, b, before, classes)
        if infix and i > a:
            if not found and _is_address(data, a, b, classes):
                break
            found = True
            if i > piece:
                start[n], end[n] = piece, i
                n += 1
            start[n], end[n] = i, i + infix
            n += 1
            piece = i + infix
        i += infix if infix else length
        before = flags_before(data, a, i, classes)[0]
    if piece < b:
        start[n], end[n] = piece, b
        n += 1
    return n


@inner
def _write_listed(cut: int, a: int, b: int, start: np.ndarray, end: np.ndarray, n: int) -> int:
    """Writes an exception's parts and returns the number of pieces."""
    piece = a
    while cut:
        place = a + (cut & 255)
        start[n], end[n] = piece, place
        n += 1
        piece = place
        cut >>= 8
    start[n], end[n] = piece, b
    return n + 1


@inner
def _split_chunk(
    data: np.ndarray, a: int, b: int, classes: np.ndarray, keys: np.ndarray, cuts: np.ndarray, units: np.ndarray,
    start: np.ndarray, end: np.ndarray, n: int,
) -> int:
    """Takes prefixes and suffixes off ``data[a:b]`` until an exception or nothing is left to take; returns the pieces.

    Suffixes come off in reverse and wait at the far end of the output.
    """
    waiting = start.size
    listed = _find(data, a, b, keys)
    while a < b and listed < 0:
        prefix = _prefix(data, a, b, classes)
        if prefix:
            start[n], end[n] = a, a + prefix
            n += 1
            listed = _find(data, a + prefix, b, keys)
            if listed >= 0:
                a += prefix
                break
        suffix = _suffix(data, a + prefix, b, classes, units)
        if suffix:
            waiting -= 1
            start[waiting], end[waiting] = b - suffix, b
            listed = _find(data, a, b - suffix, keys)
            if listed >= 0:
                n -= prefix > 0
                b -= suffix
                break
        if prefix + suffix == 0:
            break
        a, b = a + prefix, b - suffix
        listed = _find(data, a, b, keys)
    if listed >= 0:
        n = _write_listed(cuts[listed], a, b, start, end, n)
    elif a < b:
        n = _split_infixes(data, a, b, classes, start, end, n)
    for i in range(waiting, start.size):
        start[n], end[n] = start[i], end[i]
        n += 1
    return n


@inner
def _chunk_end(data: np.ndarray, i: Any, stop: int, classes: np.ndarray) -> tuple[Any, Any]:
    """Where the run of characters that are no white space ends, and all their flags together."""
    seen: Any = 0
    while i < stop:
        if data[i] < 0x80:
            flags, length = int(classes[data[i]]), 1
        else:
            flags, length = flags_at(data, i, stop, classes)
        if flags & SPACE:
            break
        seen |= flags
        i += length
    return i, seen


@njit(cache=True, nogil=True)
def split_words(
    data: np.ndarray, offsets: np.ndarray, classes: np.ndarray, keys: np.ndarray, cuts: np.ndarray, units: np.ndarray,
    ends: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words and punctuation marks: start, end (int32 [words]) and offsets of the documents (int64 [documents + 1])."""
    documents = offsets.size - 1
    start, end = np.empty(data.size + 1, np.int32), np.empty(data.size + 1, np.int32)
    first = np.empty(documents + 1, np.int64)
    n = 0
    for d in range(documents):
        first[d] = n
        i, stop = offsets[d], offsets[d + 1]
        while i < stop:
            a = i
            i, seen = _chunk_end(data, a, stop, classes)
            if i == a:
                i += flags_at(data, a, stop, classes)[1]
            elif seen & SPLITS or (seen & DIGIT and seen & LETTER) or ends[_ends(data, a, i)]:
                n = _split_chunk(data, a, i, classes, keys, cuts, units, start, end, n)
            else:
                start[n], end[n] = a, i
                n += 1
    first[documents] = n
    return start[:n], end[:n], first
