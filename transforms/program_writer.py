"""Refiners that are language models: one writes programs for chunks of documents, one says which documents go (ProX,
Zhou et al. 2024, arXiv 2409.17115). What they write is read by `transforms.programs`.

Temperature is 0: equal chunks are asked about once where there is a cache. A request that fails leaves its chunk or
document as it is, and is counted. The cost is the model's: the text and about 30 tokens for each line's number and
program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import model_validator

from transforms.batch import Batch
from transforms.generation.ask import Asks
from transforms.generation.engine import Answer, Request, Sampling
from transforms.program_prompts import FILE, ProgramPrompts, read_prompts
from transforms.programs import Chunks, Edits, chunk_lines, has_call, numbered, parse, read_programs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LETTERS = 16  # characters looked at for each token that is allowed: of more the library would hold 130 bytes each
NO_PROGRAM, LONG_LINE, CUT_OFF = "no program", "line too long", "cut off"


class Written(NamedTuple):
    """Programs of chunks, empty where there is none, and what they do. `failures`: (document, why), one for each chunk
    without a program, each program that was cut off (its whole calls are done), and each line that no chunk holds."""

    chunks: Chunks
    programs: list[str]
    edits: Edits
    failures: list[tuple[int, str]]


class Judged(NamedTuple):
    """`drop`: bool [documents]. `failures`: (document, why) of those that nothing was said of; they stay."""

    drop: np.ndarray
    failures: list[tuple[int, str]]


class Refines(Asks):
    """`prompts`: what is asked, or a file of it (`transforms.program_prompts`); unless given, that in the model's
    folder, else ProX's."""

    prompts: Path | ProgramPrompts | None = None

    @model_validator(mode="after")
    def _usable(self) -> Refines:
        _ = self.counts_with, self.asked
        return self

    @cached_property
    def asked(self) -> ProgramPrompts:
        """The prompts that are used."""
        if isinstance(self.prompts, ProgramPrompts):
            return self.prompts
        own = self.engine.tokenizer
        file = self.prompts or (own if own and (own / FILE).is_file() else None)
        return read_prompts(file) if file else ProgramPrompts()

    def _replies(self, conversations: Sequence[tuple[tuple[str, str], ...]]) -> list[Answer]:
        requests = [Request(key=str(k), messages=messages) for k, messages in enumerate(conversations)]
        return self.ask(requests, Sampling.model_validate({"max_tokens": self.asked.output_tokens}))


class ChunkWriter(Refines):
    """Writes a program for each chunk: lines in order, as many as have at most `chunk_tokens` tokens."""

    def write(self, batch: Batch, among: np.ndarray | None = None) -> Written:
        """Ask for the programs of the documents; of some of them (bool [documents]).

        Raises:
            EngineUnavailable: no request can be answered; what was answered before is kept.
        """
        chosen = np.ones(len(batch), bool) if among is None else among
        shown = [self.asked.lines(batch, d) if chosen[d] else [] for d in range(len(batch))]
        chunks, failures = self._chunks(batch, shown, chosen)
        texts = (numbered(shown[d][a : b + 1]) for d, a, b in _rows(chunks))
        answers = self._replies([self.asked.of_chunk(text) for text in texts])
        for document, answer in zip(chunks.document.tolist(), answers, strict=True):
            if reason := _failure(answer, whole=True):
                failures.append((document, reason))
        programs = [answer.text for answer in answers]
        return Written(chunks, programs, read_programs(batch, chunks, programs), failures)

    def _chunks(self, batch: Batch, shown: list[list[str]], chosen: np.ndarray) -> tuple[Chunks, list[tuple[int, str]]]:
        most = self.asked.chunk_tokens
        lines = [line for lines in shown for line in lines]
        tokens = self.lengths([line[: LETTERS * most] for line in lines])
        long = np.array([len(line) > LETTERS * most for line in lines], bool)
        document = np.repeat(np.arange(len(batch)), np.diff(batch.lines.offsets))
        every = np.full(len(document), most + 1, np.int64)
        every[chosen[document]] = np.where(long, most + 1, tokens)
        chunks = chunk_lines(every, batch.lines.offsets, most)
        left = document[(every > most) & chosen[document]]
        return chunks, [(d, LONG_LINE) for d in left.tolist()]


class DocumentJudge(Refines):
    """Says whether a document stays, by the first `document_tokens` tokens of its text."""

    def judge(self, batch: Batch) -> Judged:
        """Ask about every document. What is no clear `drop_doc()` lets it stay.

        Raises:
            EngineUnavailable: no request can be answered; what was answered before is kept.
        """
        most = self.asked.document_tokens
        texts = [first_tokens(text, self.counter, most) for text in batch.text.to_pylist()]
        answers = self._replies([self.asked.of_document(text) for text in texts])
        failures = [(d, reason) for d, answer in enumerate(answers) if (reason := _failure(answer, whole=False))]
        return Judged(np.array([parse(answer.text).drop for answer in answers], bool), failures)


def first_tokens(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The beginning of a text, of at most so many tokens; no character is cut in two."""
    text = text[: LETTERS * most]
    found = tokenizer.encode(text, add_special_tokens=False)
    return text if len(found.ids) <= most else text[: found.offsets[most - 1][1]]


def _failure(answer: Answer, whole: bool) -> str | None:
    """Why an answer has no call, or, where the `whole` of it is wanted, not all of them."""
    if answer.error is not None:
        return answer.error.partition(":")[0]
    cut = answer.finish_reason == "length"
    if has_call(answer.text) and not (cut and whole):
        return None
    return CUT_OFF if cut else NO_PROGRAM


def _rows(chunks: Chunks) -> Iterator[tuple[int, int, int]]:
    return zip(*(part.tolist() for part in chunks), strict=True)
