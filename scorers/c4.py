"""C4's rules: lines that go; pages of lorem ipsum, curly brackets or too few sentences (Raffel et al. 2020, 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from scorers import Scorer
from scorers._rules import judge, rule_struct

if TYPE_CHECKING:
    from transforms.batch import Batch

FEATURES = {
    "lorem_ipsum": "a line that ends a sentence holds the phrase",
    "curly_bracket": "a line that ends a sentence holds one",
    "sentences": "sentences of the lines kept",
    "lines": "lines",
    "kept_lines": "lines kept",
    "long_word": "lines removed for a word too long",
    "no_terminal": "lines removed for want of a terminal mark",
    "few_words": "lines removed for too few words",
    "javascript": "lines removed for the word",
    "policy": "lines removed for a notice of cookies, privacy or terms of use",
}


class C4(Scorer):
    """The document rules of C4 (arXiv 1910.10683 and its published code) with its thresholds; counts of its line rules.

    `transforms.c4_lines.clean_lines` removes the lines. The list of bad words is not applied.
    """

    name: ClassVar[str] = "c4"
    min_sentences: int = Field(5, ge=0)
    min_words_per_line: int = Field(3, ge=0)
    max_word_length: int = Field(1000, ge=1)

    def fields(self) -> pa.StructType:
        types = dict.fromkeys(FEATURES, pa.int64()) | dict.fromkeys(("lorem_ipsum", "curly_bracket"), pa.bool_())
        return rule_struct(FEATURES, types)

    def score(self, batch: Batch) -> pa.StructArray:
        f = self._features(batch)
        failed = {
            "lorem_ipsum": f["lorem_ipsum"],
            "curly_bracket": f["curly_bracket"],
            "too_few_sentences": f["sentences"] < self.min_sentences,
        }
        return judge(self.fields(), f, np.diff(batch.words.offsets) == 0, failed)

    def _features(self, batch: Batch) -> dict[str, np.ndarray]:
        from transforms import c4_lines as c4

        judged = c4.judge_lines(batch, self.min_words_per_line, self.max_word_length)
        rules, marks = c4.count_rules(judged)
        removed = (c4.LONG_WORD, c4.NO_TERMINAL, c4.FEW_WORDS, c4.JAVASCRIPT, c4.POLICY)
        values = [
            marks & c4.LOREM_IPSUM > 0,
            marks & c4.CURLY_BRACKET > 0,
            c4.sentences(batch, judged),
            rules.sum(axis=1),
            rules[:, c4.KEPT],
            *(rules[:, rule] for rule in removed),
        ]
        return dict(zip(FEATURES, values, strict=True))
