"""What a refiner learns from: labels of every source, programs in chunks that do what the labels say, exact figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, pages, program
from toy_server import HANG, ToyServer

from trainers.fit_refiner import FitRefiner
from trainers.fit_tokenizer import fit_tokenizer
from trainers.program_labels import (
    Labels,
    Replacement,
    Teacher,
    by_light_refiner,
    by_programs,
    by_teacher,
    chunk_programs,
    measure_documents,
    measure_lines,
)
from transforms.batch import Batch
from transforms.cut import cut
from transforms.program_writer import Judged, Written
from transforms.programs import Chunks, Rules, chunk_lines, execute, read_programs

PAGES = pages(60, seed=3)


def batch_of(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def planted(given: list[Page]) -> np.ndarray:
    """bool [lines]: noise."""
    return np.concatenate([np.isin(np.arange(page.text.count("\n") + 1), page.noise) for page in given])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_tokenizer([page.text for page in PAGES], tmp_path_factory.mktemp("tokenizer"), 400)


def test_programs_of_a_column_are_what_they_do() -> None:
    batch = batch_of(*(page.text for page in PAGES[:5]), "one\ntwo", "one\ntwo", "one\ntwo", "one\ntwo")
    strange = ["remove_lines(0, 5)", "I keep it.", None, "drop_doc()"]
    column = pa.chunked_array([[*(program(page) for page in PAGES[:5]), *strange]])
    labels = by_programs(batch, column)
    assert labels.known.tolist() == [True] * 5 + [False] * 4
    expected = {"a call that cannot be done": 1, "no program": 2, "the whole page dropped": 1}
    assert labels.left_out == expected
    known = np.repeat(labels.known, np.diff(batch.lines.offsets))
    assert (labels.gone[known] == planted(PAGES[:5])).all()
    assert (np.isfinite(labels.goes) == known).all() and (labels.goes[known] == labels.gone[known]).all()


def test_a_teacher_is_asked_with_the_language_explained(tokenizer: Path) -> None:
    noise = {line for page in PAGES for k, line in enumerate(page.text.split("\n")) if k in page.noise}

    def reply(prompt: str) -> tuple[str, str]:
        assert "remove_lines(first, last)" in prompt
        if "wholly" in prompt:
            return "remove_lines(0, 1)", "length" if "cut" in prompt else "stop"
        lines = [line[1:].split("]", 1) for line in prompt.split("[doc]\n")[1].split("\n[/doc]")[0].split("\n")]
        return "\n".join(f"remove_lines({n}, {n})" for n, text in lines if text in noise) or "keep_chunk()", "stop"

    extra = "wholly\nremoved\n" + "x y z " * 3
    with ToyServer(reply=reply) as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "large", "tries": 1, "timeout": 0.5}
        teacher = Teacher.model_validate({"engine": engine, "tokenizer": tokenizer, "most_removed": 0.9})
        asked = teacher.model_copy(update={"most_removed": 0.1})
        batch = batch_of(*(page.text for page in PAGES[:5]), extra)
        labels, strict = by_teacher(batch, teacher), by_teacher(batch, asked)
        slow = batch_of("hangs")
        server.script[teacher.asked.of_chunk("[doc]\n[000]hangs\n[/doc]")[-1][1]] = [HANG]
        assert by_teacher(slow, teacher).left_out == {"timed out": 1}
        cut = by_teacher(batch_of(extra, extra.replace("z", "cut")), teacher)
        assert cut.left_out == {"cut off": 1} and cut.known.tolist() == [True, False]
    assert labels.known.all() and (labels.gone[:-3] == planted(PAGES[:5])).all()
    assert strict.left_out == {"too much removed": len(strict.known) - strict.known.sum()} and not strict.known[-1]


def test_sparse_labels_are_completed_by_models_that_did_not_see_the_page() -> None:
    given, batch = pages(90, seed=5), batch_of(*(page.text for page in pages(90, seed=5)))
    columns = {name: [getattr(page, name) for page in given] for name in ("text", "keep", "drop")}
    table = pa.table({**columns, "group": [page.host for page in given]})
    held = np.arange(90) < 9
    fit = FitRefiner(keep="keep", drop="drop", trees=40)
    found = fit.cross_fitted(table, 0, held)
    labels = by_light_refiner(batch, found)
    truth = planted(given)
    assert (labels.gone == truth).mean() > 0.9 and labels.known.all()
    given_ones = np.isfinite(labels.goes)
    assert 0.1 < given_ones.mean() < 0.5 and (labels.gone == truth)[given_ones].all()
    # What is hidden may say anything: no model reads it.
    other = table
    for k, (name, lie) in enumerate((("keep", "drop"), ("drop", "keep")), 1):
        said = [columns[lie if hide else name][page] for page, hide in enumerate(held)]
        other = other.set_column(k, name, pa.array(said))
    lied = fit.cross_fitted(other, 0, held)
    assert (lied.scores == found.scores).all() and lied.thresholds == found.thresholds
    assert (fit.cross_fitted(other, 0).scores != found.scores).any()


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 30))
def test_programs_of_chunks_do_what_the_labels_say(gone: list[bool], most: int) -> None:
    batch = batch_of("\n".join(f"{k} tower a" for k in range(len(gone))))
    labels = Labels(np.array(gone), np.array(gone, float), np.ones(1, bool))
    chunks = chunk_lines(np.ones(len(gone), np.int64), batch.lines.offsets, most)
    programs = list(chunk_programs(batch, chunks, labels))
    edits = read_programs(batch, chunks, programs)
    assert edits.gone.tolist() == gone and not edits.errors.any()
    said = "".join(text.split("\n")[0] for text in programs).replace("#", "")
    assert said == "".join(f"{k:03d}{'-' if goes else '+'}" for k, goes in enumerate(gone))
    for (a, b), text in zip(zip(*chunks[1:], strict=True), programs, strict=True):
        assert (text.split("\n")[1] == "keep_chunk()") == (not any(gone[a : b + 1]))


@pytest.mark.parametrize("order", [lambda x: x, reversed], ids=["in order", "turned"])
def test_replacements_go_with_the_lines_that_have_them(order: Callable[[list[Replacement]], list[Replacement]]) -> None:
    text = 'a [1] tower\nb [1] tower\nc tower\nd says "hi"\ne [1] tower'
    batch = batch_of(text)
    gone = np.array([False, True, False, False, False])
    pairs = [Replacement(0, 4, "[1]", ""), Replacement(0, 2, "says", "said"), Replacement(3, 3, '"hi"', "'ho'")]
    pairs.append(Replacement(0, 4, "\x01", ""))  # has no form in the language that every reader knows
    labels = Labels(gone, gone.astype(float), np.ones(1, bool), {0: list(order(pairs))})
    chunks = Chunks(*(np.array(part) for part in ([0, 0, 0], [0, 2, 3], [1, 2, 4])))
    programs = list(chunk_programs(batch, chunks, labels))
    assert programs[0] == '#000+001-\nremove_lines(001,001)\nnormalize("[1]", "")'
    assert programs[1] == "#002+\nkeep_chunk()"
    assert sorted(programs[2].split("\n")) == sorted(
        ["#003+004+", 'normalize("[1]", "")', 'normalize("\\"hi\\"", "\'ho\'")']
    )
    left = cut(batch, execute(batch, read_programs(batch, chunks, programs), Rules(short=0)).cuts)[0].as_py()
    assert left == "a  tower\nc tower\nd says 'ho'\ne  tower"


def test_figures_are_of_the_pages_asked_about_and_exact() -> None:
    batch = batch_of("a\nb\nc\nd", "e\nf", "g\nh")
    gone = np.array([True, True, True, False, True, False, True, True])
    goes = np.array([1, np.nan, np.nan, 0, 1, 0, np.nan, 1])
    labels = Labels(gone, goes, np.array([True, True, False]))
    chunks = Chunks(*(np.array(part) for part in ([0, 1, 1], [0, 0, 1], [3, 0, 1])))
    programs = ["remove_lines(1, 3)", "remove_lines(9, 9)", "Nothing."]
    written = Written(chunks, programs, read_programs(batch, chunks, programs), [(1, "no program")])
    told = measure_lines(batch, labels, np.array([True, True, False]), written)
    assert told["all"] == {"line_precision": 2 / 3, "line_recall": 2 / 4, "line_f1": 4 / 7}
    assert told["given"] == {"line_precision": 0.0, "line_recall": 0.0, "line_f1": 0.0}
    assert (told["pages"], told["programs"], told["malformed"]) == (2, 3, 2 / 3)
    assert told["failures"] == {"no program": 1}
    drop, goes = np.array([True, True, False, False]), np.array([True, False, True, False])
    told = measure_documents(goes, Judged(drop, [(3, "timed out")]))
    assert told == {"pages": 4, "precision": 0.5, "recall": 0.5, "f1": 0.5, "failures": {"timed out": 1}}
