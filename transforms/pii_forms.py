"""Forms of personal data at one place of a text: e-mail and IP addresses, IBANs, payment cards, candidates for phones.

Each kernel is given a place `i` of a document `lo:hi` and returns the span that stands there, empty where there is
none. None reads more than 330 bytes, so that any text takes linear time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from transforms.text import inner

DIGIT, UPPER, LOWER, HEX, MARK, GAP = 1, 2, 4, 8, 16, 32
LOW, HYPHEN, DOT, SLASH, COLON, PLUS, COMMA, AT = 64, 128, 256, 512, 1024, 2048, 4096, 8192  # one sign each
LETTER, ALNUM = UPPER | LOWER, DIGIT | UPPER | LOWER
NAME = ALNUM | LOW
_AT, _DOT, _DASH, _SPACE, _SLASH, _COLON, _EQUAL, _QUOTE, _OPEN = (ord(c) for c in "@.- /:='(")
_MOST_LOCAL, _MOST_DOMAIN = 64, 253  # bytes, RFC 5321
_MOST_PHONE = 15  # digits, E.164


def _classes() -> np.ndarray:
    table = np.zeros(256, np.int64)
    for flag, characters in (
        (DIGIT, b"0123456789"),
        (UPPER, bytes(range(65, 91))),
        (LOWER, bytes(range(97, 123))),
        (HEX, b"0123456789abcdefABCDEF"),
        (MARK, b"._%+-"),  # in the local part of addresses
        (GAP, b" -./()\xc2\xa0"),  # between the digits of a phone number; the last two are a no-break space
        *((1 << 6 + k, bytes([sign])) for k, sign in enumerate(b"_-./:+,@")),  # LOW to AT
    ):
        table[list(characters)] |= flag
    return table


def packed(words: str) -> np.ndarray:
    """int64 [words]: the last 8 bytes of each word as a number, for comparison."""
    return np.array([int.from_bytes(word.encode()[-8:]) for word in words.split()], np.int64)


CLASS = _classes()
# After these, or a sign of comparison, four numbers are a version or a section.
_NUMBERED = packed("v ver version versions release releases rev revision build firmware section chapter update")
_CALLED = packed("tel tele telephone telefon phone phones call fax telefax mobile mobil cell ph dial text sms whatsapp")
# No domain ends in these: ends of file names, attributes of arrays, and "xn" of "xn--" (RFC 5890).
_NO_DOMAINS = packed(
    "png jpg jpeg gif svg webp css js ts ico html htm py md txt pdf tgz gz tar whl xn "
    "shape dtype device size ndim data grad weight tensor values numpy mean item conj imag inv"
)
_GIT = packed("git")
# Length of an IBAN by country (SWIFT's IBAN registry).
_IBAN = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 "
    "LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 "
    "QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)


def _iban_lengths() -> np.ndarray:
    table = np.zeros((26, 26), np.int64)
    for entry in _IBAN.split():
        table[ord(entry[0]) - 65, ord(entry[1]) - 65] = int(entry[2:])
    return table


IBAN_LENGTHS = _iban_lengths()


@inner
def is_(data: np.ndarray, i: int, lo: int, hi: int, flags: int) -> bool:
    """Whether byte `i` is of one of the classes; beyond the document none is."""
    return lo <= i < hi and CLASS[data[i]] & flags != 0


@inner
def byte(data: np.ndarray, i: int, lo: int, hi: int) -> Any:
    """Byte `i`, 0 beyond the document."""
    return np.int64(data[i]) if lo <= i < hi else 0


@inner
def _pack(data: np.ndarray, a: int, b: int) -> Any:
    """Letters of ``data[a:b]``, at most 8, in lower case, as `packed` has them."""
    value = np.int64(0)
    for k in range(a, b):
        value = value << 8 | np.int64(data[k] | 32)
    return value


@inner
def _among(data: np.ndarray, a: int, b: int, words: np.ndarray) -> bool:
    if not 0 < b - a <= 8:
        return False
    value = _pack(data, a, b)
    found = False
    for word in words:
        found |= word == value
    return found


@inner
def email(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The address around the "@" at `i`: Latin letters before, with accents too; a domain of ASCII behind.

    Not addresses: names of files ("icon@2x.png"), handles with an "@" before them ("@me@host.org"), `git@`, versions
    of packages ("lodash@4.17.21.tgz") and products of matrices ("q@k.transpose(0, 1)", "W@x.shape").
    """
    end = _domain(data, i, lo, hi)
    a = _local(data, i, lo, hi, byte(data, end, lo, hi) == _QUOTE)
    git = i - a == 3 and _among(data, a, i, _GIT)
    if end == i or a == i or git or byte(data, a - 1, lo, hi) == _AT or data[i - 1] == _DOT or data[i - 1] == _QUOTE:
        return i, i
    return a, end


@inner
def _local(data: np.ndarray, i: int, lo: int, hi: int, quoted: bool) -> int:
    """Where the local part before the "@" at `i` begins, `i` where there is none; "'" is in it, unless it quotes."""
    a = i
    while i - a <= _MOST_LOCAL:
        if is_(data, a - 1, lo, hi, ALNUM | MARK) or (byte(data, a - 1, lo, hi) == _QUOTE and not quoted):
            a -= 1
        elif _accented(data, a - 2, lo, i):
            a -= 2
        else:
            break
    if i - a > _MOST_LOCAL:
        return i
    while a < i and (CLASS[data[a]] & MARK or data[a] == _QUOTE):
        a += 1
    return a


@inner
def _accented(data: np.ndarray, i: int, lo: int, hi: int) -> bool:
    """Whether a Latin letter beyond ASCII or a combining accent stands at `i` (U+00C0 to U+037F in UTF-8)."""
    lead, trail = byte(data, i, lo, hi), byte(data, i + 1, lo, hi)
    return 0xC3 <= lead <= 0xCD and trail >> 6 == 2 and not (lead == 0xC3 and (trail == 0x97 or trail == 0xB7))


@inner
def _domain(data: np.ndarray, i: int, lo: int, hi: int) -> int:
    """Where the domain behind the "@" at `i` ends, `i` where there is none: two labels or more, the last of letters."""
    digits = _run(data, i + 1, lo, hi)  # 163.com is a domain, 4.17 is not
    if digits and byte(data, i + 1 + digits, lo, hi) == _DOT and is_(data, i + 2 + digits, lo, hi, DIGIT):
        return i
    good, label, letters, labels = i, i + 1, True, 1
    for b in range(i + 1, min(hi, i + 2 + _MOST_DOMAIN) + 1):
        c = byte(data, b, lo, hi)
        inside = CLASS[c] & (ALNUM | HYPHEN) != 0
        if not inside and (b == label or data[label] == _DASH or data[b - 1] == _DASH):
            break
        ends = not inside or (c == _DASH and not is_(data, b + 1, lo, hi, ALNUM))  # a dash behind an address
        if ends and labels > 1 and letters and 2 <= b - label <= 24 and not _among(data, label, b, _NO_DOMAINS):
            good = b
        if inside:
            letters &= CLASS[c] & LETTER != 0
        elif c == _DOT:
            label, letters, labels = b + 1, True, labels + 1
        else:
            good = i if c in (_AT, _OPEN) else good
            break
    return good


@inner
def _numbered(data: np.ndarray, i: int, lo: int) -> bool:
    """Whether what stands before `i` says that a version or a section follows."""
    j = i
    while j > lo and i - j < 4 and data[j - 1] == _SPACE:
        j -= 1
    if j > lo + 1 and data[j - 1] == _EQUAL and not CLASS[data[j - 2]] & ALNUM and data[j - 2] != _SPACE:
        return True  # ==, <=, >=, ~=, !=
    return _behind(data, i, lo, _NUMBERED)


@inner
def _behind(data: np.ndarray, i: int, lo: int, words: np.ndarray) -> bool:
    """Whether one of the words stands before `i`, with at most four spaces and signs between."""
    j = i
    while j > lo and i - j < 4 and CLASS[data[j - 1]] & ALNUM == 0 and data[j - 1] < 128:
        j -= 1
    a = j
    while a > lo and j - a < 8 and CLASS[data[a - 1]] & LETTER:
        a -= 1
    return _among(data, a, j, words)


@inner
def _public(a: int, b: int, c: int) -> bool:
    """Whether addresses of this /24 are reachable from everywhere (IANA's registry of special IPv4 addresses)."""
    private = a == 0 or a == 10 or a == 127 or a >= 224 or (a == 172 and 16 <= b < 32) or (a == 192 and b == 168)
    shared = (a == 100 and 64 <= b < 128) or (a == 169 and b == 254) or (a == 198 and 18 <= b < 20)
    documents = (a == 192 and b == 0 and (c == 0 or c == 2)) or (a == 198 and b == 51 and c == 100)
    return not (private or shared or documents or (a == 203 and b == 0 and c == 113))


@inner
def ipv4(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The public address that begins at the digit `i`.

    Not addresses: numbers with zeros before them, those that begin with two numbers below 10 (versions, sections, and
    resolvers such as 8.8.8.8), parts of longer numbers and of names, and what a word such as "version" stands before.
    """
    if is_(data, i - 1, lo, hi, NAME | DOT) or data[i] == 48:
        return i, i
    named = is_(data, i - 1, lo, hi, HYPHEN | SLASH) and is_(data, i - 2, lo, hi, LETTER)
    if named or (is_(data, i - 1, lo, hi, COLON) and is_(data, i - 2, lo, hi, DIGIT)):
        return i, i
    parts = np.int64(0)
    large, b = False, i
    for part in range(4):
        first, value = b, 0
        while b - first < 3 and is_(data, b, lo, hi, DIGIT):
            value, b = value * 10 + data[b] - 48, b + 1
        if b == first or value > 255 or (data[first] == 48 and b - first > 1):
            return i, i
        large |= value > 9 and part < 2
        parts = parts << 8 | value
        if part < 3:
            if byte(data, b, lo, hi) != _DOT:
                return i, i
            b += 1
    joined = is_(data, b, lo, hi, DOT) and is_(data, b + 1, lo, hi, ALNUM)
    if is_(data, b, lo, hi, HYPHEN) and is_(
        data, b + 1, lo, hi, ALNUM
    ):  # a range of addresses may follow, not "-2" or "-beta"
        joined = byte(data, b + 1 + _run(data, b + 1, lo, hi), lo, hi) != _DOT
    if joined or is_(data, b, lo, hi, NAME):
        return i, i
    if not large or not _public(parts >> 24, parts >> 16 & 255, parts >> 8 & 255) or _numbered(data, i, lo):
        return i, i
    return i, b


@inner
def ipv6(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The global unicast address (2000::/3, RFC 4291) that begins at `i`, with three groups or more.

    Left out: 2001::/23, 2001:db8::/32, 2002::/16 and 3fff::/20, which are protocols, documentation and tunnels. Forms
    that end in an IPv4 address are not read.
    """
    if is_(data, i - 1, lo, hi, NAME | COLON | DOT):
        return i, i
    b, groups, first, second, short = i, 0, np.int64(0), np.int64(0), False
    while groups < 8 and is_(data, b, lo, hi, HEX):
        begin, value = b, np.int64(0)
        while b - begin < 4 and is_(data, b, lo, hi, HEX):
            c = np.int64(data[b])
            value = value << 4 | (c - 48 if c < 58 else (c | 32) - 87)
            b += 1
        if groups == 0 and b - begin < 4:
            return i, i
        first, second = value if groups == 0 else first, value if groups == 1 and not short else second
        groups += 1
        if byte(data, b, lo, hi) != _COLON:
            break
        if byte(data, b + 1, lo, hi) == _COLON:
            if short:
                return i, i
            short, b = True, b + 2
        elif is_(data, b + 1, lo, hi, HEX) and groups < 8:
            b += 1
        else:
            break
    joined = is_(data, b, lo, hi, DOT) and is_(data, b + 1, lo, hi, ALNUM)
    joined |= is_(data, b, lo, hi, COLON) and byte(data, b + 1, lo, hi) != _SPACE
    if joined or is_(data, b, lo, hi, NAME):
        return i, i
    whole = groups == 8 if not short else 3 <= groups < 8
    special = (first == 0x2001 and (second < 0x200 or second == 0xDB8)) or first == 0x2002
    special |= first == 0x3FFF and second < 0x1000
    return (i, b) if whole and first >> 13 == 1 and not special else (i, i)


@inner
def iban(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The IBAN that begins at the capital `i`, whole or in groups of four; its length and checksum hold (ISO 13616)."""
    if is_(data, i - 1, lo, hi, ALNUM) or not is_(data, i + 1, lo, hi, UPPER):
        return i, i
    if not (is_(data, i + 2, lo, hi, DIGIT) and is_(data, i + 3, lo, hi, DIGIT)):
        return i, i
    length = IBAN_LENGTHS[data[i] - 65, data[i + 1] - 65]
    grouped = byte(data, i + 4, lo, hi) == _SPACE
    b, rest = i + 4, np.int64(0)
    for k in range(4, length):
        if grouped and k % 4 == 0:
            if byte(data, b, lo, hi) != _SPACE:
                return i, i
            b += 1
        if not is_(data, b, lo, hi, DIGIT | UPPER):
            return i, i
        rest = _append(rest, data[b])
        b += 1
    for k in range(i, i + 4):
        rest = _append(rest, data[k])
    return (i, b) if length and rest == 1 and not is_(data, b, lo, hi, ALNUM) else (i, i)


@inner
def _append(rest: int, c: int) -> int:
    """Remainder by 97 when a digit, or a letter as its number from 10 on, is written behind."""
    return (rest * 10 + c - 48) % 97 if c < 58 else (rest * 100 + c - 55) % 97


@inner
def card(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int]:
    """The card number that begins at the digit `i`: of a known issuer and length, with Luhn's checksum.

    Digits stand together, or in the groups printed on cards (4-4-4-4, 4-4-4-4-3, 4-6-5, 4-6-4) with one sign between
    them, a space or a hyphen. Parts of longer numbers, names and paths are not cards.
    """
    joined = is_(data, i - 1, lo, hi, DOT | HYPHEN) and is_(data, i - 2, lo, hi, ALNUM)
    if joined or is_(data, i - 1, lo, hi, NAME | PLUS | SLASH):
        return i, i
    b, digits = i, 0
    while digits < 20 and is_(data, b, lo, hi, DIGIT):
        b, digits = b + 1, digits + 1
    if digits != 4:
        return (i, b) if _issued(data, i, b, lo, hi) else (i, i)
    gap = byte(data, b, lo, hi)
    if gap != _SPACE and gap != _DASH:
        return i, i
    second = _run(data, b + 1, lo, hi)
    third = _run(data, b + 2 + second, lo, hi)
    end = b + 2 + second + third
    if byte(data, b + 1 + second, lo, hi) != gap:
        return i, i
    if second == 6:
        return (i, end) if (third == 4 or third == 5) and _issued(data, i, end, lo, hi) else (i, i)
    if second != 4 or third != 4 or byte(data, end, lo, hi) != gap or _run(data, end + 1, lo, hi) != 4:
        return i, i
    end += 5
    longer = end + 4
    if byte(data, end, lo, hi) == gap and _run(data, end + 1, lo, hi) == 3 and _issued(data, i, longer, lo, hi):
        return i, longer
    return (i, end) if _issued(data, i, end, lo, hi) else (i, i)


@inner
def _run(data: np.ndarray, i: int, lo: int, hi: int) -> int:
    """Digits from `i` on, at most 7."""
    n = 0
    while n < 7 and is_(data, i + n, lo, hi, DIGIT):
        n += 1
    return n


@inner
def _issued(data: np.ndarray, a: int, b: int, lo: int, hi: int) -> bool:
    """Whether the digits of ``data[a:b]`` are a card number and end there."""
    joined = is_(data, b, lo, hi, DOT | HYPHEN) and is_(data, b + 1, lo, hi, DIGIT)
    if joined or is_(data, b, lo, hi, NAME | AT):
        return False
    digits, total, prefix = 0, 0, np.int64(0)
    for k in range(b - 1, a - 1, -1):
        if CLASS[data[k]] & DIGIT:
            value = (data[k] - 48) << (digits & 1)
            total += value - 9 if value > 9 else value
            digits += 1
    seen = 0
    for k in range(a, b):
        if CLASS[data[k]] & DIGIT and seen < 4:
            prefix, seen = prefix * 10 + data[k] - 48, seen + 1
    return total % 10 == 0 and _length_fits(prefix, digits)


@inner
def _length_fits(prefix: int, digits: int) -> bool:
    """Whether a network issues numbers of so many digits with these first four (ISO/IEC 7812, the networks' ranges)."""
    two, three = prefix // 100, prefix // 10
    visa = prefix // 1000 == 4 and (digits == 16 or digits == 19)  # not 13: codes of articles (EAN-13)
    mastercard = digits == 16 and (51 <= two <= 55 or 2221 <= prefix <= 2720)
    express = digits == 15 and (two == 34 or two == 37)
    diners = digits == 14 and (300 <= three <= 305 or two == 36 or two == 38 or two == 39)
    long = 16 <= digits <= 19 and (two == 62 or two == 65 or prefix == 6011 or 644 <= three <= 649)
    return visa or mastercard or express or diners or long or (digits == 16 and 3528 <= prefix <= 3589)


@inner
def phone_begins(data: np.ndarray, i: int, lo: int, hi: int) -> bool:
    """Whether a phone number may begin at `i`: a digit, "(" or "+" that is no part of a longer number or name."""
    before = byte(data, i - 1, lo, hi)
    joined = is_(data, i - 1, lo, hi, DOT | HYPHEN | SLASH | COMMA) and is_(data, i - 2, lo, hi, DIGIT)
    if joined or CLASS[before] & (NAME | PLUS) or before == 36 or before == 35:  # $ and #
        return False
    return is_(data, i, lo, hi, DIGIT) or is_(data, i + 1, lo, hi, DIGIT)


@inner
def phone_group(data: np.ndarray, i: int, lo: int, hi: int) -> tuple[int, int, int]:
    """The digits that stand at `i` or behind a gap of at most three bytes: where they begin and end (none: i, i), and
    the signs of the gap in bits: 1 space, 2 "-", 4 ".", 8 "/", 16 brackets."""
    a, signs = i, 0
    while a - i < 3 and is_(data, a, lo, hi, GAP):
        c = data[a]
        signs |= 2 if c == _DASH else 4 if c == _DOT else 8 if c == _SLASH else 16 if c == 40 or c == 41 else 1
        a += 1
    b = a
    while b - a <= _MOST_PHONE and is_(data, b, lo, hi, DIGIT):
        b += 1
    return (a, b, signs) if b > a else (i, i, 0)


@inner
def phone_gaps(data: np.ndarray, i: int, lo: int, signs: int, dialled: bool) -> bool:
    """Whether a phone number that begins at `i` may have these signs between its digits.

    Of "-", "." and "/" one only. Spaces alone only with "+", with a zero at its beginning, or behind a word for phones:
    else three numbers of a table would be one.
    """
    signs &= 31
    kinds = (signs >> 1 & 1) + (signs >> 2 & 1) + (signs >> 3 & 1)
    if kinds > 1 or (data[i] == 40 and signs & 16 == 0 and signs > 0):
        return dialled
    return signs != 1 or dialled or data[i] == 48 or _behind(data, i, lo, _CALLED)
