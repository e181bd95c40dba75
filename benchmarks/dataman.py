"""Agreement of a small rater with planted ratings and domains, on documents that it never saw.

    python benchmarks/dataman.py [--documents 4000 --epochs 6 --json]

Documents are bags of words that decide on 14 ratings and one of 15 domains (tests/toy_ratings.py): most criteria have a
word for each rating, three are counted, the overall score is the mean of the others. The fit `dataman` makes a model of
0.5 M parameters from them, with a short prompt; the scorer then rates 500 others from its folder. Printed for each
rating: how often both agree, how often within one, and how often the commonest rating would. One thread; the seconds
are the processor's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from toy_ratings import Planted, planted

from scorers.dataman import DataMan
from trainers.fit_dataman import FitDataMan, Rated, agreement
from transforms.batch import Batch
from transforms.ratings import MODES, RATINGS

FRESH = 500
MODEL = {"num_attention_heads": 4, "num_key_value_heads": 4}
SCHEDULE = {"kind": "wsd", "warmup": 0.05, "final": 0.05}  # domains, one token in thirty, are learned last
# A line of the prompt for each of the answer, as published: a model without them takes far longer to tell lines apart.
PROMPT = "\n".join(["Rate {text}", "domain", *(name.partition("_")[0] for name in RATINGS)])


def made(count: int, seed: int) -> list[Planted]:
    draw = np.random.default_rng(seed)
    return [planted(draw) for _ in range(count)]


def fitted(docs: list[Planted], epochs: float, seed: int, folder: Path) -> dict[str, Any]:
    """Fit into `folder`/rater; the card."""
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"prompts": {"all_rating": PROMPT}}))
    lesson = {"epochs": epochs, "train": {"row_length": 256, "model": MODEL, "schedule": SCHEDULE}}
    given = {"ratings": "ratings", "domain": "domain", "documents": len(docs), "prompts": prompts, "lesson": lesson}
    fit = FitDataMan.model_validate(given)
    columns = {"text": [d.text for d in docs], "ratings": [d.ratings for d in docs], "domain": [d.domain for d in docs]}
    return fit.fit({"documents": pa.table(columns)}, folder / "rater", seed)


def measured(model: Path, fresh: list[Planted], learned: list[Planted]) -> dict[str, Any]:
    rater = DataMan.model_validate({"engine": {"model": model}})
    rater.setup()
    started = time.process_time()
    found = rater.score(Batch(pa.record_batch({"text": [d.text for d in fresh]})))
    spent = time.process_time() - started
    status = dict(Counter(found.field("status").to_pylist()))
    told = agreement(MODES["all_rating"], found, labels(fresh), labels(learned))
    return {"status": status, "rated_documents_s": len(fresh) / spent, **told}


def labels(docs: list[Planted]) -> list[Rated]:
    return [Rated(k, d.text, "", tuple(d.ratings), d.domain) for k, d in enumerate(docs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4000, help="with a tenth that the fit holds out")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    given = parser.parse_args()
    learned, fresh = made(given.documents, given.seed), made(FRESH, given.seed + 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        card = fitted(learned, given.epochs, given.seed, Path(folder))
        spent = time.process_time() - started
        result = {"fit_seconds": spent, "taught": card["taught"], "card_agreement": card["holdout"]["agreement"]}
        result |= measured(Path(folder) / "rater", fresh, learned)
    if not given.json:
        table = Table(title=f"{FRESH} documents, {card['taught']['tokens']:,} tokens taught in {spent:.0f} s")
        for heading in ("", "agreement", "within one", "commonest"):
            table.add_column(heading)
        for name, row in result["by_rating"].items():
            table.add_row(name, *(f"{share:.3f}" for share in row.values()))
        table.add_row("domain", f"{result['domain']:.3f}", "", "")
        Console(width=120).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
