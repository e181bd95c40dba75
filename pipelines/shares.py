"""What a recipe says of a mixture, and what each source gives to each of its phases: weights, budgets, epochs, draws.

Tokens are those that the trainer counts: targets, the end token of each document included. Documents are taken in order
of draw, those that earlier phases took only after all others that qualify; beyond, they repeat. What repeats are worth
is told by `transforms.epochs`. Cost: two passes over sidecars for each phase, remembered by what they depend on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from pipelines import store
from pipelines.recipe import MODELS, nearest
from pipelines.select import remembered
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Tables
from pipelines.thresholds import Found, Statistic
from transforms.epochs import effective, marginal
from transforms.mixture_weights import tempered

log = logging.getLogger("corpusmill")
TOKENS = "tokens.count"  # the end token counts
EVERY_DRAW = 2**64 - 1
WARN_EPOCHS = 4.0  # repeats are worth nearly as much as new data up to here (Muennighoff et al. 2023, arXiv 2305.16264)


class MixError(ValueError):
    """A mixture that cannot be made of the documents there are."""

    exit_code = 2


@dataclass(frozen=True)
class Temperature:
    """Weights n^(1/T) of sources that have n tokens: T = 1 as they have them, infinite: all alike."""

    value: float

    def of(self, available: Mapping[str, int]) -> dict[str, float]:
        sizes = {source: n for source, n in available.items() if n}
        shares = tempered(np.array(list(sizes.values())), self.value) if sizes else np.zeros(0)
        return dict(zip(sizes, shares.tolist(), strict=True))


def _count(value: Any) -> Any:
    """Accepts 300k, 5M and 2B."""
    if not isinstance(value, str):
        return value
    if value.isdecimal():
        return int(value)
    try:
        return round(float(value[:-1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[value[-1:].upper()])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is no number of tokens; write 300000, 300k, 5M or 2B") from None


def _weights(value: Any) -> dict[str, float] | Temperature | str:
    if isinstance(value, str) and (value == "natural" or value.startswith(MODELS)):
        return value
    if not isinstance(value, Mapping):
        known = ("natural", "{SOURCE: SHARE}", "{temperature: T}", "fit:NAME")
        raise ValueError(f"{value!r} are no weights{nearest(value, known)}")
    try:
        given = {str(source): float(share) for source, share in value.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{value} are no weights: they must be numbers") from None
    if given.keys() == {"temperature"}:
        if not given["temperature"] > 0:
            raise ValueError(f"temperature {value['temperature']}: it must be above 0; 1 is natural, .inf all alike")
        return Temperature(given["temperature"])
    if not all(math.isfinite(share) and share >= 0 for share in given.values()) or not any(given.values()):
        raise ValueError(f"{given} are no weights: they must be finite, none below 0 and one above 0")
    return given


Tokens = Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_count)]
Weights = Annotated[dict[str, float] | Temperature | str, PlainValidator(_weights)]


class Phase(BaseModel):
    """A part of a pass: what it says stands for what the mixture says. `tokens` null: all that qualify, once."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: Tokens = None
    weights: Weights | None = None
    where: str | None = None


class Mixture(BaseModel):
    """One mixture of a recipe.

    `where` chooses documents; held-out ones never qualify. `tokens` is one pass over it (null: all there are, once).
    `weights` are shares of tokens by source; `natural`: as the chosen documents have them, and as many of what a
    rewriter made as of what it was made from (see `_written`); `{temperature: T}`: their tokens to the power of 1/T;
    `fit:NAME`: those that a fit has found. `phases` follow each other within a pass.
    A source that would be read more than `max_epochs` times is refused; `cap_epochs` gives what a source would be read
    beyond it to the others, in proportion to their weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    where: str = "selection.keep"
    tokens: Tokens = None
    weights: Weights = "natural"
    phases: list[Phase] = Field(default=[], max_length=64)  # a bit of a 64-bit number each
    max_epochs: float = Field(default=16.0, gt=0)
    cap_epochs: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_budget(self) -> Mixture:
        if self.phases and self.tokens is not None:
            raise ValueError("tokens: a mixture with phases has the tokens of its phases; give them there alone")
        return self

    def parts(self, name: str) -> list[Part]:
        """The phases with all that they leave to the mixture; one, where there are none."""
        if not self.phases:
            return [Part(f"mix.{name}", self.tokens, self.weights, self.where)]
        return [
            Part(f"mix.{name}.phases.{k}", phase.tokens, phase.weights or self.weights, phase.where or self.where)
            for k, phase in enumerate(self.phases)
        ]


@dataclass(frozen=True)
class Part:
    """A phase as it is made; `field` is its place in the recipe."""

    field: str
    tokens: int | None
    weights: dict[str, float] | Temperature | str
    where: str


@dataclass(frozen=True)
class Share:
    """What one source gives to one phase."""

    available: int  # tokens of the documents that qualify
    asked: int  # tokens that the phase takes
    cut: int  # the draw up to which documents that no phase before has taken are taken
    epochs: float  # how often the documents that qualify have been read by the end of the phase
    effective: float  # tokens of new text that those asked are worth


def shares(
    context: Context, tables: Tables, splits: Sequence[Split], name: str, mixture: Mixture, also: str, documents: int
) -> list[dict[str, Share]]:
    """How much each source gives to each phase of a mixture; warns of what is read so often that it is worth less.

    Args:
        also: SQL that holds for every document, besides the `where` of a phase.

    Raises:
        MixError: a source with a weight has no document, or would be read more than `max_epochs` times.
    """
    parts = mixture.parts(name)
    sources = sorted({s.source for s in splits})
    wheres = {part.where: f"coalesce(({part.where}) AND {also}, false)" for part in parts}

    def search(statistics: list[Statistic]) -> dict[str, Found]:
        return remembered(context, tables, splits, statistics, documents)

    everything = {(w, s): _statistic(f"{k} {s}", s, wheres[w]) for k, w in enumerate(wheres) for s in sources}
    found = search(list(everything.values()))
    pools = {place: found[statistic.name].weight for place, statistic in everything.items()}
    taken = _Taken({s: {} for s in sources}, dict.fromkeys(sources, 1.0))
    written = _written(tables, sources, {p.where: wheres[p.where] for p in parts if p.weights == "natural"}, search)
    most = min(WARN_EPOCHS, mixture.max_epochs, mixture.cap_epochs or WARN_EPOCHS)
    made = []
    for part in parts:
        available = {s: pools[part.where, s] for s in sources}
        asked = weights_of(part, available, context.run, written.get(part.where, {}), most)
        made.append(_shares(part, mixture, wheres[part.where], available, asked, taken, search))
    return made


def _written(
    tables: Tables,
    sources: Sequence[str],
    wheres: Mapping[str, str],
    search: Callable[[list[Statistic]], dict[str, Found]],
) -> dict[str, dict[str, int]]:
    """Of each condition on documents, by the source of each rewriter: the tokens of those that it made something of,
    which WRAP mixes one to one (Maini et al. 2024, arXiv 2401.16380). What several made something of is shared.
    """
    names = [name for name, struct in tables.structs.items() if struct.folder == f"rewrites/{name}" and name in sources]
    accepted = {name: f'(coalesce("{name}".accepted, 0) > 0)' for name in names}
    shared = " + ".join(f"{condition}::INT" for condition in accepted.values())
    wanted = {
        (where, name, source): Statistic(
            f"{source} for {name} in {k}", "draw", 1.0, None, where=f"({qualifies}) AND {condition}",
            weight=f"{TOKENS} / ({shared})", source=source,
        )
        for k, (where, qualifies) in enumerate(wheres.items())
        for name, condition in accepted.items() for source in sources if source not in accepted
    }  # fmt: skip
    found = search(list(wanted.values()))
    written: dict[str, dict[str, float]] = {where: dict.fromkeys(names, 0.0) for where in wheres}
    for (where, name, _), statistic in wanted.items():
        written[where][name] += found[statistic.name].weight / found[statistic.name].unit
    return {where: {name: round(tokens) for name, tokens in of.items()} for where, of in written.items()}


@dataclass
class _Taken:
    """What the phases so far take."""

    cuts: dict[str, dict[str, int]]  # source -> condition -> the draw up to which it was taken
    epochs: dict[str, float]  # source -> the most often that a document of it was read

    def fresh(self, source: str, where: str) -> str:
        """SQL: which documents that qualify are still to be taken."""
        before = [f"({where} AND draw <= {cut})" for where, cut in self.cuts[source].items()]
        return f"({where}) AND NOT ({' OR '.join(before)})" if before else where


def _statistic(name: str, source: str, where: str, total: int | None = None) -> Statistic:
    share = 1.0 if total is None else None
    return Statistic(name, "draw", share, total, where=where, weight=TOKENS, source=source)


def _shares(
    part: Part,
    mixture: Mixture,
    where: str,
    available: Mapping[str, int],
    weights: Mapping[str, float],
    taken: _Taken,
    search: Callable[[list[Statistic]], dict[str, Found]],
) -> dict[str, Share]:
    """One phase; what it takes is noted in `taken`."""
    known = {s: _statistic(s, s, taken.fresh(s, where)) for s in available if taken.cuts[s]}
    found = search(list(known.values()))
    fresh = {s: found[s].weight if s in known else available[s] for s in available}
    before = {s: (available[s] - fresh[s]) * taken.epochs[s] for s in available}
    asked = _asked(part, mixture, available, before, weights)
    wanted = [_statistic(s, s, taken.fresh(s, where), n) for s, n in asked.items() if n < fresh[s]]
    cuts = search(wanted)
    made = {}
    for s, n in asked.items():
        cut = int(cuts[s].value or 0) if s in cuts else EVERY_DRAW
        new, read = min(n, fresh[s]), before[s] + n
        worth = new + effective(read, available[s]) - effective(before[s] + new, available[s])
        made[s] = Share(available[s], n, cut, read / available[s], worth)
        taken.cuts[s][where] = max(cut, taken.cuts[s].get(where, 0))
        taken.epochs[s] = max(taken.epochs[s], made[s].epochs)
        if made[s].epochs > WARN_EPOCHS:
            left = marginal(read, available[s])
            told = f"{n:,} tokens are worth {worth:,.0f} of new text, one more {left:.0%} of one"
            log.warning("%s: source %r is read %.1f times: its %s", part.field, s, made[s].epochs, told)
    return made


def weights_of(
    part: Part, available: Mapping[str, int], run: str, written: Mapping[str, int], most: float
) -> dict[str, float]:
    """The weights of a phase as numbers above 0, of the sources that have one.

    `written`: tokens of the originals that the phase takes, by the source of what was made of them; it gets as many,
    and no more than makes it be read `most` times. Where the phase takes no original, it is a source like others.

    Raises:
        MixError: a source is not known, or a fit has left no weights.
    """
    if part.weights == "natural":
        even = {source: min(most * available[source], tokens) for source, tokens in written.items() if tokens}
        given: Mapping[str, float] = {**available, **even}
    elif isinstance(part.weights, Temperature):
        given = part.weights.of(available)
    elif isinstance(part.weights, str):
        given = _fitted(part, run)
    else:
        given = part.weights
    given = {source: weight for source, weight in given.items() if weight}
    if unknown := given.keys() - available.keys():
        names = ", ".join(sorted(unknown))
        raise MixError(f"{part.field}.weights names {names}; the sources are {', '.join(available)}")
    if not given:
        raise MixError(f"{part.field}: no document satisfies {part.where!r}")
    return given


def _fitted(part: Part, run: str) -> dict[str, float]:
    path = f"{run}/models/{str(part.weights).removeprefix(MODELS)}/weights.json"
    held = store.read_json(path)
    try:
        found = _weights(held["weights"])
    except (KeyError, TypeError, ValueError) as error:
        raise MixError(f'{part.field}.weights: {path} holds no {{"weights": {{SOURCE: SHARE}}}} ({error})') from None
    if not isinstance(found, dict):
        raise MixError(f"{part.field}.weights: {path} holds {found!r}, expected shares by source")
    return found


def _asked(
    part: Part,
    mixture: Mixture,
    available: Mapping[str, int],
    before: Mapping[str, float],
    weights: Mapping[str, float],
) -> dict[str, int]:
    """Tokens to take of each source that gives any; `before`: those of the same documents that earlier phases took."""
    total = part.tokens
    if total is None:  # natural weights are tokens themselves
        whole = weights if part.weights == "natural" else {source: available[source] for source in weights}
        total = round(sum(whole.values()))
    if mixture.cap_epochs is None:
        asked = apportion(total, weights)
    else:
        cap = mixture.cap_epochs
        asked = capped(total, weights, {s: max(0, int(cap * available[s] - before[s])) for s in weights})
        if (given := sum(asked.values())) < total:
            raise MixError(
                f"{part.field}: asked for {total:,} tokens, and the sources give {given:,} at cap_epochs {cap:g}; "
                "lower `tokens`, raise cap_epochs or give weights to more sources"
            )
    for source, tokens in asked.items():
        _check_epochs(part, mixture, source, tokens, available[source], before[source])
    return {source: tokens for source, tokens in asked.items() if tokens}


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` split in proportion to weights, by largest remainders: the parts add up to it exactly."""
    whole = sum(map(Fraction, weights.values()))
    exact = {source: total * Fraction(weight) / whole for source, weight in weights.items()}
    parts = {source: math.floor(share) for source, share in exact.items()}
    order = sorted(parts, key=lambda source: (parts[source] - exact[source], source))
    for source in order[: total - sum(parts.values())]:
        parts[source] += 1
    return parts


def capped(total: int, weights: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """The same where no source gives more than its room: what it would goes to the others in proportion.

    Where all are full, the parts add up to less than `total`.
    """
    full: dict[str, int] = {}
    free = dict(weights)
    while free:
        parts = apportion(total - sum(full.values()), free)
        over = [source for source in free if parts[source] > room[source]]
        if not over:
            return full | parts
        full |= {source: room[source] for source in over}
        free = {source: weight for source, weight in free.items() if source not in full}
    return full


def _check_epochs(part: Part, mixture: Mixture, source: str, asked: int, available: int, before: float) -> None:
    if asked and not available:
        none = f"no document of it satisfies {part.where!r}"
        raise MixError(f"{part.field}: source {source!r} is to give {asked:,} tokens but {none}")
    if asked and (epochs := (asked + before) / available) > mixture.max_epochs * (1 + 1e-9):
        raise MixError(
            f"{part.field}: source {source!r} has {available:,} tokens and would be read {epochs:.1f} times to give "
            f"{asked:,}; lower its weight or `tokens`, set cap_epochs, or raise max_epochs (now {mixture.max_epochs:g})"
        )
