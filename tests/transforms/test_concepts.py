"""Key phrases equal those of a slow reference on words and punctuation, in all scripts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.characters import LIMIT
from transforms.concepts import FUNCTION_WORDS, LONGEST, concepts

STOP = set(FUNCTION_WORDS.split())


def letter(character: str) -> bool:
    return LIMIT <= ord(character) < 2 * LIMIT or character.isalpha()  # later planes are ideographs


def slow(text: str, most: int) -> list[tuple[str, ...]]:
    """Words of the key phrases of a text, best first."""
    batch = Batch(pa.record_batch({"text": [text]}))
    data = batch.bytes.tobytes()
    runs: list[list[str]] = [[]]
    before = 0
    for start, end in zip(batch.words.start, batch.words.end, strict=True):
        word = data[start:end].decode("utf-8", "replace")
        if {"\n", "\r"} & set(data[before:start].decode("utf-8", "replace")) and runs[-1]:
            runs.append([])
        before = end
        if end - start > 1 and letter(word[0]) and word not in STOP:
            runs[-1].append(word)
        else:
            runs.append([])
    phrases = [tuple(run) for run in runs if 0 < len(run) <= LONGEST]
    words = [(word, len(phrase)) for phrase in phrases for word in phrase]

    def score(phrase: tuple[str, ...]) -> float:
        means = ([size for other, size in words if other == word] for word in phrase)
        return sum(sum(sizes) / len(sizes) for sizes in means)

    ranked = sorted(range(len(phrases)), key=lambda i: (-score(phrases[i]), i))
    return list(dict.fromkeys(phrases[i] for i in ranked))[:most]


def names(texts: list[str], most: int = 10) -> list[list[int]]:
    found, offsets = concepts(pa.array(texts, pa.large_string()), most)
    return [found[a:b].tolist() for a, b in pairwise(offsets)]


WORDS = st.sampled_from(
    ["the", "of", "river", "stone", "old", "mill", ",", ".", "\n", "42", "x", "don't", "日本語", "רוח"]
)


@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=60), st.integers(1, 5))
def test_phrases_equal_a_slow_reference(text: str, most: int) -> None:
    """Hashes differ where phrases do and agree where they agree."""
    text = pa.compute.utf8_lower(pa.scalar(text)).as_py()
    expected = slow(text, most)
    alone = [names([" ".join(phrase)], 1)[0] for phrase in expected]
    found = names([text], most)[0]
    assert len(found) == len(expected) == len(set(found))
    for own, one, phrase in zip(found, alone, expected, strict=True):
        split = Batch(pa.record_batch({"text": [" ".join(phrase)]})).words
        assert len(split) != len(phrase) or one == [own], phrase


def test_phrases_by_hand() -> None:
    text = "The old stone mill of the river, and the river floods. The mill is old!"
    assert slow(text.lower(), 9) == [("old", "stone", "mill"), ("river", "floods"), ("mill",), ("old",), ("river",)]
    found = names([text, "the river floods", "RIVER FLOODS", "of the", "", "red blue green grey pink teal"])
    assert len(found[0]) == 5 and found[1] == found[2] == [found[0][1]] and found[3:] == [[], [], []]


def test_a_text_has_its_phrases_in_any_company() -> None:
    texts = [f"the {a} of a {b} and {a} {b}" for a in ("river", "mill") for b in ("stone", "bird")] * 300
    found = names(texts)
    assert found == [names([text])[0] for text in texts[:4]] * 300
    assert len({tuple(one) for one in found}) == 4
    sliced, offsets = concepts(pa.array(texts, pa.large_string()).slice(2, 5), 10)
    assert np.split(sliced, offsets[1:-1])[0].tolist() == found[2]
