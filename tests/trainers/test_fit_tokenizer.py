"""The tokenizer gives back every text it is given, and the same texts give the same file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trainers.fit_tokenizer import END, fit_tokenizer


@given(st.text())
def test_every_text_comes_back(toy_tokenizer: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if END not in text:
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id(END) not in ids


def test_the_same_texts_give_the_same_bytes(toy_texts: dict[str, list[str]], tmp_path: Path) -> None:
    texts = [*toy_texts["books"], "日本語 🎉", ""]
    files = [(fit_tokenizer(texts, tmp_path / str(k), 600) / "tokenizer.json").read_bytes() for k in range(3)]
    assert files[0] == files[1] == files[2]
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_vocabulary_and_end_of_text(toy_texts: dict[str, list[str]], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(fit_tokenizer(toy_texts["books"], tmp_path, 400) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 400 and tokenizer.token_to_id(END) == 0
    assert tokenizer.encode(f"a{END}b").ids.count(0) == 1
    text = toy_texts["books"][0]
    assert len(tokenizer.encode(text).ids) < 0.5 * len(text.encode()), "frequent words have become tokens"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == END


def test_transformers_can_load_it(toy_tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(toy_tokenizer))
    assert loaded.eos_token == END and loaded.decode(loaded("the mayor\n sold")["input_ids"]) == "the mayor\n sold"


def test_bytes_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(fit_tokenizer([], tmp_path, 257) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 257 and len(tokenizer.encode("aé").ids) == 3
    with pytest.raises(ValueError, match="vocabulary of 256 tokens cannot hold 256 bytes"):
        fit_tokenizer(["x"], tmp_path, 256)
