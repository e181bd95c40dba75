"""Continual pretraining: what a model forgets with and without replay, and the hump that re-warming makes.

    python benchmarks/continual.py [--corpus GLOB] [--base-tokens 800000] [--tokens 300000] [--seeds 3]
                                   [--folder FOLDER] [--json]

A small Llama is trained on manuals (the old domain) to the end of a cosine schedule. It then goes on for `--tokens`,
the learning rate warmed up again and decayed (arXiv 2308.04014), on Python code (the new domain) with 0, 5 or 25 % of
its tokens replayed from the old one (arXiv 2403.08763: they take the place of new ones), or on more of the old domain
alone (`same`): a loss that rises there comes from the learning rate, not from the data. Everything is done at the peak
of the first training and at a third of it. GLOB holds folders `manuals` and `code`, as `corpusmill sample-corpus` makes
them.

`heldout_loss`: nats per token of both domains at the end, with 95 % intervals over documents and seeds; `forgetting`:
old-domain loss less that of the base model; `hump`: the highest old-domain loss on the way less the loss before the
first step, mean over seeds. RUN/report.html has the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from _runs import heldout

from pipelines import recipe, sample_corpus
from pipelines.report import write_report
from pipelines.run import run

OLD, NEW = "manuals", "code"
REPLAY = {"new": 0.0, "replay 5 %": 0.05, "replay 25 %": 0.25, "same": 1.0}  # share of the old domain
PEAK = 2e-3
RATES = {"peak": PEAK, "third": PEAK / 3}


def common(corpus: str) -> dict[str, Any]:
    """Sources, copies and what is held out, alike for all runs: the same documents are never trained on."""
    glob = {name: corpus.replace("*/", f"{name}/", 1) for name in (OLD, NEW)}
    return {"sources": glob, "dedupe": {"exact": {}}, "holdout": {"share": 0.01}}


def base(corpus: str, folder: Path, tokens: int) -> str:
    """Train on the old domain; returns the run."""
    asked = {
        "name": "base",
        **common(corpus),
        "fit": {"bpe": {"method": "tokenizer", "vocabulary": 4096}},
        "tokenizer": "fit:bpe",
        "mix": {"old": {"where": f"exact.keep AND source = '{OLD}'", "tokens": tokens, "max_epochs": 100}},
        "train": {"mixtures": ["old"], "seeds": [0], "config": {"tokens": tokens, "lr": PEAK}},
    }
    run(recipe.parse(asked), str(folder / "base"))
    return str(folder / "base" / "training" / "old" / "seed0")


def go_on(corpus: str, folder: Path, start: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Continue at one learning rate with every share of replay."""
    shares = {n: {s: w for s, w in ((OLD, old), (NEW, 1 - old)) if w} for n, old in REPLAY.items()}
    mixtures = {
        n: {"where": "exact.keep", "tokens": arguments.tokens, "weights": weights, "max_epochs": 100}
        for n, weights in shares.items()
    }
    config = {"start": f"{start}/model", "tokens": arguments.tokens, "lr": RATES[name], "evaluate_every": 30}
    config["schedule"] = {"kind": "cosine", "warmup": 0.1, "final": 0.05}
    asked = {
        "name": f"continual_{name}",
        **common(corpus),
        "tokenizer": f"{start}/model",
        "mix": mixtures,
        "train": {"mixtures": list(REPLAY), "seeds": list(range(arguments.seeds)), "config": config},
    }
    out = folder / name
    run(recipe.parse(asked), str(out))
    write_report(str(out))
    groups = {n: [out / "training" / n / f"seed{seed}" for seed in range(arguments.seeds)] for n in REPLAY}
    old, new = (heldout(groups, source) for source in (OLD, NEW))
    before = _curve(groups["new"][0])[0]
    told = {
        n: {
            "old": old.mean(n),
            "new": new.mean(n),
            "hump": float(np.mean([max(_curve(r)) - _curve(r)[0] for r in runs])),
        }
        for n, runs in groups.items()
    }
    for entry in told.values():
        entry["forgetting"] = entry["old"]["mean"] - before
    pairs = [p for p in old.pairs() if "new" in (p["first"], p["second"])]
    return {"mixtures": told, "base": before, "pairs": pairs, "report": str(out / "report.html")}


def _curve(trained: Path) -> list[float]:
    """Old-domain loss before the first step and on the way."""
    lines = (trained / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["nats_per_token"][OLD] for line in lines]


def show(result: dict[str, Any]) -> None:
    console = Console(width=130)
    for name, found in result["rates"].items():
        table = Table(title=f"learning rate {RATES[name]:.2g}; the base model has {found['base']:.4f} on {OLD}")
        for heading in (
            "mixture",
            f"{OLD} (old)",
            "95 % interval",
            "forgetting",
            "hump",
            f"{NEW} (new)",
            "95 % interval",
        ):
            table.add_column(heading, justify="left" if heading == "mixture" else "right")
        for mixture, m in found["mixtures"].items():
            spans = [f"{m[k]['low']:.4f} to {m[k]['high']:.4f}" for k in ("old", "new")]
            old, new = (f"{m[k]['mean']:.4f}" for k in ("old", "new"))
            table.add_row(mixture, old, spans[0], f"{m['forgetting']:+.4f}", f"{m['hump']:+.4f}", new, spans[1])
        console.print(table)
        for pair in found["pairs"]:
            span = f"{pair['mean']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f})"
            console.print(f"{OLD}: {pair['first']} less {pair['second']}: {span}{', real' if pair['real'] else ''}")


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    corpus = arguments.corpus
    if corpus is not None and "*/" not in corpus:
        raise SystemExit(f"--corpus {corpus}: expected FOLDER/*/*.parquet, with folders {OLD} and {NEW}")
    if corpus is None:
        sample_corpus.build(folder / "sample", 24)
        corpus = f"{folder}/sample/*/*.parquet"
    start = base(corpus, folder, arguments.base_tokens)
    rates = {name: go_on(corpus, folder, start, name, arguments) for name in RATES}
    return {
        "rates": rates,
        "base_tokens": arguments.base_tokens,
        "tokens": arguments.tokens,
        "seeds": arguments.seeds,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="glob FOLDER/*/*.parquet with manuals and code; made here if not given")
    parser.add_argument("--base-tokens", type=int, default=800_000, help="of the first training")
    parser.add_argument("--tokens", type=int, default=300_000, help="to go on for")
    parser.add_argument("--seeds", type=int, default=3, help="models per mixture and learning rate")
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on from what is there")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpusmill-continual-") as temporary:
        result = measured(arguments, (arguments.folder or Path(temporary)).resolve())
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
