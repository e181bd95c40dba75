"""Samples of synthetic topics as a run gives them to a fit: words that follow each other by rules, or by none."""

import numpy as np
import pyarrow as pa

from transforms.draws import draws

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def words(generator: np.random.Generator, count: int) -> list[str]:
    """Different words of 3 to 6 letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(generator.choice(LETTERS, generator.integers(3, 7)))] = None
    return list(found)


def topic(generator: np.random.Generator, vocabulary: list[str], followers: int, documents: int) -> list[str]:
    """Texts of 20 to 60 words; each word is followed by one of `followers` words of its own, drawn once for all."""
    after = generator.integers(len(vocabulary), size=(len(vocabulary), followers))
    texts = []
    for _ in range(documents):
        place = int(generator.integers(len(vocabulary)))
        told = []
        for _ in range(int(generator.integers(20, 60))):
            told.append(vocabulary[place])
            place = int(after[place, generator.integers(followers)])
        texts.append(" ".join(told))
    return texts


def noise(generator: np.random.Generator, documents: int) -> list[str]:
    """Texts of letters among which there is nothing to learn."""
    return ["".join(generator.choice(LETTERS, generator.integers(60, 180))) for _ in range(documents)]


def sample(name: str, texts: list[str], seed: int = 0, share: float = 1.0) -> pa.Table:
    """A sample with all documents of a source; with `share`, with that part of them, those of least draw."""
    ids = pa.array([f"{name}-{i}" for i in range(len(texts))])
    draw = draws(seed, ids)
    table = pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "draw": draw}).sort_by("draw")
    return table.slice(0, round(share * len(texts)))
