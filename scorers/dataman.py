"""DataMan's ratings of documents by a language model: 14 from 1 to 5 and a domain (Peng et al. 2025, arXiv 2502.19363).

The cost is the model's: a prompt of at most about 2,100 tokens and an answer of 29, at most 32, for each document.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from scorers import Scorer
from transforms.batch import Batch
from transforms.generation.ask import Asks
from transforms.generation.engine import Answer, Request, Sampling
from transforms.head_tail import head_and_tail, without_leftovers
from transforms.ratings import CRITERIA, DOMAINS, MODES, PROMPTS, RATINGS, Mode, ModeName, Prompts, Rated, read_prompts

OK, BLANK = "ok", "nothing to rate"
FILE = "prompts.yaml"  # of a model folder that the fit made


class DataMan(Asks, Scorer):
    """`mode`: what is asked for; ratings and a domain that are not are null. `prompts`: a file of prompts
    (`transforms.ratings.Prompts`); unless given, `prompts.yaml` of the model's folder, else those that come along.

    Of a text at most `most_tokens` are shown, its beginning and its end, and of one longer than `most_characters` no
    more than these are looked at; unless given, as the prompts say: 1,894 and 20,000, as published for English, where
    Chinese has 1,896 and 60,000. `guided` lets the engine write nothing but answers of the right form.

    `status` is `ok` or why there are no ratings: the answer has another form, the engine failed, or of the text nothing
    is left once leftovers of markup are gone (`nothing to rate`). Temperature is 0: equal texts are asked about once
    where there is a cache.
    """

    name: ClassVar[str] = "dataman"
    package: ClassVar[str] = "tokenizers"
    counted: ClassVar[str | None] = "status"
    mode: ModeName = "all_rating"
    prompts: Path | None = None
    most_tokens: int | None = Field(default=None, ge=2)
    most_characters: int | None = Field(default=None, ge=2)
    guided: bool = False

    @model_validator(mode="after")
    def _usable(self) -> DataMan:
        _ = self._prompts.messages(self.mode, ""), self.counts_with
        if self.guided:
            if self._mode.reasons:
                raise ValueError(f"guided: the mode {self.mode} reasons first, in no fixed form; leave `guided` out")
            self.engine.check(self._sampling)
        return self

    @property
    def _mode(self) -> Mode:
        return MODES[self.mode]

    @cached_property
    def _prompts(self) -> Prompts:
        own = self.engine.tokenizer / FILE if self.engine.tokenizer else None
        file = self.prompts or (own if own and own.is_file() else None)
        return read_prompts(file) if file else PROMPTS

    @property
    def _sampling(self) -> Sampling:
        mode = self._mode
        form = {"choice": mode.choice} if mode.choice else {"regex": mode.regex}
        return Sampling.model_validate({"max_tokens": mode.max_tokens, "guided": form if self.guided else None})

    def setup(self) -> None:
        _ = self.counter  # the engine is loaded when there is something to ask

    def fields(self) -> pa.StructType:
        rated = [pa.field(k, pa.int8(), metadata={"unit": f"1 to 5, high where {v}"}) for k, v in CRITERIA.items()]
        told = {
            "domain": (pa.string(), "the domain's name"),
            "status": (pa.string(), "ok, or why there are no ratings"),
            "truncated": (pa.bool_(), "the middle of the text was not shown"),
            "tokens": (pa.int32(), "tokens of the prompt; null where the engine does not tell"),
        }
        return pa.struct([*rated, *(pa.field(k, kind, metadata={"unit": u}) for k, (kind, u) in told.items())])

    def score(self, batch: Batch) -> pa.StructArray:
        texts, truncated = self.shown(batch.text.to_pylist())
        asked = [i for i, text in enumerate(texts) if text]
        requests = [Request(str(i), messages=self._prompts.messages(self.mode, texts[i])) for i in asked]
        answers = dict(zip(asked, self.ask(requests, self._sampling), strict=True))
        rated = [self._read(answers.get(i)) for i in range(len(texts))]
        names = self._mode.ratings
        said = [dict(zip(names, found.ratings, strict=False)) for found in rated]  # none of them where it failed
        tokens = [answers[i].prompt_tokens or None if i in answers else None for i in range(len(texts))]
        columns = [pa.array([one.get(name) for one in said], pa.int8()) for name in RATINGS]
        columns += [pa.array([DOMAINS.get(found.domain or "") for found in rated], pa.string())]
        columns += [pa.array([found.failure or OK for found in rated], pa.string())]
        columns += [pa.array(truncated), pa.array(tokens, pa.int32())]
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))

    def shown(self, texts: list[str]) -> tuple[list[str], np.ndarray]:
        """What the model is shown of each text, and bool [texts]: whether the middle was left out."""
        tokens = self.most_tokens or self._prompts.most_tokens
        characters = self.most_characters or self._prompts.most_characters
        return head_and_tail([without_leftovers(text) for text in texts], self.counter, tokens, characters)

    def _read(self, answer: Answer | None) -> Rated:
        if answer is None:
            return Rated(failure=BLANK)
        if answer.error is not None:
            return Rated(failure=answer.error.partition(":")[0])
        return self._mode.read(answer.text)
