"""Programs: golden cases of the language and of the rules, and programs that were not meant to be read."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.batch import Batch
from transforms.cut import cut
from transforms.programs import (
    CALLS,
    DEFAULT,
    MOST_CALLS,
    MOST_TARGET,
    STATUSES,
    Chunks,
    Edits,
    Program,
    Rules,
    chunk_lines,
    cut_lines,
    execute,
    numbered,
    numbered_lines,
    parse,
    read_programs,
    write_programs,
)

PROSE = "Here is a line of quite ordinary prose"  # 8 words
PAGE = "\n".join(
    ["Home | About"] + [f"{PROSE} {i}" for i in range(8)] + ["see http://x.org/?a=b, (or) 'not'"]
)  # 10 lines


def batch_of(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def whole(batch: Batch) -> Chunks:
    """One chunk for each document."""
    n = len(batch)
    return Chunks(np.arange(n), np.zeros(n, np.int64), np.diff(batch.lines.offsets) - 1)


def run(text: str, program: str, rules: Rules = DEFAULT) -> tuple[str, str]:
    batch = batch_of(text)
    refined = execute(batch, read_programs(batch, whole(batch), [program]), rules)
    return cut(batch, refined.cuts)[0].as_py(), STATUSES[refined.status[0]]


def without(*numbers: int) -> str:
    return "\n".join(line for i, line in enumerate(PAGE.split("\n")) if i not in numbers)


NOTHING = Program(False, False, (), (), 0)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("remove_lines(1, 2)", NOTHING._replace(remove=((1, 2),))),
        ("  remove_lines( 007 ,\t012 ) # the navigation", NOTHING._replace(remove=((7, 12),))),
        ("remove_lines(line_start=3, line_end=5)", NOTHING._replace(remove=((3, 5),))),
        ("remove_lines(end=5, start=3)", NOTHING._replace(remove=((3, 5),))),
        ("remove_lines(a=3, b=5);", NOTHING._replace(remove=((3, 5),))),
        ("remove_lines(all=True)", NOTHING._replace(remove_all=True)),
        ("remove_lines(0, 99999999999999999999999)", NOTHING._replace(remove=((0, 10**9),))),
        *((line, NOTHING._replace(errors=1)) for line in (
            "remove_lines(3)", "remove_lines(5, 3)", "remove_lines(-1, 3)", "remove_lines(1, 2, 3)", "remove_lines(",
            "remove_lines('1', '2')", "remove_lines(1.5, 2)", "remove_lines(True, True)", "remove_lines(1, 2) or x()",
            "remove_lines(1, 2); remove_lines(3, 4)", "remove_lines", "remove_lines are words",
            "remove_lines((1, 2))",
            "remove_lines(all=False)", "remove_lines(x=y=1, 2)", "drop_doc(1)", "drop_doc", "normalize()",
            "normalize('a', 'b', 'c')", "normalize('a' * 9, 'b')", "normalize('a)", 'normalize("a\\nb", "c")',
            "normalize('a', 'b\\n')", f"normalize('a', '{'b' * (MOST_TARGET + 1)}')", "normalize(f'a', 'b')",
            "normalize('a' 'b')", "normalize('\ud800')", f"normalize('{'a' * 5000}')", "normalize(None, 'a')",
        )),
        ("normalize('a=b&c, (d)', \"e's\")", NOTHING._replace(replace=(("a=b&c, (d)", "e's"),))),
        ("normalize('it\\'s', 'a\\\\b\\d')", NOTHING._replace(replace=(("it's", "a\\b\\d"),))),
        ("normalize(source_str='a')", NOTHING._replace(replace=(("a", ""),))),
        ("normalize(target_str='b', source_str='a')", NOTHING._replace(replace=(("a", "b"),))),
        ("normalize('')", NOTHING),
        ("normalize(' ', 'x')", NOTHING),
        ("drop_doc()", NOTHING._replace(drop=True)),
        *((line, NOTHING) for line in (
            "keep_doc()", "untouch_doc()", "keep_chunk()", "# remove_lines(1, 2)", "I would drop_doc()", "",
            "```python", "import os", "__import__('os').system('true')", "print(remove_lines(1, 2))",
        )),
    ],
)  # fmt: skip
def test_calls_are_read_as_data(line: str, wanted: Program) -> None:
    assert parse(line) == wanted


@pytest.mark.parametrize(
    ("program", "left", "status"),
    [
        ("", PAGE, "kept"),
        ("keep_chunk()", PAGE, "kept"),
        ("untouch_doc()", PAGE, "kept"),
        ("some prose\nkeep_doc()", PAGE, "kept"),
        ("drop_doc()", "", "dropped"),
        ("remove_lines(0, 0)", without(0), "refined"),
        ("remove_lines(9, 9)", without(9), "refined"),
        ("remove_lines(0, 0)\nremove_lines(9, 9)\nkeep_chunk()", without(0, 9), "refined"),
        ("remove_lines(2, 4)\nremove_lines(3, 6)\nremove_lines(7, 7)", without(2, 3, 4, 5, 6, 7), "refined"),
        ("remove_lines(7, 50)", without(7, 8, 9), "refined"),  # clipped, one error
        ("remove_lines(50, 60)\nremove_lines(0, 0)", without(0), "refined"),  # dropped, one error
        ("remove_lines(50, 60)\nremove_lines(7, 50)", PAGE, "refused_errors"),
        ("remove_lines(\nremove_lines(1, 2)", without(1, 2), "refined"),
        ("remove_lines(\nnormalize(3)\nremove_lines(1, 2)", PAGE, "refused_errors"),
        ("remove_lines(all=True)", "", "dropped_ratio"),
        ("remove_lines(0, 9)", "", "dropped_ratio"),
        ("remove_lines(1, 9)", "", "dropped_ratio"),  # 3 of 79 words are left
        ("remove_lines(0, 0)\nremove_lines(2, 9)", "", "dropped_short"),  # 9 words
        ("remove_lines(3, 9)", "\n".join(PAGE.split("\n")[:3]), "refined"),
        ("normalize(' http://x.org/?a=b, (or)')", PAGE.replace(" http://x.org/?a=b, (or)", ""), "refined"),
        ("normalize(\"'not'\", '\"so\"')", PAGE.replace("'not'", '"so"'), "refined"),
        ("normalize('is a', 'was one')\nnormalize('a line', 'x')", PAGE.replace("is a", "was one"), "refined"),
        ("normalize('not there')", PAGE, "kept"),
        ("normalize('ordinary', 'very ordinary')\nremove_lines(0, 4)",
         without(0, 1, 2, 3, 4).replace("ordinary", "very ordinary"), "refined"),
        ("normalize('e', 'eeeeeeee')", PAGE, "refused_growth"),
        ("normalize('Home')\nremove_lines(0, 0)", without(0), "refined"),
    ],
)  # fmt: skip
def test_golden_executions(program: str, left: str, status: str) -> None:
    assert run(PAGE, program) == (left, status)


def test_documents_of_which_too_little_is_left_stay_if_asked() -> None:
    assert run(PAGE, "remove_lines(1, 5)", Rules(least_left=0.5)) == (PAGE, "refused_ratio")
    assert run(PAGE, "remove_lines(1, 5)", Rules(least_left=0.3))[1] == "refined"


def test_ten_words_go_eleven_stay_and_scripts_without_spaces_have_words() -> None:
    assert run("one two three four five six seven eight nine ten", "")[1] == "dropped_short"
    assert run("one two three four five six seven eight nine ten eleven", "")[1] == "kept"
    assert run("我们今天在学校里学习了很多东西。", "")[1] == "kept"
    assert run("ที่นี่มีคนมากมายในวันนี้", "")[1] == "kept"
    assert run("", "remove_lines(0, 0)") == ("", "dropped_short")


def test_chunks_number_lines_over_the_document_and_programs_stay_within() -> None:
    batch = batch_of(PAGE, "\n".join(f"{i} tower {i}" for i in range(5)))
    tokens = np.array([10] * 10 + [10, 10, 99, 10, 10])
    chunks = chunk_lines(tokens, batch.lines.offsets, 40)
    assert [part.tolist() for part in chunks] == [[0, 0, 0, 1, 1], [0, 4, 8, 0, 3], [3, 7, 9, 1, 4]]
    assert numbered(numbered_lines(batch, 1)[3:5]) == "[doc]\n[003]3 tower 3\n[004]4 tower 4\n[/doc]"
    edits = read_programs(
        batch, chunks, ["normalize('ordinary', 'o')", "remove_lines(3, 5)", "remove_lines(all=True)", "", "drop_doc("]
    )
    assert edits.errors.tolist() == [1, 1] and np.flatnonzero(edits.gone).tolist() == [4, 5, 8, 9]
    left = cut(batch, execute(batch, edits).cuts)[0].as_py().split("\n")
    assert left == [line.replace("ordinary", "o") if i < 4 else line
                    for i, line in enumerate(PAGE.split("\n")) if i not in (4, 5, 8, 9)]  # fmt: skip


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 60), st.integers(1, 3))
def test_chunks_hold_every_line_that_fits_once(tokens: list[int], most: int, documents: int) -> None:
    offsets = np.linspace(0, len(tokens), documents + 1).astype(np.int64)
    chunks = chunk_lines(np.array(tokens, np.int64), offsets, most)
    held = [offsets[d] + i for d, a, b in zip(*chunks, strict=True) for i in range(a, b + 1)]
    assert held == [i for i, size in enumerate(tokens) if size <= most]
    assert all(sum(tokens[offsets[d] + a : offsets[d] + b + 1]) <= most for d, a, b in zip(*chunks, strict=True))


@given(st.lists(st.text("ab \n", max_size=20), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_lines_that_go_leave_the_others_joined(texts: list[str], draw: random.Random) -> None:
    batch = batch_of(*texts)
    gone = np.array([draw.random() < 0.5 for _ in range(len(batch.lines))])
    left = cut(batch, cut_lines(batch, gone)).to_pylist()
    for text, rest, first in zip(texts, left, batch.lines.offsets, strict=False):
        assert rest == "\n".join(line for i, line in enumerate(text.split("\n")) if not gone[first + i])
    chunks = chunk_lines(np.ones(len(gone), np.int64), batch.lines.offsets, 3)
    again = read_programs(batch, chunks, list(write_programs(batch, chunks, gone)))
    assert again.gone.tolist() == gone.tolist() and not again.errors.any()


PIECES = (
    *CALLS, "(", ")", ",", "=", "'", '"', "\\", "\n", " ", "0", "1", "7", "99999999999", "all=True", "True", "None",
    "a", "line", "Here", "é", "日", "\ud800", "\0", "#", ";", "lambda: 0", "__import__('os').abort()", "[", "{", "*",
    "**", "-", "f'{x}'", "'''", "eval", "exec('raise SystemExit')", "open('/etc/passwd')", "(" * 50, "'" * 9, "x" * 100,
    "remove_lines(", "normalize('a', 'b')\n", "normalize('e','" + "y" * 200 + "')\n", "remove_lines(0, 3)\n", "\r",
    "\u2028", "\t",
)  # fmt: skip


def hostile(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 12)))


def test_a_hundred_thousand_programs_neither_raise_nor_run_nor_grow() -> None:
    draw = random.Random(5)
    batch = batch_of(*[PAGE] * 1000)
    lines = batch.lines
    before = set(PAGE.split("\n"))
    for _ in range(100):
        programs = [hostile(draw) for _ in range(1000)]
        edits = read_programs(batch, whole(batch), programs)
        refined = execute(batch, edits)
        left = cut(batch, refined.cuts)
        assert max(len(text.encode()) for text in left.to_pylist()) <= 1.1 * len(PAGE.encode())
        assert not edits.gone.all() or len(lines) == 0
        unedited = np.isin(refined.status, (0, 5, 6, 7))
        assert all(text == PAGE for text, same in zip(left.to_pylist(), unedited, strict=True) if same)
        plain = np.diff(edits.puts.offsets) == 0
        rest = (text for text, alone in zip(left.to_pylist(), plain, strict=True) if alone and text)
        assert all(set(text.split("\n")) <= before for text in rest)


@pytest.mark.parametrize(
    "program",
    [
        "x" * 10_000_000, "(" * 10_000_000, "remove_lines(" * 800_000, "\n" * 10_000_000, "'" * 10_000_000,
        "remove_lines(" + "9" * 10_000_000 + ", 3)", "normalize('" + "a" * 10_000_000,
        "remove_lines(0, 9999999)\n" * 400_000,
        "normalize('e', 'f')\n" * 500_000, " " * 10_000_000 + "drop_doc()",
    ],
    ids=range(10),
)  # fmt: skip
def test_ten_megabytes_of_program_are_read_within_bounds(program: str) -> None:
    found = parse(program)
    assert len(found.remove) + len(found.replace) <= MOST_CALLS and found.errors <= MOST_CALLS + 1
    assert run(PAGE, program)[1] in STATUSES


def test_a_long_line_is_searched_within_bounds() -> None:
    assert run("a " * 500_000, "normalize('a', 'b')") == ("a " * 500_000, "kept")


def test_edits_of_several_documents_do_not_mix() -> None:
    batch = batch_of(PAGE, "", PAGE, "short")
    edits = read_programs(batch, whole(batch), ["remove_lines(0, 0)", "", "normalize('Home ')", "drop_doc()"])
    assert isinstance(edits, Edits)
    refined = execute(batch, edits)
    assert [STATUSES[s] for s in refined.status] == ["refined", "dropped_short", "refined", "dropped"]
    assert cut(batch, refined.cuts).to_pylist() == [without(0), "", PAGE.replace("Home ", ""), ""]
