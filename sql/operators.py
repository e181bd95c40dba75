"""What conditions under `select` may ask of the whole corpus: quantile, top_k and gumbel_top_k, alone or per group.

Each stands for a threshold that a pass over all documents finds. Documents are ordered by value, those of one value by
`draw`; an operator takes the shortest beginning of that order whose weight reaches what is asked for. Documents
without a value (NULL, NaN) or weight are never taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LAST_DRAW = 2**64 - 1
ARGUMENTS = {
    "quantile": ("value", "share", "weight", "by"),
    "top_k": ("value", "k", "weight", "by", "share"),
    "gumbel_top_k": ("value", "k", "temperature", "weight", "by", "share"),
}
USAGE = {
    "quantile": "quantile takes an expression and a number from 0 to 1, as in quantile(quality.score, 0.9)",
    "top_k": "top_k takes an expression and k, a number of at least 0, or share := a number from 0 to 1, "
    "as in top_k(quality.score, 1000)",
    "gumbel_top_k": "gumbel_top_k takes an expression, k (a number of at least 0) or share := a number from 0 to 1, "
    "and a temperature of at least 0, as in gumbel_top_k(quality.score, 1000, 0.5)",
}
# 52 bits of MD5 over the digits of `draw`: uniform in (0, 1), independent of the draw's own order, alike everywhere.
UNIFORM = "(CAST('0x' || left(md5(CAST(draw AS VARCHAR)), 13) AS BIGINT) + 0.5) / 4503599627370496"
GUMBEL = f"-ln(-ln({UNIFORM}))"


class Cut(NamedTuple):
    """Where an operator parts the documents: at a value, and among those that have it at a draw."""

    value: float | None  # None: nothing is taken
    draw: int = LAST_DRAW


@dataclass(frozen=True)
class Operator:
    """One call. `value`, `weight` and `by` are SQL; `k` is in documents, or in units of the weight where one is given.

    quantile: the least value up to which documents hold `share` of the weight (SQL's PERCENTILE_DISC where that is 1).
    top_k: whether a document is among those of highest value that hold `k`, or `share` of all weight.
    gumbel_top_k: as top_k of value / temperature + Gumbel noise from the document's draw: sampling without replacement,
    the next one always with probability proportional to exp(value / temperature) (Vieira 2014; Kool et al. 2019).
    """

    function: str
    value: str
    k: float | None = None
    share: float | None = None
    weight: str | None = None
    by: str | None = None
    temperature: float = 0.0

    @classmethod
    def called(cls, function: str, arguments: Sequence[tuple[str, str]]) -> Operator:
        """The operator of a call with these arguments: (name or "", SQL text).

        Raises:
            ValueError: an argument is unknown, missing or out of range; says what the function takes.
        """
        names = ARGUMENTS[function]
        given: dict[str, str] = {}
        for place, (name, text) in enumerate(arguments):
            name = name.lower() or (names[place] if place < len(names) else f"number {place + 1}")
            if name not in names or name in given:
                fault = "given twice" if name in given else f"no argument of it; it knows {', '.join(names)}"
                raise ValueError(f"{name} is {fault}. {USAGE[function]}")
            given[name] = text
        numbers = {name: _number(function, name, given.pop(name)) for name in names if name in given and name in _TOP}
        if "temperature" in names and "temperature" not in numbers:
            raise ValueError(USAGE[function])
        if "value" not in given or ("k" in numbers) == ("share" in numbers):
            raise ValueError(USAGE[function])
        if "weight" not in given and numbers.get("k", 0) % 1:
            raise ValueError(f"k is a number of documents, and {numbers['k']!r} is not whole. {USAGE[function]}")
        return cls(function, **given, **numbers)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The call as one would write it; also the name of the column that holds its cuts by group."""
        parts = [self.value]
        if self.function == "quantile" and self.share is not None:
            parts.append(_written(self.share))
        elif self.k is not None:
            parts.append(_written(self.k))
        if self.function == "gumbel_top_k":
            parts.append(f"temperature := {_written(self.temperature)}")
        parts += [f"{name} := {text}" for name, text in (("weight", self.weight), ("by", self.by)) if text]
        if self.function != "quantile" and self.share is not None:
            parts.append(f"share := {_written(self.share)}")
        return f"{self.function}({', '.join(parts)})"

    @property
    def takes(self) -> bool:
        """Whether it is true or false of a document; a quantile is a number."""
        return self.function != "quantile"

    @property
    def score(self) -> str:
        """SQL of what documents are ordered by, highest first (quantile: lowest first)."""
        if not self.takes:
            return self.value
        value = f"CAST({self.value} AS DOUBLE)"
        return f"({value} / {self.temperature!r} + {GUMBEL})" if self.temperature else value

    @property
    def key(self) -> str:
        """SQL of the text that names a document's group; documents without one are a group of their own."""
        return group_key(self.by)

    def resolved(self, cut: Cut | None) -> str:
        """SQL of its value for a document. None: the cut of its group stands in a column of the operator's name."""
        column = '"' + str(self).replace('"', '""') + '"'
        value = f"{column}.value" if cut is None else f"CAST({_literal(cut.value)} AS DOUBLE)"
        draw = f"{column}.draw" if cut is None else f"CAST({cut.draw} AS UBIGINT)"
        if not self.takes:
            return value
        score = self.score
        weighed = f" AND NOT isnan(CAST({self.weight} AS DOUBLE))" if self.weight else ""
        above = f"{score} > {value} OR {score} = {value} AND draw <= {draw}"
        return f"coalesce(({above}) AND NOT isnan({score}){weighed}, false)"


def group_key(by: str | None) -> str:
    """SQL of a group's name as text: '' where `by` is NULL (or None), else '=' and its text."""
    return f"coalesce('=' || CAST({by} AS VARCHAR), '')" if by else "''"


_TOP = {"k": math.inf, "share": 1.0, "temperature": math.inf}  # numbers among the arguments, and the most they may be


def _number(function: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= _TOP[name]):
        raise ValueError(f"{name} cannot be {text}. {USAGE[function]}")
    return number


def _written(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _literal(value: float | None) -> str:
    return "NULL" if value is None else f"'{value!r}'"
