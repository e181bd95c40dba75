"""What the fits have in common that find mixture weights: samples per source, proxies' settings, weights.json."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, ValidationError, field_validator

from trainers.fits import Fit, Wanted

if TYPE_CHECKING:
    from trainers.config import TrainConfig

Name = Annotated[str, Field(min_length=1)]  # not plain text for `--set`, which reads such values as YAML
# Of the proxies where `proxy` says nothing else: 0.24 M parameters with the tokenizer of 2,048 tokens.
SIZE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 2, "num_key_value_heads": 2}
SETTINGS = (
    *("model", "tokens", "row_length", "batch_tokens", "part_tokens"),
    *("lr", "schedule", "weight_decay", "betas", "clip"),
)


class Weighed(Fit):
    """A fit that trains small proxy models on `megabytes` of each of the sources and finds weights for a mixture.

    The documents are those where `where` holds, every tenth of which the proxies are measured on. Weights are shares of
    tokens of `tokenizer`, a folder or file; without one the fit makes one of 2,048 tokens from its samples. `proxy` are
    fields of trainers.config.TrainConfig, those of SETTINGS: the size of the proxies and how they are trained.
    A recipe uses the weights as `mix: {NAME: {weights: fit:FIT}}`.
    """

    readers: ClassVar[tuple[str, ...]] = ("mix",)
    package: ClassVar[str] = "torch"
    budget: ClassVar[int]  # tokens of a proxy where `proxy` does not say
    sources: tuple[Name, ...] = Field(min_length=2)
    where: str = "true"
    megabytes: float = Field(2.0, gt=0, description="of text from each source")
    tokenizer: Path | None = None
    proxy: dict[Name, Any] = Field({}, description=f"of trainers.config.TrainConfig: {', '.join(SETTINGS)}")

    @field_validator("sources")
    @classmethod
    def _sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """By name, so that draws do not depend on how they are listed."""
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: a source stands twice")
        return tuple(sorted(value))

    @field_validator("tokenizer")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            from trainers.tokenise import load_tokenizer

            try:
                load_tokenizer(path)
            except Exception as error:  # the tokenizers library raises nothing narrower
                raise ValueError(f"{path} is no tokenizer to train with: {error}") from error
        return path

    @field_validator("proxy")
    @classmethod
    def _trainable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for other in sorted(value.keys() - set(SETTINGS)):
            near = difflib.get_close_matches(other, SETTINGS, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(SETTINGS)}"
            raise ValueError(f"{other}: no setting of a proxy; {meant}")
        if value:  # importing torch takes seconds
            try:
                cls._config(value, 0)
            except ValidationError as error:
                lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise ValueError("; ".join(lines)) from error
        return value

    @classmethod
    def _config(cls, proxy: dict[str, Any], seed: int) -> TrainConfig:
        from trainers.config import TrainConfig

        size = proxy.get("model", {})
        tokens = cls.budget if proxy.get("tokens") is None else proxy["tokens"]
        given = {**proxy, "tokens": tokens, "model": {**SIZE, **size} if isinstance(size, dict) else size}
        return TrainConfig(**given, seed=seed, precision="fp32", tensorboard=False)

    def config(self, seed: int) -> TrainConfig:
        """How a proxy is made and trained; `tokens` is its budget."""
        return self._config(self.proxy, seed)

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        """For a card."""
        return config.model_dump(mode="json", include=set(SETTINGS))

    def measured(self) -> tuple[str, ...]:
        """Sources that are only measured on."""
        return ()

    def samples(self) -> dict[str, Wanted]:
        names = dict.fromkeys([*self.sources, *self.measured()])
        return {
            name: Wanted(f"({self.where}) AND source = {_quoted(name)}", megabytes=self.megabytes) for name in names
        }

    def write(
        self, out: Path, weights: np.ndarray, tokens: Mapping[str, float], card: dict[str, Any]
    ) -> dict[str, Any]:
        """weights.json and card.json of shares in the order of `sources`; returns the card.

        Args:
            tokens: estimate of how many each source has.
        """
        shares = dict(zip(self.sources, weights.tolist(), strict=True))
        held = {"weights": shares, "method": self.method, "tokens": {s: round(tokens[s]) for s in self.sources}}
        (out / "weights.json").write_text(json.dumps(held, indent=1))
        tokenizer = str(self.tokenizer) if self.tokenizer else "made from the samples"
        note = "shares of tokens of the tokenizer in this folder; another one asks for another fit"
        card = {**held, "holds_for": {"tokenizer": tokenizer, "note": note}, **card}
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card


class Targeted(Weighed):
    """Such a fit for the least mean loss on the sources of `target`, which need not be among those weighed."""

    target: tuple[Name, ...] = ()  # none: all of `sources`

    @field_validator("target")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    def measured(self) -> tuple[str, ...]:
        return self.target

    def _target(self, losses: Mapping[str, float]) -> float:
        """Mean of the target's losses, of losses by source."""
        return float(np.mean([losses[name] for name in self.target or self.sources]))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
