"""Does the gate of code cleaning let mistakes through? A stand-in for a language model cleans twenty small programs.

    python benchmarks/code_clean.py [--tests 12] [--mutants 40] [--parallel 2] [--json]

The stand-in (`tests/toy_programmer.py`) renames, extracts functions and writes plans by rules, behind a server with
OpenAI's protocol, and makes the mistake that it is told to, one kind at each stage at a time. Whether a test notices a
mistake is found apart from the gate, by running the program in this process.

`faithful`: share of programs without a mistake that were kept. `refused`: of those with one, by stage and kind, how
many were made, how many any test notices (or reading does), and how many were refused. `mutation_score`: of the tests.
`programs_s`: programs that the sandbox runs on all their tests, each second; `processor_ms_a_run`: what a run costs,
Python's start and its share of the sandbox's included. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from toy_programmer import FAULTS, STAGES, Programmer, ends, output_of
from toy_programs import TOYS, batch_of
from toy_server import ToyServer

from transforms.batch import Batch
from transforms.code_oracle import judge, read_oracles
from transforms.rewriters import OK, Piece
from transforms.rewriters.code_clean import CodeClean
from transforms.sandbox import Sandbox

READING = ("new import", "syntax error", "prose only")  # refused whatever the program does


def clean(programmer: Programmer, tests: int, sandbox: Sandbox, **given: Any) -> list[Piece]:
    with ToyServer(reply=programmer) as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "stand-in"}
        rewriter = CodeClean.model_validate(
            {"engine": engine, "tests": "tests", "sandbox": sandbox, "tries": 1, **given}
        )
        return rewriter.rewrite(Batch(batch_of(TOYS, tests)))


def faithful(tests: int, mutants: int, sandbox: Sandbox) -> dict[str, Any]:
    """All stages without a mistake."""
    pieces = clean(Programmer(), tests, sandbox, mutants=mutants)
    kept = {stage: [piece.status == OK for piece in pieces if piece.extra["stage"] == stage] for stage in STAGES}
    scores = {TOYS[piece.document].name: piece.extra["mutation_score"] for piece in pieces}
    known = [score for score in scores.values() if score is not None]
    shares = {stage: sum(found) / len(TOYS) for stage, found in kept.items()}
    return {"faithful": shares, "mutation_score": sum(known) / len(known), "mutation_scores": scores}


def faulty(stage: str, fault: str, tests: int, sandbox: Sandbox) -> dict[str, int]:
    """One stage, with a mistake in every program that has a place for it."""
    programmer = Programmer(lambda at, source: fault)
    pieces = clean(programmer, tests, sandbox, stages=[stage])
    numbers = {ends(toy.source): k for k, toy in enumerate(TOYS)}
    wrong = {numbers[source]: code for _, source, made, code in programmer.made if made}
    noticed = {k for k, code in wrong.items() if fault in READING or notices(k, code, tests)}
    refused = {piece.document for piece in pieces if piece.status != OK}
    return {
        "made": len(wrong),
        "noticed": len(noticed),
        "refused": len(refused & noticed),
        "missed": len(noticed - refused),
    }


def notices(k: int, code: str, tests: int) -> bool:
    return any(output_of(code, test["input"]) != test["output"] for test in TOYS[k].tests(tests))


def speed(tests: int, sandbox: Sandbox) -> dict[str, float]:
    """Programs each second, over as many rounds as take five seconds, and what one run of a program costs."""
    batch, programs = batch_of(TOYS, tests), 0
    given = list(zip([toy.source for toy in TOYS], read_oracles(batch.column("tests")), strict=True))
    started, spent = time.perf_counter(), processor()
    while time.perf_counter() - started < 5:
        judge(sandbox, [(source, oracle, 10.0) for source, oracle in given if oracle])
        programs += len(given)
    cost = 1000 * (processor() - spent) / (programs * tests)
    return {"programs_s": programs / (time.perf_counter() - started), "processor_ms_a_run": cost}


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime


def run(tests: int, mutants: int, sandbox: Sandbox) -> dict[str, Any]:
    result: dict[str, Any] = {"programs": len(TOYS), "tests": tests, "isolation": sandbox.isolation}
    result |= faithful(tests, mutants, sandbox)
    refused = {stage: {fault: faulty(stage, fault, tests, sandbox) for fault in FAULTS} for stage in STAGES}
    every = [found for kinds in refused.values() for found in kinds.values()]
    totals = {name: sum(found[name] for found in every) for name in ("made", "noticed", "refused", "missed")}
    return {**result, "refused": refused, "all": totals, **speed(tests, sandbox)}


def show(result: dict[str, Any]) -> None:
    title = f"{result['programs']} programs, {result['tests']} tests each, isolation: {result['isolation']}"
    table = Table(title=title)
    for heading in ("stage", "mistake", "made", "noticed by tests", "refused of these"):
        table.add_column(heading)
    for stage, kinds in result["refused"].items():
        table.add_row(stage, "none", "20", "", f"kept: {result['faithful'][stage]:.0%}")
        for fault, found in kinds.items():
            table.add_row(stage, fault, *(str(found[name]) for name in ("made", "noticed", "refused")))
    console = Console(width=100)
    console.print(table)
    speed = f"{result['programs_s']:.1f} programs/s, {result['processor_ms_a_run']:.0f} ms of processor time a run"
    console.print(f"mutation score {result['mutation_score']:.3f}; {speed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=12, help="of each program")
    parser.add_argument("--mutants", type=int, default=40, help="of each program")
    parser.add_argument("--parallel", type=int, default=2, help="programs that run at one time")
    parser.add_argument("--isolation", choices=("namespaces", "limits"), default="namespaces")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    given = parser.parse_args()
    sandbox = Sandbox.model_validate({"isolation": given.isolation, "parallel": given.parallel})
    sandbox.check()
    result = run(given.tests, given.mutants, sandbox)
    if not given.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
