"""Sieve-&-Swap on planted transcripts: what the sieve keeps over the threshold, and what the swap puts in its place.

    python benchmarks/sieve_and_swap.py --json [--bank 500] [--segments 4000] [--noise 0.15] [--encoder FOLDER]

The bank holds instructions made from templates. A segment is, at equal odds, an instruction as somebody says it (lower
case, no punctuation, fillers, synonyms, words left out at the rate `--noise`, numbers from two to twelve in words at
half the places) or chatter, half of which speaks of the same things as the instructions. One in ten of the instructions
says another number than the bank does, which a swap would silently change.

    precision, recall   of the sieve at each threshold, of segments that come from an instruction
    top1                of instructions that are kept, with their own number, those that become what they were made from
    changed             of what is swapped, instructions with another number: without the check of `overlap`, with it
    refused             of the right swaps, those that this check refuses
    segments_per_second through `SieveAndSwap.rewrite`, one segment a line, once the bank is read
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from transforms.batch import Batch
from transforms.facts import numbers
from transforms.rewriters.sieve_and_swap import SieveAndSwap

THRESHOLDS = [round(0.05 * k, 2) for k in range(1, 17)]
LINES = 20  # of a document
CHANGED = 0.1  # of the instructions that are said with another number
WORDS = {
    "verb": "Add Stir Fold Whisk Pour Sprinkle Drizzle Spread Blend Mix",
    "time": "Simmer Bake Rest Chill Roast Knead Steam Marinate",
    "unit": "cups grams spoons ounces slices handfuls",
    "food": "flour sugar butter milk rice garlic basil pepper salt honey cream yoghurt lentils tomatoes onions carrots "
    "celery mushrooms chicken beef prawns walnuts almonds cinnamon nutmeg oregano parsley spinach Parmesan Cheddar",
    "place": "bowl pan pot tray blender saucepan wok jug",
    "number": "two three four five six seven eight nine ten eleven twelve",
    "friends": "guys friends everyone folks people",
    "city": "Naples London Osaka Lyon Austin",
}
LISTS = {name: listed.split() for name, listed in WORDS.items()}
VERBS, TIMES, UNITS, FOODS, PLACES, NUMBER_WORDS = (
    LISTS[name] for name in ("verb", "time", "unit", "food", "place", "number")
)
WAYS = ("slowly", "until it is smooth", "until it thickens", "until golden", "on a low heat", "without stirring")
FILLERS = ("um", "uh", "so", "like", "you know", "okay", "basically", "right", "just", "kind of", "I mean", "now")
SYNONYMS = {
    **{"add": "throw in", "stir": "move around", "whisk": "beat", "pour": "tip", "blend": "whizz", "mix": "combine"},
    **{"spoons": "spoonfuls", "bowl": "dish", "pan": "skillet", "pot": "pan", "minutes": "mins", "until": "till"},
    **{"slowly": "gently", "smooth": "silky", "golden": "nicely browned", "place": "put", "remove": "take"},
}
CHATTER = (
    "welcome back to my channel {friends} it is great to see you again",
    "do not forget to like and subscribe if you enjoyed this video",
    "my aunt in {city} taught me this when I was about {n} years old",
    "the weather has been terrible this week so we stayed inside",
    "let me know in the comments what you want to see next",
    "this video is sponsored by a company that sells knives",
    "I bought this {place} in {city} for {n} dollars and I love it",
    "honestly I could eat {food} every single day {friends}",
    "my kids do not like {food} at all but my husband does",
    "some of you asked where I get my {food} and the answer is the market",
    "I once dropped a whole {place} of {food} on the floor it was a disaster",
    "you can use any {place} you like it does not matter",
)


class Said(NamedTuple):
    """A segment; `row` of the bank that it was made from, -1 for chatter; whether its number was changed."""

    text: str
    row: int
    changed: bool


def bank(size: int, draw: random.Random) -> list[str]:
    """Different instructions, in a random order."""
    found: dict[str, None] = {}
    while len(found) < size:
        found.setdefault(instruction(draw))
    return list(found)


def instruction(draw: random.Random) -> str:
    food, other = draw.sample(FOODS, 2)
    n, place = draw.randint(2, 40), draw.choice(PLACES)
    return draw.choice(
        (
            f"{draw.choice(VERBS)} {n} {draw.choice(UNITS)} of {food} and the {other} to the {place}.",
            f"{draw.choice(VERBS)} the {food} into the {place} {draw.choice(WAYS)}.",
            f"{draw.choice(TIMES)} the {food} with the {other} for {n} minutes {draw.choice(WAYS)}.",
            f"Place the {place} with the {food} in the oven at {n * 5 + 100} degrees.",
            f"Remove the {other} from the {place} and cut it into {n} pieces.",
        )
    )


def said(sentence: str, noise: float, draw: random.Random) -> str:
    spoken: list[str] = []
    for word in sentence.lower().rstrip(".").split():
        if draw.random() < noise and not word.isdigit():
            continue
        word = SYNONYMS.get(word, word) if draw.random() < 0.3 else word
        if word.isdigit() and 2 <= int(word) <= 12 and draw.random() < 0.5:
            word = NUMBER_WORDS[int(word) - 2]
        if draw.random() < noise:
            spoken.append(draw.choice(FILLERS))
        spoken.append(word)
    opening = draw.choice(["", "so now ", "okay then you ", "and then we just "])
    return opening + " ".join(spoken)


def chatter(draw: random.Random) -> str:
    given = {name: draw.choice(LISTS[name]) for name in ("friends", "city", "place", "food")}
    return draw.choice(CHATTER).format(**given, n=draw.randint(5, 40))


def transcript(sentences: list[str], count: int, noise: float, draw: random.Random) -> list[Said]:
    segments = []
    for _ in range(count):
        if draw.random() < 0.5:
            segments.append(Said(chatter(draw), -1, False))
            continue
        row = draw.randrange(len(sentences))
        sentence, had = sentences[row], sorted(numbers(sentences[row]))
        changed = bool(had) and draw.random() < CHANGED
        if changed:
            sentence = sentence.replace(f" {had[0]} ", f" {int(had[0]) + 41} ")
        segments.append(Said(said(sentence, noise, draw), row, changed))
    return segments


def batch(segments: list[Said]) -> Batch:
    texts = ["\n".join(s.text for s in segments[a : a + LINES]) for a in range(0, len(segments), LINES)]
    return Batch(pa.record_batch({"text": texts}))


def swapped(rewriter: SieveAndSwap, documents: Batch, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of the bank that each segment became, -1 where it went, and its cosine (NaN there)."""
    rows, cosines = np.full(count, -1), np.full(count, np.nan)
    for piece in rewriter.rewrite(documents):
        for place, cosine, row in piece.extra["swaps"]["kept"]:
            rows[piece.document * LINES + place], cosines[piece.document * LINES + place] = int(row), cosine
    return rows, cosines


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    draw = random.Random(arguments.seed)
    sentences = bank(arguments.bank, draw)
    segments = transcript(sentences, arguments.segments, arguments.noise, draw)
    table = pa.table({"text": sentences, "id": [str(row) for row in range(len(sentences))]})
    pq.write_table(table, folder / "bank.parquet")
    documents = batch(segments)
    made = {"bank": folder / "bank.parquet", "encoder": arguments.encoder, "threshold": 1e-9}
    plain, checked = SieveAndSwap(**made, overlap=False), SieveAndSwap(**made)
    rows, cosines = swapped(plain, documents, len(segments))
    started = time.perf_counter()
    kept, _ = swapped(checked, documents, len(segments))
    seconds = time.perf_counter() - started
    truth, changed = np.array([s.row for s in segments]), np.array([s.changed for s in segments])
    right = (rows == truth) & (truth >= 0) & ~changed

    def at(threshold: float) -> dict[str, Any]:
        near = cosines >= threshold
        stays = near & (kept >= 0)
        return {
            "precision": share(near & (truth >= 0), near),
            "recall": share(near & (truth >= 0), truth >= 0),
            "top1": share(near & right, near & (truth >= 0) & ~changed),
            "changed": {"unchecked": share(near & changed, near), "checked": share(stays & changed, stays)},
            "refused": share(near & right & ~stays, near & right),
        }

    return {
        "bank": len(sentences),
        "segments": len(segments),
        "instructions": int((truth >= 0).sum()),
        "noise": arguments.noise,
        "encoder": str(arguments.encoder) if arguments.encoder else "tf-idf",
        "thresholds": {str(threshold): at(threshold) for threshold in THRESHOLDS},
        "segments_per_second": len(segments) / seconds,
    }


def share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.any() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=500, help="sentences")
    parser.add_argument("--segments", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=0.15, help="rate of words left out, and of fillers")
    parser.add_argument("--encoder", type=Path, help="folder of an encoder instead of TF-IDF")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    if not arguments.json:
        for threshold, row in result["thresholds"].items():
            print(threshold, json.dumps({k: v if isinstance(v, dict) else v and round(v, 3) for k, v in row.items()}))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
