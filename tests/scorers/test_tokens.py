"""Tokens are counted as the tokenizer counts them, with the end of text as one more."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from scorers.tokens import Tokens
from transforms import pieces as cutting
from transforms.batch import Batch


def counts(scorer: Tokens, texts: list[str]) -> list[int]:
    return scorer.score(Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))).field("count").to_pylist()


@settings(max_examples=50)
@given(texts=st.lists(st.text(max_size=80), max_size=6))
def test_counts_are_the_tokenizers_own(toy_tokenizer: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    expected = [len(tokenizer.encode(text, add_special_tokens=False).ids) + 1 for text in texts]
    assert counts(Tokens(tokenizer=toy_tokenizer), texts) == expected


def test_a_file_does_as_well_as_its_folder(toy_tokenizer: Path) -> None:
    texts = ["the mayor sold seven lamps", "", "x" * 50_000, "<|endoftext|>"]
    found = counts(Tokens(tokenizer=toy_tokenizer), texts)
    assert counts(Tokens(tokenizer=toy_tokenizer / "tokenizer.json"), texts) == found
    assert found[1] == 1 and found[3] > 2, "what reads like an end of text is text"


def test_long_documents_are_counted_in_pieces(
    toy_tokenizer: Path, toy_texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, where there are words to cut before; within a few tokens where there are none."""
    scorer = Tokens(tokenizer=toy_tokenizer)
    texts = ["\n".join(toy_texts["books"]), "a  b\t c\n\n d " * 300, "", "x" * 5000, "🎉" * 900, "short"]
    whole = counts(scorer, texts)
    monkeypatch.setattr(cutting, "AT_ONCE", 100)
    pieces = counts(scorer, texts)
    assert pieces[:3] == whole[:3] and pieces[5] == whole[5]
    for found, expected, text in zip(pieces[3:5], whole[3:5], texts[3:5], strict=True):
        assert expected <= found <= expected + 3 * len(text) // 100
    assert all("".join(cutting._pieces(text)) == text for text in texts)


def test_settings_for_models_of_short_texts_do_not_count(toy_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the mayor sold seven lamps " * 20, "x"]
    assert counts(Tokens(tokenizer=tmp_path), texts) == counts(Tokens(tokenizer=toy_tokenizer), texts)


def test_no_tokenizer(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(
            ValidationError, match=r"no tokenizer at .*json; give a tokenizer.json or a folder with one"
        ):
            Tokens(tokenizer=path)
