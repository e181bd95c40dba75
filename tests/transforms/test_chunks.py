"""Chunks are slices of a document's own tokens, hold what their sections say, and count what they leave out."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_classifier import WINDOW

from transforms.chunks import CHARACTERS, Chunker, Chunks

ROOM = WINDOW - 2
WORDS = st.lists(st.sampled_from(["the", "boat", "seven lamps", "日本", "🎉", "שלום", "[SEP]", "\n"]), max_size=150)


@pytest.fixture(scope="module")
def chunker(toy_classifier: Path) -> Chunker:
    return Chunker(toy_classifier, WINDOW)


def cut(chunker: Chunker, texts: list[str], sections: str, most: int = 64) -> Chunks:
    return chunker.cut(pa.array(texts, pa.large_string()), sections, most)  # type: ignore[arg-type]


def inner(chunks: Chunks) -> list[list[int]]:
    """Tokens of the chunks without [CLS] and [SEP], which must be there."""
    parts = [chunks.ids[a:b].tolist() for a, b in zip(chunks.offsets, chunks.offsets[1:], strict=False)]
    assert all(len(p) <= WINDOW and (p[0], p[-1]) == (401, 402) for p in parts)
    return [p[1:-1] for p in parts]


def own(chunker: Chunker, text: str) -> list[int]:
    ids: list[int] = chunker.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@given(st.lists(WORDS, max_size=4))
def test_whole_documents_in_chunks_of_equal_length(chunker: Chunker, documents: list[list[str]]) -> None:
    texts = [" ".join(words) for words in documents]
    found = cut(chunker, texts, "whole")
    parts = inner(found)
    first = 0
    for text, count, tokens, unread in zip(texts, found.counts, found.tokens, found.unread, strict=True):
        mine, first = parts[first : first + count], first + count
        assert list(chain(*mine)) == own(chunker, text) and tokens == len(own(chunker, text)) and unread == 0
        assert count == -(-tokens // ROOM)
        assert not mine or max(map(len, mine)) - min(map(len, mine)) <= 1
    assert first == len(parts)


@given(WORDS)
def test_sections(chunker: Chunker, words: list[str]) -> None:
    text = " ".join(words)
    ids = own(chunker, text)
    n = len(ids)
    start_ids = own(chunker, text.lstrip() or text)
    assert inner(cut(chunker, [text], "beginning")) == ([start_ids[:ROOM]] if n else [])
    start = (n - ROOM) // 2
    three = [ids[:ROOM], ids[start : start + ROOM], ids[-ROOM:]]
    wanted = [] if not n else [ids] if n <= ROOM else [three[0], three[2]] if n <= 2 * ROOM else three
    assert inner(cut(chunker, [text], "top_middle_bottom")) == wanted


def test_unread_characters_are_counted(chunker: Chunker) -> None:
    """One token to a character of these: digits are no merged pairs of the toy corpus's text."""
    letters = "".join(chr(0x4E00 + k) for k in range(300))  # three bytes, three tokens each
    assert len(own(chunker, letters)) == 900
    full = ROOM // 3
    beginning = cut(chunker, [letters], "beginning")
    assert beginning.unread.tolist() == [300 - full] and 300 - full <= 300 - ROOM / 3 + 1
    assert cut(chunker, [letters], "whole", 2).unread.tolist() == [300 - 2 * ROOM // 3]
    assert cut(chunker, [letters], "whole").unread.tolist() == [0]
    sections = cut(chunker, [letters], "top_middle_bottom")
    assert sections.counts.tolist() == [3] and abs(int(sections.unread[0]) - (300 - 3 * ROOM / 3)) <= 3
    assert cut(chunker, ["", " short"], "whole").unread.tolist() == [0, 0]


def test_white_space_before_a_document(toy_classifier: Path, tmp_path: Path) -> None:
    """A tokenizer that leaves white space out would find nothing in the part that is read."""
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(toy_classifier / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chunker, text, blank = Chunker(tmp_path, WINDOW), "the boat", " \n\u3000" * 100_000
    found = cut(chunker, [text, blank + text, blank], "beginning")
    assert found.counts.tolist() == [1, 1, 0] and found.unread.tolist() == [0, 0, 0]
    assert inner(found)[0] == inner(found)[1]
    assert cut(chunker, [blank + text, blank], "whole", 1).unread.tolist() == [len(blank + text), 0], "nothing was read"


@pytest.mark.parametrize("sections", ["whole", "beginning", "top_middle_bottom"])
def test_little_is_read_of_a_long_document(chunker: Chunker, sections: str) -> None:
    head, tail = "the boat " * 200, " seven lamps" * 200
    text = head + "x " * 2_000_000 + tail
    found = cut(chunker, [text], sections, 4)
    parts = inner(found)
    assert parts[0] == own(chunker, head)[:ROOM]
    assert found.counts[0] == {"whole": 4, "beginning": 1, "top_middle_bottom": 3}[sections]
    assert len(text) - 4 * ROOM * CHARACTERS <= found.unread[0] < len(text)
    if sections == "top_middle_bottom":
        assert parts[2] == own(chunker, tail)[-ROOM:] and set(parts[1]) == set(own(chunker, "x x"))


def test_tokens_of_more_characters_than_are_read(chunker: Chunker) -> None:
    """A text that is one endless token or none must not be tokenised to its end."""
    for text in (" " * 3_000_000, "🎉" * 1_000_000, "x" * 3_000_000):
        found = cut(chunker, [text], "whole", 4)
        assert 1 <= found.counts[0] <= 4 and found.unread[0] > len(text) * 0.9


def test_documents_are_picked_out(chunker: Chunker) -> None:
    texts = ["the boat " * 100, "", "seven", "lamps " * 300]
    chunks = cut(chunker, texts, "whole")
    for wanted in ([0], [1], [], [1, 3], [0, 1, 2, 3]):
        alone = cut(chunker, [texts[k] for k in wanted], "whole")
        found = chunks.of(np.array(wanted, np.int64))
        for name in ("ids", "offsets", "counts", "tokens", "unread"):
            assert np.array_equal(getattr(found, name), getattr(alone, name))


def test_no_room(toy_classifier: Path) -> None:
    with pytest.raises(ValueError, match="window of 2 tokens has no room beside 2 special tokens"):
        Chunker(toy_classifier, 2)
