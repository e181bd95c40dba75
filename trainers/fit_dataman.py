"""Fitting a rater as DataMan's (Peng et al. 2025, arXiv 2502.19363): a small language model that writes 14 ratings and
a domain of a text, taught on documents that a teacher or people have rated.

Every tenth document is not learned from; the scorer rates it from the finished folder, and the card tells how often
both agree. Cost: that of teaching (`trainers.teach`), about 20,000 tokens/s on one core for a new small model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from trainers.fits import Fit, Wanted
from trainers.teach import Lesson, teach
from transforms.batch import Batch
from transforms.head_tail import head_and_tail, without_leftovers
from transforms.ratings import MODES, OVERALL, PROMPTS, Mode, ModeName, Prompts, letter_of, read_prompts, whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FEWEST = 20  # documents, of which two are held out
MARKS = 64  # tokens, at most, that a chat template puts around a prompt and its answer
PARTS = 5  # of the gap between classes, as the paper has it


@dataclass(frozen=True)
class Rated:
    """A document to learn from or to measure on: what the model is shown of it, and what it shall answer."""

    place: int  # in the sample
    shown: str
    source: str
    ratings: tuple[int, ...]
    letter: str | None


class FitDataMan(Fit):
    """`ratings`: an SQL value, a list of numbers in the order of `transforms.ratings.RATINGS` (for `mode: score_only`
    the overall score alone) or a struct with fields of these names, as another `dataman` column. Fractions below 3 are
    rounded down, others up. `domain`: an SQL value, a domain's letter or name. Documents without valid ones are left
    out and counted.

    `balance`, in the paper 4 (Chinese 3): the rarer ones of overall ratings below 3 and from 3 on are repeated, in each
    source `balance` · min(a fifth of the difference, their number) times in all. `prompts`: a file of prompts to teach
    with, as the scorer's; the limits of length in it hold as far as the lesson's rows have room. The folder keeps both.
    """

    method: ClassVar[str] = "dataman"
    readers: ClassVar[tuple[str, ...]] = ("dataman",)
    package: ClassVar[str] = "torch"
    ratings: str | None = None
    domain: str | None = None
    mode: ModeName = "all_rating"
    where: str = "true"
    documents: int = Field(2000, ge=FEWEST, description="drawn at most")
    balance: int = Field(0, ge=0)
    prompts: Path | None = None
    lesson: Lesson = Field(default_factory=lambda: Lesson.model_validate({}))

    @field_validator("prompts")
    @classmethod
    def _readable(cls, file: Path | None) -> Path | None:
        if file is not None:
            read_prompts(file)
        return file

    @model_validator(mode="after")
    def _labels(self) -> FitDataMan:
        if self._mode.reasons:
            raise ValueError("mode: step_by_step is for teachers; a rater learns to answer at once")
        for name, needed in (("ratings", self._mode.ratings), ("domain", self._mode.domain)):
            if bool(needed) != (getattr(self, name) is not None):
                raise ValueError(f"{name}: the mode {self.mode} {'needs it' if needed else 'has none; leave it out'}")
        if self.balance and not self._mode.ratings:
            raise ValueError(f"balance: is by the overall rating, which the mode {self.mode} does not have")
        self._taught.messages(self.mode, "")
        return self

    @property
    def _mode(self) -> Mode:
        return MODES[self.mode]

    @property
    def _taught(self) -> Prompts:
        return read_prompts(self.prompts) if self.prompts else PROMPTS

    def samples(self) -> dict[str, Wanted]:
        named = {"ratings": self.ratings, "domain": self.domain, "source": "source" if self.balance else None}
        columns = {name: value for name, value in named.items() if value}
        return {"documents": Wanted(self.where, documents=self.documents, columns=columns)}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from trainers.tokenise import load_tokenizer

        table, counts = samples["documents"], Counter[str]()
        with TemporaryDirectory() as scratch:
            folder = self._tokenizer(table, Path(scratch))
            tokenizer = load_tokenizer(folder)[0]
            prompts = self._limited(tokenizer)
            rated = self._rated(table, tokenizer, prompts, counts)
            if len(rated) < FEWEST:
                given = f"{len(rated)} documents with valid labels ({dict(counts)} left out)"
                raise ValueError(f"{given}; expected at least {FEWEST}: widen `where`, raise `documents`")
            held, learned = rated[::10], [one for k, one in enumerate(rated) if k % 10]
            repeated = balanced(learned, self.balance) if self.balance else []
            conversations = [self._conversation(one, prompts) for one in [*learned, *repeated]]
            taught = teach(self.lesson, conversations, out, seed, folder)
        prompts.save(out / "prompts.yaml")
        texts = table.column("text").take(pa.array([one.place for one in held]))
        card = {
            "parameters": {**self.model_dump(mode="json", exclude={"lesson"}), "most_tokens": prompts.most_tokens},
            "lesson": self.lesson.model_dump(mode="json"),
            "seed": seed,
            "taught": taught,
            "documents": {
                "learned": len(learned),
                "held out": len(held),
                "repeated to balance": len(repeated),
                **counts,
            },
            "holdout": self._measure(out, texts, held, learned),
        }
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def _tokenizer(self, table: pa.Table, scratch: Path) -> Path:
        """Folder of the model's tokenizer: that of `start`, or one trained on all the texts, those held out too."""
        if self.lesson.start is not None:
            return self.lesson.start
        from trainers.fit_tokenizer import fit_tokenizer

        prompts = self._taught
        read = [text[: prompts.most_characters] for text in table.column("text").to_pylist()]
        asked = [content for text in read for _, content in prompts.messages(self.mode, text)]
        return fit_tokenizer(asked, scratch / "tokenizer", self.lesson.vocabulary)

    def _limited(self, tokenizer: Tokenizer) -> Prompts:
        """The prompt to teach with; a row of the lesson holds it, the most that is shown of a text, and the answer."""
        prompts, row = self._taught, self.lesson.config(0).row_length
        asked = [content for _, content in prompts.messages(self.mode, "")]
        taken = sum(len(one.ids) for one in tokenizer.encode_batch(asked)) + self._mode.max_tokens + MARKS
        if row < taken + 2:
            raise ValueError(f"lesson.train.row_length: prompt and answer take {taken} tokens of {row}; give more")
        own = {"prompts": {self.mode: prompts.prompts[self.mode]}, "most_tokens": min(prompts.most_tokens, row - taken)}
        return prompts.model_copy(update=own)

    def _rated(self, table: pa.Table, tokenizer: Tokenizer, prompts: Prompts, counts: Counter[str]) -> list[Rated]:
        """The documents with valid labels, of those shown alike the first; `counts` gets why others are left out."""
        texts = [without_leftovers(text) for text in table.column("text").to_pylist()]
        shown, _ = head_and_tail(texts, tokenizer, prompts.most_tokens, prompts.most_characters)
        nothing = pa.nulls(len(table))
        names = ("ratings", "domain", "source")
        columns = [(table.column(n) if n in table.column_names else nothing).to_pylist() for n in names]
        found: dict[str, Rated] = {}
        for place, (text, ratings, domain, source) in enumerate(zip(shown, *columns, strict=True)):
            rounded, letter = self._whole(ratings), letter_of(domain)
            if rounded is None:
                counts["without valid ratings"] += 1
            elif self._mode.domain and letter is None:
                counts["without a valid domain"] += 1
            elif not text:
                counts["nothing to rate"] += 1
            elif text in found:
                counts["shown as another"] += 1
            else:
                found[text] = Rated(place, text, source or "", rounded, letter)
        return list(found.values())

    def _whole(self, given: Any) -> tuple[int, ...] | None:
        """The ratings that the mode asks for as whole numbers; null if one is missing or none from 1 to 5."""
        names = self._mode.ratings
        if not names:
            return ()
        values = [given.get(name) for name in names] if isinstance(given, dict) else given
        if not isinstance(values, list) or len(values) != len(names):
            return None
        rounded = [whole(float(value)) if isinstance(value, int | float | Decimal) else None for value in values]
        return tuple(r for r in rounded if r is not None) if None not in rounded else None

    def _conversation(self, one: Rated, prompts: Prompts) -> list[tuple[str, str]]:
        return [*prompts.messages(self.mode, one.shown), ("assistant", self._mode.write(one.ratings, one.letter))]

    def _measure(self, out: Path, texts: pa.ChunkedArray, held: Sequence[Rated], learned: Sequence[Rated]) -> Any:
        """What the card tells of the held-out documents, rated by the scorer from the finished folder."""
        from scorers.dataman import OK, DataMan

        rater = DataMan.model_validate({"engine": {"model": out}, "mode": self.mode})
        found = rater.score(Batch(pa.record_batch({"text": texts.combine_chunks()})))
        failures = Counter(status for status in found.field("status").to_pylist() if status != OK)
        told = {"documents": len(held), "failed": failures.total(), **agreement(self._mode, found, held, learned)}
        return told | {"failures": dict(failures)}


def agreement(mode: Mode, found: pa.StructArray, truth: Sequence[Rated], learned: Sequence[Rated]) -> dict[str, Any]:
    """How often a rater says what the labels say, exactly (`agreement`) and within one (`within_one`), and how often
    always saying the commonest rating of what was learned would; where it failed it agrees with nothing.

    Args:
        found: the scorer's column, in the order of `truth`.

    Returns:
        These three by rating, and their means; of the overall score and the domain their agreement, by their names.
    """
    told: dict[str, Any] = {}
    by_rating: dict[str, dict[str, float]] = {}
    for k, name in enumerate(mode.ratings):
        labels = np.array([one.ratings[k] for one in truth])
        off = np.abs(found.field(name).fill_null(100).to_numpy() - labels)
        commonest = Counter(one.ratings[k] for one in learned).most_common(1)[0][0]
        shares = {"agreement": off == 0, "within_one": off <= 1, "commonest": labels == commonest}
        by_rating[name] = {what: float(share.mean()) for what, share in shares.items()}
    if by_rating:
        told |= {what: float(np.mean([one[what] for one in by_rating.values()])) for what in by_rating[OVERALL]}
        told |= {OVERALL: by_rating[OVERALL]["agreement"], "by_rating": by_rating}
    if mode.domain:
        said = [letter_of(name) for name in found.field("domain").to_pylist()]
        told["domain"] = float(np.mean([letter == one.letter for letter, one in zip(said, truth, strict=True)]))
    return told


def balanced(learned: Sequence[Rated], times: int) -> list[Rated]:
    """Of each source, the rarer of the documents with an overall rating below 3 and of the others, again: as evenly as
    can be, `times` · min(a fifth of the difference, their number) in all."""
    classes: dict[str, tuple[list[Rated], list[Rated]]] = {}
    for one in learned:
        classes.setdefault(one.source, ([], []))[one.ratings[-1] >= 3].append(one)
    again: list[Rated] = []
    for both in classes.values():
        rare, common = sorted(both, key=len)
        count = times * min((len(common) - len(rare)) // PARTS, len(rare))
        again += [rare[k % len(rare)] for k in range(count)]
    return again
