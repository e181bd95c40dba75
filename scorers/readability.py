"""Readability of English text: six classic formulas over words, sentences, letters and syllables (110 MB/s per
core)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from scorers import Scorer

if TYPE_CHECKING:
    from transforms.batch import Batch

COUNTS = {
    "words": "pieces between white space and dashes that hold a letter or digit",
    "sentences": "sentences with a word",
    "syllables": "syllables by English spelling, one per word at least",
    "long_words": "words of three syllables or more",
}
INDICES = {
    "flesch_reading_ease": "points, about 0 (hard) to 100 (easy); null without words",
    "flesch_kincaid_grade": "years of US schooling, null without words",
    "gunning_fog": "years of US schooling, null without words",
    "smog": "years of US schooling, meant for 30 sentences or more; null without words",
    "coleman_liau": "years of US schooling, null without words",
    "automated_readability_index": "years of US schooling, null without words",
}


class Readability(Scorer):
    """Meaningful for English prose only: use it with `language.language = 'en'`.

    Flesch reading ease (Flesch 1948, "A new readability yardstick"), Flesch-Kincaid grade and the automated readability
    index (Kincaid et al. 1975, Navy RBR 8-75; Smith and Senter 1967, AMRL-TR-66-220), Gunning fog (Gunning 1952; here
    every word of three syllables or more is hard, names and compounds too), SMOG (McLaughlin 1969), Coleman-Liau
    (Coleman and Liau 1975). `transforms.readability` states what words, sentences and syllables are.
    """

    name: ClassVar[str] = "readability"

    def fields(self) -> pa.StructType:
        counts = [pa.field(name, pa.int64(), metadata={"unit": unit}) for name, unit in COUNTS.items()]
        indices = [
            pa.field(name, pa.float64(), metadata={"unit": unit, "language": "en"}) for name, unit in INDICES.items()
        ]
        return pa.struct(counts + indices)

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms import readability as rd
        from transforms.characters import classes
        from transforms.syllables import letters

        counts = rd.measure(batch.bytes, batch.offsets, classes(), letters(), rd.titles())
        found = dict(zip(rd.COLUMNS, counts.T, strict=True))
        empty = found["words"] == 0
        columns = {name: pa.array(found[name]) for name in COUNTS}
        columns |= {name: pa.array(values, mask=empty) for name, values in indices(found).items()}
        return pa.StructArray.from_arrays([columns[field.name] for field in self.fields()], fields=list(self.fields()))


def indices(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float64 [documents] each, from counts [documents]; those of documents without words mean nothing."""
    words, sentences = np.maximum(counts["words"], 1), np.maximum(counts["sentences"], 1)
    length, syllables = words / sentences, counts["syllables"] / words
    return {
        "flesch_reading_ease": 206.835 - 1.015 * length - 84.6 * syllables,
        "flesch_kincaid_grade": 0.39 * length + 11.8 * syllables - 15.59,
        "gunning_fog": 0.4 * (length + 100 * counts["long_words"] / words),
        "smog": 3.1291 + 1.0430 * np.sqrt(30 * counts["long_words"] / sentences),
        "coleman_liau": 0.0588 * (100 * counts["letters"] / words) - 0.296 * (100 * sentences / words) - 15.8,
        "automated_readability_index": 4.71 * counts["characters"] / words + 0.5 * length - 21.43,
    }
