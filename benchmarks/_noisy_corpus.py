"""A corpus of real text, web pages and two kinds of junk, whose sources say which is which.

    real        documents of a sample corpus, under the names of their sources (`docstrings`, `code`, …)
    web         raw pages from a Parquet file, menus and footers with them
    shuffled    documents of the same corpus whose words stand in random order: the words and the lengths are right
    templated   pages that a few templates fill with names and numbers

No document is both real and shuffled. The same input and seed give the same bytes; 10 MB take a few seconds.
"""

from __future__ import annotations

import glob
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.draws import draws

SHARES = {"real": 50, "web": 15, "shuffled": 20, "templated": 15}  # % of bytes, before any dedupe
LONGEST = 30_000  # bytes; longer documents are left out, lest a budget be a handful of them
SHARD = 1_000_000  # bytes of text in a shard, so that several processes have something to do

SLOTS = {
    "item": "kettle lamp drill jacket tent sofa camera mattress blender router helmet carpet printer stroller",
    "make": "Norvik Altera Bexley Quantro Solmar Tavira Orlando Kestrel Meridia Zephyr Calico Vantage Arden Lumo",
    "place": "Springfield Riverton Oakdale Fairview Kingston Milton Ashland Clayton Dover Salem Newport Burlington",
    "mood": "great cheap amazing trusted certified exclusive premium affordable genuine popular fresh official",
    "who": "alex_77 mara moderator kd9 janedoe guest traveller_x builder22 sunny admin nightowl pete1980",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}
TEMPLATES = {  # title, then lines that a page draws from
    "shop": """{mood} {make} {item} {n} - buy online in {place}
Compare {n} offers for {make} {item} and save up to {n} % today.
Free delivery of every {item} to {place} if you order before {day}.
Customers who bought {make} {item} {n} also looked at {make} {item} {n}.
Rated {n} of 100 by {n} {mood} customers in {place}.
Add to basket | Wish list | {make} {item} | Only {n} left in stock
Looking for a {mood} {item}? Our {make} {item} {n} is the most {mood} {item} in {place}.
Item number {n}-{n}, weight {n} g, shipped from {place} within {n} days.""",
    "forum": """Profile of {who} - member since {n}
{who} replied to {who} on {day} at {n}:{n}
Posts: {n} | Likes: {n} | Location: {place} | Rank: {mood} member
You must be logged in to see what {who} wrote on {day}.
Quote | Report {who} | Share | Reply number {n} of {n}
{who} has changed the picture of the profile on {day}.
Users who read this: {who}, {who}, {who} and {n} guests""",
    "notice": """Access denied - reference {n}-{n}
We and our {n} {mood} partners store cookies of {make} on your device.
Accept all | Reject all | Manage {n} settings | {make} privacy centre
Your session {n} from {place} has expired, please sign in again on {day}.
The page {n}.html could not be found on the server of {make} in {place}.
Copyright {n} {make} {place}. All rights reserved. Terms | Imprint | Sitemap {n}
Subscribe to the {mood} letter of {make} and win a {item} worth {n}.""",
    "listing": """{mood} {item} repair near {place} - {n} results
{make} {item} service, {n} {day} street, {place}, open {day} to {day}
Call {n} {n} {n} for a {mood} {item} in {place} now.
{n} people in {place} asked for {item} repair on {day}.
The best {item} {place}, {item} cheap {place}, {mood} {item} {place}, {make} {item} {place}
{place} > {item} > {make} > page {n} of {n}
Opening hours in {place}: {day} {n}:{n} to {n}:{n}, {day} closed.""",
}
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\S+")


def build(out: Path, megabytes: float, corpus: str, pages: Path | None, seed: int = 0) -> dict[str, int]:
    """Write `out/<source>/<nnn>.parquet` with `id` and `text`; bytes of text by source.

    Args:
        megabytes: 10^6 bytes of all sources together; where the corpus or the pages have too little, there is less.
        corpus: glob of Parquet shards with a column `text`; the folder of each names its source.
        pages: Parquet file with a column `text`; without one there is no `web`.

    Raises:
        FileNotFoundError: no shard matches.
    """
    wanted = {part: megabytes * 1e6 * share / 100 for part, share in SHARES.items()}
    real, torn = _parted(_documents(corpus, seed), wanted["real"], wanted["shuffled"])
    made = {source: [text for name, text in real if name == source] for source in sorted({name for name, _ in real})}
    made["shuffled"] = [shuffled(text, random.Random(f"{seed} {i}")) for i, (_, text) in enumerate(torn)]
    made["templated"] = list(
        _up_to(wanted["templated"], (templated(random.Random(f"{seed} {i}")) for i in itertools.count()))
    )
    if pages:
        made["web"] = list(_up_to(wanted["web"], (text for _, text in _drawn([("web", pages)], seed))))
    for old in out.glob("*/[0-9][0-9][0-9].parquet"):  # of an earlier call, which may have had more
        old.unlink()
    for source, texts in made.items():
        _write(out / source, source, texts)
    return {source: sum(len(text.encode()) for text in texts) for source, texts in made.items()}


def shuffled(text: str, generator: random.Random) -> str:
    """The words of a text in random order. White space stays, so lines and paragraphs look as they did."""
    words = _WORD.findall(text)
    generator.shuffle(words)
    order = iter(words)
    return _WORD.sub(lambda _: next(order), text)


def templated(generator: random.Random) -> str:
    """A page of one template: its title, then 15 to 60 of its lines with new names and numbers in their slots."""
    title, *lines = TEMPLATES[generator.choice(sorted(TEMPLATES))].split("\n")
    chosen = [title, *generator.choices(lines, k=generator.randint(15, 60))]
    return "\n".join(_SLOT.sub(lambda slot: _filling(slot[1], generator), line) for line in chosen) + "\n"


def _filling(slot: str, generator: random.Random) -> str:
    return str(generator.randint(1, 9999)) if slot == "n" else generator.choice(SLOTS[slot].split())


def _documents(corpus: str, seed: int) -> list[tuple[str, str]]:
    paths = sorted(glob.glob(corpus, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
    if not paths:
        raise FileNotFoundError(
            f"no shard matches {corpus!r}; give a glob of Parquet files such as 'corpus/*/*.parquet'"
        )
    return list(_drawn([(Path(path).parent.name, Path(path)) for path in paths], seed))


def _drawn(files: Iterable[tuple[str, Path]], seed: int) -> Iterator[tuple[str, str]]:
    """(source, text) of all documents with a text of some length, in the order of a hash of seed and text."""
    found: list[tuple[int, str, str]] = []
    for source, path in files:
        texts = pq.read_table(path, columns=["text"])["text"].drop_null().cast(pa.large_string()).combine_chunks()
        texts = texts.filter(pc.less_equal(pc.binary_length(texts), LONGEST))
        found += zip(draws(seed, texts).tolist(), itertools.repeat(source), texts.to_pylist())
    return ((source, text) for _, source, text in sorted(found) if text.strip())


def _parted(
    documents: list[tuple[str, str]], first: float, second: float
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The documents cut in two, `first` and `second` bytes, or parts of this ratio where there is less."""
    ends = np.cumsum([len(text.encode()) for _, text in documents])
    whole = min(first + second, float(ends[-1]))
    middle, end = np.searchsorted(ends, [whole * first / (first + second), whole], side="right").tolist()
    return documents[:middle], documents[middle:end]


def _up_to(size: float, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        size -= len(text.encode())
        if size < 0:
            return
        yield text


def _write(folder: Path, source: str, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shard = np.cumsum([len(text.encode()) for text in texts], dtype=np.int64) // SHARD
    ids = [f"{source}-{i:06d}" for i in range(len(texts))]
    for number in np.unique(shard).tolist():
        here = np.flatnonzero(shard == number)
        part = slice(int(here[0]), int(here[-1]) + 1)
        pq.write_table(pa.table({"id": ids[part], "text": texts[part]}), folder / f"{number:03d}.parquet")
