"""Programs with better names, in functions, with a plan, each kept only where its tests still pass (arXiv 2311.14904).

A language model is asked for one stage after the other, each on top of the last one that was kept. What it writes is
first read (`transforms.code_equivalence`), and where that finds nothing, run on the document's tests in a sandbox.
docs/code_cleaning.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from transforms.code_equivalence import STAGES, code_in, has_fence, parsed, refusal, top_names
from transforms.code_mutants import mutation_scores
from transforms.code_oracle import Oracle, check_checkers, check_tests, judge, read_oracles
from transforms.generation.ask import Asks
from transforms.generation.engine import Answer, Request, Sampling, failures
from transforms.rewriters import FAILED, OK, REJECTED, Piece, Rewriter
from transforms.rewriters._prompts import Prompt, load
from transforms.sandbox import Sandbox

if TYPE_CHECKING:
    from transforms.batch import Batch

ORIGINAL = "original"
NO_TESTS, NOT_PYTHON, NO_PROGRAM, UNPARSED, CUT, SLOWER = (
    "no tests", "not Python", "no program", "does not parse", "cut off", "slower",
)  # fmt: skip
SLACK = 0.5  # seconds of processor time: what is less is noise of a busy machine
READS = "It reads standard input and writes standard output: what it writes has to stay the same to the letter."
CALLED = "Other code uses {}: these names have to stay as they are, and so have the names of their parameters."


@dataclass
class Work:
    """A document on its way. `source`: the program as far as it is cleaned; `stage`: the last one that was kept."""

    document: int
    id: str
    original: str
    oracle: Oracle | None
    seconds: float = 0.0  # of processor time, all tests of the original
    mutation_score: float | None = None
    stage: str = ORIGINAL
    source: str = ""
    pieces: list[Piece] = field(default_factory=list)

    def asked(self, source: str, seconds: float = math.inf) -> tuple[str, Oracle, float]:
        """A variant of it, as `judge` takes them."""
        assert self.oracle is not None
        return source, self.oracle, seconds

    @property
    def contract(self) -> str:
        """What the model has to be told of how the program is used."""
        assert self.oracle is not None
        tree = parsed(self.source)
        used = set(re.findall(r"\w+", self.oracle.assertions)) & (top_names(tree) if tree else set())
        return READS if self.oracle.cases else CALLED.format(", ".join(sorted(used)) or "what it defines")


class CodeClean(Asks, Rewriter):
    """Up to three new programs of each one that passes its tests: renamed, in functions, with a plan.

    `tests`: column with each document's tests: `list<struct<input: string, output: string>>`, or `string`, Python
    statements that assert. `checker`: column with a program that says whether another output will do as well; see
    `code_oracle.Oracle`. `stages`: which, in their order. `tries`: answers that are asked for until one will do.
    `slower`: times of the original's processor time that a program may take. `mutants`: wrong variants of the original
    that are run to tell how much the tests notice; 0: none. `sandbox`: isolation and limits of what is run.
    """

    name: ClassVar[str] = "code_clean"
    tests: str
    checker: str | None = None
    stages: tuple[Literal["rename", "modularise", "plan"], ...] = Field(("rename", "modularise", "plan"), min_length=1)
    tries: int = Field(3, ge=1)
    max_tokens: int = Field(2048, ge=1)
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    seed: int = 0
    slower: float = Field(2.0, ge=1)
    mutants: int = Field(0, ge=0)
    sandbox: Sandbox = Sandbox.model_validate({})

    @model_validator(mode="after")
    def _sensible(self) -> CodeClean:
        if self.join:
            raise ValueError("join: the pieces of a document are variants of one program; expected false")
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise ValueError(
                f"stages: given {', '.join(self.stages)}; expected some of {', '.join(STAGES)}, in this order"
            )
        if self.temperature == 0 and self.tries > 1:
            raise ValueError("tries: at temperature 0 all have the same answer; set tries to 1, or a temperature")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.tests,) if self.checker is None else (self.tests, self.checker)

    def check_column(self, name: str, kind: pa.DataType) -> None:
        (check_tests if name == self.tests else check_checkers)(name, kind)

    def fields(self) -> Sequence[pa.Field]:
        return [
            pa.field("stage", pa.string(), metadata={"unit": f"{ORIGINAL}, {', '.join(STAGES)}"}),
            pa.field("made_from", pa.string(), metadata={"unit": "stage of the program that it was made from"}),
            pa.field("tries", pa.int32(), metadata={"unit": "answers that were asked for"}),
            pa.field("mutation_score", pa.float64(), metadata={"unit": "share of mutants that the tests refuse"}),
        ]

    @cached_property
    def sampling(self) -> Sampling:
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return Sampling.model_validate({"max_tokens": self.max_tokens, **drawn})

    @cached_property
    def _prompts(self) -> dict[str, Prompt]:
        return {stage: load(self.name, stage, ("contract", "code")) for stage in self.stages}

    def provenance(self) -> dict[str, Any]:
        sampling = self.sampling.model_dump_json(exclude_defaults=True)
        return {"model": str(self.engine.model), "revision": self.engine.identity, "sampling": sampling}

    def setup(self) -> None:
        self.sandbox.check()

    def rewrite(self, batch: Batch) -> list[Piece]:
        """Raises SandboxUnavailable: programs cannot be isolated; and what `ask` raises."""
        column, texts = batch.records.column, batch.text.to_pylist()
        oracles = read_oracles(column(self.tests), column(self.checker) if self.checker else None)
        given = zip(column("id").to_pylist(), texts, oracles, strict=True)
        works = [Work(place, id, text, oracle, source=text) for place, (id, text, oracle) in enumerate(given)]
        going = self._originals(works)
        for stage in self.stages:
            self._stage(stage, going)
        return [piece for work in works for piece in work.pieces]

    def _originals(self, works: list[Work]) -> list[Work]:
        """Those that pass their tests; the others get a piece that says why not."""
        tested: list[Work] = []
        for work in works:
            reason = NO_TESTS if work.oracle is None else NOT_PYTHON if parsed(work.original) is None else None
            tested += [] if reason else [work]
            work.pieces += [self._failed(work, reason)] if reason else []
        going = []
        verdicts = judge(self.sandbox, [work.asked(work.original) for work in tested])
        for work, verdict in zip(tested, verdicts, strict=True):
            work.seconds = verdict.seconds
            going += [] if verdict.reason else [work]
            work.pieces += [self._failed(work, f"{verdict.reason} on the original")] if verdict.reason else []
        programs = [work.asked(work.original, work.seconds) for work in going if self.mutants]
        scores = mutation_scores(self.sandbox, programs, self.mutants, self.seed)
        for work, score in zip(going, scores, strict=False):  # none where no mutants are wanted
            work.mutation_score = score
        return going

    def _failed(self, work: Work, reason: str) -> Piece:
        return Piece(work.document, 0, None, FAILED, reason, extra=self._extra(ORIGINAL, work, 0))

    def _extra(self, stage: str, work: Work, tries: int) -> dict[str, Any]:
        made_from = None if stage == ORIGINAL else work.stage
        return {"stage": stage, "made_from": made_from, "tries": tries, "mutation_score": work.mutation_score}

    def _stage(self, stage: str, works: Sequence[Work]) -> None:
        """A piece for each document; where it is ok, the next stage goes on from it."""
        todo, last = list(works), {}
        for tried in range(1, self.tries + 1):
            keys = [f"{work.id}:{stage}:{tried}" for work in todo]
            said = [
                self._prompts[stage].messages(contract=work.contract, code=work.source.strip("\n")) for work in todo
            ]
            asked = [Request(key=key, messages=messages) for key, messages in zip(keys, said, strict=True)]
            for work, key, answer in zip(todo, keys, self.ask(asked, self.sampling), strict=True):
                last[work.document] = self._read(stage, tried, work, key, answer)
            self._test(todo, last)
            todo = [work for work in todo if last[work.document].status != OK]
        for work in works:
            piece = last[work.document]
            work.pieces.append(piece)
            if piece.status == OK and piece.text:
                work.stage, work.source = stage, piece.text

    def _read(self, stage: str, tried: int, work: Work, key: str, answer: Answer) -> Piece:
        """What came of an answer as far as reading tells."""
        piece = Piece(
            work.document,
            1 + STAGES.index(stage),
            answer.text or None,
            REJECTED,
            prompt=str(self._prompts[stage]),
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            seed=self.sampling.request_seed(key) if self.temperature else None,
            extra=self._extra(stage, work, tried),
        )
        if answer.error is not None:
            return replace(piece, status=FAILED, reason=next(iter(failures([answer]))))
        cut = answer.finish_reason == "length"
        if (code := code_in(answer.text, cut)) is None:
            return replace(piece, reason=CUT if cut else UNPARSED if has_fence(answer.text) else NO_PROGRAM)
        reason = refusal(stage, work.source, code)
        return replace(piece, text=code, reason=reason, status=REJECTED if reason else OK)

    def _test(self, works: Sequence[Work], pieces: dict[int, Piece]) -> None:
        """Refuse those pieces that are ok so far and do not pass their tests, or take too long for them."""
        tested = [(work, pieces[work.document]) for work in works if pieces[work.document].status == OK]
        most = [self.slower * work.seconds + SLACK for work, _ in tested]
        asked = [work.asked(piece.text or "", bound) for (work, piece), bound in zip(tested, most, strict=True)]
        verdicts = judge(self.sandbox, asked)
        for (work, piece), program, verdict, bound in zip(tested, asked, verdicts, most, strict=True):
            reason = verdict.reason
            if reason is None and verdict.seconds > bound and self._slower(work, program):
                reason = SLOWER
            if reason is not None:
                pieces[work.document] = replace(piece, status=REJECTED, reason=reason)

    def _slower(self, work: Work, program: tuple[str, Oracle, float]) -> bool:
        """Measured again, both on the same machine at the same time: it may have been busy."""
        new, old = judge(self.sandbox, [program, work.asked(work.original)])
        return new.seconds > self.slower * max(old.seconds, work.seconds) + SLACK
