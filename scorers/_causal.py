"""What scorers share that read documents with a causal language model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from scorers import Scorer
from transforms.model_folder import CAUSAL, ModelFolder, check_model_folder, check_window

if TYPE_CHECKING:
    from transforms.causal_model import CausalModel


class CausalScorer(Scorer):
    """`model`: folder of a causal model of transformers (config.json, safetensors, tokenizer.json).

    `window` and `stride`: the model reads `window` tokens at a time, `stride` further each time; beyond the first
    window each token has at least `window - stride` tokens of context.
    """

    package: ClassVar[str] = "torch"
    model: Path
    window: int = Field(1024, ge=2)
    stride: int = Field(512, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> CausalScorer:
        check_window(self._folder(), self.window)
        if self.stride >= self.window:
            raise ValueError(f"stride {self.stride} must be less than the window of {self.window} tokens")
        return self

    def _folder(self) -> ModelFolder:
        return check_model_folder(self.model, CAUSAL)

    @cached_property
    def _loaded(self) -> CausalModel:
        from transforms.causal_model import load

        return load(self.model)

    def setup(self) -> None:
        _ = self._loaded
