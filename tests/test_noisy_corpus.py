"""The noisy corpus of benchmarks/selection.py: what its junk keeps of real text, and that it never holds real text."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _noisy_corpus as noisy


def write(path: Path, texts: list[str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)


def read(folder: Path) -> list[str]:
    return [t for path in sorted(folder.glob("*.parquet")) for t in pq.read_table(path)["text"].to_pylist()]


def words_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """400 documents of about 1 kB, each of words of its own, in two sources; and some that cannot be used."""
    for source in ("manuals", "code"):
        texts = [" ".join(f"{source}{i}word{k}" for k in range(60)) for i in range(200)]
        write(tmp_path / "in" / source / "a.parquet", [*texts, None, " \n", "long " * 10_000])
    write(tmp_path / "pages.parquet", [f"page {i} " * 100 for i in range(200)])
    return tmp_path


@given(st.text(), st.integers())
def test_shuffled_text_keeps_words_and_white_space(text: str, seed: int) -> None:
    found = noisy.shuffled(text, random.Random(seed))
    assert sorted(found.split()) == sorted(text.split())
    assert [c for c in found if c.isspace()] == [c for c in text if c.isspace()]


def test_shuffled_words_move() -> None:
    text = " ".join(str(i) for i in range(100))
    moved = noisy.shuffled(text, random.Random(0)).split()
    assert sum(int(word) != place for place, word in enumerate(moved)) > 80


def test_templated_pages_fill_every_slot_and_differ() -> None:
    pages = [noisy.templated(random.Random(i)) for i in range(200)]
    assert len(set(pages)) == 200
    assert not any("{" in page or "}" in page for page in pages)
    assert all(len(page.splitlines()) >= 16 for page in pages)


def test_no_word_of_a_shuffled_document_is_left_in_the_real_ones(corpus: Path) -> None:
    size = noisy.build(corpus / "out", 0.2, f"{corpus}/in/*/*.parquet", corpus / "pages.parquet")
    real = [*read(corpus / "out/manuals"), *read(corpus / "out/code")]
    torn = read(corpus / "out/shuffled")
    assert real and torn and words_of(real).isdisjoint(words_of(torn))
    assert all(source in ("manuals", "code") for source in size.keys() - {"web", "shuffled", "templated"})
    kinds = {"real": size["manuals"] + size["code"]} | {k: size[k] for k in ("web", "shuffled", "templated")}
    for kind, share in noisy.SHARES.items():
        assert abs(kinds[kind] - 2000 * share) < 8000, kind  # up to one document is missing


def test_what_cannot_be_used_is_left_out_and_ratios_hold_where_there_is_too_little(corpus: Path) -> None:
    size = noisy.build(corpus / "out", 100, f"{corpus}/in/*/*.parquet", None)
    texts = [t for source in ("manuals", "code", "shuffled") for t in read(corpus / "out" / source)]
    assert len(texts) == 400 and all(t.strip() and len(t) < 2000 for t in texts)
    assert "web" not in size
    assert (size["manuals"] + size["code"]) / size["shuffled"] == pytest.approx(50 / 20, rel=0.02)


def test_the_same_seed_gives_the_same_corpus_and_another_does_not(corpus: Path) -> None:
    def made(name: str, seed: int) -> list[str]:
        noisy.build(corpus / name, 0.2, f"{corpus}/in/*/*.parquet", corpus / "pages.parquet", seed)
        return [text for folder in sorted((corpus / name).iterdir()) for text in read(folder)]

    assert made("a", 0) == made("b", 0) != made("c", 1)


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing/\*.parquet"):
        noisy.build(tmp_path / "out", 1, f"{tmp_path}/nothing/*.parquet", None)
