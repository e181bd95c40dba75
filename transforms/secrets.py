"""Keys and tokens at one place of a text: forms that services publish, private keys, random values that are assigned.

Each kernel is given a place `i` of a document `lo:hi` and returns the span that stands there, empty where there is
none. Runs of characters are read once, other things over at most 300 bytes, so that any text takes linear time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from transforms.pii_forms import ALNUM, CLASS, DIGIT, HYPHEN, LETTER, LOW, LOWER, PLUS, SLASH, UPPER, byte, is_
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
# Words that end there: "tokenizer" and "max_tokens" are none.
_NAMES = (
    *("secret", "token", "password", "passwd", "passphrase", "passwort", "pwd", "credential", "credentials", "bearer"),
    *("apikey", "api_key", "api-key", "api key", "access_key", "accesskey", "access key", "private_key", "privatekey"),
    *("secretkey", "secret key"),
)
_FEWEST, _MOST = 16, 256  # characters of a value that is assigned
_BITS = 3.2  # of entropy per character; 16 random letters and digits have about 3.8
_LEAST_KEY, _MOST_KEY = 60, 16384  # characters of a private key in base 64 (Ed25519: 64), bytes with its headers


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
_BEGIN, _END, _RULE, _KEY, _OBJECT, _BEARER = (
    np.frombuffer(text, np.uint8)
    for text in (b"-----BEGIN ", b"-----END ", b"-----", b"PRIVATE KEY", b"eyJ", b"bearer ")
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
    """Two capitals and two digits or more; and 20 letters and digits together, or at most two words between dashes."""
    capitals = digits = words = longest = run = 0
    word = True
    for k in range(a, b):
        c = CLASS[data[k]]
        capitals += c & UPPER != 0
        digits += c & DIGIT != 0
        if c & ALNUM:
            word &= c & LETTER != 0 and (run == 0 or c & UPPER == 0)
            run += 1
            longest = max(longest, run)
        if c & ALNUM == 0 or k == b - 1:
            words += word and run > 1
            word, run = True, 0
    return capitals > 1 and digits > 1 and (longest >= 20 or words < 3)


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


@njit(cache=True, nogil=True)
def private_key(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The PEM block of a private key that begins at `i` (RFC 7468): both lines have one label, a key is between them.

    Reads no further than the next line of dashes, so that many beginnings are read once each."""
    if not _stands(data, i, hi, _BEGIN, len(_BEGIN)):
        return i, i
    label, private = i + len(_BEGIN), False
    b = label
    while b < hi and b - label < 40 and (is_(data, b, lo, hi, UPPER | DIGIT) or data[b] == _SPACE):
        private |= _stands(data, b, hi, _KEY, len(_KEY))
        b += 1
    if not private or not _stands(data, b, hi, _RULE, len(_RULE)):
        return i, i
    size = b - label
    end = _key(data, b + len(_RULE), lo, hi)
    stop = end + len(_END) + size
    if not _stands(data, end, hi, _END, len(_END)) or not _stands(data, stop, hi, _RULE, len(_RULE)):
        return i, i
    same = _stands(data, stop - size, hi, data[label:b], size)
    return (i, stop + len(_RULE)) if same else (i, i)


@njit(cache=True, nogil=True)
def _key(data: np.ndarray, i: int, lo: int, hi: int) -> int:
    """Where the key behind `i` ends: base 64 in lines, some headers before; `hi` where something else stands there.

    Lines may end in "\\n", as in JSON, or be joined by spaces: runs of 16 characters or more on average tell them from
    words."""
    b, signs, runs, fresh = i, 0, 0, True
    while b < hi and b - i < _MOST_KEY and data[b] != _DASH:
        c = data[b]
        n = _run(data, b, lo, hi, ALNUM | PLUS | SLASH, _MOST_KEY)
        while n < _MOST_KEY and byte(data, b + n, lo, hi) == _EQUAL:
            n += 1
        if n:
            stop = _header(data, b, lo, hi) if fresh and n <= 32 else b
            if stop == b:
                signs, runs, fresh = signs + n, runs + 1, False
            b = max(stop, b + n)
        elif c == 92 and (byte(data, b + 1, lo, hi) == 110 or byte(data, b + 1, lo, hi) == 114):  # \n, \r
            b, fresh = b + 2, True
        elif c == 10 or c == 13 or c == 9 or c == _SPACE:
            b, fresh = b + 1, fresh or c == 10
        else:
            return hi
    return b if signs >= max(_LEAST_KEY, 16 * runs) else hi


@inner
def _header(data: np.ndarray, i: int, lo: int, hi: int) -> int:
    """Where the line of a header such as "Proc-Type: 4,ENCRYPTED" at `i` ends, `i` where there is none."""
    b = i + _run(data, i, lo, hi, LETTER | HYPHEN, 32)
    if byte(data, b, lo, hi) != 58 or byte(data, b + 1, lo, hi) != _SPACE:
        return i
    while b < hi and b - i < 256 and data[b] != 10 and data[b] != 92 and not _stands(data, b, hi, _RULE, len(_RULE)):
        b += 1
    return b


@njit(cache=True, nogil=True)
def assigned(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The value behind the "=" or ":" at `i`, if the name before it or "Bearer" calls it secret and it looks random.

    Random: 16 to 256 letters, digits and "+/_-", at least three digits and three letters, `_BITS` of entropy for each
    character. Not random: paths ("/" without a capital), names (one "_" in 16 or more), calls and attributes.
    """
    a = i + 1
    while a < hi and a - i < 5 and (data[a] == _EQUAL or data[a] == 62 or data[a] == _SPACE):  # "==", "=>"
        a += 1
    quote = byte(data, a, lo, hi)
    quoted = quote == 34 or quote == 39
    a += quoted
    bearer = _bearer(data, a, lo, hi)
    a += len(_BEARER) * bearer
    b = a
    while b - a <= _MOST and is_(data, b, lo, hi, _VALUE):
        b += 1
    if not _FEWEST <= b - a <= _MOST or not is_(data, a, lo, hi, ALNUM) or not (bearer or _secret(data, i, lo)):
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
def _bearer(data: np.ndarray, i: int, lo: int, hi: int) -> bool:
    """Whether "Bearer " stands at `i`, as in HTTP's "Authorization: Bearer …" (RFC 6750)."""
    k = 0
    while k < len(_BEARER) and _lower(byte(data, i + k, lo, hi)) == _BEARER[k]:
        k += 1
    return k == len(_BEARER)


@inner
def _secret(data: np.ndarray, i: int, lo: int) -> bool:
    """Whether the name before the "=" or ":" at `i` has one of `_NAMES` in it, at the end of a word.

    A capital behind a small letter begins a word: "tokenValue"."""
    j = i
    while j > lo and i - j < 4 and (data[j - 1] == 32 or data[j - 1] == 34 or data[j - 1] == 39 or data[j - 1] == 58):
        j -= 1
    for b in range(j, max(lo, j - 48), -1):
        if not is_(data, b - 1, lo, j, _TOKEN):
            return False
        if is_(data, b, lo, j, LETTER) and not (is_(data, b, lo, j, UPPER) and is_(data, b - 1, lo, j, LOWER)):
            continue
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
