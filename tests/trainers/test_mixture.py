import json
from pathlib import Path

import numpy as np
import pytest
from conftest import END, make_mixture, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trainers.mixture import open_mixture, take

TEXTS = {"a": ["one cat", "", "dog 猫 🐈", f"it ends {END} not here", "x"], "b": ["tree " * 40, "river"]}


@pytest.fixture
def folder(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer", [t for texts in TEXTS.values() for t in texts])
    return make_mixture(tmp_path / "mixture", TEXTS, tokenizer)


def test_every_document_becomes_its_tokens_and_one_end_token(folder, tmp_path):
    corpus = open_mixture(folder, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    expected = [corpus.end_token]
    for text in TEXTS["a"] + TEXTS["b"]:
        expected += [*tokenizer.encode(text).ids, corpus.end_token]
    assert corpus.tokens.tolist() == expected
    assert expected.count(corpus.end_token) == 1 + 7  # the end token spelled out in a text is text
    assert [corpus.tokens[e - 1] for e in corpus.end] == [corpus.end_token] * 7
    assert corpus.length.sum() == len(expected) - 1
    assert corpus.names(np.array([3, 5])) == ["a/00000 row 3 (a-3)", "b/00000 row 0 (b-0)"]


@pytest.mark.parametrize("damage", ["changed", "vanished"])
def test_changed_and_vanished_shards_are_refused_by_name_and_digest(folder, tmp_path, damage):
    open_mixture(folder, tmp_path)  # a cache does not hide the damage
    shard = folder / "b" / "00000.parquet"
    expected = json.loads((folder / "manifest.json").read_text())["sources"]["b"]["files"][0]["digest"]
    if damage == "changed":
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=rf"b/00000\.parquet.*expects digest {expected}, found"):
        open_mixture(folder, tmp_path)


def test_another_tokenizer_is_refused(folder, tmp_path):
    make_tokenizer(tmp_path / "tokenizer", ["other words"], vocabulary=280)
    with pytest.raises(ValueError, match=r"tokenizer\.json.*digest"):
        open_mixture(folder, tmp_path)


def test_empty_sources_and_missing_manifests_are_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer", ["a b"])
    folder = make_mixture(tmp_path / "mixture", {"full": ["a"], "void": []}, tokenizer)
    with pytest.raises(ValueError, match="'void' is empty"):
        open_mixture(folder, tmp_path)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_mixture(tmp_path, tmp_path)


def test_tokens_are_made_once_and_shared(folder, tmp_path):
    open_mixture(folder, tmp_path / "cache")
    (written,) = (tmp_path / "cache").glob("*/tokens.bin")
    before = written.stat().st_mtime_ns
    open_mixture(folder, tmp_path / "cache")
    assert [p.stat().st_mtime_ns for p in Path(tmp_path / "cache").glob("*/tokens.bin")] == [before]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1), st.floats(0.01, 4), st.randoms(use_true_random=False))
def test_a_pass_takes_the_tokens_that_the_epochs_ask_for(tokens, epochs, random):
    draw = np.array(random.sample(range(10**6), len(tokens)), np.uint64)
    counts = np.array(tokens, np.int64)
    copies = take(counts, draw, epochs)
    whole = int(epochs)
    assert set(copies.tolist()) <= {whole, whole + 1}
    asked = (epochs - whole) * counts.sum()
    extra = [(d, n) for d, n, c in zip(draw, tokens, copies, strict=True) if c > whole]
    assert asked - 0.5 <= sum(n for _, n in extra) <= asked + max(tokens) + 0.5
    kept = [d for d, c in zip(draw, copies, strict=True) if c == whole]
    assert not extra or not kept or max(d for d, _ in extra) < min(kept)


@pytest.mark.parametrize("named", ["a", {"content": "a"}])
def test_the_config_names_the_end_token(folder, tmp_path, named):
    plain = open_mixture(folder, tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": named}))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    corpus = open_mixture(folder, tmp_path)
    assert corpus.end_token == tokenizer.token_to_id("a") == corpus.tokens[0] != plain.tokens[0]
    assert corpus.digest != plain.digest
    config.write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(ValueError, match=r"tokenizer\.json has no token <none> to end documents with"):
        open_mixture(folder, tmp_path)
