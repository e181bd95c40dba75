"""Generation by transformers in this process: the light engine, for small models and for trying things out.

Prompts are sorted by length and go in batches of rows padded on the left. Draws are made by the Gumbel-max trick
(Gumbel 1954; Maddison et al. 2014), each row from a generator of its own, so that a request's draws do not depend on
its neighbours. What depends on them are the last bits of the logits, which change with the shape of a batch: float32
on a CPU, bf16 on a GPU.

A batch takes as long as its longest output, and no row joins it on the way: for large models and corpora use vLLM.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from transforms.generation.engine import Engine, Finished, Request, Sampling, folder_identity, unfit
from transforms.model_folder import CAUSAL, check_model_folder

if TYPE_CHECKING:
    from transforms.generation.decoding import Decoder

_lock = threading.Lock()  # of loading, and of the processor: batches go one after the other


class Transformers(Engine):
    """A model folder, answered for in batches of up to `batch_tokens` positions, prompts and outputs together."""

    package: ClassVar[str] = "transformers"
    engine: Literal["transformers"] = Field("transformers", exclude=True)
    model: Path
    batch_tokens: int = Field(16_384, ge=1, exclude=True)

    @field_validator("model")
    @classmethod
    def _whole(cls, path: Path) -> Path:
        return check_model_folder(path, CAUSAL).path

    @property
    def identity(self) -> str:
        return folder_identity(self.model)

    @property
    def tokenizer(self) -> Path | None:
        return self.model

    @cached_property
    def _decoder(self) -> Decoder:
        from transforms.generation.decoding import load

        return load(self.model)

    def setup(self) -> None:
        with _lock:
            _ = self._decoder

    def check(self, sampling: Sampling) -> None:
        if sampling.guided and sampling.guided.choice is None:
            kind = "regex" if sampling.guided.regex is not None else "grammar"
            raise ValueError(f"guided.{kind}: the engine transformers knows choice alone; use vllm, or openai with it")

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        self.check(sampling)
        self.setup()
        prompts = self._decoder.prompts.tokens(requests)
        window = self._decoder.window
        fitting = [place for place, ids in enumerate(prompts) if 0 < len(ids) < window]
        yield [(p, unfit(len(prompts[p]), window)) for p in sorted({*range(len(prompts))} - {*fitting})]
        for places in self._batches(prompts, fitting, sampling.max_tokens):
            seeds = [sampling.request_seed(requests[place].key) for place in places]
            with _lock:
                answers = self._decoder.decode([prompts[place] for place in places], seeds, sampling)
            yield [(place, answer.checked(sampling)) for place, answer in zip(places, answers, strict=True)]

    def _batches(self, prompts: list[list[int]], places: list[int], max_tokens: int) -> Iterator[list[int]]:
        """Places of the requests of each batch, longest prompts first: what does not fit in memory shows at once."""
        batch: list[int] = []
        for place in sorted(places, key=lambda place: (-len(prompts[place]), place)):
            if batch and (len(batch) + 1) * (len(prompts[batch[0]]) + max_tokens) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch
