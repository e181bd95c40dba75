"""content hash: equals MurmurHash3 of the normalised text, written out slowly; published vectors; edge documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.hashing import content_hash, hash_spans

MASK = (1 << 64) - 1
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\n\x1c\x85\xa0\u2003\u2029\u205f\u3000a.")))


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def finish(x: int) -> int:
    x = ((x ^ x >> 33) * 0xFF51AFD7ED558CCD) & MASK
    x = ((x ^ x >> 33) * 0xC4CEB9FE1A85EC53) & MASK
    return x ^ x >> 33


def murmur3(data: bytes) -> tuple[int, int]:
    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & MASK

    c1, c2, h1, h2 = 0x87C37B91114253D5, 0x4CF5AD432745937F, 0, 0
    for i in range(0, len(data) + 1, 16):
        k1 = int.from_bytes(data[i : i + 8], "little")
        k2 = int.from_bytes(data[i + 8 : i + 16], "little")
        h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
        if i + 16 <= len(data):
            h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
        if i + 16 <= len(data):
            h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = finish(h1), finish(h2)
    h1 = (h1 + h2) & MASK
    return h1, (h2 + h1) & MASK


def hashes(texts: list[str]) -> list[tuple[int, int]]:
    high, low = content_hash(batch_of(texts))
    assert high.dtype == low.dtype == np.uint64
    return list(zip(high.tolist(), low.tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT))
def test_equals_reference(texts: list[str]) -> None:
    assert hashes(texts) == [murmur3(" ".join(text.split()).encode()) for text in texts]


@pytest.mark.parametrize(
    ("text", "high", "low"),
    [
        ("", 0, 0),
        ("hello", 0xCBD8A7B341BD9B02, 0x5B1E906A48AE1D19),
        ("The quick brown fox jumps over the lazy dog", 0xE34BBC7BBC071B6C, 0x7A433CA9C49A9347),
    ],
)
def test_published_vectors(text: str, high: int, low: int) -> None:
    assert hashes([text]) == [(high, low)]


def test_every_whitespace_character() -> None:
    spaces = [chr(c) for c in range(0x110000) if chr(c).isspace()]
    assert len(spaces) == 29
    assert set(hashes([f"{s}a{s}{s}b{s}" for s in spaces])) == set(hashes(["a b"]))
    others = [chr(c) for c in range(0x3100) if not chr(c).isspace()]
    assert len(set(hashes([f"a{c}b" for c in others]))) == len(others)


def test_what_is_kept_apart() -> None:
    assert len(set(hashes(["Cafe", "cafe", "café", "cafe\u0301", "ca fe", "\0Cafe"]))) == 6


def test_does_not_depend_on_neighbours() -> None:
    texts = ["", "x" * 20_000_000, "word " * 1_000_000, "", "a", "\n\n"]
    together = hashes(texts)
    assert together == [hashes([text])[0] for text in texts]
    assert together[0] == together[3] == together[5]


def test_spans_and_no_documents() -> None:
    batch = batch_of(["one two", "two"])
    high, _ = hash_spans(batch.bytes, np.array([4, 7]), np.array([7, 10]))
    assert high[0] == high[1]
    assert [len(x) for x in content_hash(batch_of([]))] == [0, 0]
