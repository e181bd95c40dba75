"""FineWeb's quality rules: line ends, short lines, repeated lines, lists (Penedo et al. 2024, section 3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import Field

from scorers import Scorer
from scorers._rules import judge, ratio, rule_struct

if TYPE_CHECKING:
    from transforms.batch import Batch


class FineWeb(Scorer):
    """FineWeb's rules with the thresholds of the paper (arXiv 2406.17557) and its reference implementation, datatrove.

    Lines are those between "\\n" that are not blank. A document fails where `line_punct_ratio` is below its threshold
    or another ratio is above.
    """

    name: ClassVar[str] = "fineweb"
    min_line_punct_ratio: float = Field(0.12, ge=0, le=1)
    max_short_line_ratio: float = Field(0.67, ge=0, le=1)
    short_line_length: int = Field(30, ge=0)
    max_char_dup_ratio: float = Field(0.01, ge=0, le=1)
    max_list_ratio: float = Field(0.3, ge=0)

    def fields(self) -> pa.StructType:
        return rule_struct(
            {
                "line_punct_ratio": "lines that end a sentence / lines",
                "short_line_ratio": f"lines of at most {self.short_line_length} characters / lines",
                "char_dup_ratio": "characters in lines that stood before / characters",
                "list_ratio": "line breaks / words",
            }
        )

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.characters import classes
        from transforms.lines import count_duplicates, count_line_ends, is_blank

        lines = batch.lines
        places = (batch.bytes, lines.start, lines.end)
        blank = is_blank(*places, classes())
        counts = count_line_ends(*places, lines.offsets, blank, classes(), self.short_line_length)
        breaks = lines.offsets[1:] - lines.offsets[:-1] - 1
        _, repeated = count_duplicates(*places, lines.offsets, batch.line_hashes, ~blank)
        words = batch.words.offsets[1:] - batch.words.offsets[:-1]
        features = {
            "line_punct_ratio": ratio(counts[:, 1], counts[:, 0]),
            "short_line_ratio": ratio(counts[:, 2], counts[:, 0]),
            "char_dup_ratio": ratio(repeated, batch.characters - breaks),
            "list_ratio": ratio(breaks, words),
        }
        failed = {
            "line_punct_ratio": features["line_punct_ratio"] < self.min_line_punct_ratio,
            "short_line_ratio": features["short_line_ratio"] > self.max_short_line_ratio,
            "char_dup_ratio": features["char_dup_ratio"] > self.max_char_dup_ratio,
            "list_ratio": features["list_ratio"] > self.max_list_ratio,
        }
        return judge(self.fields(), features, counts[:, 0] == 0, failed)
