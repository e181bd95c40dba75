"""Gopher's repetition rules: lines, paragraphs and n-grams that stand twice (Rae et al. 2021, table A1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from scorers import Scorer
from scorers._rules import judge, ratio, rule_struct

if TYPE_CHECKING:
    from transforms.batch import Batch

Fraction = Annotated[float, Field(ge=0, le=1)]
FEATURES = {
    "dup_line_frac": "lines that stood before / lines",
    "dup_para_frac": "paragraphs that stood before / paragraphs",
    "dup_line_char_frac": "characters in lines that stood before / characters",
    "dup_para_char_frac": "characters in paragraphs that stood before / characters",
    **{f"top_{n}_gram": f"characters in the most common {n}-gram / characters" for n in (2, 3, 4)},
    **{f"dup_{n}_gram": f"characters in {n}-grams that stood before / characters" for n in range(5, 11)},
}


class GopherRepetition(Scorer):
    """The repetition filter of MassiveText with the thresholds of arXiv 2112.11446, table A1.

    Paragraphs stand between two or more "\\n", lines between one or more. An n-gram that is left out of `max_top_gram`
    or `max_dup_gram` is measured and fails no document.
    """

    name: ClassVar[str] = "gopher_repetition"
    max_dup_line_frac: Fraction = 0.3
    max_dup_para_frac: Fraction = 0.3
    max_dup_line_char_frac: Fraction = 0.2
    max_dup_para_char_frac: Fraction = 0.2
    max_top_gram: dict[Literal[2, 3, 4], Annotated[float, Field(ge=0)]] = Field({2: 0.2, 3: 0.18, 4: 0.16})
    max_dup_gram: dict[Literal[5, 6, 7, 8, 9, 10], Fraction] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )

    def fields(self) -> pa.StructType:
        return rule_struct(FEATURES)

    def score(self, batch: Batch) -> pa.StructArray:
        f = self._features(batch)
        limits = {name: getattr(self, f"max_{name}") for name in list(FEATURES)[:4]}
        limits |= {f"top_{n}_gram": limit for n, limit in sorted(self.max_top_gram.items())}
        limits |= {f"dup_{n}_gram": limit for n, limit in sorted(self.max_dup_gram.items())}
        failed = {name: f[name] > limit for name, limit in limits.items()}
        return judge(self.fields(), f, np.diff(batch.words.offsets) == 0, failed)

    def _features(self, batch: Batch) -> dict[str, np.ndarray]:
        from transforms.characters import classes
        from transforms.lines import count_duplicates, count_empty_ends, split_paragraphs
        from transforms.ngrams import count_repetition
        from transforms.text import hash_pieces

        data, lines, words = batch.bytes, batch.lines, batch.words
        start, end, offsets = split_paragraphs(data, batch.offsets, classes())
        every = np.ones(len(start), np.bool_)
        hashes = hash_pieces(data, start, end)
        paragraphs, paragraph_characters = count_duplicates(data, start, end, offsets, hashes, every)
        filled = lines.end > lines.start
        repeated, characters = count_duplicates(data, lines.start, lines.end, lines.offsets, batch.line_hashes, filled)
        ends = count_empty_ends(data, batch.offsets)
        total = np.add.reduceat(filled, lines.offsets[:-1], dtype=np.int64) if len(batch) else ends
        grams = count_repetition(data, words.start, words.end, words.offsets, batch.word_hashes)
        values = [
            ratio(repeated + (ends == 2), total + ends),
            ratio(paragraphs, np.diff(offsets)),
            ratio(characters, batch.characters),
            ratio(paragraph_characters, batch.characters),
            *(ratio(column, batch.characters) for column in grams.T),
        ]
        return dict(zip(FEATURES, values, strict=True))
