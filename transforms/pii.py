"""Personal data in texts: where it stands, by kind, and spans that put a placeholder in its place.

One pass over the bytes finds all kinds; checksums and ranges are checked on the way. Phone numbers alone are then asked
of Google's `phonenumbers`, each distinct candidate once (about 20 µs). Else about 4 ms per MB.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numba import njit

from transforms import pii_forms, secrets
from transforms.batch import Batch
from transforms.cut import Cuts, slices
from transforms.pii_forms import ALNUM, AT, CLASS, COMMA, DIGIT, DOT, HYPHEN, NAME, SLASH, UPPER, byte, is_
from transforms.text import inner

Kind = Literal["email", "ipv4", "ipv6", "iban", "card", "phone", "secret"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EMAIL, IPV4, IPV6, IBAN, CARD, PHONE, SECRET = range(len(KINDS))
_GROUPS = 6  # of the digits of a phone number, at most
_LEAST, _MOST = 8, 15  # digits of a phone number with "+" (E.164; none that is valid is shorter)
# Dates with their year, anywhere in a candidate; two years or a month, as the whole of it.
_YEAR, _GAP, _DAY = r"(?:1[6-9]|2[01])\d\d", r" ?[-/.]{1,2} ?", r"(?:0?[1-9]|[12]\d|3[01])"
_DATE = re.compile(rf"(?<!\d)(?:{_YEAR}{_GAP}{_DAY}{_GAP}{_DAY}|{_DAY}{_GAP}{_DAY}{_GAP}{_YEAR})(?!\d)")
_YEARS = re.compile(rf"\(?{_YEAR}(?:{_GAP}|\) ?)(?:{_YEAR}|\d\d)|(?:0?[1-9]|1[0-2]){_GAP}{_YEAR}")
# What a byte may begin: the passes below look at no other.
_AT, _DIGITS, _OPEN, _CAPITAL, _FORM, _ASSIGNS, _DASHES = 1, 2, 4, 8, 16, 32, 64


def _triggers() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[ord("@")] = _AT
    table[48:58] = _DIGITS
    table[[ord("("), ord("+")]] = _OPEN
    table[65:91] = _CAPITAL
    table[secrets.PAIRS.any(axis=1)] |= _FORM
    table[[ord("="), ord(":")]] = _ASSIGNS
    table[ord("-")] = _DASHES
    return table


_TRIGGERS = _triggers()


class Found(NamedTuple):
    """Spans in order that do not overlap: int64 start and end in bytes of the batch, and uint8 index into KINDS."""

    start: np.ndarray
    end: np.ndarray
    kind: np.ndarray


def find(batch: Batch, kinds: Sequence[Kind] = KINDS, region: str | None = "US") -> Found:
    """The personal data of the kinds; of spans that overlap the one that begins first, then the longest.

    Args:
        region: country (ISO 3166) whose phone numbers count also as they are written at home; None: with "+" only.
    """
    shapes = phone_shapes(region) if "phone" in kinds else np.zeros(0, np.int64)
    start, end, kind = _find(batch.bytes, batch.offsets, shapes)
    wanted = np.isin(kind, [KINDS.index(k) for k in kinds])
    phones = np.flatnonzero(wanted & (kind == PHONE))
    wanted[phones] = _are_phones(slices(batch, start[phones], end[phones]), region)
    start, end, kind = start[wanted], end[wanted], kind[wanted]
    order = np.lexsort((kind, -end, start))
    chosen = order[_apart(start[order], end[order])]
    return Found(start[chosen], end[chosen], kind[chosen])


def count(batch: Batch, found: Found) -> np.ndarray:
    """int64 [kinds, documents]."""
    document = np.searchsorted(batch.offsets, found.start, side="right") - 1
    return np.stack([np.bincount(document[found.kind == k], minlength=len(batch)) for k in range(len(KINDS))])


def masks(batch: Batch, found: Found) -> Cuts:
    """Spans that put "<EMAIL>", "<PHONE>", … in the place of what was found."""
    bounds = np.searchsorted(found.start, batch.offsets)
    base = np.repeat(batch.offsets[:-1], np.diff(bounds))
    put = pa.array([f"<{kind.upper()}>" for kind in KINDS], pa.large_string()).take(pa.array(found.kind))
    return Cuts(found.start - base, found.end - base, bounds.astype(np.int64), put)


@njit(cache=True, nogil=True)
def _find(data: np.ndarray, offsets: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans of all kinds in order of the places that gave them away, which may overlap; phones are candidates."""
    out, n = np.empty((3, 1024), np.int64), 0
    for d in range(offsets.size - 1):
        lo, hi = offsets[d], offsets[d + 1]
        dialled = lo  # where the last number with "+" ended
        i = _next(data, lo - 1, lo, hi)
        while i < hi:
            trigger = _TRIGGERS[data[i]]
            if n + 8 + _GROUPS > out.shape[1]:
                out = np.concatenate((out, np.empty_like(out)), axis=1)
            if trigger == _DIGITS:
                n = _digits(data, i, lo, hi, out, n)
                if i >= dialled:
                    n, _ = _phones(data, i, lo, hi, shapes, out, n)
            elif trigger == _OPEN:
                n, stop = _phones(data, i, lo, hi, shapes, out, n)
                dialled = max(dialled, stop)
            elif trigger == _AT:
                n = _add(out, n, pii_forms.email(data, i, lo, hi), EMAIL)
            elif trigger == _ASSIGNS:
                n = _add(out, n, secrets.assigned(data, i, lo, hi), SECRET)
            elif trigger == _DASHES:
                if byte(data, i + 1, lo, hi) == 45 and byte(data, i + 5, lo, hi) == 66:  # -, B
                    n = _add(out, n, secrets.private_key(data, i, lo, hi), SECRET)
            else:
                following = byte(data, i + 1, lo, hi)
                if CLASS[following] & UPPER and trigger & _CAPITAL:
                    n = _add(out, n, pii_forms.iban(data, i, lo, hi), IBAN)
                if secrets.PAIRS[data[i], following]:
                    n = _add(out, n, secrets.token(data, i, lo, hi), SECRET)
            i = _next(data, i, lo, hi)
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy()


@inner
def _next(data: np.ndarray, i: int, lo: int, hi: int) -> int:
    """The next place behind `i` where something may begin; letters and digits count at the beginning of a run alone."""
    i += 1
    while i < hi:
        trigger = _TRIGGERS[data[i]]
        if trigger and not (trigger & (_DIGITS | _CAPITAL | _FORM) and i > lo and CLASS[data[i - 1]] & ALNUM):
            return i
        i += 1
    return hi


@njit(cache=True, nogil=True)
def _add(out: np.ndarray, n: int, span: tuple[int, int], kind: int) -> int:
    out[0, n], out[1, n], out[2, n] = span[0], span[1], kind
    return n + (span[1] > span[0])


@njit(cache=True, nogil=True)
def _digits(data: np.ndarray, i: int, lo: int, hi: int, out: np.ndarray, n: int) -> int:
    """What begins with the digit at `i`, but for phones."""
    width = 1
    while width < 5 and is_(data, i + width, lo, hi, DIGIT):
        width += 1
    after = byte(data, i + width, lo, hi)
    if width < 4 and after == 46:
        n = _add(out, n, pii_forms.ipv4(data, i, lo, hi), IPV4)
    if width > 3:
        n = _add(out, n, pii_forms.card(data, i, lo, hi), CARD)
    if (data[i] == 50 or data[i] == 51) and (after == 58 or CLASS[after] & pii_forms.HEX):
        n = _add(out, n, pii_forms.ipv6(data, i, lo, hi), IPV6)
    return n


@njit(cache=True, nogil=True)
def _phones(data: np.ndarray, i: int, lo: int, hi: int, shapes: np.ndarray, out: np.ndarray, n: int) -> tuple[int, int]:
    """Candidates that begin at `i`: with "+" of 8 to 15 digits; else of groups of digits in one of the shapes.

    Also where the last one with "+" ends."""
    dialled = data[i] == 43
    if not pii_forms.phone_begins(data, i, lo, hi) or not (dialled or len(shapes)):
        return n, i
    b, digits, shape, last, gaps = i + (dialled or data[i] == 40), 0, np.int64(0), i, 0
    for _ in range(_GROUPS):
        a, stop, gap = pii_forms.phone_group(data, b, lo, hi)
        digits, gaps = digits + stop - a, gaps | gap
        if a == stop or (a == b and gaps) or digits > _MOST or not pii_forms.phone_gaps(data, i, lo, gaps, dialled):
            break
        b, shape = stop, shape << 4 | (stop - a)
        joined = is_(data, b, lo, hi, DOT | HYPHEN | SLASH | COMMA) and is_(data, b + 1, lo, hi, DIGIT)
        if joined or is_(data, b, lo, hi, NAME | AT) or stop - a < 2:  # one digit at the end: a decimal, say
            continue
        fits = dialled and digits >= _LEAST
        for known in shapes:
            fits |= known == shape and not dialled
        if fits:
            n, last = _add(out, n, (i, b), PHONE), b
    return n, last if dialled else i


@njit(cache=True, nogil=True)
def _apart(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which spans do not overlap one chosen before."""
    chosen, stop = np.zeros(start.size, np.bool_), np.int64(0)
    for k in range(start.size):
        if start[k] >= stop:
            chosen[k], stop = True, end[k]
    return chosen


@functools.cache
def phone_shapes(region: str | None) -> np.ndarray:
    """int64: the groups of digits in which a region writes its numbers, one hexadecimal digit each.

    As `phonenumbers` knows them: alone, with the national prefix before, and with it joined to the first group.
    """
    if region is None:
        return np.zeros(0, np.int64)
    from phonenumbers import PhoneMetadata

    metadata: Any = PhoneMetadata.metadata_for_region(region)
    prefix = len(metadata.national_prefix or "")
    shapes = set()
    for form in metadata.number_format:
        parts = re.findall(r"\\d(?:\{(\d+)(?:,(\d+))?\})?|(\d)", form.pattern)
        if form.pattern.count("(") < 2 or len(parts) != form.pattern.count("("):
            continue  # one group; or digits that are given one by one
        choices = [range(int(least or 1), int(most or least or 1) + 1) for least, most, _ in parts]
        for sizes in itertools.product(*choices):
            if sum(sizes) in metadata.general_desc.possible_length and max(sizes) < 15:
                shapes |= {sizes, (prefix + sizes[0], *sizes[1:]), (prefix, *sizes) if prefix else sizes}
    return np.array(sorted(functools.reduce(lambda a, b: a << 4 | b, s) for s in shapes if len(s) <= _GROUPS), np.int64)


def _are_phones(texts: pa.LargeStringArray, region: str | None) -> np.ndarray:
    """bool: which candidates are valid numbers."""
    encoded = texts.dictionary_encode()
    valid = np.array([is_phone(text, region) for text in encoded.dictionary.to_pylist()], bool)
    return valid[encoded.indices.to_numpy()]


@functools.lru_cache(1 << 16)
def is_phone(text: str, region: str | None) -> bool:
    """Whether `phonenumbers` takes the text for a number that can be dialled, and there is no date in it."""
    import phonenumbers

    if text[0] != "+" and (_DATE.search(text) or _YEARS.fullmatch(text)):
        return False
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False
