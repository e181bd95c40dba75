"""What a fit of mixture weights costs and finds: `python benchmarks/mixture_search.py METHOD NAME=FILE[:COLUMN] …`.

Each file is a source (Parquet, `text` or the column named). Further arguments `--set KEY=VALUE` are parameters of the
fit, as in `corpusmill fit`. Prints seconds of one core and what the card says; with `--json` on one line alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.steps_alone import assignments
from trainers import fits
from transforms.draws import draws


def sample(name: str, path: str, column: str, megabytes: float) -> pa.Table:
    """The documents of least draw of a file, up to so much text, as a run would draw them."""
    texts = pq.read_table(path, columns=[column])[column].combine_chunks().cast(pa.large_string()).drop_null()
    ids = pa.array([f"{name}-{i}" for i in range(len(texts))])
    table = pa.table({"id": ids, "text": texts, "draw": draws(0, ids)}).sort_by("draw")
    sizes = np.cumsum([len(text.encode()) for text in table["text"].to_pylist()])
    return table.slice(0, 1 + int(np.searchsorted(sizes, megabytes * 1e6)))


def told(card: dict[str, Any]) -> dict[str, Any]:
    """The figures of a card that fit a screen."""
    kept = {"weights": card["weights"], "natural": card.get("natural")}
    if "rounds" in card:
        names = ("weights", "change", "held_out_nats")
        kept["rounds"] = [{name: one[name] for name in names} for one in card["rounds"]]
    if "regressions" in card:
        some = card["regressions"].items()
        kept["regressions"] = {n: {k: v for k, v in one.items() if k != "predicted"} for n, one in some if n != "note"}
        kept["check"] = card["check"]
        kept["best of the mixtures"] = min(one["loss"] for one in card["mixtures"])
    if "truth" in card:
        kept |= {"spearman": card["truth"].get("spearman"), "seed model": card["seed_model"]["loss"]}
        kept["candidates"] = len(card["candidates"])
        kept["best"] = card["candidates"][0]["loss"]
        kept["checked"] = [[one["merged"], one["trained"]] for one in card["truth"]["checked"]]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=["doremi", "regmix", "merging"])
    parser.add_argument("sources", nargs="+", metavar="NAME=FILE[:COLUMN]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    given = parser.parse_args()
    files = dict(source.split("=", 1) for source in given.sources)
    kind = fits.find(given.method)
    fit: Any = kind(**{"sources": list(files), **assignments(given.set, kind)})
    samples = {}
    for name, place in files.items():
        path, _, column = place.partition(":")
        samples[name] = sample(name, path, column or "text", fit.megabytes)
    with TemporaryDirectory() as out:
        wall, core = time.perf_counter(), time.process_time()
        card = fit.fit(samples, Path(out), 0)
        seconds = {"core": round(time.process_time() - core, 1), "wall": round(time.perf_counter() - wall, 1)}
    result = {"seconds": seconds, "documents": card["documents"], "tokens": card["tokens"], **told(card)}
    if not given.json:
        print(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
