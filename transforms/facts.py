"""What a sentence may not lose when it is said in other words: its numbers and its names."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W\d_](?:[\w-]*[^\W_])?")
_OPENS = re.compile(r"(?:^|[.!?:;\n])[^\w.!?:;\n]*\Z")  # what stands before the first word of a sentence
_SAID = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DIGITS = {word: str(number) for number, word in enumerate(_SAID, 2)}  # "one" is too often no number


def numbers(text: str) -> set[str]:
    """Numbers in digits without commas of thousands, and the English words from two to twelve as digits."""
    found = {_THOUSANDS.sub("", number) for number in _NUMBER.findall(text)}
    return found | {_DIGITS[word] for word in words(text) & _DIGITS.keys()}


def words(text: str) -> set[str]:
    """Words in one case."""
    return {word.casefold() for word in _WORD.findall(text)}


def names(text: str) -> set[str]:
    """Words in one case that are written with a capital though they do not open a sentence, or all in capitals.

    A rule for languages that write names so and no other nouns. Text all in capitals has none.
    """
    if text.upper() == text:
        return set()
    found, before = set(), 0
    for word in _WORD.finditer(text):
        capital = word[0][0].isupper() and len(word[0]) > 1
        if capital and (word[0].isupper() or not _OPENS.search(text, before, word.start())):
            found.add(word[0].casefold())
        before = word.end()
    return found
