"""Words against tokens known to be spaCy's, and against a slow tokenizer that follows the rules on strings."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.characters import EDGE_MARKS, QUOTES
from transforms.english import exceptions, units

# text -> its tokens under spaCy 3.8's blank English tokenizer, white space left out
KNOWN = {
    "Hello, world!": "Hello , world !",
    "I don't know; it's John's dog.": "I do n't know ; it 's John 's dog .",
    "They’ll can’t, won't've cannot gonna": "They ’ll ca n’t , wo n't 've can not gon na",
    "the U.S. and e.g. Mr. Smith (Ph.D.)": "the U.S. and e.g. Mr. Smith ( Ph.D. )",
    "well-known re-use -dash a--b": "well - known re - use -dash a -- b",
    "see http://a.com/b-c?d=e, or www.x.org/y.": "see http://a.com/b-c?d=e , or www.x.org/y .",
    "mail me.you@some-host.co.uk now": "mail me.you@some-host.co.uk now",
    "5km 10% $3.50 US$100 1,000.5 3-4 2015-16 10K 5th": "5 km 10 % $ 3.50 US$ 100 1,000.5 3 - 4 2015 - 16 10 K 5th",
    '"Quoted," he said... wait…what': '" Quoted , " he said ... wait … what',
    "end.Start a,b 1,2 a/b a:b C++ and/or": "end . Start a , b 1,2 a / b a : b C++ and/or",
    "at 9am or 10p.m. :) ;-) <3": "at 9 am or 10 p.m. :) ;-) <3",
    "«Привет», сказал он.": "« Привет » , сказал он .",
    "他说：“你好”。好": "他说：“你好”。好",
    "שלום, עולם!": "שלום , עולם !",
    "नमस्ते। दुनिया": "नमस्ते । दुनिया",
    "great😀ok 😀😀": "great 😀 ok 😀 😀",
    "NASA. a.b. I.": "NASA . a.b . I.",
    "#tag @user *bold* _it_ [1] {x} x+1 1+1": "# tag @user * bold * _ it _ [ 1 ] { x } x+1 1 + 1",
}


def words_of(texts: list[str]) -> list[list[str]]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))
    data, spans = batch.bytes.tobytes(), batch.words
    found = [data[a:b].decode() for a, b in zip(spans.start, spans.end, strict=True)]
    return [found[a:b] for a, b in zip(spans.offsets[:-1], spans.offsets[1:], strict=True)]


@pytest.mark.parametrize("text", KNOWN)
def test_known_tokens(text: str) -> None:
    assert " ".join(words_of([text])[0]) == KNOWN[text]


@pytest.mark.parametrize("form", ["{}", "({}", "{},", "“{}”"])
def test_exceptions_split_as_listed(form: str) -> None:
    before, after = form.split("{}")
    listed = {w: parts for w, parts in exceptions().items() if w[:2].isalpha() and w[-2:].isalpha() and "/" not in w}
    assert len(listed) > 600
    expected = [[*before, *parts, *after] for parts in listed.values()]
    assert words_of([form.format(w) for w in listed]) == expected


# A slow tokenizer: the same rules, on strings, with no tables.
LISTED = exceptions()
DIGITS = "0123456789"


def letter(c: str) -> bool:
    return len(c) == 1 and (unicodedata.category(c)[0] == "L" or (unicodedata.category(c)[0] == "M" and c > "\u0590"))


def lower(c: str) -> bool:
    return letter(c) and unicodedata.category(c) not in ("Lu", "Lt")


def upper(c: str) -> bool:
    return letter(c) and unicodedata.category(c) != "Ll"


def icon(c: str) -> bool:
    return len(c) == 1 and unicodedata.category(c) == "So" and ord(c) < 0x20000


def within(c: str, these: str) -> bool:
    return len(c) == 1 and c in these


def sign(c: str) -> bool:
    return len(c) == 1 and unicodedata.category(c) == "Sc"


def dots(s: str) -> int:
    return len(s) - len(s.lstrip("."))


def prefix(s: str) -> str:
    c = s[0]
    if within(c, EDGE_MARKS + QUOTES + "§%=") or icon(c) or sign(c) or (c == "+" and not within(s[1:2], DIGITS)):
        return c
    if dots(s) > 1:
        return s[: dots(s)]
    return next((p for p in ("US$", "C$", "A$") if s.startswith(p)), "")


def suffix(s: str) -> str:
    if not s:
        return ""
    last, rest = s[-1], s[:-1]
    if last == ".":
        if rest.endswith("."):
            return "." * dots(s[::-1])
        single = lower(rest[-1:]) or within(rest[-1:], EDGE_MARKS[:-2] + QUOTES + DIGITS + "%²-+|")
        return "." if single or (len(rest) > 1 and upper(rest[-1]) and upper(rest[-2])) else ""
    if s.endswith("……"):
        return "……"
    if s[-2:] in ("'s", "'S", "’s", "’S"):
        return s[-2:]
    if within(last, EDGE_MARKS + QUOTES) or icon(last):
        return last
    if last == "+" or sign(last):
        return last if within(rest[-1:], DIGITS) else ""
    return next((u for u in sorted(units(), key=len) if s.endswith(u) and within(s[: -len(u)][-1:], DIGITS)), "")


def infix(s: str, i: int) -> str:
    """The infix of `s` at `i`, if there is one."""
    before, c, after = s[i - 1 : i], s[i], s[i + 1 : i + 2]
    if dots(s[i:]) > 1:
        return s[i : i + dots(s[i:])]
    if c == "…" or icon(c):
        return c
    if c == ".":
        return c if (lower(before) or within(before, QUOTES)) and (upper(after) or within(after, QUOTES)) else ""
    if c in "+-*^" and within(before, DIGITS) and within(after, DIGITS + "-"):
        return c
    if c == ",":
        return c if letter(before) and letter(after) else ""
    if letter(before) or within(before, DIGITS):
        signs = ("-", "–", "—", "--", "---", "——", "~", ":", "<", ">", "=", "/")
        return next((h for h in signs if s[i:].startswith(h) and letter(s[i + len(h) : i + len(h) + 1])), "")
    return ""


def host(s: str) -> str:
    """The host name or address that `s` begins with, or nothing."""
    n = 0
    while n < len(s) and ((s[n].isascii() and (s[n].isalnum() or s[n] in "-_.")) or "\u00a1" <= s[n] <= "\uffff"):
        n += 1
    labels = s[:n].split(".")
    if any(not part or len(part.encode()) > 252 or part[0] in "-_" or part[-1] == "-" for part in labels):
        return ""
    octets = len(labels) == 4 and all(set(part) <= set(DIGITS) and len(part) <= 3 for part in labels)
    top = labels[-1]
    return s[:n] if octets or (len(labels) > 1 and all(map(lower, top)) and len(top.encode()) > 1) else ""


def address(s: str) -> bool:
    scheme = s.partition("://")[0]
    named = "://" in s and len(scheme) > 1 and all(c.isascii() and (c.isalnum() or c in "_+-.") for c in scheme)
    s = s[len(scheme) + 3 :] if named else s
    for start in [0] + [i + 1 for i, c in enumerate(s) if c == "@" and i > 0]:
        name = host(s[start:])
        rest = s[start + len(name) :]
        port = rest[1:6] if rest.startswith(":") else ""
        port = port[: len(port) - len(port.lstrip(DIGITS))]
        if len(port) > 1 and not within(rest[1 + len(port) : 2 + len(port)], DIGITS):
            rest = rest[1 + len(port) :]
        if name and (not rest or rest[0] in "/?#"):
            return True
    return False


def inner_tokens(s: str) -> Iterator[str]:
    piece = i = 0
    first = True
    while i < len(s):
        found = infix(s, i)
        if found and i > 0:
            if first and address(s):
                yield s
                return
            first = False
            yield from (part for part in (s[piece:i], found) if part)
            piece = i + len(found)
        i += len(found) or 1
    if s[piece:]:
        yield s[piece:]


def slow_tokens(chunk: str) -> list[str]:
    front: list[str] = []
    back: list[str] = []
    while chunk and chunk not in LISTED:
        first = prefix(chunk)
        if first and chunk[len(first) :] in LISTED:
            front, chunk = [*front, first], chunk[len(first) :]
            break
        last = suffix(chunk[len(first) :])
        if last and chunk[: -len(last)] in LISTED:
            back, chunk = [last, *back], chunk[: -len(last)]
            break
        if not first and not last:
            break
        front, back = front + [first] * bool(first), [last] * bool(last) + back
        chunk = chunk[len(first) : len(chunk) - len(last)]
    middle = LISTED[chunk] if chunk in LISTED else inner_tokens(chunk)
    return [*front, *middle, *back]


PARTS = """
. .. ... , - -- ' ’s 's n't ( ) " … …… $ US$ % + / : :// @ # = ~ — – * ^ 😀 ° € § « 。 ， 一 ы Ы א ก ि é É ß \u0301 | _
a b A US the do don't Mr. e.g. km m² 1 23 com www http 10.0.0.1 :) K
"""
PARTS_AND_SPACES = [*PARTS.split(), " ", "\u00a0", "\u3000", "\n"]
MIXED = st.lists(st.sampled_from(PARTS_AND_SPACES), max_size=10).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x1FFFF), max_size=20)


@settings(deadline=None, max_examples=400)
@given(st.lists(MIXED | ANY, max_size=6))
@example(["1=", "1§", "1%", "1€", "1+", "1$="])
@example(["a.b@c.com:80/x-y", "a@b@c.de", "http://-a.b", "1.2.3.4:99999", "a.b:1", "(Mr.)", "x" * 300 + ".com/a-b"])
def test_words_equal_slow_tokenizer(texts: list[str]) -> None:
    assert words_of(texts) == [[token for chunk in text.split() for token in slow_tokens(chunk)] for text in texts]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("word " * 1_000_000, 1_000_000),
        ("x" * 1_000_000, 1),
        ("!" * 300_000, 300_000),
        ("😀" * 100_000, 100_000),
        ("." * 1_000_000, 1),
        ("(" * 200_000 + ")" * 200_000, 400_000),
        ("a-" * 200_000 + "a", 400_001),
        ("a@" * 200_000 + "-b", 1),
        ("\n" * 1_000_000, 0),
        ("a.b-c@" * 100_000 + "d", 200_001),
        ("水" * 300_000, 1),
    ],
)
def test_long_documents(text: str, count: int) -> None:
    assert [len(tokens) for tokens in words_of([text, "a b"])] == [count, 2]
