"""Features of lines: planted ones, a slow reference of each family, and independence of the other documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.line_features import (
    BITS,
    CONTEXT,
    SHAPES,
    WINDOWS,
    filled_lines,
    line_context,
    line_grams,
    line_shapes,
)
from transforms.refiner import FEATURES, NOWHERE, features, word_context

TEXT = st.text(
    st.one_of(st.sampled_from("ab A9.,!?:|»\n\n日é@©"), st.characters(exclude_categories=["Cs"])), max_size=120
)


def batch_of(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def shape(line: str) -> dict[str, float]:
    batch = batch_of(line)
    return dict(zip(SHAPES, line_shapes(batch, filled_lines(batch))[0].tolist(), strict=True))


def context(*texts: str) -> list[dict[str, float]]:
    batch = batch_of(*texts)
    lines = filled_lines(batch)
    found = line_context(line_shapes(batch, lines), lines, line_grams(batch, lines))
    return [dict(zip(CONTEXT, row, strict=True)) for row in found.tolist()]


def test_shapes_of_a_sentence() -> None:
    found = shape('He said: "No, (really) stop." Then 12 MEN ran on, and on, to the far end of it.')
    assert found["ends a sentence"] == 1 and found["prose"] == 1 and found["short"] == 0
    assert found["log words"] == pytest.approx(np.log1p(18)) and found["log longest word"] == pytest.approx(np.log1p(8))
    assert found["commas per word"] == pytest.approx(3 / 18) and found["quotes per word"] == pytest.approx(2 / 18)
    assert found["capitalised words"] == pytest.approx(3 / 18)  # not those after a quote
    assert found["log sentence ends within"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("© 2020 Someone", "copyright", 1), ("Read more »", "ends in an arrow", 1), ("Contents:", "ends in a colon", 1),
        ("see https://a.b or www.c.d or e@f", "link marks", 3), ("A | B | C", "separators per word", 0.4),
        ("home", "begins in lower case", 1), ("12 homes", "begins with a digit", 1),
        ("- home", "begins with a mark", 1),
        ("STOP it", "capitals", 4 / 6), ("Home", "short", 1),
        ("他说他今天在学校里学习了很多有用的东西。" * 3, "prose", 1),
        ("wait…", "ends in an arrow", 1), ("The end", "ends a sentence", 0), ('"The end."', "ends a sentence", 1),
    ],
)  # fmt: skip
def test_planted_shapes(line: str, name: str, value: float) -> None:
    assert shape(line)[name] == pytest.approx(value)


@given(TEXT)
@settings(max_examples=150, deadline=None)
def test_counts_equal_a_slow_reference(text: str) -> None:
    batch = batch_of(text)
    lines = filled_lines(batch)
    wanted = [(i, line.strip()) for i, line in enumerate(text.split("\n")) if line.strip()]
    assert lines.number.tolist() == [i for i, _ in wanted]
    found = line_shapes(batch, lines)
    assert np.isfinite(found).all()
    for row, (_, line) in zip(found, wanted, strict=True):
        words = line.split()
        assert row[0] == pytest.approx(np.log1p(len(line)), abs=1e-5)
        assert row[1] == pytest.approx(np.log1p(len(words)), abs=1e-5)
        assert row[2] == pytest.approx(np.log1p(max(map(len, words))), abs=1e-5)
        assert row[5] == pytest.approx(sum(c in "0123456789" for c in line) / sum(map(len, words)), abs=1e-5)
        assert row[16] == pytest.approx(line.count(",") / len(words), abs=1e-5)


def test_words_are_lower_case_and_digits_alike() -> None:
    batch = batch_of("Änderung AM 12.\nänderung am 99\nÄnderung zum 12\nam")
    grams = line_grams(batch, filled_lines(batch))
    first, second, third, alone = (
        grams.place[a:b].tolist() for a, b in zip(grams.offsets, grams.offsets[1:], strict=False)
    )
    assert first == second != third and first[0] == third[0] and alone[0] in first
    assert len(first) == 6 and min(first) >= 0 and max(first) < 1 << BITS  # three words, two pairs, the line


@given(st.lists(TEXT, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_means_and_neighbours_equal_a_slow_reference(texts: list[str]) -> None:
    batch = batch_of(*texts)
    lines = filled_lines(batch)
    shapes = line_shapes(batch, lines)
    found = line_context(shapes, lines, line_grams(batch, lines))
    words = shapes[:, 0].astype(np.float64) - 2
    scored = word_context(words, lines)
    for a, b in zip(lines.offsets, lines.offsets[1:], strict=False):
        for i in range(a, b):
            assert found[i, 0] == (shapes[i - 1, 0] if i > a else -1)
            w = WINDOWS[1]
            mean = shapes[max(a, i - w) : min(b, i + w + 1), 0].astype(np.float64).mean()
            assert found[i, CONTEXT.index(f"log characters, mean of {w} lines to each side")] == pytest.approx(
                mean, abs=1e-4
            )
            before, after = words[max(a, i - 8) : i], words[i + 1 : min(b, i + 9)]
            assert scored[i, 5] == pytest.approx(before.max() if len(before) else NOWHERE, abs=1e-5)
            assert scored[i, 6] == pytest.approx(after.max() if len(after) else NOWHERE, abs=1e-5)


def test_the_place_on_a_page() -> None:
    prose = "This is a sentence of rather many words that goes on until it stops right here."
    rows = context(f"Town news\n\nHome\nHome\n{prose}\nHome again\nTown news\nwords that goes on")
    assert [round(np.exp(row["times on the page"])) for row in rows] == [2, 2, 2, 1, 1, 2, 1]
    assert [row["lines up to prose before"] for row in rows] == [32, 32, 32, 32, 1, 2, 3]
    assert [row["lines up to prose after"] for row in rows] == [3, 2, 1, 32, 32, 32, 32]
    assert rows[5]["words of the first line"] == 1 and rows[1]["words of the first line"] == 0
    assert rows[6]["words of prose"] == 1 and rows[3]["words of other prose"] == 0 < rows[3]["words of prose"]
    assert rows[3]["characters near, of the most on the page"] == 1


@given(st.lists(TEXT, min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_document_s_features_are_its_own(texts: list[str]) -> None:
    def of(batch: Batch) -> np.ndarray:
        lines = filled_lines(batch)
        grams = line_grams(batch, lines)
        return features(batch, lines, grams, np.diff(grams.offsets) - 3.5)

    together = of(batch_of(*texts))
    alone = np.concatenate([of(batch_of(text)) for text in texts])
    assert together.shape[1] == len(FEATURES) and together.tobytes() == alone.tobytes()
