"""Fitting a refiner that is a small language model: it writes programs for chunks of pages, and may say which pages
stay (ProX, Zhou et al. 2024, arXiv 2409.17115; `transforms.program_writer`).

Pages become conversations: numbered chunks and their programs, cut anew `draws` times so that chunks begin anywhere.
A tenth of the groups is not learned from: the finished folder writes programs for their pages, and the card tells how
far these name the lines that should go. Cost: that of teaching, which `lesson` decides (`trainers.teach`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from trainers.fit_refiner import FitRefiner, batch_of, group_hashes
from trainers.fit_tokenizer import fit_tokenizer
from trainers.fits import Wanted
from trainers.program_labels import (
    Labels,
    Teacher,
    by_light_refiner,
    by_programs,
    by_teacher,
    chunk_programs,
    measure_documents,
    measure_lines,
)
from trainers.teach import Conversation, Lesson, teach
from transforms.batch import Batch
from transforms.draws import seeded
from transforms.program_prompts import ProgramPrompts, read_prompts
from transforms.program_writer import LETTERS, ChunkWriter, DocumentJudge, first_tokens
from transforms.programs import Chunks, chunk_lines, numbered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARTS = 10  # of the groups; one is held out
FEWEST = 20  # pages to learn from
MARKS = 48  # tokens, at most, that a chat template and `[doc]` put around a text
SHORT = {"system": "", "chunk_tokens": 320, "document_tokens": 600, "line": 50, "numbers": "after"}


class FitRefinerLM(FitRefiner):
    """Labels of lines as of the fit `refiner`, or by a `teacher`: a large model that writes the programs of the pages
    (`trainers.program_labels`). Where labels are sparse (`keep` with `drop`, `rules`), the light refiner decides on the
    other lines of a page, by models that saw no page of its group.

    `stays`: an SQL value, true or false: whether a page should stay at all. With it the model learns to say that too;
    alone, nothing else. `prompts`: what it is taught with and its folder keeps; unless given, numbered lines and
    nothing else, of each 50 characters, in short chunks.
    """

    method: ClassVar[str] = "refiner_lm"
    readers: ClassVar[tuple[str, ...]] = ("prox",)
    package: ClassVar[str] = "torch"
    teacher: Teacher | None = None
    stays: str | None = None
    prompts: Path | ProgramPrompts = Field(default_factory=lambda: ProgramPrompts.model_validate(SHORT))
    draws: int = Field(default=8, ge=1, description="how often each page is cut into chunks")
    hide: float = Field(default=0.25, ge=0, lt=1, description="share of the words of lines, drawn anew each time")
    lesson: Lesson = Field(default_factory=lambda: Lesson.model_validate({}))
    cache: Path | None = Field(default=None, exclude=True, description="of the teacher's answers")

    @model_validator(mode="after")
    def _labels(self) -> FitRefinerLM:
        given = [name for name in ("keep", "program", "rules", "teacher") if getattr(self, name)]
        if len(given) > 1 or not (given or self.stays):
            raise ValueError(
                "labels of lines come from one of `keep` with `drop`, `program`, `rules` or `teacher`, those of pages "
                f"from `stays`; given {given or 'none'}"
            )
        if (self.keep or self.rules) and find_spec("lightgbm") is None:
            raise ValueError("sparse labels need the light refiner, which needs lightgbm: corpusmill[refiner]")
        room = self.lesson.row_length - self._asked.output_tokens - MARKS
        for name, needed in (("chunk_tokens", given), ("document_tokens", self.stays)):
            if needed and getattr(self._asked, name) > room:
                raise ValueError(
                    f"prompts.{name}: {getattr(self._asked, name)} tokens; lesson.train.row_length of "
                    f"{self.lesson.row_length} leaves {room} beside an answer"
                )
        return self

    @property
    def _asked(self) -> ProgramPrompts:
        return self.prompts if isinstance(self.prompts, ProgramPrompts) else read_prompts(self.prompts)

    def samples(self) -> dict[str, Wanted]:
        (wanted,) = super().samples().values()
        columns = wanted.columns | ({"stays": self.stays} if self.stays else {})
        return {"documents": Wanted(wanted.where, documents=wanted.documents, columns=columns)}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from trainers.tokenise import load_tokenizer

        table = samples["documents"]
        batch, held = batch_of(table), _held(group_hashes(table), seed)
        labels = self._of_lines(table, batch, held, seed)
        stays = table.column("stays").to_pylist() if self.stays else [None] * len(batch)
        known = np.array([stay is not None for stay in stays], bool) | (labels.known if labels else False)
        if (known & ~held).sum() < FEWEST or not (known & held).any():
            found = f"{(known & ~held).sum()} pages to learn from and {(known & held).sum()} held out"
            raise ValueError(f"{found}; expected at least {FEWEST} and 1: widen `where`, raise `documents`")
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as scratch:
            folder = self._tokenizer(batch, labels, known & ~held, Path(scratch))
            tokenizer = load_tokenizer(folder)[0]
            conversations = [*self._conversations(batch, labels, stays, known & ~held, tokenizer, seed)]
            whole = self._whole(conversations, tokenizer)
            taught = teach(self.lesson, whole, out, seed, folder)
        self._asked.save(out)
        card = {
            "parameters": self.model_dump(mode="json", exclude={"lesson"}),
            "lesson": self.lesson.model_dump(mode="json"),
            "seed": seed,
            "taught": taught | {"answers_too_long": len(conversations) - len(whole)},
            "documents": {"learned": int((known & ~held).sum()), "held out": int((known & held).sum())}
            | {f"left out, {why}": count for why, count in (labels.left_out if labels else {}).items()},
            "holdout": {"by": self.group, **self._measure(out, batch, labels, stays, held & known)},
        }
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def _of_lines(self, table: pa.Table, batch: Batch, held: np.ndarray, seed: int) -> Labels | None:
        if self.teacher:
            return by_teacher(batch, self.teacher.model_copy(update={"cache": self.cache}))
        if self.program:
            return by_programs(batch, table.column("program"))
        return by_light_refiner(batch, self.cross_fitted(table, seed, held)) if self.keep or self.rules else None

    def _tokenizer(self, batch: Batch, labels: Labels | None, pages: np.ndarray, scratch: Path) -> Path:
        """Folder of the tokenizer of the model that will be: of a new one, trained on what it will read and write."""
        if self.lesson.start:
            return self.lesson.start
        chosen = np.flatnonzero(pages)
        whole = Chunks(chosen, np.zeros(len(chosen), np.int64), np.diff(batch.lines.offsets)[chosen] - 1)
        texts = (numbered(self._asked.lines(batch, page)) for page in chosen.tolist())
        programs = chunk_programs(batch, whole, labels) if labels else ()
        return fit_tokenizer(chain(texts, programs), scratch / "tokenizer", self.lesson.vocabulary, digits=True)

    def _conversations(
        self,
        batch: Batch,
        labels: Labels | None,
        stays: Sequence[bool | None],
        pages: np.ndarray,
        tokenizer: Tokenizer,
        seed: int,
    ) -> Iterator[Conversation]:
        """What is taught of some pages (bool [pages])."""
        asked = self._asked
        if labels:
            chosen = pages & labels.known
            shown = [asked.lines(batch, page) if chosen[page] else [] for page in range(len(batch))]
            generator = np.random.default_rng(seed)
            for chunks in self._chunks(batch, shown, chosen, tokenizer, generator):
                programs = chunk_programs(batch, chunks, labels)
                for page, first, last, program in zip(*(part.tolist() for part in chunks), programs, strict=True):
                    part = shown[page][first : last + 1]
                    lines = [_hidden(line, self.hide, asked.numbers == "after", generator) for line in part]
                    yield (*asked.of_chunk(numbered(lines)), ("assistant", program))
        for page in np.flatnonzero(pages).tolist():
            if (stay := stays[page]) is not None:
                text = first_tokens(batch.text[page].as_py(), tokenizer, asked.document_tokens)
                yield (*asked.of_document(text), ("assistant", "keep_doc()" if stay else "drop_doc()"))

    def _whole(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[Conversation]:
        """Those whose answer, with its end, has at most `output_tokens`: longer ones would be cut off later."""
        answers = tokenizer.encode_batch([turns[-1][1] for turns in conversations], add_special_tokens=False)
        sizes, most = [len(found.ids) for found in answers], self._asked.output_tokens
        if sizes and min(sizes) >= most:
            raise ValueError(
                f"prompts.output_tokens: {most}; the shortest program to teach has {min(sizes)}, and an end"
            )
        return [turns for turns, size in zip(conversations, sizes, strict=True) if size < most]

    def _chunks(
        self,
        batch: Batch,
        shown: Sequence[Sequence[str]],
        chosen: np.ndarray,
        tokenizer: Tokenizer,
        generator: np.random.Generator,
    ) -> Iterator[Chunks]:
        """The chosen pages in chunks, cut `draws` times: of half to all of the tokens, the first one shorter still."""
        most, offsets = self._asked.chunk_tokens, batch.lines.offsets
        texts = [line[: LETTERS * most] for lines in shown for line in lines]
        tokens = np.full(len(batch.lines), most + 1, np.int64)
        document = np.repeat(np.arange(len(batch)), np.diff(offsets))
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens[chosen[document]] = [len(encoding.ids) for encoding in found]
        for _ in range(self.draws):
            size = int(generator.integers(most // 2, most, endpoint=True))
            begun = tokens.copy()
            begun[offsets[:-1]] += generator.integers(0, size, len(batch))  # as if lines stood before
            begun[offsets[:-1]] = np.where(tokens[offsets[:-1]] > size, size + 1, np.minimum(begun[offsets[:-1]], size))
            yield chunk_lines(begun, offsets, size)

    def _measure(
        self, out: Path, batch: Batch, labels: Labels | None, stays: Sequence[bool | None], pages: np.ndarray
    ) -> dict[str, Any]:
        """What the finished folder says of pages that it did not learn from (bool [pages])."""
        told: dict[str, Any] = {}
        if labels:
            chosen = pages & labels.known
            writer = ChunkWriter.model_validate({"engine": {"model": out}})
            told["lines"] = measure_lines(batch, labels, chosen, writer.write(batch, chosen))
        if self.stays:
            mine = np.array([stay is not None for stay in stays], bool) & pages
            judge = DocumentJudge.model_validate({"engine": {"model": out}})
            judged = judge.judge(Batch(pa.record_batch({"text": batch.text.filter(pa.array(mine))})))
            goes = np.array([not stays[page] for page in np.flatnonzero(mine).tolist()])
            told["documents"] = measure_documents(goes, judged)
        return told


def _hidden(line: str, share: float, after: bool, generator: np.random.Generator) -> str:
    """A numbered line without a share of its words, of which one stays."""
    at = line.rindex("[") if after else line.index("]") + 1
    words = (line[:at] if after else line[at:]).split(" ")
    kept = [word for word, draw in zip(words, generator.random(len(words)), strict=True) if draw >= share]
    text = " ".join(kept or words[:1])
    return text + line[at:] if after else line[:at] + text


def _held(groups: np.ndarray, seed: int) -> np.ndarray:
    """bool [pages]: those of one in PARTS of the groups (uint64 [pages]), of one at least."""
    drawn = seeded(seed, groups)
    every = np.unique(drawn)
    held: np.ndarray = drawn <= every[max(0, len(every) // PARTS - 1)]
    return held
