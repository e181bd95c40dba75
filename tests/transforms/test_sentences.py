"""Sentences equal a slow reference, end to end they are the text, and known ones are found in several languages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.batch import Batch, Spans
from transforms.characters import DIGIT, IDEOGRAPH, LETTER, LIMIT, LOWER, UPPER
from transforms.passages import Unit, lines, passages
from transforms.sentences import (
    CLOSE,
    CLOSERS,
    DOT,
    NARROWEST,
    NEVER,
    NUMBERED,
    OPEN,
    STARTS,
    STOP,
    STRONG,
    UNSURE,
    WIDEST,
    marks,
    sentences,
    words,
)
from transforms.text import hash_words

BREAK = "\r\n|\r(?!\n)|[\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]"
KNOWN = {
    "English": [
        "Dr. Smith moved to Washington D.C. on Jan. 5, 2020.", 'He met J. R. R. Tolkien, of "The Hobbit".',
        "“Really?” she asked (quietly).", "“Yes!”", "Then he left... and came back at 3 p.m. with No. 7 for $3.50.",
        "The U.S. Army and Acme Inc. helped, e.g. The Guards.", "He stayed in the U.S.", "It ended.[12]",
        "(Nobody knew why.)", "So . . . they met.", "Version 2.1 is at www.example.com/a.html?q=1!",
        "Wow‼\ufe0f great.", "Really⁉\ufe0e", "Ph.D. students, see Fig. 3.",
    ],
    "German": [
        "Am 3. Oktober 1990 war es so weit, z.B. Berlin bzw. Bonn.", "„Im 19. Jahrhundert?“, fragte Hr. Meier.",
        "Das kostet ca. 1.500 Euro usw. und mehr.", "Prof. Dr. Kurz kam.", "Ende!",
    ],
    "French": [
        "M. Dupont et Mme Durand sont là.", "« Vraiment ? » dit-elle.", "« Oui ! »", "Il y a 3,5 p. 100 de sel.",
        "C’est tout…",
    ],
    "Spanish": ["El Sr. López llegó a EE.UU. en 1999.", "¿Por qué?", "¡No lo sé!", "La pág. 5 lo dice."],
    "Russian": ["А. С. Пушкин родился в 1799 г. в Москве.", "Он жил на ул. Арбат.", "Правда?", "Да!"],
    "Greek": ["Ο κ. Παπάς ήρθε.", "Έφυγε!"],
    "Hindi": ["यह एक वाक्य है।", "क्या यह सच है?", "हाँ।"],
    "Arabic": ["ذهب أحمد إلى المدرسة.", "هل هذا صحيح؟", "نعم."],
}  # fmt: skip
UNSPACED = {
    "Chinese": ["今天天气很好。", "我们去公园吧！", "真的？", "「是的。」他说。", "价格是3.5元。"],
    "Japanese": ["今日は天気がいいです。", "「行きます。」と彼は言った。", "本当?", "はい!"],
}


def pieces(texts: Sequence[str], split: type | object = sentences) -> list[list[str]]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))
    found: Spans = split(batch)  # type: ignore[operator]
    data = batch.bytes.tobytes()
    cut = [data[a:b].decode() for a, b in zip(found.start, found.end, strict=True)]
    return [cut[a:b] for a, b in pairwise(found.offsets)]


def flags(character: str) -> int:
    code = ord(character)
    return int(marks()[code]) if code < LIMIT else IDEOGRAPH if code < 2 * LIMIT else 0


def kind(word: str) -> int:
    hashes, kinds = words()
    found = kinds[hashes == hash_words([word])[0]] if word else []
    return int(found[0]) if len(found) else 0


def cased(character: str) -> bool:
    return not (flags(character) & LOWER and flags(character) & UPPER)


def leading(text: str, wanted: int) -> str:
    return text[: next((i for i, c in enumerate(text) if not flags(c) & wanted), len(text))]


def trailing(text: str, wanted: int) -> str:
    return leading(text[::-1], wanted)[::-1]


def short(word: str) -> bool:
    parts = re.split("[" + re.escape(".․﹒．") + "]", word)
    if any(not flags(c) & DIGIT and not cased(c) for part in parts for c in part):
        return False
    if any(flags(c) & DIGIT for c in word):
        return len(parts) == 1 and len(word) <= 2 and all(flags(c) & DIGIT for c in word)
    return all(1 <= len(part) <= 2 for part in parts) if len(parts) > 1 else len(word) == 1


def without_closers(text: str) -> str:
    closers = f"[{re.escape(CLOSERS)}]*"
    if found := re.search(rf"(\S)([^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029])»{closers}$", text):
        run = re.search(f"{closers}$", text)[0]  # type: ignore[index]
        if flags(found[1]) & STOP and run == text[found.end(2) :]:
            return text[: found.end(1)]
    if found := re.search(rf"(?<!^)\[[0-9]+\]{closers}$", text):
        return text[: found.start()]
    return text.rstrip(CLOSERS)


def stopped(before: str, after: str) -> bool:
    """Whether a sentence ends between two parts of a document, by what is written on both sides."""
    if after[0] == "»" and not flags(after[1:2] or " ") & (LETTER | DIGIT):
        return False
    inner = before
    while (shorter := without_closers(inner)) != inner:
        inner = shorter
    follows = after[len(leading(after, OPEN)) :]
    if not inner or not flags(inner[-1]) & STOP or (follows and flags(follows[0]) & LOWER and cased(follows[0])):
        return False
    if (again := leading(follows, STOP)) and not follows[len(again) :][:1].strip():
        return False
    run = trailing(inner, STOP)
    if len(run) > 1 or not flags(run) & DOT:
        return True
    word = trailing(inner[:-1], LETTER | DIGIT | DOT)
    if not word:
        return True
    if kind(word) & NEVER or (kind(word) & NUMBERED and follows and flags(follows[0]) & DIGIT):
        return False
    if not (short(word) or kind(word) & UNSURE):
        return True
    line = inner[: -1 - len(word)]
    line = line[: len(line) - len(trailing(line, OPEN))]
    if short(word) and (not line or re.search(f"(?:{BREAK})$", line)):
        return False
    return bool(kind(leading(follows, LETTER)) & STARTS)


def wrapped(text: str, a: int, b: int) -> bool:
    blank = rf"\s*(?:{BREAK})[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*(?:{BREAK})\s*"
    first = max((g.end() for g in re.finditer(blank, text) if g.end() <= a), default=0)
    last = min((g.start() for g in re.finditer(blank, text) if g.start() >= b), default=len(text))
    first -= len(re.search(r"[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*$", text[:first])[0])  # type: ignore[index]
    parted = re.split(rf"(\s*(?:{BREAK})(?!\s*(?:{BREAK})))", text[first:last])[::2]
    width = max(map(len, parted))
    here = re.split(BREAK, text[first:a])[-1]
    word = re.split(r"\s", text[b:], maxsplit=1)[0]
    goes_on = text[b] in "\"'(" or flags(text[b]) & (LETTER | DIGIT)
    item = re.match(r"[0-9]+[.)]", text[b:])
    return bool(NARROWEST <= width <= WIDEST and goes_on and not item and len(here) + 1 + len(word) > width)


def slow(text: str) -> list[str]:
    cuts = {0, len(text)}
    for gap in re.finditer(r"\s+", text):
        a, b = gap.span()
        breaks = len(re.findall(BREAK, gap[0]))
        if a > 0 and b < len(text):
            joined = breaks == 0 or (breaks == 1 and wrapped(text, a, b))
            cuts |= {b} if not joined or stopped(text[:a], text[b:]) else set()
    for i, (before, after) in enumerate(pairwise(text), 1):
        if flags(before) & STRONG and not after.isspace() and not flags(after) & (STOP | CLOSE):
            cuts.add(i)
        if before in "!?" and flags(after) & LOWER and flags(after) & UPPER:
            cuts.add(i)
    return [text[a:b] for a, b in pairwise(sorted(cuts))]


PARTS = st.sampled_from(
    ["Dr.", "No.", ". .", "5", "12.", "3.", "A.", "U.S.", "the", "The", "end.", "end", "why?", "«oui»", "» ", " »", "…",
     "...", "‼\ufe0f", "\ufe0e",
     "Jan.", "(so.)", "[7]", "it.[7]", "。", "好", "好。」", "！", "!?", "a", "\n", "\n", "\n\n", "\r\n", " ",
     "\t", "\u2029", "*", "1)", "- x", "e.g.", "Inc.", "Er", "𠀀", "é", "x" * 30, "word " * 9, "ß.", "।", '"', "\x85",
     "."]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=25).map(" ".join) | st.lists(PARTS, max_size=25).map("".join) | st.text(max_size=40)


@given(st.lists(TEXTS, max_size=4))
def test_sentences_equal_a_slow_reference_and_are_the_text(texts: list[str]) -> None:
    found = pieces(texts)
    assert ["".join(some) for some in found] == texts
    assert found == [slow(text) if text else [] for text in texts]


@pytest.mark.parametrize("language", KNOWN)
@pytest.mark.parametrize("between", [" ", "  ", "\u00a0", "\n", " \r\n", "\n\n"])
def test_known_sentences_are_found(language: str, between: str) -> None:
    assert [s.strip() for s in pieces([between.join(KNOWN[language])])[0]] == KNOWN[language]


@pytest.mark.parametrize("language", UNSPACED)
def test_scripts_without_spaces(language: str) -> None:
    assert pieces(["".join(UNSPACED[language])])[0] == UNSPACED[language]


def test_wrapped_lines_are_joined_and_other_lines_are_not() -> None:
    page = "Menu\nHome\nAbout us\n\nPrices\nas at today\n"
    text = (
        "The committee met in the town hall of Little Wenham, where Mrs.\nJohnson of the water board explained why the"
        " river had risen. The\nmeeting ended late.\nNobody objected\n"
    )
    items = "- the first of the things that are listed here\n- the second of the things that are listed he\n2) The last"
    assert pieces([page])[0] == [*page.splitlines(keepends=True)[:2], "About us\n\n", "Prices\n", "as at today\n"]
    assert [s.replace("\n", " ").strip() for s in pieces([text])[0]] == [
        "The committee met in the town hall of Little Wenham, where Mrs. Johnson of the water board explained why the "
        "river had risen.",
        "The meeting ended late.",
        "Nobody objected",
    ]
    assert pieces([items])[0] == items.splitlines(keepends=True)
    long = ["A line of a page that is not wrapped. " * 4, "Another one of its paragraphs without a stop at the end"]
    assert len(pieces(["\n".join([*long, *long])])[0]) == 10


@given(st.lists(st.text(st.sampled_from("ab é\n\r "), max_size=20), max_size=4))
def test_lines_are_the_text(texts: list[str]) -> None:
    assert pieces(texts, lines) == [re.findall("[^\n]*\n|[^\n]+", text) for text in texts]


def some_tokens(texts: Sequence[str]) -> np.ndarray:
    """Words, and one more for texts of an odd length: what parts have need not add up."""
    return np.array([len(text.split()) + len(text) % 2 for text in texts], np.int64)


@given(st.lists(TEXTS, max_size=3), st.integers(1, 12), st.sampled_from(["sentences", "lines"]))
def test_passages_hold_whole_pieces_in_order(texts: list[str], most: int, unit: Unit) -> None:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))
    found = passages(batch, unit, most, some_tokens)
    assert found.tokens.tolist() == some_tokens(found.texts).tolist()
    for d, (text, rest) in enumerate(
        zip(texts, pieces(texts, sentences if unit == "sentences" else lines), strict=True)
    ):
        own = np.flatnonzero(found.document == d)
        assert found.number[own].tolist() == list(range(len(own)))
        for k in own:
            passage = found.texts[k]
            assert passage == text.encode()[found.start[k] : found.end[k]].decode() == passage.strip() != ""
            whole = next(n for n in range(1, len(rest) + 1) if "".join(rest[:n]).strip() == passage)
            assert found.tokens[k] <= most or sum(bool(piece.strip()) for piece in rest[:whole]) == 1
            rest = rest[whole:]
        assert not "".join(rest).strip(), "nothing is left out"


def test_passages_are_filled_from_the_left() -> None:
    text = "One two three. Four five. Six seven eight nine ten eleven. Twelve.\n\n"
    batch = Batch(pa.record_batch({"text": ["  ", text, ""]}))
    found = passages(batch, "sentences", 5, lambda texts: np.array([len(t.split()) for t in texts], np.int64))
    assert found.texts == ["One two three. Four five.", "Six seven eight nine ten eleven.", "Twelve."]
    assert (found.document.tolist(), found.number.tolist()) == ([1, 1, 1], [0, 1, 2])
    assert (found.tokens.tolist(), found.start.tolist()) == ([5, 6, 1], [0, 26, 59])
