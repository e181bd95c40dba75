"""Pages made from a table of facts, a rewriter that knows their grammar, and the faults that language models have.

A fact is (town, relation, value). A page says facts of some towns in running text, between menu lines and with typos.
The rewriter reads the facts of a passage by the templates that made it and says them by others, one set for each style
of WRAP, so that what a rewrite should hold is known whatever it looks like.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

SYLLABLES = [
    "bar",
    "del",
    "fen",
    "gor",
    "hal",
    "kes",
    "lin",
    "mor",
    "nar",
    "pel",
    "quin",
    "ros",
    "sel",
    "tor",
    "wes",
    "zan",
]
GOODS = ["cheese", "bells", "wool", "cider", "glass", "clocks", "pottery", "salt"]
RELATIONS = {  # relation: two ways of a page, easy, medium, hard, a question and its answer
    "founded": (
        "It was in {value} that settlers first built houses where {town} stands today.",
        "The oldest stones one finds at {town} were laid back in {value}, as a plate on the church says.",
        "{town} is an old place. People made the first homes there in {value}.",
        "The settlement of {town} dates from the year {value}, when its earliest dwellings were put up.",
        "{town}: foundation by colonists, primordial habitations erected anno {value}.",
        "When did the town of {town} come into being? It came into being in {value}, when it was settled.",
    ),
    "people": (
        "At the last count there were {value} people living in {town} and on its farms.",
        "Some {value} souls call {town} their home, not a few of whom work on the land.",
        "A lot of people live in {town}. It is {value} men, women and kids.",
        "According to the latest census {town}, with the surrounding farmland, has a population of {value}.",
        "Enumeration of the denizens of {town}, agrarian households included: {value}.",
        "How many inhabitants does {town} have? The town and its farms have {value} inhabitants.",
    ),
    "river": (
        "Anybody who walks through {town} will sooner or later come to the banks of the {value}.",
        "Boats on the {value} have tied up under the old bridge of {town} since the Middle Ages.",
        "There is a river in {town}. It has a name. The name is {value}.",
        "The town of {town} is situated on a river, the {value}, which one reaches from any of its streets.",
        "{town} adjoins the fluvial {value}, its littoral accessible from every thoroughfare.",
        "Which river flows through {town}? The river that flows through the town is called the {value}.",
    ),
    "mayor": (
        "For some years now the town hall of {town} has been in the hands of {value}, who was a teacher before.",
        "When you meet the friendly {value} you would not think that this retired teacher runs all of {town}.",
        "The boss of {town} is {value}. The boss did teach kids in a school before.",
        "The mayor who has governed {town} for several years is {value}, a former teacher.",
        "Incumbent of the magistracy at {town}: {value}, erstwhile pedagogue.",
        "Who governs the town of {town}? Its mayor is {value}, who used to be a teacher.",
    ),
    "known": (
        "If you have ever heard of {town} it will have been because of its {value}, which is sold all over the land.",
        "Shops in every part of the country are proud to sell {value} that comes from {town}.",
        "{town} makes {value}. It is so good that people buy it far from there.",
        "{town} is famous throughout the country for the quality of its {value}.",
        "Renown of {town} derives from its {value}, vended ubiquitously.",
        "What is {town} known for? It is known all over the country for its {value}.",
    ),
    "road": (
        "From the market square of {town} it takes no more than {value} minutes to walk to the railway station.",
        "Travellers who miss the bus in {town} reach their train in {value} minutes on foot.",
        "You can walk to the train in {town}. You walk for {value} minutes.",
        "The railway station lies {value} minutes on foot from the centre of {town}.",
        "{town}: pedestrian access to the terminus requires {value} minutes.",
        "How far is the station from the centre of {town}? It is a walk of {value} minutes from there.",
    ),
}
WAYS = 2  # of a page
STYLES = ("easy", "medium", "hard", "qa")
NAVIGATION = [
    "Home | News | Contact",
    "Click here to subscribe",
    "Share this page",
    "Cookie settings",
    "Next article >>",
]
TYPOS = {"there were": "their were", "sooner or later": "sooner or latter", "because of": "becuase of"}
GERMAN = "In der Stadt {town} gibt es {value}, und das ist für die Leute dort sehr wichtig, wie man überall hören kann."


class Fact(NamedTuple):
    town: str
    relation: str
    value: str

    def said(self, way: int) -> str:
        return RELATIONS[self.relation][way].format(town=self.town, value=self.value)


def _name(draw: random.Random) -> str:
    return "".join(draw.sample(SYLLABLES, 3)).capitalize()


def table(draw: random.Random, town: str) -> list[Fact]:
    """What is true of a town."""
    numbers = {
        "founded": draw.randrange(1050, 1950),
        "people": draw.randrange(2100, 99_000),
        "road": draw.randrange(13, 95),
    }
    values = {name: str(number) for name, number in numbers.items()}
    values |= {"river": _name(draw), "mayor": f"{_name(draw)} {_name(draw)}", "known": draw.choice(GOODS)}
    return [Fact(town, relation, values[relation]) for relation in RELATIONS]


def page(draw: random.Random, towns: int = 4) -> tuple[str, list[Fact]]:
    """The text of a page, and the facts in it."""
    facts: list[Fact] = []
    parts = [draw.choice(NAVIGATION)]
    for _ in range(towns):
        some = draw.sample(table(draw, _name(draw)), 5)
        facts += some
        parts.append(" ".join(fact.said(draw.randrange(WAYS)) for fact in some))
        if draw.random() < 0.3:
            parts.append(draw.choice(NAVIGATION))
    text = "\n".join(parts)
    for right, wrong in TYPOS.items():
        text = text.replace(right, wrong) if draw.random() < 0.2 else text
    return text, facts


def _pattern(template: str) -> re.Pattern[str]:
    """What finds a template's facts on a page, typos or not."""
    whole = re.escape(template)
    for right, wrong in TYPOS.items():
        whole = whole.replace(re.escape(right), f"(?:{re.escape(right)}|{re.escape(wrong)})")
    for place, group in (("{town}", r"(?P<town>\w+)"), ("{value}", r"(?P<value>\w+(?: [A-Z]\w+)?)")):
        whole = whole.replace(re.escape(place), group)
    return re.compile(whole)


PATTERNS = [(relation, _pattern(way)) for relation, templates in RELATIONS.items() for way in templates[:WAYS]]


def read(text: str) -> list[Fact]:
    """The facts of a passage, in its order."""
    found = [(m.start(), Fact(m["town"], name, m["value"])) for name, p in PATTERNS for m in p.finditer(text)]
    return [fact for _, fact in sorted(found)]


def write(facts: list[Fact], style: str) -> str:
    """The facts in a style."""
    said = [fact.said(WAYS + STYLES.index(style)) for fact in facts]
    if style == "qa":
        pairs = [sentence.partition("? ") for sentence in said]
        return "\n".join(f"Question: {question}?\nAnswer: {answer}" for question, _, answer in pairs)
    return " ".join(said)


def recall(facts: list[Fact], text: str, style: str) -> float:
    """Share of the facts that a text states in a style, word by word."""
    return sum(write([fact], style) in text for fact in facts) / len(facts)


@dataclass(frozen=True)
class Case:
    """A passage to be rewritten. `draw`: seeded by the passage."""

    passage: str
    style: str
    instruction: str
    draw: random.Random

    @property
    def facts(self) -> list[Fact]:
        return read(self.passage)

    @property
    def text(self) -> str:
        return write(self.facts, self.style)

    def cut(self) -> str:
        """Two thirds of the text, up to the middle of a sentence."""
        part = self.text[: len(self.text) * 2 // 3]
        return part.rstrip(".? \n")[:-2]

    def without(self, count: int) -> str:
        gone = set(self.draw.sample(range(len(self.facts)), count))
        return write([fact for i, fact in enumerate(self.facts) if i not in gone], self.style)

    def wrong(self, count: int) -> str:
        """With so many facts that have the values of another town."""
        changed, other = set(self.draw.sample(range(len(self.facts)), count)), table(self.draw, "")
        values = {fact.relation: fact.value for fact in other}
        mixed = [f._replace(value=values[f.relation]) if i in changed else f for i, f in enumerate(self.facts)]
        return write(mixed, self.style)

    def swapped(self) -> str:
        """Every fact told of another fact's town."""
        towns = [fact.town for fact in self.facts]
        turned = towns[1:] + towns[:1] if len(set(towns)) > 1 else towns
        return write([fact._replace(town=town) for fact, town in zip(self.facts, turned, strict=True)], self.style)


ANNOUNCEMENTS = [
    "Sure! Here is a paraphrase of the text:\n\n", "Here's the rewritten passage:\n", "**Paraphrased version:**\n",
    "Certainly! Below is the passage in simpler words:\n\n", "Of course!\n\n",
]  # fmt: skip
LIMIT = "cut by max_tokens"
LOST, WRONG = {"numbers lost", "names lost", "too short"}, {"numbers lost", "names lost", "invented"}
HARMLESS: dict[str, Callable[[Case], str]] = {  # what is taken off
    "nothing": lambda c: c.text,
    "announcement": lambda c: c.draw.choice(ANNOUNCEMENTS) + c.text,
    "quotes": lambda c: f"“{c.text}”",
    "emphasis": lambda c: "\n".join(f"**{line}**" for line in c.text.split("\n")),
    "remark": lambda c: f"{c.text}\n\nI hope this helps! Let me know if you need anything else.",
}
FAULTS: dict[str, tuple[Callable[[Case], str], set[str]]] = {  # what is wrong, and the reasons that fit it
    "refusal": (lambda c: "I'm sorry, but I can't help with rewriting this passage.", {"refusal"}),
    "asks for a text": (lambda c: "Please provide the passage that you want me to rewrite.", {"refusal"}),
    "empty": (lambda c: " \n", {"empty"}),
    LIMIT: (lambda c: c.cut(), {"incomplete"}),
    "breaks off": (lambda c: c.cut(), {"incomplete"}),
    "talks about it": (lambda c: f"I have rewritten the passage as you asked. {c.text}", {"preamble"}),
    "recites the prompt": (lambda c: f"{c.instruction}\n{c.text}", {"prompt recited"}),
    "copies the source": (lambda c: c.passage, {"source copied", "wrong format", "incomplete"}),
    "loops": (lambda c: "\n".join([c.text] + [write(c.facts[-1:], c.style)] * 12), {"repetitive", "too long"}),
    "another language": (
        lambda c: " ".join(GERMAN.format(**f._asdict()) for f in c.facts),
        {"other language", "wrong format"},
    ),
    "all but one fact lost": (lambda c: c.without(len(c.facts) - 1), LOST),
    "half of the facts lost": (lambda c: c.without(len(c.facts) // 2), LOST),
    "one fact lost": (lambda c: c.without(1), LOST),
    "half of the facts wrong": (lambda c: c.wrong(len(c.facts) // 2), WRONG),
    "one fact wrong": (lambda c: c.wrong(1), WRONG),
    "facts of the wrong towns": (lambda c: c.swapped(), set()),
}


def fault(passage: str) -> str:
    """What the rewriter will do with a passage: half of the time no harm, and none to one of few facts."""
    draw = random.Random(passage)
    if len(read(passage)) < 4:
        return "nothing"
    return draw.choice([*HARMLESS] if draw.random() < 0.5 else [*FAULTS])


def reply(prompt: str, style: str) -> tuple[str, str]:
    """The rewriter's answer to a prompt of WRAP, and its finish reason."""
    instruction, _, passage = prompt.partition("\n\nPassage:\n")
    what, case = fault(passage), Case(passage, style, instruction, random.Random(f"{passage}:"))
    made = HARMLESS[what] if what in HARMLESS else FAULTS[what][0]
    return made(case), "length" if what == LIMIT else "stop"
