"""LongWriter's AgentWrite (arXiv 2408.07055): an instruction becomes a long answer, planned and then written in parts.

The model plans the answer, one line for each paragraph with its number of words, and writes paragraph after paragraph;
each time it is given the instruction, the plan and all that is written so far. All documents of a batch go forward
together, and what stays the same stands first in a prompt, so that engines with a cache of prefixes read it once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from transforms.acceptance import CUT
from transforms.generation.ask import Asks
from transforms.generation.engine import Answer, Request, Sampling
from transforms.long_form import Step, count_words, length_score, read_plan, repeated_shares
from transforms.rewriters import FAILED, OK, REJECTED, Piece, Rewriter
from transforms.rewriters._prompts import Prompt, load

if TYPE_CHECKING:
    from transforms.batch import Batch

THOUGHTS = re.compile(r"(?s)\A\s*<think>.*?</think>")
NOTHING = "(nothing yet)"  # in place of the text so far, before the first paragraph
GRAM = 8  # words


@dataclass
class Draft:
    """An answer on its way."""

    document: int
    id: str
    instruction: str
    plan: list[Step] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    status: str = OK
    reason: str | None = None

    def stop(self, status: str, reason: str) -> None:
        """Nothing more is asked for it."""
        self.status, self.reason = status, reason

    def key(self, call: int) -> str:
        """Name of a request: of the plan, 0, or of a paragraph, from 1."""
        return f"{self.id}:longwriter:{call}"

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)

    @property
    def lines(self) -> list[str]:
        return [f"{number}. {step.text}" for number, step in enumerate(self.plan, 1)]


class LongWriter(Asks, Rewriter):
    """The text of a document is an instruction; the new document is the answer, with the instruction as `prompt`.

    `max_tokens`: of a call. Plans of more than `most_steps` paragraphs are not written. An answer is rejected where a
    paragraph has more than `most_repeated` of its word 8-grams in those before it, or where `length_score`, from 0 to
    100, is below `least_length_score`.
    """

    name: ClassVar[str] = "longwriter"
    temperature: float = Field(1.0, ge=0, le=2)
    seed: int = 0
    max_tokens: int = Field(4096, ge=1)
    most_steps: int = Field(50, ge=1)
    most_repeated: float = Field(0.2, ge=0, le=1)
    least_length_score: float = Field(0.0, ge=0, le=100)

    def fields(self) -> Sequence[pa.Field]:
        return [
            pa.field("prompt", pa.large_string()),
            pa.field("plan", pa.list_(pa.large_string())),
            pa.field("words_asked", pa.int64(), metadata={"unit": "words, by the plan"}),
            pa.field("words_written", pa.int64(), metadata={"unit": "words"}),
            pa.field("length_score", pa.float64(), metadata={"unit": "0 to 100"}),
        ]

    @property
    def sampling(self) -> Sampling:
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return Sampling.model_validate(given)

    def provenance(self) -> dict[str, Any]:
        return {
            "model": str(self.engine.model),
            "revision": self.engine.identity,
            "sampling": self.sampling.model_dump_json(exclude_defaults=True),
        }

    @cached_property
    def _plan(self) -> Prompt:
        return load("longwriter", "plan", ("instruction",))

    @cached_property
    def _write(self) -> Prompt:
        return load("longwriter", "write", ("instruction", "plan", "text", "number", "step"))

    def rewrite(self, batch: Batch) -> list[Piece]:
        texts, ids = batch.text.to_pylist(), batch.records.column("id").to_pylist()
        drafts = [Draft(i, ids[i], texts[i]) for i in range(len(batch))]
        self._ask(drafts, self._planning, self._planned)
        while going := [draft for draft in drafts if draft.status == OK and len(draft.paragraphs) < len(draft.plan)]:
            self._ask(going, self._writing, self._written)
        return [self._piece(draft) for draft in drafts]

    def _ask(self, drafts: list[Draft], messages: Callable[[Draft], Any], take: Callable[[Draft, str], None]) -> None:
        """One call for each draft. Those whose answer cannot be used stop."""
        asked = [Request(key=draft.key(len(draft.answers)), messages=messages(draft)) for draft in drafts]
        answers = self.ask(asked, self.sampling)
        texts = [THOUGHTS.sub("", answer.text).strip() for answer in answers]
        refusals = _refused(texts, drafts)
        for draft, answer, text, refused in zip(drafts, answers, texts, refusals, strict=True):
            draft.answers.append(answer)
            if answer.error is not None:
                draft.stop(FAILED, answer.error.partition(":")[0])
                continue
            take(draft, text)
            if refused or answer.finish_reason in CUT:
                draft.stop(REJECTED, "refusal" if refused else "incomplete")

    def _planning(self, draft: Draft) -> Any:
        return self._plan.messages(instruction=draft.instruction)

    def _planned(self, draft: Draft, text: str) -> None:
        try:
            draft.plan = read_plan(text)
        except ValueError as error:
            draft.stop(FAILED, str(error))
        if len(draft.plan) > self.most_steps:
            draft.stop(FAILED, "too many steps")

    def _writing(self, draft: Draft) -> Any:
        number = len(draft.paragraphs)
        given = {"instruction": draft.instruction, "plan": "\n".join(draft.lines), "text": draft.text or NOTHING}
        return self._write.messages(**given, number=str(number + 1), step=draft.plan[number].text)

    def _written(self, draft: Draft, text: str) -> None:
        if text:
            draft.paragraphs.append(text)
        else:
            draft.stop(FAILED, "empty paragraph")

    def _piece(self, draft: Draft) -> Piece:
        asked, written = sum(step.words for step in draft.plan), int(count_words([draft.text])[0])
        score = length_score(asked, written) if draft.plan else 0.0
        if draft.status == OK and repeated_shares(draft.paragraphs, GRAM).max() > self.most_repeated:
            draft.stop(REJECTED, "repeats itself")
        if draft.status == OK and score < self.least_length_score:
            draft.stop(REJECTED, "length")
        extra = {"prompt": draft.instruction, "plan": draft.lines, "words_asked": asked, "words_written": written}
        return Piece(
            draft.document,
            chunk=0,
            text=draft.text or draft.answers[0].text or None,
            status=draft.status,
            reason=draft.reason,
            prompt=f"{self._plan} {self._write}",
            finish_reason=draft.answers[-1].finish_reason,
            prompt_tokens=sum(answer.prompt_tokens for answer in draft.answers),
            output_tokens=sum(answer.output_tokens for answer in draft.answers),
            seed=self.sampling.request_seed(draft.key(0)) if self.temperature else None,
            extra={**extra, "length_score": score},
        )


def _refused(texts: list[str], drafts: list[Draft]) -> list[bool]:
    """Whether the model declines; words that the instruction has too are no sign of it."""
    import polars as pl

    from transforms.acceptance_cleaning import refused

    asked = [draft.instruction for draft in drafts]
    found: list[bool] = refused(pl.Series(texts, dtype=pl.String), pl.Series(asked, dtype=pl.String)).to_list()
    return found
