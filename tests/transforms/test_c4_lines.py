"""C4's line rules against a slow reference on strings; removed spans give the new texts."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import c4_lines as c4
from transforms.batch import Batch

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[[0-9]*\]|\[edit\]|\[citation needed\]")
WORDS = [
    "one",
    "two",
    "It",
    "水",
    "Javascript",
    "lorem Ipsum",
    "Privacy Policy",
    "we use cookies",
    "{",
    "longlonglong",
    "é",
    "[1]",
    "[edit]",
    "[citation needed]",
    "[",
    "[12",
    "...",
    ".",
    "!",
    "?",
    '"',
    "'",
    ",",
    " ",
    "  ",
    "\t",
    "\u3000",
]
BREAKS = ["\n", "\n\n", "\r\n", "\r", "\u2028", "\x85", "\x0b"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS * 2 + BREAKS + [" "] * 12), max_size=40).map("".join), max_size=4)


def make(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))


def rule(line: str, min_words: int, max_word_length: int) -> int:
    if any(len(word) > max_word_length for word in line.split()):
        return c4.LONG_WORD
    clean = CITATION.sub("", line)
    cut = line
    while found := re.search(rf"({CITATION.pattern})$", cut):
        cut = cut[: found.start()]
    if not cut.endswith((".", "?", "!", '"', "'")) or cut.endswith("..."):
        return c4.NO_TERMINAL
    if len(line.split()) < min_words:
        return c4.FEW_WORDS
    if "javascript" in clean.lower():
        return c4.JAVASCRIPT
    return c4.POLICY if any(phrase in clean.lower() for phrase in POLICY) else c4.KEPT


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_rules_and_new_texts(texts: list[str]) -> None:
    batch = make(texts)
    judged = c4.judge_lines(batch, 2, 10)
    data, spans = batch.bytes.tobytes(), judged.lines
    new, removed = c4.clean_lines(batch, 2, 10)
    for d, text in enumerate(texts):
        span = range(spans.offsets[d], spans.offsets[d + 1])
        stripped = [line.strip() for line in text.splitlines()]
        assert [data[spans.start[i] : spans.end[i]].decode() for i in span] == stripped
        rules = [rule(line, 2, 10) for line in stripped]
        assert [int(judged.rule[i]) for i in span] == rules
        kept = [CITATION.sub("", line) for line, r in zip(stripped, rules, strict=True) if r == c4.KEPT]
        assert re.split("[\n\r\u2028\x85\x0b]", new[d].as_py()) == (kept or [""])
        cut = [(removed.start[i], removed.end[i]) for i in range(removed.offsets[d], removed.offsets[d + 1])]
        places = [batch.offsets[d], *(p for pair in cut for p in pair), batch.offsets[d + 1]]
        assert places == sorted(places)
        assert all(a < b for a, b in cut)
        rest = b"".join(data[a:b] for a, b in zip(places[::2], places[1::2], strict=True))
        assert rest.decode() == new[d].as_py()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("This line is kept.", c4.KEPT),
        ('He said "so it is"', c4.KEPT),
        ("Is it so? [1][edit]", c4.NO_TERMINAL),
        ("It is so.[1][citation needed]", c4.KEPT),
        ("This one trails off...", c4.NO_TERMINAL),
        ("No mark here", c4.NO_TERMINAL),
        ("Too short.", c4.FEW_WORDS),
        ("Please enable JavaScript now.", c4.JAVASCRIPT),
        ("Read our Privacy Policy now.", c4.POLICY),
        ("This site USES COOKIES, sorry.", c4.POLICY),
        (f"The word {'x' * 1001} is long.", c4.LONG_WORD),
        (f"The word {'é' * 1000} is not.", c4.KEPT),
        ("", c4.NO_TERMINAL),
    ],
)
def test_each_rule(line: str, expected: int) -> None:
    judged = c4.judge_lines(make([f"First line is fine.\r\n  {line}  \nLast line is fine."]))
    assert judged.rule.tolist() == [c4.KEPT, expected, c4.KEPT]


def test_new_text() -> None:
    text = "  Menu\nThe cat sat.[1] It slept[edit] well.\r\n\nShare this\r\nThe end has come. \n"
    new, removed = c4.clean_lines(make(["", text, "nothing"]))
    assert new.to_pylist() == ["", "The cat sat. It slept well.\nThe end has come.", ""]
    assert removed.offsets.tolist() == [0, 0, len(removed) - 1, len(removed)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One is here. Two is here! Is three here?", 3),
        ("Mr. Smith went to the U.S. with him.", 1),
        ("He said it is so... and left.", 1),
        ("One is here.[1] Two is here.[2]", 2),
        ("One is here.\nTwo is here.\nno mark here", 2),
        ('"Is it so?" he asked them.', 2),
        ("What is it?! It is (so).) Yes it is.", 3),
        ("", 0),
        ("यह एक है। वह दो है.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    batch = make(["A first document.", text, "A last document."])
    assert c4.sentences(batch, c4.judge_lines(batch)).tolist() == [1, count, 1]


def test_long_documents() -> None:
    texts = ["a b cd. " * 300_000, "[1]" * 300_000, "x" * 1_000_000, "\n" * 1_000_000, "A b c.\n" * 200_000]
    batch = make(texts)
    rules, _ = c4.count_rules(c4.judge_lines(batch))
    assert rules.sum(axis=1).tolist() == [1, 1, 1, 1_000_000, 200_000]
    assert c4.sentences(batch, c4.judge_lines(batch)).tolist() == [300_000, 0, 0, 0, 200_000]
    assert c4.clean_lines(batch)[0][4].as_py() == texts[4].rstrip()
