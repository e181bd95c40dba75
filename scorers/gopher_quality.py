"""Gopher's quality rules: words, symbols, bullets, ellipses, letters, stop words (Rae et al. 2021, A.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from scorers import Scorer
from scorers._rules import judge, ratio, rule_struct

if TYPE_CHECKING:
    from transforms.batch import Batch

FEATURES = {
    "words": "words that are not symbols alone",
    "mean_word_length": "characters / word, of words that are not symbols alone",
    "hash_ratio": "signs # / words and symbols",
    "ellipsis_ratio": "ellipses / words and symbols",
    "bullet_lines": "lines that begin with a bullet or hyphen / lines",
    "ellipsis_lines": "lines that end in an ellipsis / lines",
    "alpha_words": "words with a letter / words and symbols",
    "stop_words": "different stop words",
}


class GopherQuality(Scorer):
    """The quality filter of MassiveText with the thresholds of arXiv 2112.11446, appendix A.1.1."""

    name: ClassVar[str] = "gopher_quality"
    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, ge=0)
    min_mean_word_length: float = Field(3, ge=0)
    max_mean_word_length: float = Field(10, ge=0)
    max_hash_ratio: float = Field(0.1, ge=0)
    max_ellipsis_ratio: float = Field(0.1, ge=0)
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_alpha_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0)
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    def fields(self) -> pa.StructType:
        return rule_struct(FEATURES, dict.fromkeys(("words", "stop_words"), pa.int64()))

    def score(self, batch: Batch) -> pa.StructArray:
        f = self._features(batch)
        failed = {
            "too_few_words": f["words"] < self.min_words,
            "too_many_words": f["words"] > self.max_words,
            "short_words": f["mean_word_length"] < self.min_mean_word_length,
            "long_words": f["mean_word_length"] > self.max_mean_word_length,
            "hashes": f["hash_ratio"] > self.max_hash_ratio,
            "ellipses": f["ellipsis_ratio"] > self.max_ellipsis_ratio,
            "bullet_lines": f["bullet_lines"] > self.max_bullet_lines,
            "ellipsis_lines": f["ellipsis_lines"] > self.max_ellipsis_lines,
            "alpha_words": f["alpha_words"] < self.min_alpha_words,
            "stop_words": f["stop_words"] < self.min_stop_words,
        }
        return judge(self.fields(), f, np.diff(batch.words.offsets) == 0, failed)

    def _features(self, batch: Batch) -> dict[str, np.ndarray]:
        from transforms import word_counts
        from transforms.characters import classes
        from transforms.lines import count_line_marks
        from transforms.text import hash_words

        data, words = batch.bytes, batch.words
        total = np.diff(words.offsets)
        kinds = word_counts.count_word_kinds(data, words.start, words.end, words.offsets, classes())
        symbols = word_counts.count_symbols(data, batch.offsets)
        lines = count_line_marks(data, batch.offsets, classes())
        stop_words = word_counts.count_listed(batch.word_hashes, words.offsets, hash_words(self.stop_words))
        values = (
            kinds[:, 0],
            ratio(kinds[:, 1], kinds[:, 0]),
            ratio(symbols[:, 0], total),
            ratio(symbols[:, 1], total),
            ratio(lines[:, 1], lines[:, 0]),
            ratio(lines[:, 2], lines[:, 0]),
            ratio(kinds[:, 2], total),
            stop_words,
        )
        return dict(zip(FEATURES, values, strict=True))
