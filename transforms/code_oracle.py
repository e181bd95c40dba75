"""Tests of programs, as they come in a column, and what programs make of them in the sandbox.

A document's tests are either `list<struct<input: string, output: string>>`, what is fed to standard input and what has
to be on standard output, or a `string` of Python statements that assert something of what the program defines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from transforms.code_equivalence import same_output
from transforms.sandbox import CRASHED, OK, Program, Run, Runner, Sandbox

EXPECTED = "list<struct<input: string, output: string>> or string (Python statements with assertions)"
TEXTS = (pa.string(), pa.large_string(), pa.string_view())
FAIL, EARLY = "tests fail", "ended early"
# The program is a module, so that what it does only when it is the main program is not done.
ASSERTING = """
import sys, types
solution = sys.modules["solution"] = types.ModuleType("solution")
for text, file in (({program!r}, "program.py"), ({assertions!r}, "tests.py")):
    exec(compile(text, file, "exec"), solution.__dict__)
print("\\n" + {mark!r})
"""


@dataclass(frozen=True)
class Oracle:
    """`cases`: (input, output) of each; or `assertions`. `checker`: a program that says whether another output will do
    as well: it is given `{"input", "output", "expected"}` as JSON on standard input and ends well where it will."""

    cases: tuple[tuple[str, str], ...] = ()
    assertions: str = ""
    checker: str = ""

    def program(self, source: str, cpu_seconds: float = float("inf")) -> Program:
        """What has to be run to test a program."""
        if self.cases:
            return Program(source, [given for given, _ in self.cases], cpu_seconds)
        parts = {"program": source, "assertions": self.assertions, "mark": self._mark(source)}
        return Program(ASSERTING.format(**parts), [""], cpu_seconds)

    def _mark(self, source: str) -> str:
        """Is printed after the last assertion, which a program that ends the process never comes to."""
        return hashlib.blake2b(f"{self.assertions}\0{source}".encode(errors="replace"), digest_size=16).hexdigest()

    def failure(self, source: str, runs: Sequence[Run], run: Runner) -> str | None:
        """Why the runs show that the program is wrong, in few words, or null."""
        last = runs[-1]
        if last.status != OK:
            asserted = last.status == CRASHED and not self.cases and "AssertionError" in last.error
            return FAIL if asserted else last.status
        if not self.cases:
            return None if last.output.endswith(f"\n{self._mark(source)}\n") else EARLY
        others = [
            json.dumps({"input": given, "output": one.output, "expected": expected})
            for (given, expected), one in zip(self.cases, runs, strict=True)
            if not same_output(one.output, expected)
        ]
        if not others or (self.checker and run(Program(self.checker, others))[-1].status == OK):
            return None
        return FAIL


@dataclass(frozen=True)
class Verdict:
    """`reason`: why a program does not pass its tests, in few words, or null. `seconds`: of processor time."""

    reason: str | None
    seconds: float


def check_tests(name: str, kind: pa.DataType) -> None:
    """Raises TypeError: a column of this type holds no tests."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    pairs = listed and pa.types.is_struct(kind.value_type) and {"input", "output"} <= {f.name for f in kind.value_type}
    if kind not in TEXTS and not pairs:
        raise TypeError(f"column {name!r} is {kind}; expected {EXPECTED}")


def check_checkers(name: str, kind: pa.DataType) -> None:
    """Raises TypeError: a column of this type holds no checkers."""
    if kind not in TEXTS:
        raise TypeError(f"column {name!r} is {kind}; expected string (a Python program)")


def read_oracles(tests: pa.Array, checkers: pa.Array | None = None) -> list[Oracle | None]:
    """The tests of each document, from columns of the types that are checked above; null where it has none, or one of
    which the output is not known."""
    given = checkers.to_pylist() if checkers is not None else [None] * len(tests)
    return [_read(found, checker or "") for found, checker in zip(tests.to_pylist(), given, strict=True)]


def _read(found: object, checker: str) -> Oracle | None:
    if isinstance(found, str):
        return Oracle(assertions=found) if found.strip() else None
    given = [case or {"input": None, "output": None} for case in found or ()]  # type: ignore[attr-defined]
    cases = tuple((case["input"] or "", case["output"]) for case in given)
    known = all(expected is not None for _, expected in cases)
    return Oracle(cases, checker=checker) if cases and known else None


def judge(sandbox: Sandbox, programs: Iterable[tuple[str, Oracle, float]]) -> list[Verdict]:
    """The verdict on each of (program, its tests, most seconds of processor time for each run).

    Raises SandboxUnavailable: see `Sandbox.check`.
    """

    def verdict(run: Runner, item: tuple[str, Oracle, float]) -> Verdict:
        source, oracle, seconds = item
        runs = run(oracle.program(source, seconds))
        return Verdict(oracle.failure(source, runs, run), sum(one.seconds for one in runs))

    return sandbox.each(verdict, programs)
