"""Terms in texts, against a search for each term by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.characters import LIMIT, classes
from transforms.terms import WORD, Automaton, Terms, read_terms

SMALL = st.text(alphabet="abAB é日-9 \u0301İ", min_size=1, max_size=4)
TEXT = st.text(alphabet="abAB é日-9 \u0301İ\n", max_size=40)


def lowered(text: str) -> str:
    found: str = pc.utf8_lower(pa.scalar(text, pa.large_string())).as_py()
    return found


def terms_of(given: list[str], weights: list[float] | None = None) -> Terms:
    return Terms(pa.array(given, pa.large_string()), np.array(weights or [1.0] * len(given)))


def joins(character: str) -> bool:
    return ord(character) >= LIMIT or bool(classes()[ord(character)] & WORD)


def slow(terms: list[str], text: str, boundaries: str) -> list[tuple[int, int]]:
    """(end, -length, term) of the first place of each term, in that order."""
    text, found = lowered(text), []
    for number, term in enumerate(terms):
        places = [k for k in range(len(text)) if text.startswith(term, k)]
        for start in places:
            stop = start + len(term)
            joined = (start > 0 and joins(text[start - 1]) and joins(text[start])) or (
                stop < len(text) and joins(text[stop - 1]) and joins(text[stop])
            )
            if boundaries == "substring" or not joined:
                found.append((stop, -len(term), number))
                break
    return [(number, stop) for stop, _, number in sorted(found)]


@given(st.lists(SMALL, min_size=1, max_size=8), st.lists(TEXT, max_size=5), st.sampled_from(["word", "substring"]))
def test_all_terms_are_found(given: list[str], texts: list[str], boundaries: Literal["word", "substring"]) -> None:
    terms = list(dict.fromkeys(map(lowered, given)))
    weights = [1.0 + k for k in range(len(terms))]
    found = Automaton(terms_of(terms, weights), boundaries).find(pa.array(texts, pa.large_string()), 3)
    for d, text in enumerate(texts):
        wanted = [number for number, _ in slow(terms, text, boundaries)]
        assert found.counts[d] == len(wanted) and found.weights[d] == sum(weights[k] for k in wanted)
        assert found.first[d].tolist() == (wanted + [-1] * 3)[:3]


def test_words_and_substrings() -> None:
    texts = pa.array(["The CAT sat.", "concatenate", "cat-like", "c++ and c", "c++x", "a_cat"], pa.large_string())
    terms = terms_of(["cat", "c++"])
    assert Automaton(terms, "word").find(texts, 0).counts.tolist() == [1, 0, 1, 1, 1, 1]
    assert Automaton(terms, "substring").find(texts, 0).counts.tolist() == [1, 1, 1, 1, 1, 1]


def test_slices_and_empty_columns() -> None:
    texts = pa.array(["cat", "", "dog cat", "cat cat"], pa.large_string())
    automaton = Automaton(terms_of(["cat", "dog"]))
    assert automaton.find(texts.slice(1), 2).first.tolist() == [[-1, -1], [1, 0], [0, -1]]
    assert automaton.find(texts.slice(4), 2).first.shape == (0, 2)


def test_terms_within_terms_take_linear_time() -> None:
    """Each of a thousand nested terms is met once, not at every byte."""
    automaton = Automaton(terms_of(["a" * k for k in range(1, 1001)]), "substring")
    found = automaton.find(pa.array(["a" * 5_000_000, "b" * 1000, "a" * 7], pa.large_string()), 2)
    assert found.counts.tolist() == [1000, 0, 7] and found.first.tolist()[2] == [0, 1]


def test_every_byte_may_stand_in_a_term() -> None:
    letters = [chr(k) for k in range(1, 0x800)] + ["日", "🎉"]
    distinct = list(dict.fromkeys(map(lowered, letters)))
    found = Automaton(terms_of(distinct), "substring").find(pa.array(["".join(distinct)], pa.large_string()), 1)
    assert found.counts[0] == len(distinct)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("Boat \n\n seven lamps\t2.5\r\nboat\nÉTÉ\t\n", encoding="utf-8")
    for path in (file, tmp_path):
        terms = read_terms(path)
        assert terms.terms.to_pylist() == ["boat", "seven lamps", "été"] and terms.weights.tolist() == [1, 2.5, 1]


def test_a_byte_order_mark_is_no_part_of_a_term(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_bytes(b"\xef\xbb\xbfrook\nboat\n")
    assert read_terms(tmp_path).terms.to_pylist() == ["rook", "boat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\t-1", r"terms\.txt, line 2: weight '-1' of 'b', expected a number above 0"),
        ("a\tx", "weight 'x'"),
        ("a\tnan", "weight 'nan'"),
        ("a\tinf", "weight 'inf'"),
        (" \n\n", "holds no terms"),
        ("a\nb\nA\t3", r"line 3: 'a' has weights 1 and 3; keep one"),
        (b"\xff\xfe", "no list of terms at"),
        (None, "no list of terms at"),
    ],
)
def test_bad_files(content: Any, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "terms.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_terms(tmp_path / "terms.txt")
