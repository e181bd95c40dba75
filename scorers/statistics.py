"""What a document is made of: counts, shares of kinds of characters, entropy of its words, how well it compresses.

Compression is zstd, level 1, by pyarrow: 300 MB/s, against 130 MB/s of zlib's level 1, which makes the result larger.
Documents above 1 MiB are compressed in pieces of 1 MiB, so memory is bounded.
"""

from __future__ import annotations

import importlib.util
import itertools
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from scorers import Scorer
from scorers._rules import ratio

if TYPE_CHECKING:
    from scorers.tokens import Tokens
    from transforms.batch import Batch

PIECE = 1 << 20  # bytes compressed at once

COUNTS = {
    "characters": "code points",
    "bytes": "bytes of UTF-8",
    "words": "words that are not symbols alone",
    "lines": "lines that are not blank",
    "paragraphs": "runs of lines that are not blank",
    "longest_line": "characters, line end left out",
}
RATIOS = {
    "compression_ratio": "bytes / bytes after zstd level 1 (frame of about 12 bytes included), null if empty",
    "word_entropy": "bits / word, of the document's own distribution of words; null without words",
    "distinct_words": "different words / words, null without words",
    "mean_word_length": "characters / word, null without words",
    "mean_line_length": "characters / line, line ends left out, null without lines",
    "symbol_share": "punctuation and symbols (categories P and S) / characters, null if empty",
    "digit_share": "decimal digits (category Nd) / characters, null if empty",
    "space_share": "white space / characters, null if empty",
    "non_ascii_share": "characters beyond ASCII / characters, null if empty",
    "capital_share": "capital letters / letters, null without letters",
}
TOKENS = {"tokens": "tokens, end of text included", "characters_per_token": "characters / token, end of text included"}


class Statistics(Scorer):
    """Counts and ratios of a document, none of which judges it.

    Words and lines are those of the rule sets; words differ in case (`The` and `the` are two). With `tokenizer` (a
    `tokenizer.json` or a folder with one) also `tokens` and `characters_per_token`.
    """

    name: ClassVar[str] = "statistics"
    tokenizer: Path | None = None

    @field_validator("tokenizer")
    @classmethod
    def _usable(cls, path: Path | None) -> Path | None:
        if path is not None:
            from scorers.tokens import Tokens

            if importlib.util.find_spec("tokenizers") is None:
                raise ValueError("needs the package tokenizers; pip install 'corpusmill[tokenizer]'")
            Tokens(tokenizer=path)
        return path

    def fields(self) -> pa.StructType:
        counts = [pa.field(name, pa.int64(), metadata={"unit": unit}) for name, unit in COUNTS.items()]
        ratios = [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in RATIOS.items()]
        types = (pa.int64(), pa.float64())
        tokens = [pa.field(n, t, metadata={"unit": unit}) for (n, unit), t in zip(TOKENS.items(), types, strict=True)]
        return pa.struct(counts + ratios + (tokens if self.tokenizer else []))

    @cached_property
    def _tokens(self) -> Tokens | None:
        from scorers.tokens import Tokens

        return Tokens(tokenizer=self.tokenizer) if self.tokenizer else None

    def setup(self) -> None:
        if self._tokens:
            self._tokens.setup()

    def score(self, batch: Batch) -> pa.StructArray:
        columns = _of_characters(batch) | _of_lines(batch) | _of_words(batch)
        size = np.diff(batch.offsets)
        columns |= {"bytes": size, "compression_ratio": _ratio(size, compressed_sizes(batch))}
        if self._tokens:
            tokens = self._tokens.score(batch).field("count").to_numpy()
            columns |= {"tokens": tokens, "characters_per_token": batch.characters / tokens}
        arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in self.fields()]
        return pa.StructArray.from_arrays(arrays, fields=list(self.fields()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64: part / whole; NaN, which becomes null, where there is no whole."""
    return np.where(whole > 0, ratio(part, whole), np.nan)


def _of_characters(batch: Batch) -> dict[str, np.ndarray]:
    from transforms import statistics as st

    counts, characters = st.count_kinds(batch.bytes, batch.offsets, st.kinds()), batch.characters
    return {
        "characters": characters,
        "symbol_share": _ratio(counts[:, st.SIGN], characters),
        "digit_share": _ratio(counts[:, st.DIGIT], characters),
        "space_share": _ratio(counts[:, st.SPACE], characters),
        "non_ascii_share": _ratio(counts[:, st.KINDS], characters),
        "capital_share": _ratio(counts[:, st.CAPITAL], counts[:, st.CAPITAL] + counts[:, st.LETTER]),
    }


def _of_lines(batch: Batch) -> dict[str, np.ndarray]:
    from transforms.characters import classes
    from transforms.lines import is_blank
    from transforms.statistics import measure_lines
    from transforms.text import count_characters

    places = (batch.bytes, batch.lines.start, batch.lines.end)
    blank, characters = is_blank(*places, classes()), count_characters(*places)
    counts = measure_lines(batch.bytes, batch.lines.end, batch.lines.offsets, blank, characters)
    lines, paragraphs, total, longest = counts.T
    mean = _ratio(total, lines)
    return {"lines": lines, "paragraphs": paragraphs, "longest_line": longest, "mean_line_length": mean}


def _of_words(batch: Batch) -> dict[str, np.ndarray]:
    from transforms.characters import classes
    from transforms.statistics import measure_words

    spans = batch.words
    counts, weighted = measure_words(batch.bytes, spans.start, spans.end, spans.offsets, batch.word_hashes, classes())
    words, characters, different = counts.T
    entropy = np.log2(np.maximum(words, 1)) - _ratio(weighted, words)  # Σ -p log2 p, with p = n / words
    return {
        "words": words,
        "mean_word_length": _ratio(characters, words),
        "distinct_words": _ratio(different, words),
        "word_entropy": np.maximum(entropy, 0),
    }


def compressed_sizes(batch: Batch) -> np.ndarray:
    """int64 [documents]: bytes after compression, without a copy of the text; 0 for empty documents."""
    codec, data = pa.Codec("zstd", compression_level=1), batch.bytes.data
    ends = batch.offsets.tolist()
    sizes = (
        sum(codec.compress(data[i : min(i + PIECE, stop)]).size for i in range(start, stop, PIECE))
        for start, stop in itertools.pairwise(ends)
    )
    return np.fromiter(sizes, np.int64, len(batch))
