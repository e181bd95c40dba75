"""Which selection trains the better model: each method takes the same number of tokens from one noisy corpus.

    python benchmarks/selection.py [--corpus GLOB] [--pages FILE] [--methods all,random,…] [--tokens 400000] [--seeds 3]
                                   [--megabytes 16] [--folder FOLDER] [--json]

The corpus is real text of several sources, raw web pages, documents whose words are shuffled, and pages filled from
templates (`_noisy_corpus.py` has the shares). GLOB holds one folder of Parquet shards per source, as `corpusmill
sample-corpus` makes them (without it a sample corpus is made), FILE a column `text`. Near duplicates go first, for
every method alike. What is left is dealt out by a hash of each document: 15 % of the clusters of the target are held
out; of the rest an eighth teaches small reference models, three are what fits learn from (of two of them methods that
are told the target see which documents are of it), and half is the pool to select from. So no method ranks what it has
learned from.

From the pool each method takes its best documents until they hold `--tokens`; one model per method and seed, all
equal, is trained on as many tokens. Where a method finds fewer tokens, they are repeated (`passes`).

    random     a draw of the budget, one for all seeds
    all        the whole pool in random order until the budget is spent: another draw for each seed, so it is to be
               as good as random; by how much it is not is what chance does
    oracle     a draw from the sources of the target, by their names: no method, but what knowing the truth is worth
    rules      a draw from what passes fineweb, gopher_quality and gopher_repetition
    quality    fastText, documents of the target against random ones
    got_d, dp4tl   nearest to the target by optimal transport, or in the clusters that it votes for most
    perplexity     least loss per token under the reference model
    quadrants      corners of its error and uncertainty, as large as the budget; a draw from these
    preselect  fastText, documents whose losses rank the reference models best. These are models of one size trained on
               1/16, 1/8, 1/4, 1/2 and all of the budget: growing ability, as checkpoints of one run would have
    influence  what a step of the reference model on a document is predicted to do to its loss on the target

The target is prose that documents software (docstrings, manuals, readme), and `heldout_loss` the loss on held-out
documents of it, in nats per token (one tokenizer for all), with 95 % intervals over documents and seeds. Some methods
are shown documents of the target and some are not: the table tells which. Junk: the shuffled and templated documents.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import _noisy_corpus

import scorers
from pipelines import recipe, sample_corpus
from pipelines.run import run
from pipelines.sample import SampleError
from sql.expressions import Expression
from sql.operators import Cut
from sql.views import query
from trainers import fits
from transforms.quadrants import condition, tail

TARGET = ["docstrings", "manuals", "readme"]
IS_TARGET = "source IN ('docstrings', 'manuals', 'readme')"
JUNK = ["shuffled", "templated"]
REFERENCE = "minhash.keep AND draw % 8 = 0"
SHOWN = (
    f"minhash.keep AND draw % 8 IN (1, 2) AND {IS_TARGET} AND characters >= 500"  # to methods that are told the target
)
LEARN = "minhash.keep AND draw % 8 IN (1, 2, 3)"
POOL = "minhash.keep AND draw % 8 > 3"
OPEN = f"{POOL} AND NOT holdout"  # fits and mixtures see to the latter themselves
STEPS = 4  # halvings of the budget, for reference models
PROBES = 300  # of influence, a third of a second each
SEED_DOCUMENTS = 500  # of preselect, each read by every reference model
WINDOW = {"window": 256, "stride": 192}  # of reference models; the trainer's rows have 256 tokens

RANKS = {  # SQL of what a method takes first; null: never (of `all` and `quadrants` only the columns count)
    "all": "1",
    "oracle": f"if({IS_TARGET}, 1, NULL)",
    "rules": "if(fineweb.passed AND gopher_quality.passed AND gopher_repetition.passed, 1, NULL)",
    "quality": "quality.score",
    "got_d": "-got_d.gradient",
    "dp4tl": "-dp4tl.rank",
    "perplexity": "-reference.error",
    "quadrants": "reference.error + reference.uncertainty",
    "preselect": "preselect.score",
    "influence": "influence.score",
    "random": "1",
}
TOLD = {"oracle", "quality", "got_d", "dp4tl", "influence"}  # the target


def parts(folder: str, tokens: int) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Every scorer and every fit that some method asks for, as parts of a recipe."""
    models = {n: f"{folder}/training/{n}/seed0/model" for n in references(tokens)}
    scores: dict[str, dict[str, Any]] = {
        "fineweb": {},
        "gopher_quality": {},
        "gopher_repetition": {},
        "reference": {"scorer": "eu_plane", "model": list(models.values())[-1], **WINDOW},
        "quality": {"scorer": "fasttext", "model": "fit:quality"},
        "preselect": {"scorer": "fasttext", "model": "fit:preselect"},
        "got_d": {"model": "fit:got_d"},
        "dp4tl": {"model": "fit:dp4tl"},
        "influence": {"model": "fit:influence"},
    }
    made: dict[str, dict[str, Any]] = {
        "quality": {
            "method": "fasttext",
            "positives": SHOWN,
            "negatives": LEARN,
        },
        "got_d": {"method": "got_d", "target": SHOWN, "pool": POOL},
        "dp4tl": {"method": "dp4tl", "target": SHOWN, "pool": POOL},
        "preselect": {
            "method": "preselect",
            "models": [{"model": models[name], "ability": size} for name, size in references(tokens).items()],
            "domain": "'everywhere'",  # documents have none here
            "documents": SEED_DOCUMENTS,
            "per_domain": 100_000,
            "where": LEARN,
            **WINDOW,
        },
        "influence": {
            "method": "influence",
            "model": str(Path(list(models.values())[-1]).parent),  # with the optimiser's moments
            "target": SHOWN,
            "target_documents": 48,
            "pool": LEARN,
            "pool_documents": PROBES,
        },
    }
    return scores, made


def references(tokens: int) -> dict[str, int]:
    """Names of the reference models and the tokens that each is trained on, the largest last."""
    return {f"reference_{step}": tokens >> step for step in range(STEPS, -1, -1)}


def common(corpus: Path) -> dict[str, Any]:
    """What all stages of the recipe have in common: later ones only add, so nothing is computed twice."""
    return {
        "name": "selection",
        "sources": {p.name: f"{p}/*.parquet" for p in sorted(corpus.iterdir()) if any(p.glob("*.parquet"))},
        "dedupe": {"minhash": {"preset": "fineweb"}},
        "holdout": {
            "share": 0.15,
            "clusters": "minhash",
            "where": f"minhash.keep AND {IS_TARGET} AND characters BETWEEN 500 AND 20000",
        },
        "fit": {"tokenizer": {"method": "tokenizer", "vocabulary": 4096, "megabytes": 5}},
        "tokenizer": "fit:tokenizer",
    }


def skipped(methods: list[str], folder: str, tokens: int) -> dict[str, str]:
    """Methods that cannot run here, and why."""
    scores, made = parts(folder, tokens)
    why = {}
    for method in methods:
        for name in Expression(RANKS[method]).names & scores.keys():
            kind = scores[name].get("scorer", name)
            fit = made.get(name, {}).get("method")
            if kind not in scorers.names():
                why[method] = f"there is no scorer {kind}"
            elif fit and fit not in fits.names():
                why[method] = f"there is no fit {fit}"
            elif package := _missing(scorers.find(kind).package) or (fit and _missing(fits.find(fit).package)):
                why[method] = f"the package {package} is not installed"
    return why


def _missing(package: str | None) -> str | None:
    return package if package and importlib.util.find_spec(package) is None else None


class Stages:
    """One recipe that grows, run in one folder: reference models; scores and thresholds; mixtures and models."""

    def __init__(self, corpus: Path, folder: Path, methods: list[str], tokens: int, seeds: int) -> None:
        self.folder, self.methods, self.tokens, self.seeds = str(folder), methods, tokens, seeds
        self.recipe = common(corpus)
        scores, made = parts(self.folder, tokens)
        used = {name for method in methods for name in Expression(RANKS[method]).names} & scores.keys()
        self.scores = {name: scores[name] for name in scores if name in used}
        self.fits = {**self.recipe["fit"], **{name: made[name] for name in made if name in used}}

    def _run(self, until: str, **parts: Any) -> dict[str, Any]:
        """Run the recipe with parts put in place of those it had; standard output is the report's alone."""
        self.recipe |= parts
        with contextlib.redirect_stdout(sys.stderr):
            return run(recipe.parse(self.recipe), self.folder, workers=_cores(), until=until)

    def references(self) -> dict[str, Any]:
        """Train the reference models, each on one pass over its own mixture; their losses on the held-out target.

        None where no method asks for any.
        """
        if not {"reference", "preselect", "influence"} & self.scores.keys():
            self._run("select")
            return {}
        mixtures = {
            n: {"where": REFERENCE, "tokens": size, "max_epochs": 1e6} for n, size in references(self.tokens).items()
        }
        train = {"mixtures": list(mixtures), "seeds": [0], "target": self._target()}
        return self._run("train", mix=mixtures, train=train)["heldout_loss"]

    def unfit(self) -> dict[str, str]:
        """Run the fits one by one, and give up the methods whose fit has too little to learn from; why, by method."""
        why: dict[str, str] = {}
        for name in [name for name in self.fits if name != "tokenizer"]:
            try:
                self._run("fit", fit={part: self.fits[part] for part in ("tokenizer", name)})
            except SampleError as error:
                why |= {method: str(error) for method in self.methods if name in Expression(RANKS[method]).names}
                del self.fits[name], self.scores[name]
        self.methods = [method for method in self.methods if method not in why]
        return why

    def conditions(self) -> dict[str, str]:
        """SQL of the documents that each method takes: its operators have become thresholds found by the pipeline."""
        self._run("select", score=self.scores, fit=self.fits, mix={}, train=None)
        asked = {method: self._asked(method) for method in self.methods}
        found = self._run("select", select=asked)["thresholds"]
        cuts = {
            operator: Cut(found[str(operator)]["value"], found[str(operator)]["draw"])
            for text in asked.values()
            for operator in Expression(text).operators
        }
        return {method: Expression(text).resolved(cuts) for method, text in asked.items()}

    def empty(self, conditions: dict[str, str]) -> dict[str, str]:
        """Give up the methods that take no document at all, of which no mixture can be made; why, by method."""
        found = [f'count(*) FILTER (NOT holdout AND ({where})) AS "{m}"' for m, where in conditions.items()]
        counts = query(self.folder, f"SELECT {', '.join(found)} FROM documents").to_pylist()[0]
        self.methods = [method for method in self.methods if counts[method]]
        return {method: "no document of the pool qualifies" for method in conditions if not counts[method]}

    def _asked(self, method: str) -> str:
        if method == "all":
            return POOL
        if method == "quadrants":
            share = self.tokens / self.pool_tokens()
            plane = query(self.folder, "SELECT reference.error e, reference.uncertainty u FROM documents")
            known = plane.drop_null()
            a = tail(known["e"].to_numpy(), known["u"].to_numpy(), share)
            return f"{POOL} AND ({condition(a, 'reference')})"
        return f"top_k(if({OPEN}, {RANKS[method]}, NULL), {self.tokens}, tokens.count)"

    def pool_tokens(self) -> int:
        """Raises SystemExit: the pool holds no more than the budget, so there is nothing to select."""
        held = (
            query(self.folder, f"SELECT sum(tokens.count)::BIGINT t FROM documents WHERE {OPEN}")["t"][0].as_py() or 0
        )
        if held <= self.tokens:
            raise SystemExit(f"the pool holds {held:,} tokens, the budget is {self.tokens:,}: raise --megabytes")
        return held

    def train(self, conditions: dict[str, str]) -> dict[str, Any]:
        """Train one model per method and seed on the same number of tokens, and compare them."""
        budget = {"tokens": self.tokens, "max_epochs": 1e6}
        mixtures = {m: {"where": conditions[m], **({} if m == "all" else budget)} for m in self.methods}
        train = {"mixtures": self.methods, "seeds": list(range(self.seeds)), "target": self._target()}
        return self._run("train", mix=mixtures, train={**train, "config": {"tokens": self.tokens}})

    def _target(self) -> list[str]:
        return [source for source in TARGET if source in self.recipe["sources"]]

    def kept(self, method: str) -> dict[str, Any]:
        """What a mixture is made of: shares of its tokens by planted truth, and how often the budget reads it."""
        manifest = json.loads(Path(self.folder, "mixtures", method, "manifest.json").read_text())
        held = {name: source["tokens"] for name, source in manifest["sources"].items()}
        whole = sum(held.values())
        shares = {kind: sum(held.get(s, 0) for s in of) / whole for kind, of in (("junk", JUNK), ("target", TARGET))}
        return {**shares, "web": held.get("web", 0) / whole, "tokens": whole, "passes": self.tokens / whole}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def made_corpus(arguments: argparse.Namespace, folder: Path) -> dict[str, int]:
    """The noisy corpus in `folder/corpus`; bytes by source."""
    pattern = arguments.corpus
    if pattern is None:
        sample_corpus.build(folder / "sample", 2 * arguments.megabytes)  # documents that are too long are left out
        pattern = f"{folder}/sample/*/*.parquet"
    return _noisy_corpus.build(folder / "corpus", arguments.megabytes, pattern, arguments.pages)


def show(result: dict[str, Any]) -> None:
    documents = result["heldout_documents"]
    title = f"{result['tokens']:,} of {result['pool_tokens']:,} tokens; loss in nats per token on {documents} documents"
    table = Table(title=f"{title} held out of {', '.join(result['target'])}")
    for heading in (
        "method",
        "told",
        "loss",
        "95 % interval",
        "minus random",
        "95 % interval",
        "junk",
        "target",
        "web",
    ):
        table.add_column(heading, justify="left" if heading in ("method", "told") else "right")
    table.add_column("passes", justify="right")
    for name, loss in sorted(result["heldout_loss"].items(), key=lambda item: item[1]["mean"]):
        difference = result["heldout_difference"].get(f"{name} - random")
        apart = ["", ""] if difference is None else [f"{difference['mean']:+.4f}", _span(difference, "+.4f")]
        kept = result["kept"][name]
        shares = [f"{kept[kind]:.1%}" for kind in ("junk", "target", "web")]
        told = "target" if name in TOLD else ""
        table.add_row(name, told, f"{loss['mean']:.4f}", _span(loss, ".4f"), *apart, *shares, f"{kept['passes']:.2f}")
    console = Console(width=140)
    console.print(table)
    abilities = ", ".join(f"{loss['mean']:.3f}" for loss in result["reference_loss"].values())
    if abilities:
        console.print(f"loss of the reference models, by tokens that they were trained on: {abilities}")
    for name, why in result["skipped"].items():
        console.print(f"skipped {name}: {why}", markup=False)


def _span(value: dict[str, float], form: str) -> str:
    return f"{value['low']:{form}} to {value['high']:{form}}"


def compared(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    why = skipped(arguments.methods, str(folder / "run"), arguments.tokens)
    methods = [*(m for m in arguments.methods if m not in why and m != "random"), "random"]  # the base comes last
    corpus = made_corpus(arguments, folder)
    stages = Stages(folder / "corpus", folder / "run", methods, arguments.tokens, arguments.seeds)
    reference = stages.references()
    pool_tokens = stages.pool_tokens()
    why |= stages.unfit()
    conditions = stages.conditions()
    why |= stages.empty(conditions)
    summary = stages.train(conditions)
    return {
        "heldout_loss": summary["heldout_loss"],
        "unit": "nats per token",
        "heldout_difference": summary["heldout_difference"],
        "kept": {method: stages.kept(method) for method in stages.methods},
        "skipped": why,
        "reference_loss": reference,
        "target": summary["heldout_sources"],
        "heldout_documents": summary["heldout_documents"],
        "tokens": arguments.tokens,
        "pool_tokens": pool_tokens,
        "seeds": arguments.seeds,
        "bytes": corpus,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="glob of Parquet shards in one folder per source; made here if not given")
    parser.add_argument("--pages", type=Path, help="Parquet file of web pages with a column text")
    parser.add_argument("--methods", default=",".join(RANKS), help="some of those above; random is always among them")
    parser.add_argument("--tokens", type=int, default=400_000, help="that each method selects and each model reads")
    parser.add_argument("--seeds", type=int, default=3, help="models per method")
    parser.add_argument("--megabytes", type=float, default=16, help="of the noisy corpus")
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on from what is there")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods.split(",")
    if unknown := set(arguments.methods) - RANKS.keys():
        parser.error(f"--methods: no {', '.join(sorted(unknown))}; there are {', '.join(RANKS)}")
    with tempfile.TemporaryDirectory(prefix="corpusmill-selection-") as temporary:
        result = compared(arguments, (arguments.folder or Path(temporary)).resolve())
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
