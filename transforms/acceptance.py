"""Whether a rewrite will do: what is taken off it, and what it is refused for.

The checks look at words, not at meaning: they find what went wrong in ways that show (cut off, refused, copied,
garbled, numbers and names lost or new), and no wrong statement made of the right words. docs/rephrasing.md measures
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from transforms.parameters import Parameters

if TYPE_CHECKING:
    import polars as pl

    from transforms.batch import Batch

SURE = 0.65  # probability of a language from which on the model's answer counts (docs/language.md)
CUT = ("length", "content_filter")  # finish reasons of outputs that are not whole
REASONS = (
    "empty", "incomplete", "refusal", "preamble", "prompt recited", "other language", "wrong format", "too short",
    "too long", "repetitive", "source copied", "numbers lost", "names lost", "invented", "other meaning",
)  # fmt: skip
MEASURES = ("length_ratio", "repeated", "copied", "numbers_kept", "names_kept", "invented", "similarity")


class Verdicts(NamedTuple):
    """What was found of some rewrites."""

    reasons: list[str | None]  # the first of REASONS that it is refused for
    measures: dict[str, np.ndarray]  # MEASURES, float64; NaN: not known


class Acceptance(Parameters):
    """Bounds of what is accepted; null leaves a check out. Shares are from 0 to 1.

    `length`: least and most tokens of the rewrite for each of its source. `least_tokens`: of the rewrite. `format`: it
    must be turns of questions and answers (`qa`), a `list`, or a `table`. `repeated`: most of its characters in runs of
    5 words that stood in it before, beyond what the source has of them. `copied`: most of the source's runs of 5 words
    that it has. `language`: it must be that of the source, where both are sure (needs py3langid). `numbers`, `names`:
    least of the source's that it has. `invented`: most of its numbers and names that the source does not have.
    `encoder`: folder of an encoder, by which the cosine of both must be `similarity` at least.
    """

    length: tuple[float, float] | None = (0.4, 2.5)
    least_tokens: int = Field(default=0, ge=0)
    format: Literal["qa", "list", "table"] | None = None
    repeated: float | None = Field(default=0.2, ge=0, le=1)
    copied: float | None = Field(default=0.8, ge=0, le=1)
    language: bool = True
    numbers: float | None = Field(default=0.7, ge=0, le=1)
    names: float | None = Field(default=0.5, ge=0, le=1)
    invented: float | None = Field(default=0.4, ge=0, le=1)
    encoder: Path | None = None
    similarity: float = Field(default=0.7, ge=-1, le=1)

    @field_validator("length")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds and not 0 <= bounds[0] < bounds[1]:
            raise ValueError(f"given {list(bounds)}; expected the least and the most, as [0.5, 2]")
        return bounds

    @field_validator("encoder")
    @classmethod
    def _usable(cls, folder: Path | None) -> Path | None:
        if folder is not None:
            from transforms.embedding import Embedding

            Embedding(encoder=folder)
        return folder

    def clean(self, outputs: Sequence[str], sources: Sequence[str]) -> list[str]:
        """The outputs without what a model puts around them; see `acceptance_cleaning.clean`."""
        import polars as pl

        from transforms.acceptance_cleaning import clean

        return clean(pl.Series(outputs, dtype=pl.String), pl.Series(sources, dtype=pl.String)).to_list()

    def judge(
        self,
        sources: Sequence[str],
        outputs: Sequence[str],
        tokens: tuple[np.ndarray, np.ndarray],
        cut: np.ndarray,
        instruction: str,
    ) -> Verdicts:
        """Judge cleaned outputs, each beside its source.

        Args:
            tokens: int64 [pairs] each, of the sources and of the outputs.
            cut: bool [pairs], the engine says that the output is not whole.
            instruction: what the model was told besides the text.
        """
        import polars as pl

        from transforms import acceptance_cleaning as cleaning
        from transforms import acceptance_measures as measure

        source, output = pl.Series(sources, dtype=pl.String), pl.Series(outputs, dtype=pl.String)
        before, after = measure.batch_of(sources), measure.batch_of(outputs)
        folded = measure.folded_words(before), measure.folded_words(after)
        measures = {
            "length_ratio": tokens[1] / np.maximum(tokens[0], 1),
            "repeated": measure.repeated(after),
            "copied": measure.copied(*folded),
            **measure.facts(source, output),
            "similarity": self._similarity(sources, outputs),
        }
        fails = {
            "incomplete": cut | output.str.starts_with("<think>").to_numpy() | self._breaks_off(source, output),
            "empty": (output == "").to_numpy(),
            "refusal": cleaning.refused(output, source).to_numpy(),
            "preamble": cleaning.announced(output, source).to_numpy(),
            "prompt recited": measure.recited(instruction, *folded),
            "other language": self._other_language(before, after),
        }
        if self.format:
            fails["wrong format"] = ~measure.formed(output, self.format)
        fails |= self._out_of_bounds(measures, tokens[1], measure.repeated(before))
        tests = [fails.get(reason, np.zeros(len(outputs), bool)) for reason in REASONS]
        found = np.select(tests, np.arange(len(REASONS)), -1)
        return Verdicts([REASONS[k] if k >= 0 else None for k in found], measures)

    def _breaks_off(self, source: pl.Series, output: pl.Series) -> np.ndarray:
        """bool: lines of the source end as sentences do, the rewrite does not, and no format lets it end otherwise."""
        from transforms.acceptance_measures import ended

        if self.format:
            return np.zeros(len(output), bool)
        return ended(source, any_line=True) & ~ended(output)

    def _similarity(self, sources: Sequence[str], outputs: Sequence[str]) -> np.ndarray:
        if self.encoder is None:
            return np.full(len(outputs), np.nan)
        import pyarrow as pa

        from transforms.embedding import Embedding
        from transforms.semantic import SCALE

        embedding = Embedding(encoder=self.encoder, characters=10_000)
        ours, theirs = (embedding.vectors(pa.array(texts, pa.string())).astype(float) for texts in (sources, outputs))
        return (ours * theirs).sum(axis=1) / SCALE**2

    def _other_language(self, before: Batch, after: Batch) -> np.ndarray:
        from transforms.acceptance_measures import languages

        if not self.language or not len(after):
            return np.zeros(len(after), bool)
        (was, sure_before), (is_now, sure_after) = languages(before), languages(after)
        return (was != is_now) & (sure_before >= SURE) & (sure_after >= SURE)

    def _out_of_bounds(
        self, measures: dict[str, np.ndarray], tokens: np.ndarray, repeated_before: np.ndarray
    ) -> dict[str, np.ndarray]:
        """By reason, what is below or above its bound; what is not known (NaN) is neither."""
        fails = {"too short": tokens < self.least_tokens}
        if self.length is not None:
            fails["too short"] |= measures["length_ratio"] < self.length[0]
            fails["too long"] = measures["length_ratio"] > self.length[1]
        if self.repeated is not None:
            fails["repetitive"] = measures["repeated"] - repeated_before > self.repeated
        least = {"numbers lost": ("numbers_kept", self.numbers), "names lost": ("names_kept", self.names)}
        least |= {"other meaning": ("similarity", self.similarity)}
        most = {"source copied": ("copied", self.copied), "invented": ("invented", self.invented)}
        fails |= {reason: measures[name] < bound for reason, (name, bound) in least.items() if bound is not None}
        fails |= {reason: measures[name] > bound for reason, (name, bound) in most.items() if bound is not None}
        return fails
