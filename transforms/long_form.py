"""Long answers as LongWriter has them (arXiv 2408.07055): plans read from a model's answer, and what was made of them.

A plan is a list of paragraphs with a number of words each. Models write it as a numbered list, with bullets, or as bare
lines, with or without markdown, remarks before and totals after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, takewhile
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_MARKUP = re.compile(r"[*#>`]+")
_BULLET = re.compile(r"[-*+•–]\s")
_NUMBER = re.compile(
    r"(?:(?:paragraph|step|section|part|chapter)\s*\d+\b|\d{1,3}(?:[.):]|\s+[–—-]))[\s.):–—-]*(?!\d)", re.I
)
_PART = re.compile(r"[-*+•–]\s|(?:\d{1,3}(?:\.\d{1,3})+[.)]?|[a-z][.)])\s", re.I)  # of an item: a bullet, `1.2`, `a)`
_COUNT = r"(\d[\d,]{0,8})(?:\s*(?:-|–|—|to)\s*(\d[\d,]{0,8}))?"
_LABELLED = re.compile(  # a number before the label is the count: `200 words: describe 3 causes`
    rf"(?<!\d)(?<!\d[\s-])\bwords?\s*(?:[:=]|\bis\b|count\s*(?:[:=]|\bis\b|\bof\b))\s*[^\d\n]{{0,20}}{_COUNT}", re.I
)
_COUNTED = re.compile(rf"{_COUNT}\s*-?\s*(?:words?\b|字)", re.I)
_TOTAL = re.compile(r"\W*(?:in\s+)?total\b", re.I)


class Step(NamedTuple):
    """A paragraph of a plan."""

    text: str  # what it is about and how long it is to be, in one line
    words: int


def read_plan(answer: str) -> list[Step]:
    """The paragraphs of a plan, in order.

    An item begins at each numbered line; where no line is numbered, at each bullet; else each line is one. What stands
    before the first item is no part of the plan; of ranges of words the middle counts. Where only parts of an item,
    indented or with bullets, have numbers of words, these are added up.

    Raises:
        ValueError: `no plan`: there is no item with a number of words. `no word count`: some item has none.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    begins = _begins(lines)
    items = [lines[a:b] for a, b in pairwise([*begins, len(lines)])]
    steps = [step for item in items if (step := _step(item)) is not None]
    if not steps:
        raise ValueError("no plan")
    if len(steps) < len(items):
        raise ValueError("no word count")
    return steps


def _begins(lines: list[str]) -> list[int]:
    """The lines at which items begin: of the least indented ones with a number, or else with a bullet, or else any."""
    numbered = [i for i, line in enumerate(lines) if _NUMBER.match(_plain(line))]
    bulleted = [i for i, line in enumerate(lines) if _BULLET.match(line.lstrip())]
    if found := numbered or bulleted:
        indents = {i: _indent(lines[i]) for i in found}
        return [i for i in found if indents[i] == min(indents.values())]
    return [i for i, line in enumerate(lines) if _words(line) and not line.rstrip().endswith(":")]


def _plain(line: str) -> str:
    """Without markdown and bullets."""
    return re.sub(r"^[-+•–]\s+", "", _MARKUP.sub("", line).strip())


def _step(lines: list[str]) -> Step | None:
    """An item up to the line with its number of words, and what is indented or has bullets below that; null where there
    is no such line."""
    counts = [_words(line) for line in lines]
    first = next((i for i, count in enumerate(counts) if count), None)
    if first is None:
        return None
    kept = lines[: first + 1] + list(takewhile(partial(_below, lines[0]), lines[first + 1 :]))
    text = " ".join(" ".join(map(_plain, kept)).split())
    words = sum(counts[: len(kept)]) if first and _below(lines[0], lines[first]) else counts[first]
    return Step(_NUMBER.sub("", text, count=1) if _NUMBER.match(text) else text, words)


def _below(head: str, line: str) -> bool:
    """Whether a line belongs to the item that begins with `head`: it is a part, or indented more; and no total."""
    part = _PART.match(line.lstrip()) or _indent(line) > _indent(head)
    return bool(part) and not _TOTAL.match(_plain(line))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _words(line: str) -> int:
    """How many words a line asks for; 0 where it does not say, or tells a total."""
    plain = _plain(line)
    if _TOTAL.match(plain):
        return 0
    found = _LABELLED.search(plain) or next(reversed(list(_COUNTED.finditer(plain))), None)
    given = [int(number.replace(",", "")) for number in found.groups() if number] if found else []
    return round(sum(given) / len(given)) if given else 0


def count_words(texts: Sequence[str]) -> np.ndarray:
    """int64 [texts]: words of each; of scripts without spaces characters count, as in LongWriter."""
    from transforms.batch import Batch
    from transforms.folding import folded_words

    return np.diff(folded_words(Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))).offsets)


def length_score(asked: int, written: int) -> float:
    """100 for as many words as were asked for (one at least), down to 0 at four times as many or a third of them."""
    if written > asked:
        return 100 * max(0.0, 1 - (written / asked - 1) / 3)
    return 100 * max(0.0, 1 - (asked / written - 1) / 2) if written else 0.0


def repeated_shares(paragraphs: Sequence[str], n: int) -> np.ndarray:
    """float64 [paragraphs]: share of each one's word n-grams that stand in the paragraphs before it.

    Words are folded (`transforms.folding`). A paragraph of less than n words is one n-gram; one without words has none.
    """
    from transforms.batch import Batch
    from transforms.folding import folded_words
    from transforms.minhash import roll

    words = folded_words(Batch(pa.record_batch({"text": pa.array(paragraphs, pa.large_string())})))
    shares, seen = np.zeros(len(paragraphs)), np.empty(0, np.uint64)
    for i in range(len(paragraphs)):
        own = words.hash[words.offsets[i] : words.offsets[i + 1]]
        if not len(own):
            continue
        grams = np.empty(len(own), np.uint64)
        grams = grams[: roll(own, len(own), min(n, len(own)), grams)]
        shares[i] = np.isin(grams, seen).mean()
        seen = np.union1d(seen, grams)
    return shares
