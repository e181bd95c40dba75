"""Checks on rewrites: what they find of planted faults, and what they refuse of texts without any.

    python benchmarks/rephrasing.py --json [--pages 800] [--texts FILE.parquet]

Pages are made from a table of facts and rewritten, in each of WRAP's four styles, by a grammar that knows them; half of
the rewrites have one of the faults of `tests/toy_rephrasing.py`. Bounds: those of the styles (`default`); all numbers
of the source must be kept (`numbers`); and all names too (`both`).

    found               of the rewrites with a fault, by fault: the share refused, the share refused for a reason that
                        fits the fault, and how many there are
    refused             share of the rewrites without a fault that are refused, and how many there are
    precision, recall   of refusals, over all faults
    recall_of_facts     share of a source's facts, word by word as the grammar says them, in what was written, and in
                        what is accepted
    passages_per_second cleaned and judged, on one core
    real                with --texts (column `text`): passages of real texts, each taken for an output of another one.
                        How many are called a refusal or an announcement, and how many lose words to the cleaning
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from toy_rephrasing import FAULTS, HARMLESS, STYLES, fault, page, read, recall, reply

from transforms.acceptance import Acceptance
from transforms.acceptance_cleaning import announced, clean, refused
from transforms.batch import Batch
from transforms.passages import passages
from transforms.rewriters._prompts import load
from transforms.rewriters.wrap import FAMILY, Style

BOUNDS: dict[str, dict[str, float]] = {
    "default": {},
    "numbers": {"numbers": 1.0},
    "both": {"numbers": 1.0, "names": 1.0},
}
TOKENS = 230  # words of a passage at most, about 300 tokens


def words(texts: list[str] | Any) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], np.int64)


def judged(texts: list[str], style: str, bounds: dict[str, float]) -> tuple[list[str], list[str | None], float]:
    """What is left of the rewrites of passages, why they are refused, and the seconds that took."""
    prompt = load(FAMILY, style)
    acceptance: Acceptance = Style.model_validate(dict(prompt.settings)).acceptance.model_copy(update=bounds)
    rows = [reply(prompt.messages(text=text)[0][1], style) for text in texts]
    cut = np.array([reason == "length" for _, reason in rows])
    begun = time.process_time()
    outputs = acceptance.clean([text for text, _ in rows], texts)
    tokens = words(texts), words(outputs)
    found = acceptance.judge(texts, outputs, tokens, cut, prompt.user.replace("{text}", ""))
    return outputs, found.reasons, time.process_time() - begun


def planted(texts: list[str], bounds: dict[str, float]) -> dict[str, Any]:
    """The figures of one set of bounds, over all styles."""
    count, found, named = Counter[str](), Counter[str](), Counter[str]()
    facts: dict[str, list[float]] = {"written": [], "accepted": []}
    seconds = 0.0
    for style in STYLES:
        outputs, reasons, took = judged(texts, style, bounds)
        seconds += took
        for text, output, reason in zip(texts, outputs, reasons, strict=True):
            what = fault(text)
            count[what] += 1
            found[what] += reason is not None
            named[what] += what in FAULTS and reason in FAULTS[what][1]
            share = recall(read(text), output, style)
            facts["written"].append(share)
            facts["accepted"] += [] if reason else [share]
    wrong, false = sum(found[what] for what in FAULTS), sum(found[what] for what in HARMLESS)
    return {
        "found": {what: [round(n[what] / count[what], 3) for n in (found, named)] + [count[what]] for what in FAULTS},
        "refused": [round(false / sum(count[what] for what in HARMLESS), 4), sum(count[what] for what in HARMLESS)],
        "precision": round(wrong / (wrong + false), 4),
        "recall": round(wrong / sum(count[what] for what in FAULTS), 4),
        "recall_of_facts": {name: round(float(np.mean(shares)), 4) for name, shares in facts.items()},
        "passages_per_second": round(len(texts) * len(STYLES) / seconds),
    }


def real(file: Path) -> dict[str, Any]:
    """What the rules of language do to passages of real texts, each beside the one before it."""
    column = pq.read_table(file, columns=["text"]).column("text").combine_chunks()
    cut = passages(Batch(pa.record_batch({"text": column})), "lines", TOKENS, words).texts
    outputs, sources = pl.Series(cut), pl.Series(cut[-1:] + cut[:-1])
    left = clean(outputs, sources)
    before, after = (texts.str.replace_all(r"\s", "") for texts in (outputs, left))
    return {
        "passages": len(cut),
        "refusals": int(refused(left, sources).sum()),
        "announcements": int(announced(left, sources).sum()),
        "shortened": int((before != after).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line of standard output is JSON")
    parser.add_argument("--pages", type=int, default=800)
    parser.add_argument("--texts", type=Path)
    asked = parser.parse_args()
    made = [page(random.Random(k))[0] for k in range(asked.pages)]
    texts = passages(Batch(pa.record_batch({"text": made})), "sentences", TOKENS, words).texts
    judged(texts[:1], STYLES[0], {})  # kernels compile
    figures: dict[str, Any] = {name: planted(texts, bounds) for name, bounds in BOUNDS.items()}
    figures["real"] = real(asked.texts) if asked.texts else None
    for what in FAULTS:
        row = [figures[name]["found"][what] for name in BOUNDS]
        print(f"{what:28}" + "".join(f"{found:8.3f} {named:7.3f}" for found, named, _ in row) + f"{row[0][2]:8}")
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
