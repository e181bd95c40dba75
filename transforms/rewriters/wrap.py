"""WRAP: documents said again in another style, passage by passage (Maini et al. 2024, arXiv 2401.16380).

A document is cut into passages of whole sentences, since a model loses more of long ones; each is rewritten by a small
instruct model; what it puts around its answer is taken off, and answers that show a fault are refused. Nemotron-CC
(arXiv 2412.02595) and FinePhrase (arXiv 2604.13977) do the same with other prompts and lengths. docs/rephrasing.md.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from transforms.acceptance import CUT, MEASURES, Acceptance
from transforms.generation.ask import Asks
from transforms.generation.engine import Answer, Request, Sampling
from transforms.parameters import Parameters
from transforms.rewriters import FAILED, OK, REJECTED, Piece, Rewriter
from transforms.rewriters._prompts import Prompt, load, styles

if TYPE_CHECKING:
    from transforms.batch import Batch
    from transforms.passages import Passages

FAMILY = "wrap"
TOO_LONG = "sentence too long"


class Written(NamedTuple):
    """What came of a passage."""

    text: str | None
    status: str
    reason: str | None
    measures: Mapping[str, float | None]


class Style(Parameters):
    """What the file of a prompt may say of its style, under `settings`; parameters of the rewriter come first."""

    chunk_tokens: int = Field(300, ge=1)
    unit: Literal["sentences", "lines"] = "sentences"
    max_tokens: int | None = Field(None, ge=1)
    acceptance: Acceptance = Acceptance()


class Wrap(Asks, Rewriter):
    """Each passage of a document said again in one style.

    `style`: one of those in `prompts/wrap`, or `prompt`: file of a prompt of one's own, with a place `{text}`.
    `chunk_tokens`: tokens of a passage at most, and `unit`, of which it holds whole ones: the style's unless given.
    `max_tokens`: bound on what is written; unless given, as much as the style's `length` allows for a full passage. A
    sentence (line) of more tokens than that and than a passage has is not asked for. `temperature`, `top_p`, `seed`:
    how answers are drawn; the first two are Nemotron-CC's. `acceptance`: bounds of checks, over those of the style.
    """

    name: ClassVar[str] = "wrap"
    style: str | None = None
    prompt: Path | None = None
    chunk_tokens: int | None = Field(None, ge=1)
    unit: Literal["sentences", "lines"] | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.5, ge=0, le=2)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = 0
    acceptance: Acceptance = Acceptance()

    @model_validator(mode="after")
    def _whole(self) -> Wrap:
        if (self.style is None) == (self.prompt is None):
            raise ValueError(f"give a style ({', '.join(styles(FAMILY))}) or the file of a prompt")
        if self.settings.acceptance.language and importlib.util.find_spec("py3langid") is None:
            raise ValueError("acceptance.language: needs py3langid; pip install 'corpusmill[language]', or say false")
        _ = self.counts_with
        return self

    @cached_property
    def asked(self) -> Prompt:
        """The prompt. Raises ValueError: it cannot be read."""
        return load(FAMILY, self.style or self.prompt or "")

    @cached_property
    def _own(self) -> Style:
        return Style.model_validate(dict(self.asked.settings))

    @cached_property
    def settings(self) -> Style:
        """What holds: the parameters, and where they say nothing, the style."""
        style = self._own
        own = {name: value for name in ("chunk_tokens", "unit", "max_tokens") if (value := getattr(self, name))}
        bounds = {name: getattr(self.acceptance, name) for name in self.acceptance.model_fields_set}
        return style.model_copy(update={**own, "acceptance": style.acceptance.model_copy(update=bounds)})

    @cached_property
    def sampling(self) -> Sampling:
        held = self.settings
        bound = self._own.acceptance.length  # the style's: another check of the answers asks for no other answers
        longest = bound[1] if bound else 2.0
        most = held.max_tokens or math.ceil(longest * held.chunk_tokens)
        how = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return Sampling.model_validate({"max_tokens": most, **how})

    def provenance(self) -> dict[str, Any]:
        sampling = self.sampling.model_dump_json(exclude_defaults=True)
        return {"model": str(self.engine.model), "revision": self.engine.identity, "sampling": sampling}

    def fields(self) -> Sequence[pa.Field]:
        units = {"start": "byte of the source's text", "end": "byte of the source's text", "source_tokens": "tokens"}
        parts = [pa.field(name, pa.int64(), metadata={"unit": unit}) for name, unit in units.items()]
        return [pa.field("passage", pa.struct([*parts, *(pa.field(name, pa.float64()) for name in MEASURES)]))]

    def rewrite(self, batch: Batch) -> list[Piece]:
        from transforms.passages import passages

        cut = passages(batch, self.settings.unit, self.settings.chunk_tokens, self.lengths)
        ids = batch.records.column("id").take(pa.array(cut.document)).to_pylist()
        keys = [f"{id}:{self.asked.name}:{number}" for id, number in zip(ids, cut.number, strict=True)]
        fits = cut.tokens <= max(self.settings.chunk_tokens, self.sampling.max_tokens)
        said = [self.asked.messages(text=text) for text in cut.texts]
        asked = [Request(key=key, messages=m) for key, m, fit in zip(keys, said, fits, strict=True) if fit]
        come = iter(self.ask(asked, self.sampling))
        return self._pieces(cut, keys, [next(come) if fit else Answer.failed(TOO_LONG) for fit in fits])

    def _pieces(self, cut: Passages, keys: Sequence[str], answers: Sequence[Answer]) -> list[Piece]:
        """A piece for each passage, whatever came of it."""
        found = self._judged(cut, answers)
        pieces = []
        for place, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            nothing = Written(None, FAILED, (answer.error or "").partition(":")[0], {})
            text, status, reason, measures = found.get(place, nothing)
            source = {"start": cut.start[place], "end": cut.end[place], "source_tokens": cut.tokens[place]}
            piece = Piece(
                document=int(cut.document[place]),
                chunk=int(cut.number[place]),
                text=text,
                status=status,
                reason=reason,
                prompt=str(self.asked),
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                output_tokens=answer.output_tokens,
                seed=self.sampling.request_seed(key) if self.temperature and reason != TOO_LONG else None,
                extra={"passage": {name: int(value) for name, value in source.items()} | dict(measures)},
            )
            pieces.append(piece)
        return pieces

    def _judged(self, cut: Passages, answers: Sequence[Answer]) -> dict[int, Written]:
        """What was written of each passage that has an answer, by the passage's place."""
        places = [place for place, answer in enumerate(answers) if answer.error is None]
        sources, bounds = [cut.texts[place] for place in places], self.settings.acceptance
        outputs = bounds.clean([answers[place].text for place in places], sources)
        tokens = cut.tokens[places], self.lengths(outputs)
        stopped = np.array([answers[place].finish_reason in CUT for place in places], bool)
        instruction = "\n".join(said for _, said in self.asked.messages(text=""))
        reasons, measures = bounds.judge(sources, outputs, tokens, stopped, instruction)
        found: dict[int, Written] = {}
        for i, (place, reason) in enumerate(zip(places, reasons, strict=True)):
            known = {name: None if np.isnan(values[i]) else float(values[i]) for name, values in measures.items()}
            found[place] = Written(outputs[i], REJECTED if reason else OK, reason, known)
        return found
