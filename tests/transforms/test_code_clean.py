"""Programs are cleaned by a stand-in that makes mistakes; every mistake that a test notices is refused."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_programmer import FAULTS, STAGES, Programmer, ends, modularise, output_of, rename
from toy_programs import TOYS, Toy, batch_of
from toy_server import Status, ToyServer

from transforms import rewriters
from transforms.batch import Batch
from transforms.rewriters import Piece
from transforms.rewriters.code_clean import CodeClean
from transforms.sandbox import Sandbox, SandboxUnavailable

BY_READING = {"new import": "new imports", "syntax error": "does not parse", "prose only": "no program"}


def sandbox() -> dict[str, Any]:
    try:
        Sandbox().check()
    except SandboxUnavailable:
        return {"isolation": "limits"}
    return {}


HERE = sandbox()


def cleaner(server: ToyServer, **given: Any) -> CodeClean:
    engine = {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1}
    return CodeClean.model_validate({"engine": engine, "tests": "tests", "sandbox": HERE, **given})


def cleaned(server: ToyServer, records: pa.RecordBatch, **given: Any) -> list[Piece]:
    rewriter = cleaner(server, **given)
    rewriter.setup()
    return rewriter.rewrite(Batch(records))


def changes(toy: Toy, code: str, count: int) -> bool:
    """Whether a test notices that a program is another one, found by running it here."""
    return any(output_of(code, test["input"]) != test["output"] for test in toy.tests(count))


def test_every_mistake_that_a_test_notices_is_refused_and_the_next_try_taken() -> None:
    kinds, numbers, seen = list(FAULTS), {ends(toy.source): k for k, toy in enumerate(TOYS)}, set[str]()

    def first_time(stage: str, source: str) -> str | None:
        fault = None if source in seen else kinds[numbers[source] % len(kinds)]
        seen.add(source)
        return fault

    programmer = Programmer(first_time)
    with ToyServer(reply=programmer) as server:
        pieces = cleaned(server, batch_of(TOYS, 2), stages=["modularise"], tries=2)
    assert [(piece.document, piece.chunk, piece.status) for piece in pieces] == [(k, 2, "ok") for k in range(20)]
    wrong = {numbers[source]: (fault, code) for _, source, fault, code in programmer.made if fault}
    noticed = Counter[str]()
    for k, (fault, code) in sorted(wrong.items()):
        seen_by_tests = fault in BY_READING or changes(TOYS[k], code, 2)
        noticed[fault] += seen_by_tests
        assert pieces[k].extra["tries"] == (2 if seen_by_tests else 1), (TOYS[k].name, fault, code)
        assert pieces[k].text == (ends(modularise(TOYS[k].source)) if seen_by_tests else code)
    assert len(wrong) == 20 and min(noticed[fault] for fault in kinds) >= 2


def test_a_stage_that_fails_falls_back_and_the_next_goes_on_from_there() -> None:
    """The first three programs lose the first stage in all tries, the next three the second one, and so on."""
    stages, kinds = ["rename", "modularise", "plan"], ["off by one", "dropped print", "prose only"]
    some = [toy for toy in TOYS if toy.name != "gcd"][:9]  # which has no number to get wrong
    versions = {version: k for k, toy in enumerate(some) for version in variants(toy)}

    def mistake(stage: str, source: str) -> str | None:
        k = versions[source]
        return kinds[k % 3] if stage == stages[k // 3] else None

    with ToyServer(reply=Programmer(mistake)) as server:
        pieces = cleaned(server, batch_of(some, 2), tries=2, sandbox={**HERE, "parallel": 2})
    assert [(piece.document, piece.chunk) for piece in pieces] == [(k, n) for k in range(9) for n in (1, 2, 3)]
    for k, toy in enumerate(some):
        mine, broken = {piece.extra["stage"]: piece for piece in pieces if piece.document == k}, stages[k // 3]
        assert (mine[broken].status, mine[broken].extra["tries"]) == ("rejected", 2)
        reasons = {"rename": ["structure changed"], "plan": ["code changed"], "modularise": ["tests fail", "crashed"]}
        assert mine[broken].reason in (reasons[broken] if k % 3 < 2 else ["no program"])
        kept = [stage for stage in stages if stage != broken]
        assert [mine[stage].extra["made_from"] for stage in kept] == ["original", kept[0]]
        assert [mine[stage].prompt for stage in kept] == [f"code_clean/{stage}@1" for stage in kept]
        assert all(mine[stage].status == "ok" and not changes(toy, mine[stage].text or "", 2) for stage in kept)
        assert mine[kept[1]].text == ends(STAGES[kept[1]](mine[kept[0]].text or ""))


def variants(toy: Toy) -> set[str]:
    """What a stage may be asked to go on from."""
    names = rename(toy.source)
    return {ends(code) for code in (toy.source, names, modularise(names), modularise(toy.source))}


def function(tests: str | None, name: str = "twice") -> pa.RecordBatch:
    text = f"def {name}(x):\n    y = x * 2\n    return y\n"
    return pa.record_batch({"id": ["f"], "text": [text], "tests": pa.array([tests], pa.string())})


def fenced(code: str) -> Callable[[str], tuple[str, str]]:
    return lambda prompt: (f"```python\n{code}\n```", "stop")


def test_assertions_keep_the_names_that_they_use() -> None:
    better = "def twice(number):\n    doubled = number * 2\n    return doubled\n"
    with ToyServer(reply=fenced(better)) as server:
        (piece,) = cleaned(server, function("assert twice(2) == 4\nassert twice(-1) == -2"), stages=["rename"])
        assert (piece.status, piece.text) == ("ok", better)
        assert "Other code uses twice:" in server.seen[0].prompt
    constants = function("assert LIMIT == solve(2)")
    constants = constants.set_column(1, "text", pa.array(["LIMIT = 4\nsolve = lambda x: x * 2\n"]))
    with ToyServer(reply=fenced("LIMIT = 4\nsolve = lambda number: number * 2\n")) as server:
        (piece,) = cleaned(server, constants, stages=["rename"])
        assert piece.status == "ok" and "Other code uses LIMIT, solve:" in server.seen[0].prompt
    with ToyServer(reply=fenced(better.replace("twice", "double"))) as server:
        (piece,) = cleaned(server, function("assert twice(2) == 4"), stages=["rename"], tries=2)
        assert (piece.status, piece.reason, piece.extra["tries"]) == ("rejected", "crashed", 2)


def test_what_cannot_be_cleaned_is_told_and_nothing_is_asked() -> None:
    kind = pa.list_(pa.struct({"input": pa.string(), "output": pa.string()}))
    passes = [{"input": "1", "output": "1"}]
    given: dict[str, tuple[str, Any]] = {
        "no tests": ("print(input())", None),
        "not Python": ("#include <stdio.h>\nint main() {}", passes),
        "tests fail on the original": ("print(2)", passes),
        "crashed on the original": ("print(unknown)", passes),
        "timed out on the original": ("while True: pass", passes),
    }
    texts, tests = zip(*given.values(), strict=True)
    records = pa.record_batch({"id": list(given), "text": list(texts), "tests": pa.array(tests, kind)})
    limits = {**HERE, "limits": {"cpu_seconds": 1}}
    with ToyServer() as server:
        pieces = cleaned(server, records, sandbox=limits)
        assert [(p.status, p.reason, p.chunk, p.text) for p in pieces] == [
            ("failed", reason, 0, None) for reason in given
        ]
        assert {piece.extra["stage"] for piece in pieces} == {"original"} and not server.seen


def test_assertions_that_a_program_never_comes_to_prove_nothing() -> None:
    with ToyServer() as server:
        early = function("import os\nos._exit(0)\nassert twice(2) == 5")
        (piece,) = cleaned(server, early)
        assert piece.reason == "ended early on the original"
        (piece,) = cleaned(server, function("assert twice(2) == 5"))
        assert piece.reason == "tests fail on the original"


def test_a_checker_takes_other_outputs_that_are_right() -> None:
    """Any divisor will do; the expected one is not the one that is printed."""
    source = "n = int(input())\nd = 2\nwhile n % d:\n    d += 1\nprint(d)\n"
    checker = (
        "import json, sys\nt = json.load(sys.stdin)\nd = int(t['output'])\nassert d > 1 and int(t['input']) % d == 0"
    )
    kind = pa.list_(pa.struct({"input": pa.string(), "output": pa.string()}))
    tests = pa.array([[{"input": "12", "output": "6"}, {"input": "35", "output": "7"}]] * 2, kind)
    columns = {"id": ["a", "b"], "text": [source] * 2, "tests": tests, "checker": [checker, None]}
    better = source.replace("d", "divisor").replace("whivisorle", "while")
    with ToyServer(reply=fenced(better)) as server:
        pieces = cleaned(server, pa.record_batch(columns), checker="checker", stages=["rename"])
    assert [(piece.status, piece.reason) for piece in pieces] == [
        ("ok", None),
        ("failed", "tests fail on the original"),
    ]


def test_a_program_that_has_become_slow_is_refused() -> None:
    quick = "import time\nx = input()\nprint(x)\n"
    slow = quick.replace(
        "x =", "def wait():\n    while time.process_time() < 0.4: pass\ndef show(x): print(x)\nwait()\nx ="
    )
    kind = pa.list_(pa.struct({"input": pa.string(), "output": pa.string()}))
    tests = pa.array([[{"input": "1", "output": "1"}] * 2], kind)
    records = pa.record_batch({"id": ["a"], "text": [quick], "tests": tests})
    with ToyServer(reply=fenced(slow)) as server:
        (piece,) = cleaned(server, records, stages=["modularise"], tries=1)
        assert (piece.status, piece.reason) == ("rejected", "slower")


def test_answers_that_fail_are_failures_and_those_cut_off_say_so() -> None:
    one = batch_of(TOYS[:1], 1)
    begun = ends(modularise(TOYS[0].source))  # it passes its tests; what would have followed is unknown
    with ToyServer(reply=lambda prompt: (f"```python\n{begun}", "length")) as server:
        (piece,) = cleaned(server, one, stages=["modularise"], tries=1)
        assert (piece.status, piece.reason) == ("rejected", "cut off")
    with ToyServer(reply=lambda prompt: (f"```python\n{begun}```\nIt is now", "length")) as server:
        (piece,) = cleaned(server, one, stages=["modularise"], tries=1)
        assert (piece.status, piece.text) == ("ok", begun)
    with ToyServer(reply=lambda prompt: ("Here it is:\n```python\ndef f(:\n", "length")) as server:
        (piece,) = cleaned(server, one, stages=["rename"], tries=1)
        assert (piece.status, piece.reason, piece.finish_reason) == ("rejected", "cut off", "length")
        assert piece.text == "Here it is:\n```python\ndef f(:\n"
        prompt = server.seen[0].prompt
    with ToyServer({prompt: [Status(400)] * 2}) as server:
        (piece,) = cleaned(server, one, stages=["rename"], tries=2)
        assert (piece.status, piece.reason, piece.text, piece.extra["tries"]) == ("failed", "HTTP 400", None, 2)


def test_tries_are_draws_of_their_own_and_kept_answers_are_not_asked_for_again(tmp_path: Path) -> None:
    def keys(server: ToyServer) -> list[int]:
        return [seen.body["seed"] for seen in server.seen]

    with ToyServer(reply=lambda prompt: ("no", "stop")) as server:
        given = {"stages": ["rename"], "tries": 3, "cache": tmp_path / "answers.sqlite"}
        (piece,) = cleaned(server, batch_of(TOYS[:1], 1), **given)
        assert len(set(keys(server))) == 3 and piece.seed == keys(server)[-1]
        assert cleaned(server, batch_of(TOYS[:1], 1), **given) == [piece] and len(server.seen) == 3


def test_pieces_do_not_depend_on_the_batch_nor_on_how_many_run_at_once() -> None:
    some = TOYS[:2]
    with ToyServer(reply=Programmer()) as server:
        together = cleaned(server, batch_of(some, 1), sandbox={**HERE, "parallel": 2}, mutants=2)
        alone = []
        for toy in some:
            alone += cleaned(server, batch_of([toy], 1), sandbox={**HERE, "parallel": 1}, mutants=2)
    assert [(p.text, p.extra, p.seed) for p in together] == [(p.text, p.extra, p.seed) for p in alone]
    assert {piece.extra["mutation_score"] for piece in together} <= {0.0, 0.5, 1.0}


def test_it_is_found_and_refuses_what_makes_no_sense() -> None:
    assert rewriters.find("code_clean") is CodeClean
    with ToyServer() as server:
        made = cleaner(server, checker="judge")
        assert made.needs == ("tests", "judge") and made.provenance()["model"] == "toy"
        assert [field.name for field in made.fields()] == ["stage", "made_from", "tries", "mutation_score"]
        for given in (
            {"stages": ["plan", "rename"]},
            {"stages": ["rename", "rename"]},
            {"temperature": 0},
            {"join": True},
            {"sandbox": {"isolation": "none"}},
        ):
            with pytest.raises(ValidationError):
                cleaner(server, **given)
        for name, kind in (("tests", pa.int64()), ("judge", pa.list_(pa.string()))):
            with pytest.raises(TypeError, match=f"column '{name}' is .*; expected"):
                made.check_column(name, kind)
