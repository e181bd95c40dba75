"""What a rewrite has in common with its source, and what form it has: numbers for whole columns of pairs.

Cost: about 1 MB/s, most of it for numbers and names; little beside the model that wrote the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numba import njit

from transforms.batch import Batch
from transforms.facts import names, numbers, words
from transforms.folding import Words, folded_words
from transforms.minhash import roll
from transforms.sentences import CLOSERS, stops

Format = Literal["qa", "list", "table"]
GRAM = 5  # words of a run that is compared
RECITED = 8  # words of the instruction in a row
CAPITALS = 0.25  # of the different words; texts with more write all nouns so, or headings
_NGRAMS = 3  # column of `count_repetition`: 5-grams
_MARKS = r"(?im)^[ \t]*(?:\d{1,3}[.)]|[-*•–]|(?:question|answer|q|a|step)[ \t]*\d*[ \t]*[:.)])[ \t]+"
_TURN = r"\b(?:question|answer)[ \t]*\d*[ \t]*:|^\W*(?:[qa][ \t]*:|[qa]\d+[ \t]*[:.)])"
_CHOICES = r"(?im)^\W*a[ \t]*:[^\n]*\n\W*b[ \t]*:"  # `A:` before `B:` is no answer
_ITEM = r"(?m)^[ \t]*(?:[-*•–]|\d{1,3}[.)])[ \t]+\S"
_RULE = r"(?m)^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$"
_ROW = r"(?m)^[^|\n]*\|[^\n]*$"


@njit(cache=True, nogil=True)
def shared_grams(
    own: np.ndarray, own_offsets: np.ndarray, other: np.ndarray, other_offsets: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each text, how many of its n-grams stand in the other text of the same place, and how many it has: int64
    [texts] each. own, other: uint64, hashes of words; those of text i are offsets[i]:offsets[i + 1]."""
    texts = own_offsets.size - 1
    shared, all_of_them = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    for i in range(texts):
        mine, theirs = own[own_offsets[i] : own_offsets[i + 1]], other[other_offsets[i] : other_offsets[i + 1]]
        grams, known = np.empty(mine.size, np.uint64), np.empty(theirs.size, np.uint64)
        all_of_them[i] = roll(mine, mine.size, n, grams)
        known = known[: roll(theirs, theirs.size, n, known)]
        known.sort()
        for k in range(all_of_them[i]):
            at = np.searchsorted(known, grams[k])
            shared[i] += at < known.size and known[at] == grams[k]
    return shared, all_of_them


def copied(sources: Words, outputs: Words) -> np.ndarray:
    """float64 [pairs]: share of the source's runs of GRAM words, folded, that stand in the output; 0 if it has none."""
    shared, count = shared_grams(sources.hash, sources.offsets, outputs.hash, outputs.offsets, GRAM)
    return shared / np.maximum(count, 1)


def recited(instruction: str, sources: Words, outputs: Words) -> np.ndarray:
    """bool [pairs]: RECITED words in a row of the instruction stand in the output, and not in the source."""
    pairs = len(outputs.offsets) - 1
    told = folded_words(batch_of([instruction] * pairs))
    in_output, _ = shared_grams(told.hash, told.offsets, outputs.hash, outputs.offsets, RECITED)
    in_source, _ = shared_grams(told.hash, told.offsets, sources.hash, sources.offsets, RECITED)
    return in_output > in_source


def repeated(batch: Batch) -> np.ndarray:
    """float64 [texts]: share of the characters that are in runs of 5 words which stood in the text before."""
    from transforms.ngrams import count_repetition

    spans = batch.words
    counts = count_repetition(batch.bytes, spans.start, spans.end, spans.offsets, batch.word_hashes)
    return counts[:, _NGRAMS] / np.maximum(batch.characters, 1)


def facts(sources: pl.Series, outputs: pl.Series) -> dict[str, np.ndarray]:
    """Numbers and names on both sides, as float64 [pairs]; NaN where there are none to compare.

    `numbers_kept`, `names_kept`: share of those of the source, of its lines that end as sentences do, that stand in the
    output. `invented`: share of those of the output that are not in the source. Numbers of lists and turns do not
    count. A side that writes more than CAPITALS of its words with capitals has no names: they would be its nouns.
    """
    unmarked, said = (texts.str.replace_all(_MARKS, "") for texts in (sources, outputs))
    told = unmarked.str.extract_all(_ends()[0]).list.join("\n")
    rows = zip(sources, told, said, strict=True)  # sets of words: no column library compares them
    found = np.array([_facts(*row) for row in rows], np.float64).reshape(-1, 3)
    return dict(zip(("numbers_kept", "names_kept", "invented"), found.T, strict=True))


def _facts(source: str, told: str, output: str) -> tuple[float, float, float]:
    source_words, output_words = words(source), words(output)
    digits, all_digits, new_digits = numbers(told), numbers(source), numbers(output)
    called, new_called = names(told), names(output)
    if len(names(source)) > CAPITALS * len(source_words):
        called = new_called = set()
    if len(new_called) > CAPITALS * len(output_words):
        new_called = set()
    invented = len(new_digits - all_digits) + len(new_called) - _present(new_called, source_words)
    return (
        len(digits & new_digits) / len(digits) if digits else np.nan,
        _present(called, output_words) / len(called) if called else np.nan,
        invented / (len(new_digits) + len(new_called)) if new_digits or new_called else np.nan,
    )


def _present(called: set[str], others: set[str]) -> int:
    """How many of these words stand among others; of those of 5 letters or more the last two may be inflected."""
    stems = {name: name[: max(4, len(name) - 2)] for name in called if len(name) > 4}
    begins = {other[:k] for k in set(map(len, stems.values())) for other in others}
    return sum(name in others or stems.get(name) in begins for name in called)


@functools.cache
def _ends() -> tuple[str, str]:
    """Patterns of lines of running text, and of the end of a text that is whole: stops of any script, then closers."""
    end = f"[{re.escape(stops())}][{re.escape(CLOSERS)}`]*"
    return rf"(?m)^[^\n]*{end}[ \t\r]*$", rf"{end}\s*\z"


def ended(texts: pl.Series, any_line: bool = False) -> np.ndarray:
    """bool [texts]: it ends as a sentence does; with `any_line`, one of its lines."""
    return texts.str.contains(_ends()[0 if any_line else 1]).to_numpy()


def formed(texts: pl.Series, form: Format) -> np.ndarray:
    """bool [texts]: turns of questions and answers, each with words, from the first word on; a list, where at least
    half of the lines are items and two at least; a table in Markdown with a row of headings and one more."""
    if form == "qa":
        texts = texts.str.replace_all(_CHOICES, "")
        first_letter = pl.element().str.extract("(?i)([qa])").str.to_lowercase()
        turns = texts.str.extract_all(f"(?im){_TURN}").list.eval(first_letter).list.join("")
        empty = texts.str.contains(rf"(?im)(?:{_TURN})\s*(?:{_TURN}|\z)")
        begins = texts.str.contains(rf"(?im)\A(?:{_TURN})")
        return (turns.str.contains(r"\A(?:qa)+\z") & begins & ~empty).to_numpy()
    if form == "list":
        items, lines = texts.str.count_matches(_ITEM), texts.str.count_matches(r"(?m)^.*\S")
        return ((items >= 2) & (2 * items >= lines)).to_numpy()
    return (texts.str.contains(_RULE) & (texts.str.count_matches(_ROW) >= 3)).to_numpy()


def languages(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The language of each text (code of py3langid's model), and its probability."""
    from transforms import langid

    labels, model = langid.load()
    return langid.detect(langid.sample(batch.bytes, batch.offsets), np.array(labels), model)


def batch_of(texts: Sequence[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
