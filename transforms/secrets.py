"""Keys and tokens at one place of a text: forms that services publish, private keys, random values that are assigned.

Each kernel is given a place `i` of a document `lo:hi` and returns the span that stands there, empty where there is
none. Runs of characters are read once, other things over at most 300 bytes, so that any text takes linear time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from transforms.pii_forms import ALNUM, DIGIT, HYPHEN, LETTER, LOW, PLUS, SLASH, UPPER, byte, is_
from transforms.text import inner

_DASH, _LOW, _DOT, _SPACE, _EQUAL = (ord(c) for c in "-_. =")
_TOKEN, _CAPITALS, _PLAIN = ALNUM | LOW | HYPHEN, DIGIT | UPPER, ALNUM
_VALUE = ALNUM | LOW | HYPHEN | PLUS | SLASH
# (what it begins with, class of what follows, fewest and most characters of that), as the services document them.
FORMS: tuple[tuple[str, int, int, int], ...] = (
    *((prefix, _CAPITALS, 16, 16) for prefix in ("AKIA", "ASIA", "ABIA", "ACCA")),  # AWS
    *((f"gh{kind}_", _PLAIN, 36, 251) for kind in "pousr"),  # GitHub
    ("github_pat_", _TOKEN, 82, 82),
    ("glpat-", _TOKEN, 20, 255),  # GitLab
    *((f"xox{kind}-", _TOKEN, 20, 255) for kind in "abprs"),  # Slack
    ("xapp-", _TOKEN, 20, 255),
    ("AIza", _TOKEN, 35, 35),  # Google
    *((f"{kind}k_live_", _PLAIN, 16, 255) for kind in "sr"),  # Stripe
    ("hf_", _PLAIN, 34, 40),  # Hugging Face
    ("npm_", _PLAIN, 36, 36),
    ("pypi-AgE", _TOKEN, 50, 255),
    ("dop_v1_", _PLAIN, 64, 64),  # DigitalOcean
    ("shpat_", _PLAIN, 32, 32),  # Shopify
    ("sk-", _TOKEN, 32, 255),  # OpenAI, Anthropic; the last, since it needs capitals and digits (`_mixed`)
)
_NAMES = ("secret", "token", "passw", "apikey", "api_key", "api-key", "access_key", "private_key", "credential")
_FEWEST, _MOST = 16, 256  # characters of a value that is assigned
_BITS = 3.2  # of entropy per character; 16 random letters and digits have about 3.8
_LEAST_KEY, _MOST_KEY = 90, 16384  # bytes of a private key, with the lines around it


def _table(texts: tuple[str, ...]) -> np.ndarray:
    """uint8 [texts, 16], filled up with zeros."""
    table = np.zeros((len(texts), 16), np.uint8)
    for k, text in enumerate(texts):
        table[k, : len(text)] = np.frombuffer(text.encode(), np.uint8)
    return table


_PREFIXES = _table(tuple(form[0] for form in FORMS))
_SIZES = np.array([(len(p), flags, least, most) for p, flags, least, most in FORMS], np.int64)
_WORDS = _table(_NAMES)
_LENGTHS = np.array([len(name) for name in _NAMES])
_BEGIN, _END, _KEY, _OBJECT = (
    np.frombuffer(text, np.uint8) for text in (b"-----BEGIN ", b"-----END ", b"PRIVATE KEY", b"eyJ")
)
PAIRS = np.zeros((256, 256), bool)  # pairs of bytes that a token begins with
PAIRS[_PREFIXES[:, 0], _PREFIXES[:, 1]] = True
PAIRS[ord("e"), ord("y")] = True  # JSON Web Tokens


@inner
def _stands(data: np.ndarray, i: int, hi: int, text: np.ndarray, length: int) -> bool:
    if i + length > hi:
        return False
    k = 0
    while k < length and data[i + k] == text[k]:
        k += 1
    return k == length


@inner
def _run(data: np.ndarray, i: int, lo: int, hi: int, flags: int, most: int) -> int:
    """Characters of a class from `i` on, at most `most`."""
    n = 0
    while n < most and is_(data, i + n, lo, hi, flags):
        n += 1
    return n


@inner
def token(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The token of a form in `FORMS`, or the JSON Web Token, that begins at `i`."""
    if is_(data, i - 1, lo, hi, _TOKEN):
        return i, i
    if data[i] == 101:  # e
        return _web_token(data, i, lo, hi)
    for k in range(len(_SIZES)):
        length, flags, least, most = _SIZES[k]
        if data[i] != _PREFIXES[k, 0] or not _stands(data, i, hi, _PREFIXES[k], length):
            continue
        n = _run(data, i + length, lo, hi, flags, most + 1)
        ends = least <= n <= most and not is_(data, i + length + n, lo, hi, ALNUM)
        if ends and (k < len(_SIZES) - 1 or _mixed(data, i + length, i + length + n)):
            return i, i + length + n
    return i, i


@inner
def _mixed(data: np.ndarray, a: int, b: int) -> bool:
    """Two capitals and two digits or more."""
    capitals = digits = 0
    for k in range(a, b):
        capitals += 65 <= data[k] <= 90
        digits += 48 <= data[k] <= 57
    return capitals > 1 and digits > 1


@inner
def _web_token(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """Three runs with dots between, of which the first two are JSON objects in base 64 (RFC 7519)."""
    b = i
    for part in range(3):
        if part < 2 and not _stands(data, b, hi, _OBJECT, len(_OBJECT)):
            return i, i
        n = _run(data, b, lo, hi, _TOKEN, hi - b)
        if n < 10:
            return i, i
        b += n
        if part < 2:
            if byte(data, b, lo, hi) != _DOT:
                return i, i
            b += 1
    return i, b


@inner
def private_key(data: np.ndarray, i: int, hi: int, end: int) -> tuple[int, int]:
    """The PEM block of a private key that begins at `i`; `end`: where the next `key_end` is."""
    if not _stands(data, i, hi, _BEGIN, len(_BEGIN)) or end >= hi or not _LEAST_KEY <= end - i <= _MOST_KEY:
        return i, i
    b = i + len(_BEGIN)
    while b < min(hi, i + 48) and data[b] != _DASH:
        if _stands(data, b, hi, _KEY, len(_KEY)):
            stop = end + len(_END)
            while stop < min(hi, end + 64) and data[stop] != _DASH:
                stop += 1
            while stop < min(hi, end + 69) and data[stop] == _DASH:
                stop += 1
            return i, stop
        b += 1
    return i, i


@inner
def key_end(data: np.ndarray, i: int, hi: int) -> int:
    """Where the next "-----END " stands from `i` on; `hi` where there is none."""
    while i < hi and not (data[i] == _DASH and _stands(data, i, hi, _END, len(_END))):
        i += 1
    return i


@njit(cache=True, nogil=True)
def assigned(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The value behind the "=" or ":" at `i`, if the name before says that it is secret and it looks random.

    Random: 16 to 256 letters, digits and "+/_-", at least three digits and three letters, `_BITS` of entropy for each
    character. Not random: paths ("/" without a capital), names (one "_" in 16 or more), calls and attributes.
    """
    a = i + 1
    while a < hi and a - i < 5 and (data[a] == _EQUAL or data[a] == 62 or data[a] == _SPACE):  # "==", "=>"
        a += 1
    quote = byte(data, a, lo, hi)
    quoted = quote == 34 or quote == 39
    a += quoted
    b = a
    while b - a <= _MOST and is_(data, b, lo, hi, _VALUE):
        b += 1
    if not _FEWEST <= b - a <= _MOST or not is_(data, a, lo, hi, ALNUM) or not _secret(data, i, lo):
        return i, i
    stop = b
    while stop < hi and stop - b < 2 and data[stop] == _EQUAL:
        stop += 1
    after = byte(data, stop, lo, hi)
    called = after == 40 or after == 91 or (after == _DOT and is_(data, stop + 1, lo, hi, ALNUM))
    if called or (quoted and after != quote) or not _random(data, a, b):
        return i, i
    return a, stop


@inner
def _secret(data: np.ndarray, i: int, lo: int) -> bool:
    """Whether the name before the "=" or ":" at `i` has one of `_NAMES` in it."""
    j = i
    while j > lo and i - j < 4 and (data[j - 1] == 32 or data[j - 1] == 34 or data[j - 1] == 39 or data[j - 1] == 58):
        j -= 1
    for b in range(j, max(lo, j - 48), -1):
        if not is_(data, b - 1, lo, j, _TOKEN):
            return False
        for k in range(len(_LENGTHS)):
            n = _LENGTHS[k]
            m = 0
            while m < n and b - n >= lo and _lower(data[b - n + m]) == _WORDS[k, m]:
                m += 1
            if m == n:
                return True
    return False


@inner
def _lower(c: int) -> int:
    return c | 32 if 65 <= c <= 90 else c


@njit(cache=True, nogil=True)
def _random(data: np.ndarray, a: int, b: int) -> bool:
    counts = np.zeros(256, np.int64)
    digits = letters = capitals = 0
    for k in range(a, b):
        counts[data[k]] += 1
        digits += is_(data, k, a, b, DIGIT)
        letters += is_(data, k, a, b, LETTER)
        capitals += is_(data, k, a, b, UPPER)
    bits = 0.0
    for n in counts:
        if n:
            bits -= n * math.log2(n / (b - a))
    named = 16 * counts[_LOW] > b - a or (counts[47] > 0 and capitals == 0)
    return digits > 2 and letters > 2 and not named and bits >= _BITS * (b - a)
