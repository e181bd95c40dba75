"""Numbers and names of sentences."""

from __future__ import annotations

import pytest

from transforms.facts import names, numbers, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Add 2 eggs and 1,250 ml, 3.5 cups or 1,5 l.", {"2", "1250", "3.5", "1,5"}),
        ("two cups for TWELVE people, one at a time", {"2", "12"}),
        ("12,34,567 and 1,2345", {"12,34567", "1,2345"}),  # commas before three digits are left out
        ("wait for someone, often", set()),
        ("", set()),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Serve it with Parmesan. Then call Anna; Do not wait: The oven is hot", {"parmesan", "anna"}),
        ("GPU time is I think what NASA has", {"gpu", "nasa"}),
        ("'Stir' it, \"Maria said\"", {"maria"}),
        ("I'm sure I said A-1 and Öland", {"öland", "a-1"}),
        ("ADD THE SALT", set()),
        ("the end", set()),
    ],
)
def test_names(text: str, found: set[str]) -> None:
    assert names(text) == found


def test_words_are_in_one_case() -> None:
    assert words("Straße, STRASSE! don't x_1 42") == {"strasse", "don", "t", "x_1"}
