"""The formulas, by hand and by their order on easy and hard prose."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from scorers import make
from transforms.batch import Batch

EASY = "The cat sat on the mat. It was a big red mat. The dog ran to the cat. They are good pals now. "
HARD = (
    "Considerable institutional deliberation preceded the administration's unanticipated reconsideration of "
    "international environmental legislation, notwithstanding contradictory recommendations. "
)


def rows(texts: list[str]) -> list[dict]:
    return make("readability").score(Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))).to_pylist()


def test_the_published_formulas() -> None:
    """Two sentences, eight words: syllables, long words and letters counted by hand."""
    row = rows(["The radio played music all night. Nobody loved."])[0]
    assert (row["words"], row["sentences"]) == (8, 2)
    syllables, long, letters = 1 + 3 + 1 + 2 + 1 + 1 + 3 + 1, 2, 3 + 5 + 6 + 5 + 3 + 5 + 6 + 5
    assert (row["syllables"], row["long_words"]) == (syllables, long)
    assert row["flesch_reading_ease"] == pytest.approx(206.835 - 1.015 * 4 - 84.6 * syllables / 8)
    assert row["flesch_kincaid_grade"] == pytest.approx(0.39 * 4 + 11.8 * syllables / 8 - 15.59)
    assert row["gunning_fog"] == pytest.approx(0.4 * (4 + 100 * long / 8))
    assert row["smog"] == pytest.approx(1.0430 * math.sqrt(long * 30 / 2) + 3.1291)
    assert row["coleman_liau"] == pytest.approx(0.0588 * letters / 8 * 100 - 0.296 * 2 / 8 * 100 - 15.8)
    assert row["automated_readability_index"] == pytest.approx(4.71 * letters / 8 + 0.5 * 4 - 21.43)


def test_hard_prose_scores_harder_than_easy_prose() -> None:
    easy, hard = rows([EASY * 10, HARD * 10])
    assert easy["flesch_reading_ease"] > 90 > 0 > hard["flesch_reading_ease"]
    for index in ("flesch_kincaid_grade", "gunning_fog", "smog", "coleman_liau", "automated_readability_index"):
        assert easy[index] < 6 < 16 < hard[index], index


def test_without_words_indices_are_null() -> None:
    for row in rows(["", "\n\n", "!!! --- ..."]):
        assert row["words"] == 0 and row["flesch_reading_ease"] is None and row["smog"] is None


def test_the_metadata_says_it_is_for_english() -> None:
    fields = make("readability").fields()
    assert fields.field("smog").metadata[b"language"] == b"en" and all(f.metadata[b"unit"] for f in fields)
