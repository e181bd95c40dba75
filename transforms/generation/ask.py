"""What every step that asks a language model has in common: parameters for the engine, and the file of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Discriminator, Field, Tag

from transforms.generation.cache import Cache, generate_cached
from transforms.generation.engine import Answer, Request, Sampling
from transforms.generation.openai import OpenAI
from transforms.generation.transformers import Transformers
from transforms.generation.vllm import VLLM
from transforms.parameters import Parameters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENISED = 1000  # texts at a time: the library holds up to 130 bytes for each byte


def engine_named(value: Any) -> Any:
    """The engine that is asked for; `transformers` unless another is named."""
    if isinstance(value, dict):
        return value.get("engine", "transformers")
    return getattr(value, "engine", value)


AnyEngine = Annotated[
    Annotated[Transformers, Tag("transformers")] | Annotated[VLLM, Tag("vllm")] | Annotated[OpenAI, Tag("openai")],
    Discriminator(engine_named),
]


class Asks(Parameters):
    """`engine`: the language model, as `{engine: vllm, model: FOLDER}`; it is loaded when there is something to ask it.
    `tokenizer`: folder of the tokenizer that lengths are counted with; that of the model unless given, and needed where
    the model is on a server. `cache`: file of finished answers; a run has one for all its steps.
    """

    engine: AnyEngine
    tokenizer: Path | None = None
    cache: Path | None = Field(None, exclude=True)

    def ask(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """The answers in the order of the requests; those in the cache are not asked for again.

        Raises what `generate_cached` raises.
        """
        if not requests:
            return []
        if self._answers is None:
            return self.engine.generate(requests, sampling)
        return generate_cached(self.engine, self._answers, requests, sampling)

    @cached_property
    def _answers(self) -> Cache | None:
        return None if self.cache is None else Cache(self.cache)

    @property
    def counts_with(self) -> Path:
        """Folder of the tokenizer that lengths are counted with. Raises ValueError: there is none."""
        folder = self.tokenizer or self.engine.tokenizer
        if folder is None:
            raise ValueError("tokenizer: must be given, a folder with tokenizer.json: the model's own is on its server")
        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"tokenizer: no tokenizer.json in {folder}")
        return folder

    @cached_property
    def counter(self) -> Tokenizer:
        """The tokenizer that lengths are counted with; special tokens that a text spells out are text to it."""
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(str(self.counts_with / "tokenizer.json"))
        loaded.encode_special_tokens = True
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [texts]: tokens of each, special ones not counted."""
        found = np.empty(len(texts), np.int64)
        for first in range(0, len(texts), TOKENISED):
            some = list(texts[first : first + TOKENISED])
            encoded = self.counter.encode_batch_fast(some, add_special_tokens=False)
            found[first : first + len(some)] = np.fromiter(map(len, encoded), np.int64, len(some))
        return found
