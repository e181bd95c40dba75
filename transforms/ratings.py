"""DataMan's label space: 14 ratings and a domain of each text, how a model is asked for them, how its answer is read.

Peng et al. 2025, "DataMan: Data Manager for Pre-training Large Language Models" (arXiv 2502.19363). The prompts here
are worded for models that are fitted here or that follow instructions; a released rater wants its own, byte for byte,
from a file (`read_prompts`). Answers are read strictly: what is no answer is a failure with one of few reasons.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from transforms.parameters import Parameters

CRITERIA = {  # in the order of an answer, each with what speaks for a high rating
    "accuracy": "few mistakes in grammar, spelling and reference",
    "coherence": "it reads fluently, and one thought leads to the next",
    "language_consistency": "it keeps to one language",
    "semantic_density": "much of it informs, little is idle or beside the point",
    "knowledge_novelty": "it tells what is new or not widely known, with insight",
    "topic_focus": "it stays with its subject",
    "creativity": "it says things in inventive ways",
    "professionalism": "it has the terms of its field, and uses them correctly",
    "style_consistency": "it keeps its style, or changes it for a reason",
    "grammatical_diversity": "its sentences are varied and correct",
    "structural_standardization": "it is clearly ordered and regular in form",
    "originality": "it does not repeat itself",
    "sensitivity": "sensitive matters are handled with care, and nothing is improper",
    "overall_score": "all in all it is a good text",
}
RATINGS = tuple(CRITERIA)
OVERALL = RATINGS[-1]
DOMAINS = dict(
    zip(
        "ABCDEFGHIJKLMNO",
        (
            "Medicine", "Finance", "Law", "Education", "Technology", "Entertainment", "Mathematics", "Coding",
            "Government", "Culture", "Transportation", "Retail E-commerce", "Telecommunication", "Agriculture", "Other",
        ),
        strict=True,
    )
)  # fmt: skip
LINES, LETTER, DIGIT = "wrong number of lines", "no letter of a domain", "no digit from 1 to 5"
SCORES, LETTERS, MISSING = "not 14 scores in order", "not one domain", "N/A among the scores"
REASONED = 4096  # tokens of an answer that reasons first, as the paper's teacher has
_SCORE = re.compile(r"\[(\d{1,2})\][^\n:：]{0,100}[:：][\s*_]*(\d+(?:\.\d+)?)[\s*_]*/[\s*_]*5(?!\d|\.\d)")
_DOMAIN = re.compile(r"\[\s*([A-Z])\s*\]")
_NONE = re.compile(r"[:：*]\s*N/A")


class Rated(NamedTuple):
    """What an answer says: the ratings asked for and the domain's letter, or why it says nothing."""

    ratings: tuple[int, ...] = ()
    domain: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Mode:
    """What is asked for: `ratings` by name, and the domain. `reasons`: after a reasoning, in brackets."""

    ratings: tuple[str, ...] = ()
    domain: bool = False
    reasons: bool = False

    @property
    def lines(self) -> int:
        """Of an answer without reasoning: the domain's letter, then a digit for each rating."""
        return len(self.ratings) + self.domain

    @property
    def max_tokens(self) -> int:
        """Of an answer: one for each character at most, those some models begin and end with, and another, so that
        an answer that goes on is seen to. The paper's 29 cut it where it should end."""
        return REASONED if self.reasons else 2 * self.lines - 1 + 3

    @property
    def regex(self) -> str:
        return r"\n".join(["[A-O]"] * self.domain + ["[1-5]"] * len(self.ratings))

    @property
    def choice(self) -> tuple[str, ...] | None:
        """All answers there are, where an answer is one character."""
        return (tuple(DOMAINS) if self.domain else tuple("12345")) if self.lines == 1 else None

    def write(self, ratings: Sequence[int], domain: str | None) -> str:
        """The answer that says this."""
        return "\n".join([*([str(domain)] if self.domain else []), *map(str, ratings)])

    def read(self, answer: str) -> Rated:
        """What an answer says; white space around it does not matter."""
        return _read_reasoned(answer) if self.reasons else self._read_lines(answer.strip().split("\n"))

    def _read_lines(self, lines: list[str]) -> Rated:
        if len(lines) != self.lines:
            return Rated(failure=LINES)
        letter, digits = (lines[0], lines[1:]) if self.domain else (None, lines)
        if letter is not None and letter not in DOMAINS:
            return Rated(failure=LETTER)
        if not all(digit in ("1", "2", "3", "4", "5") for digit in digits):  # str.isdigit takes those of other scripts
            return Rated(failure=DIGIT)
        return Rated(tuple(map(int, digits)), letter)


ModeName = Literal[
    "all_rating", "score_only", "detprompt_score_only", "domain_only", "detprompt_domain_only", "step_by_step"
]
_SCORE_ONLY, _DOMAIN_ONLY = Mode((OVERALL,)), Mode(domain=True)
MODES: dict[str, Mode] = {
    "all_rating": Mode(RATINGS, domain=True),
    "score_only": _SCORE_ONLY,
    "detprompt_score_only": _SCORE_ONLY,
    "domain_only": _DOMAIN_ONLY,
    "detprompt_domain_only": _DOMAIN_ONLY,
    "step_by_step": Mode(RATINGS, domain=True, reasons=True),
}


def _read_reasoned(answer: str) -> Rated:
    """A teacher's answer: `[1] Accuracy: 4/5` to 14, once or twice alike, and one domain in brackets."""
    if _NONE.search(answer):
        return Rated(failure=MISSING)
    found = _SCORE.findall(answer)
    numbers, scores = [int(number) for number, _ in found], [float(score) for _, score in found]
    half = len(scores) // 2
    if numbers == 2 * [*range(1, 15)] and scores[:half] == scores[half:]:
        numbers, scores = numbers[:half], scores[:half]
    ratings = [whole(score) for score in scores]
    if numbers != [*range(1, 15)]:
        return Rated(failure=SCORES)
    if None in ratings:
        return Rated(failure=DIGIT)
    letters = {*_DOMAIN.findall(answer)}
    if len(letters) != 1 or not letters <= DOMAINS.keys():
        return Rated(failure=LETTERS)
    return Rated(tuple(r for r in ratings if r is not None), letters.pop())


def whole(rating: float | None) -> int | None:
    """A teacher's rating from 1 to 5, below 3 rounded down, else up; null if it is then none."""
    if rating is None or not math.isfinite(rating):
        return None
    rounded = math.floor(rating) if rating < 3 else math.ceil(rating)
    return rounded if 1 <= rounded <= 5 else None


def letter_of(domain: str | None) -> str | None:
    """The letter of a domain that is given by letter or name; null if it is neither."""
    names = {name: letter for letter, name in DOMAINS.items()}
    return domain if domain in DOMAINS else names.get(domain or "")


class Prompts(Parameters):
    """How a model is asked: a template for each mode, with one place `{text}`, and perhaps a system message. Of a text
    at most `most_tokens` are shown, and of longer texts than `most_characters` no more than these are looked at."""

    system: str | None = None
    prompts: Mapping[ModeName, str] = Field(min_length=1)
    most_tokens: int = Field(default=1894, ge=2)
    most_characters: int = Field(default=20_000, ge=2)

    @field_validator("prompts")
    @classmethod
    def _one_place(cls, prompts: Mapping[ModeName, str]) -> Mapping[ModeName, str]:
        for mode, template in prompts.items():
            if (places := template.count("{text}")) != 1:
                raise ValueError(f"{mode}: {places} places {{text}}; expected one")
        return prompts

    def messages(self, mode: ModeName, text: str) -> tuple[tuple[str, str], ...]:
        """The conversation to answer. Raises ValueError: there is no prompt for the mode."""
        if mode not in self.prompts:
            raise ValueError(f"no prompt for the mode {mode}; there is one for {', '.join(self.prompts)}")
        asked = ("user", self.prompts[mode].replace("{text}", text))
        return (asked,) if self.system is None else (("system", self.system), asked)

    def save(self, file: Path) -> None:
        """Write a file that `read_prompts` reads."""
        file.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=1000))


def read_prompts(file: Path) -> Prompts:
    """The prompts of a YAML or JSON file with `prompts` (mode: template) and what else `Prompts` has.

    Raises ValueError: there is no such file or it is malformed; the message says what was expected.
    """
    expected = f"expected `prompts: {{MODE: TEMPLATE with {{text}}}}`, modes being {', '.join(get_args(ModeName))}"
    try:
        text = file.read_text(encoding="utf-8")
        given: Any = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}; {expected}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{file} holds {type(given).__name__}; {expected}")
    try:
        return Prompts(**given)
    except (ValidationError, TypeError) as error:
        told = error.errors() if isinstance(error, ValidationError) else []
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in told]
        raise ValueError(f"{file}: {'; '.join(lines) or error}; {expected}") from error


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _built_in() -> Prompts:
    domains = ", ".join(f"{letter} {name}" for letter, name in DOMAINS.items())
    numbered = [f"[{k}] {_title(name)}" for k, name in enumerate(RATINGS, 1)]
    defined = [f"{line}: {CRITERIA[name]}" for line, name in zip(numbered, RATINGS, strict=True)]
    every = "Rate the text. Answer with 15 lines: the letter of its domain, then a digit from 1 (poor) to 5 (very good)"
    overall = "Rate the text as a whole. Answer with one digit from 1 (poor) to 5 (very good)."
    domain = "Which domain is the text of? Answer with one letter."
    steps = (
        "Rate the text by 14 criteria on a scale from 1 (poor) to 5 (very good) and find the one domain it is of. Use "
        "the whole scale, its ends too. Think about each criterion first. Then write, and nothing after it, the 14 "
        "ratings as lines of the form `[1] Accuracy: 4/5`, and a last line `Domain: [E]`. Write brackets nowhere else."
    )
    return Prompts(
        prompts={
            "all_rating": "\n".join([f"{every} for each criterion.", "Text: {text}", f"Domain: {domains}", *numbered]),
            "score_only": f"{overall}\nText: {{text}}\nOverall score:",
            "detprompt_score_only": "\n".join([overall, "Text: {text}", *numbered[:-1], "Overall score:"]),
            "domain_only": f"{domain}\nText: {{text}}\nDomain:",
            "detprompt_domain_only": f"{domain}\nText: {{text}}\nDomains: {domains}\nDomain:",
            "step_by_step": "\n".join([steps, *defined, f"Domains: {domains}", "Text: {text}"]),
        }
    )


PROMPTS = _built_in()
