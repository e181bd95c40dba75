"""Repeated substrings: equal to comparing every window with every other, in any order of the documents."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import substring
from transforms.batch import Batch
from transforms.components import ranks
from transforms.cut import cut
from transforms.substring import TokenSpans, cuts_of, repeated_spans

DOCUMENTS = st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=5)


def covered_by_brute_force(documents: list[list[int]], rank: list[int], k: int) -> list[set[int]]:
    """Places of each document that lie in a window with an earlier, non-overlapping twin; every pair is compared."""
    windows = [(rank[d], p, d, row[p : p + k]) for d, row in enumerate(documents) for p in range(len(row) - k + 1)]
    covered: list[set[int]] = [set() for _ in documents]
    for r, p, d, window in windows:
        for other_r, q, _, other in windows:
            if window == other and (other_r < r or (other_r == r and q + k <= p)):
                covered[d] |= set(range(p, p + k))
    return covered


def run(documents: list[list[int]], rank: list[int], k: int) -> TokenSpans:
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    tokens = np.array([token for row in documents for token in row], np.int64)
    return repeated_spans(tokens, offsets, np.array(rank, np.int64), k)


def covered(documents: list[list[int]], spans: TokenSpans) -> list[set[int]]:
    base = np.cumsum([0, *map(len, documents)])
    result: list[set[int]] = []
    for d in range(len(documents)):
        pairs = [(spans.start[i] - base[d], spans.end[i] - base[d]) for i in range(*spans.offsets[d : d + 2])]
        assert all(a < b for a, b in pairs)
        assert all(end < start for (_, end), (start, _) in pairwise(pairs))  # sorted and apart
        result.append({place for a, b in pairs for place in range(a, b)})
    return result


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS, st.integers(1, 5), st.randoms())
def test_equals_brute_force_in_any_order(documents: list[list[int]], k: int, random) -> None:  # type: ignore[no-untyped-def]
    rank = list(range(len(documents)))
    random.shuffle(rank)
    expected = covered_by_brute_force(documents, rank, k)
    assert covered(documents, run(documents, rank, k)) == expected
    order = list(range(len(documents)))
    random.shuffle(order)
    again = covered([documents[i] for i in order], run([documents[i] for i in order], [rank[i] for i in order], k))
    assert [again[order.index(i)] for i in range(len(documents))] == expected


def test_planted_repeats_in_a_large_corpus() -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(0, 2**62, 2000).tolist() for _ in range(100)]
    planted: list[tuple[int, int, int]] = []
    for i in range(0, 50):
        length = int(random.integers(50, 400))
        rows[99 - i][700 : 700 + length] = rows[i][100 : 100 + length]
        planted.append((99 - i, 700, 700 + length))
    rows[0][1900:1949] = rows[1][:49]  # too short by one
    spans = run(rows, list(range(100)), 50)
    document = np.repeat(np.arange(100), np.diff(spans.offsets))
    found = zip(document, spans.start - 2000 * document, spans.end - 2000 * document, strict=True)
    assert sorted(found) == sorted(planted)


def test_one_token_a_million_times() -> None:
    spans = run([[7] * 1_000_000, [7] * 60, [7] * 49], [1, 0, 2], 50)
    assert (spans.start.tolist(), spans.end.tolist()) == ([0], [1_000_000])
    spans = run([[7] * 1_000_000], [0], 50)
    assert (spans.start.tolist(), spans.end.tolist()) == ([50], [1_000_000])


def test_collision_of_hashes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    place, first = np.array([0, 3, 6, 7]), np.array([0, 0, 0, 1])
    equal = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 1], np.uint64)
    assert substring._verified(equal, place, first, 3)
    for i in (1, 2, 3, 5, 8, 9):
        other = equal.copy()
        other[i] = 9
        assert not substring._verified(other, place, first, 3)
    calls = []

    def collide_once(tokens, offsets, rank, k, seed):  # type: ignore[no-untyped-def]
        calls.append(int(seed))
        if seed == 0:
            return np.array([0, 1]), np.array([0, 0]), np.array([0, 0])
        return true(tokens, offsets, rank, k, seed)

    true = substring._candidates
    monkeypatch.setattr(substring, "_candidates", collide_once)
    spans = run([[1, 2, 1]], [0], 1)
    assert calls == [0, 1] and (spans.start.tolist(), spans.end.tolist()) == ([2], [3])


def test_removal_from_text() -> None:
    texts = ["Read the terms of use.  A story about 中 begins", "Our  news. Read the\nterms of use. More", "", "Read"]
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    spans = repeated_spans(batch.word_hashes, batch.words.offsets, ranks(pa.array(["a", "b", "c", "d"])), 6)
    assert cut(batch, cuts_of(spans, batch)).to_pylist() == [texts[0], "Our  news. More", "", "Read"]
    spans = repeated_spans(batch.word_hashes, batch.words.offsets, ranks(pa.array(["b", "a", "c", "d"])), 6)
    assert cut(batch, cuts_of(spans, batch)).to_pylist() == ["A story about 中 begins", *texts[1:]]


def test_edges() -> None:
    assert [len(x) for x in run([], [], 5)] == [0, 0, 1]
    assert run([[], [1], []], [0, 1, 2], 2).offsets.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="k=0"):
        run([[1]], [0], 0)
    with pytest.raises(ValueError, match="documents 0 and 2 are equal in all 1 keys"):
        ranks(pa.array(["a", "b", "a"]))
