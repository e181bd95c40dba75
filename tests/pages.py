"""Planted web pages: navigation at the top, an article with links within, related links and a footer at its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NOUNS = ["river", "harbour", "library", "engine", "garden", "council", "theatre", "forest", "bakery", "museum"]
VERBS = ["opened", "described", "repaired", "measured", "celebrated", "abandoned", "painted", "counted"]
NAVIGATION = ["Home", "About us", "Contact", "Products", "Sign in", "Search", "Newsletter", "Imprint", "Shop", "Jobs"]
SHARING = ["Share on Facebook", "Tweet", "Print this page", "Send by e-mail", "Comments (0)", "Read more »"]
FOOTER = ["© {} All rights reserved", "Privacy policy | Terms of use", "Follow us on Twitter", "Powered by WordPress"]


class Page(NamedTuple):
    """`noise`: numbers of the lines that must go."""

    text: str
    noise: list[int]
    keep: list[str]
    drop: list[str]
    host: str


def _sentence(draw: np.random.Generator) -> str:
    a, b = draw.choice(NOUNS, 2)
    return f"In {draw.integers(1800, 2020)} the {a} near the old {b} was {draw.choice(VERBS)} by people of the town."


def page(draw: np.random.Generator, host: str) -> Page:
    """One page; related links repeat words of articles, so that words alone do not tell."""
    head = [f"{draw.choice(NOUNS).title()} | {host}", *draw.choice(NAVIGATION, draw.integers(3, 8), replace=False)]
    article = [f"The {draw.choice(NOUNS)} of our town"]
    article += [" ".join(_sentence(draw) for _ in range(draw.integers(2, 5))) for _ in range(draw.integers(3, 7))]
    article[-1] += f" See https://{host}/a?b={draw.integers(100)}&c=d for more."
    tail = [*draw.choice(SHARING, 3, replace=False)]
    tail += [f"The {draw.choice(NOUNS)} and the {draw.choice(NOUNS)}" for _ in range(draw.integers(2, 5))]
    tail += [line.format(draw.integers(1990, 2024)) for line in FOOTER[: draw.integers(2, 5)]]
    lines = [str(line) for line in (*head, *article, *tail)]
    noise = [i for i in range(len(lines)) if not len(head) <= i < len(head) + len(article)]
    drop = [lines[i] for i in (1, 2, len(lines) - 1, len(head) + len(article)) if lines.count(lines[i]) == 1]
    return Page("\n".join(lines), noise, [article[0], article[1][:40], article[-1][:30]], drop, host)


def pages(count: int, seed: int = 0, per_host: int = 3) -> list[Page]:
    draw = np.random.default_rng(seed)
    return [page(draw, f"host{i // per_host}.example") for i in range(count)]


def program(given: Page) -> str:
    """The program that removes what is planted."""
    return "\n".join(f"remove_lines({i}, {i})" for i in given.noise)
