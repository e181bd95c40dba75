"""Every count and ratio against a slow reading of the text, planted values, and compression in pieces."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scorers import make, statistics
from scorers.statistics import PIECE
from scorers.tokens import Tokens
from transforms import characters as ch
from transforms.batch import Batch

UNICODE = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = st.lists(st.text(UNICODE, max_size=60) | st.text("aB é.,€1\n\r\t \u2028漢", max_size=60), max_size=5)


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def slow_characters(text: str) -> dict[str, float | None]:
    def share(counted: int, whole: int) -> float | None:
        return counted / whole if whole else None

    kinds = ["Zs" if c.isspace() else unicodedata.category(c) for c in text]
    letters, capitals = sum(k[0] == "L" for k in kinds), sum(k in ("Lu", "Lt") for k in kinds)
    return {
        "characters": len(text),
        "bytes": len(text.encode()),
        "symbol_share": share(sum(k[0] in "PS" for k in kinds), len(text)),
        "digit_share": share(kinds.count("Nd"), len(text)),
        "space_share": share(sum(c.isspace() for c in text), len(text)),
        "non_ascii_share": share(sum(not c.isascii() for c in text), len(text)),
        "capital_share": share(capitals, letters),
    }


def slow_lines(text: str) -> dict[str, float | None]:
    lines = text.split("\n")
    filled = [len(line.removesuffix("\r")) for line in lines if line.strip()]
    runs = [bool(blank) for blank, _ in itertools.groupby(lines, key=lambda line: not line.strip())]
    return {
        "lines": len(filled),
        "paragraphs": runs.count(False),
        "longest_line": max(filled, default=0),
        "mean_line_length": sum(filled) / len(filled) if filled else None,
    }


def is_symbol(c: str) -> bool:
    """What the rule sets take for one."""
    return bool(ord(c) < ch.LIMIT and ch.classes()[ord(c)] & ch.SYMBOL)


def slow_words(words: list[str]) -> dict[str, float | None]:
    found = Counter(word for word in words if not all(map(is_symbol, word)))
    total = found.total()
    if not total:
        return {"words": 0, "mean_word_length": None, "distinct_words": None, "word_entropy": None}
    return {
        "words": total,
        "mean_word_length": sum(len(word) * n for word, n in found.items()) / total,
        "distinct_words": len(found) / total,
        "word_entropy": -sum(n / total * math.log2(n / total) for n in found.values()),
    }


def words_of(batch: Batch, d: int) -> list[str]:
    data, spans = batch.bytes.tobytes(), batch.words
    return [data[spans.start[i] : spans.end[i]].decode() for i in range(spans.offsets[d], spans.offsets[d + 1])]


@given(TEXTS)
def test_every_value_equals_the_slow_one(texts: list[str]) -> None:
    batch = batch_of(texts)
    found = make("statistics").score(batch).to_pylist()
    for d, (row, text) in enumerate(zip(found, texts, strict=True)):
        expected = slow_characters(text) | slow_lines(text) | slow_words(words_of(batch, d))
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_planted_values() -> None:
    row = make("statistics").score(batch_of(["a b a b\n\nABBA, 12"])).to_pylist()[0]
    assert (row["words"], row["lines"], row["paragraphs"], row["longest_line"]) == (6, 2, 2, 8)
    assert row["word_entropy"] == pytest.approx(2 * (1 / 3) * math.log2(3) + 2 * (1 / 6) * math.log2(6))
    assert (row["distinct_words"], row["capital_share"], row["digit_share"]) == (4 / 6, 0.5, 2 / 17)


def test_windows_line_ends_are_no_characters_of_a_line() -> None:
    unix, windows = make("statistics").score(batch_of(["ab\n\nabcd\n", "ab\r\n\r\nabcd\r\n"])).to_pylist()
    names = ("lines", "paragraphs", "longest_line", "mean_line_length")
    assert [windows[name] for name in names] == [unix[name] for name in names] == [2, 2, 4, 3]


def test_one_word_again_and_again_has_no_entropy_and_compresses_well() -> None:
    draw = np.random.default_rng(0)
    noise = bytes(draw.integers(97, 123, 20_000).tolist()).decode()
    again, random = make("statistics").score(batch_of(["spam " * 4000, noise])).to_pylist()
    assert again["word_entropy"] == 0 and again["distinct_words"] == 1 / 4000
    assert again["compression_ratio"] > 100 and 1.4 < random["compression_ratio"] < 26**0.5


def test_long_documents_are_compressed_in_pieces() -> None:
    text = "".join(f"line {i} of a long document\n" for i in range(100_000))
    batch, data = batch_of(["first", text, "", "x" * PIECE]), text.encode()
    codec = pa.Codec("zstd", compression_level=1)
    expected = sum(codec.compress(data[i : i + PIECE]).size for i in range(0, len(data), PIECE))
    found = statistics.compressed_sizes(batch)
    assert len(data) > 2 * PIECE and found[1] == expected and found[2] == 0
    assert found[3] == codec.compress(b"x" * PIECE).size
    assert make("statistics").score(batch).field("compression_ratio").to_pylist()[2] is None


def test_tokens_are_those_of_the_tokens_scorer(toy_tokenizer: Path) -> None:
    texts = ["the mayor sold seven lamps", "", "日本語"]
    scorer = make("statistics", {"tokenizer": toy_tokenizer})
    found = scorer.score(batch_of(texts))
    expected = Tokens(tokenizer=toy_tokenizer).score(batch_of(texts)).field("count").to_pylist()
    assert found.field("tokens").to_pylist() == expected
    assert found.field("characters_per_token").to_pylist() == [26 / expected[0], 0, 3 / expected[2]]
    assert "tokens" not in [field.name for field in make("statistics").fields()]


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no tokenizer at"):
        make("statistics", {"tokenizer": tmp_path})
