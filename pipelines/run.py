"""A whole run: the steps of a recipe in their order, each computing only what is missing or has changed.

scan -> score (index, scorers, signatures) -> dedupe -> clean -> fit -> score (fitted scorers, tokens)
         -> rewrite -> score (what was written) -> select -> mix -> train -> report
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import yaml

from pipelines import engine, ledger, shards, store
from pipelines.clean import check_size, clean
from pipelines.code import code_digest
from pipelines.dedupe import exact
from pipelines.fit import fit
from pipelines.ledger import PIECES
from pipelines.mix import mix
from pipelines.near import near
from pipelines.plan import Plan
from pipelines.recipe import HELDOUT, Recipe, RecipeError
from pipelines.rewrite import inherit, pieces_of, rewrite
from pipelines.sample import SampleError
from pipelines.score import Column, Pass, ScoreSplit
from pipelines.select import cuts, described, select
from pipelines.semantic import semantic
from pipelines.shards import Shard, Split
from pipelines.steps import Context, StaleError
from pipelines.tables import Struct, Tables

log = logging.getLogger("corpusmill")
OWN_FILES = (
    ".lock",
    "recipe.yaml",
    "collected",
    "progress",
    "ledger",
    "scan.json",
)  # what a run killed at its start may leave
DEDUPE: dict[str, Any] = {"exact": exact, "minhash": near, "semantic": semantic}
STALE = (StaleError, RecipeError, SampleError)  # what steps say that have something to compute, or cannot
STEPS = ("score", "dedupe", "clean", "fit", "rewrite", "select", "mix", "train", "report")


class Run:
    """One run of a recipe in one folder. Call `start`, then the steps in order; each leaves sidecars and its ledger."""

    def __init__(self, recipe: Recipe, folder: str, options: Sequence[str] = (), workers: int = 1) -> None:
        self.recipe, self.folder = recipe, folder
        self.plan = Plan(recipe, folder)
        self.context = Context(folder, options, workers)
        self.shards: list[Shard] = []
        self.known: dict[tuple[str, int, int], Shard] = {}
        self.splits: list[Split] = []
        self.manifests: dict[str, Any] = {}
        self.fits: dict[str, Any] = {}
        self.thresholds: dict[str, dict[str, Any]] = {}
        self.trained: dict[str, Any] = {}
        self.tables: Tables
        self.started = time.perf_counter()

    def start(self) -> None:
        """Check everything that can be checked without reading documents, then scan the shards.

        Raises:
            RecipeError: a mistake in the recipe, or in what it points to.
        """
        try:
            found = shards.expand(self.recipe.sources)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        engine.resolve(self.context.options, self.context.workers)
        self.plan.check(found)
        self._own_folder()
        self._lock = store.lock(self.folder)
        store.remove_temporaries(self.folder)
        with store.commit(f"{self.folder}/recipe.yaml") as sink:
            sink.write(yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False).encode())
        self._scan(found)
        self.tables = self.plan.tables(self.shards, self._columns())
        self.splits = shards.splits(self.shards)
        check_size(self.plan.cleaning, self.splits)

    def _columns(self) -> dict[str, str]:
        """Columns of the shards that can be read: name -> type as text."""
        try:
            union = shards.schema_of([s for s in self.shards if s.cause is None], self.recipe.text)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        return {name: kind for name, (kind, _) in union.items()}

    def _own_folder(self) -> None:
        """Refuse a folder that holds something else than a run of this recipe's name."""
        if store.is_remote(self.folder) or not Path(self.folder).is_dir():
            return
        recipe = Path(self.folder) / "recipe.yaml"
        if not (Path(self.folder) / "shards.json").exists():
            others = [p.name for p in Path(self.folder).iterdir() if p.name not in OWN_FILES]
            if others:
                raise RecipeError(f"{self.folder} is no run folder (it holds {others[0]}); choose another --run")
        elif recipe.is_file() and (name := yaml.safe_load(recipe.read_text()).get("name")) != self.recipe.name:
            raise RecipeError(
                f"{self.folder} holds a run of recipe {name!r}, not of {self.recipe.name!r}; choose another --run"
            )

    def _scan(self, found: list[Shard]) -> None:
        key = store.digest(self.recipe.text, code_digest("pipelines.shards"))
        same = store.read_json(f"{self.folder}/scan.json") == key
        before = shards.from_json(store.read_json(f"{self.folder}/shards.json") or []) if same else []
        self.known = {_place(s): s for s in before if s.cause is None}  # a failure may have passed
        self._list(self._opened(found))
        for shard in self.shards:
            if shard.cause:
                log.warning("quarantined %s: %s", shard.path, shard.cause)
        store.write_json(f"{self.folder}/scan.json", key)

    def _opened(self, found: list[Shard]) -> list[Shard]:
        """The shards as the run before has seen them; those that are new or have changed since are scanned."""
        known = [replace(self.known[_place(s)], source=s.source, name=s.name) for s in found if _place(s) in self.known]
        new = [s for s in found if _place(s) not in self.known]
        if not new:
            return known
        items = self._scanned(new)
        if len(items) != len(new):
            raise ledger.LedgerError(f"scan: {len(new)} shards were sent and {len(items)} came back; run again")
        return known + shards.from_json(items)

    def _list(self, found: Iterable[Shard]) -> None:
        """Write down what the run reads."""
        self.shards = sorted(found, key=lambda s: (s.source, s.name))
        store.write_json(f"{self.folder}/shards.json", shards.to_json(self.shards))

    def _scanned(self, new: list[Shard]) -> list[dict[str, Any]]:
        scan = partial(_scan, text=self.recipe.text)
        if engine.is_local(self.context.options):
            return self.context.here("scan", new, scan)
        sizes = [s.size + 1 for s in new]
        deal = engine.deal(new, sizes, self.context.workers)
        return self.context.graph("scan", lambda p: p | "Shards" >> deal | beam.FlatMap(scan), len(new))

    def score(self) -> None:
        """The first scoring pass: index, signatures and the scorers that wait for no fit."""
        signatures = {f"signatures/{name}": method.column() for name, method in self.plan.methods.items()}
        self._score({**self.plan.columns, **signatures}, {})

    def _score(self, columns: dict[str, Column], cuts: dict[str, str]) -> None:
        """A scoring pass; `cuts`: folder -> base of the spans that are cut from the text."""
        plan = Pass.plan(self.folder, self.recipe.text, self.recipe.admission, list(columns.values()), cuts)
        records = self.context.run_splits("score", self.splits, beam.ParDo(ScoreSplit(plan)))
        lost = {(r.source, r.split) for r in records if r.quarantined}
        for record in (r for r in records if r.quarantined):
            log.warning("quarantined %s/%s: %s", record.source, record.split, record.cause)
        self.splits = [s for s in self.splits if (s.source, s.name) not in lost]
        structs = {n: Struct(c.folder, c.scorer.fields(), plan.bases[c.folder]) for n, c in columns.items()}
        self.tables = replace(self.tables, structs={**self.tables.structs, **structs})

    @property
    def documents(self) -> int:
        return ledger.totals(self.context.records["index"])["out"]

    def dedupe(self) -> None:
        for name, method in self.plan.methods.items():
            struct, _ = DEDUPE[name](self.context, self.tables, self.splits, method, self.documents)
            self.tables = replace(self.tables, structs={**self.tables.structs, name: struct})

    def clean(self) -> None:
        """Cut what repeats across documents out of them; all later steps read the text without it."""
        for name in self.plan.cleaning:
            for model in self.plan.fits_before(name):
                self._fit(model, replace(self.tables, cuts=()))  # such a method reads texts as admitted
            method = self.plan.cleaning_method(name)
            struct, _ = clean(self.context, self.tables, self.splits, name, method, list(self.plan.methods))
            structs = {**self.tables.structs, name: struct}
            self.tables = replace(self.tables, structs=structs, cuts=(*self.tables.cuts, name))

    def fit(self) -> None:
        """Fit models on seeded samples, then compute the columns that waited for them."""
        for name in self.plan.fits:
            if name not in self.fits:
                self._fit(name, self.tables)
        self._score_fitted()

    def _score_fitted(self) -> None:
        if self.plan.fitted:
            cuts = {s.folder: s.base for s in (self.tables.structs[name] for name in self.tables.cuts)}
            self._score(self.plan.fitted_columns(), cuts)

    def _fit(self, name: str, tables: Tables) -> None:
        self.fits[name] = fit(self.context, tables, self.splits, name, self.plan.fits[name], self.documents)

    def rewrite(self) -> None:
        """New documents, by every rewriter of the recipe; each one's are a source, scored as all others are."""
        if self.plan.rewriters:
            self._take_in({name: self._rewritten(name) for name in self.plan.rewriters})

    def _rewritten(self, name: str) -> tuple[Struct, list[Shard]]:
        methods = list(self.plan.methods)
        return rewrite(self.context, self.tables, self.splits, name, self.plan.rewriter(name), methods)

    def _take_in(self, made: dict[str, tuple[Struct, list[Shard]]]) -> None:
        """Make the new documents of rewriters sources of the run, with scores and their parents' other columns.

        Raises:
            LedgerError: a shard of them cannot be read.
        """
        new = self._opened([shard for _, written in made.values() for shard in written])
        for shard in new:
            if shard.cause:
                cause = f"{shard.path}, which the rewriter {shard.source!r} has written, cannot be read: {shard.cause}"
                raise ledger.LedgerError(f"{cause}; remove it and run again")
        self._list([*self.shards, *new])
        originals = self.splits
        self.splits = [*originals, *shards.splits(s for s in self.shards if s.source in made)]
        structs = {name: struct for name, (struct, _) in made.items()}
        self.tables = replace(self.tables, raw=self._columns(), structs={**self.tables.structs, **structs})
        self._score(dict(self.plan.columns), {})
        inherit(self.context, self.tables, [s for s in self.splits if s.source in made], originals)
        if self.plan.fitted <= self.tables.structs.keys():
            self._score_fitted()

    def keep(self, last: str) -> None:
        """Take in what an earlier run has rewritten, where this one ends with a step before: nothing is computed but
        the scores of these documents. What is not current is left out until the run comes to it again."""
        names = self.plan.rewriters if self.splits else ()
        held = [n for n in names if store.exists(self.splits[0].sidecar(f"{self.folder}/rewritten/{n}"))]
        if not held:
            return
        self.context.frozen = True
        for step in STEPS[STEPS.index(last) + 1 : STEPS.index("rewrite")]:
            with suppress(*STALE):  # rewriters may not need it
                getattr(self, step)()
        made = {}
        for name in held:
            try:
                made[name] = self._rewritten(name)
            except STALE:
                log.warning("what %s has rewritten is not current; it is no source until `rewrite` has run again", name)
        self.context.frozen = False
        if made:
            self._take_in(made)

    def select(self) -> None:
        conditions = self.recipe.select
        found = cuts(self.context, self.tables, self.splits, conditions, self.documents)
        self.thresholds = described(found)
        struct, _ = select(self.context, self.tables, self.splits, conditions, found)
        self.tables = replace(self.tables, structs={**self.tables.structs, "selection": struct})

    def mix(self) -> None:
        """Every mixture of the recipe, and the held-out documents as one more."""
        tokenizer = self.plan.tokenizer()
        wanted = {name: (mixture, "NOT selection.holdout") for name, mixture in self.plan.mixtures.items()}
        if self.recipe.holdout:
            from pipelines.shares import Mixture

            wanted[HELDOUT] = (Mixture(where=f"selection.holdout AND ({self.recipe.holdout.where})"), "true")
        digest = store.digest(self.recipe.model_dump(mode="json"))
        for name, (mixture, also) in wanted.items():
            self.manifests[name] = mix(
                self.context, self.tables, self.splits, name, mixture, also, self.documents, tokenizer, digest
            )

    def train(self) -> None:
        if self.recipe.train:
            from pipelines.train import train

            heldout = f"{self.folder}/mixtures/{HELDOUT}" if HELDOUT in self.manifests else None
            self.trained = train(self.context, self.recipe.train, self.manifests, heldout)

    @property
    def given(self) -> list[Shard]:
        """The shards that the recipe names, without those of rewriters."""
        return [s for s in self.shards if s.source in self.recipe.sources]

    def quarantined_share(self) -> float:
        """Share of shards of which something could not be read."""
        bad = {(s.source, s.name) for s in self.given if s.cause}
        bad |= {(r.source, r.shard) for r in self.context.records.get("index", []) if r.quarantined}
        return sum(source in self.recipe.sources for source, _ in bad) / len(self.given)

    def balance(self) -> None:
        """What every step let through is what the next one took in.

        Raises:
            LedgerError: it is not.
        """
        records = self.context.records
        if "index" not in records:
            return
        sound = [r for r in records["index"] if not r.quarantined]
        for step, mine in records.items():
            if step.startswith(PIECES):  # of documents, which become documents of another source
                name = step.removeprefix(PIECES)
                ledger.chain(records[f"rewrite:{name}"], mine, pieces_of, "pieces")
                ledger.born(mine, records["index"], name)
            elif step != "index":
                ledger.chain(sound, mine)


def _place(shard: Shard) -> tuple[str, int, int]:
    """What tells a file that has changed."""
    return shard.path, shard.size, shard.modified


def _scan(shard: Shard, text: str) -> list[dict[str, Any]]:
    return shards.to_json([shards.scan(shard, text)])


def run(
    recipe: Recipe, folder: str, options: Sequence[str] = (), workers: int = 1, until: str = "report"
) -> dict[str, Any]:
    """Run a recipe up to a step (all of it by default) and return the summary, also written to RUN/summary.json."""
    from pipelines.summary import summarise

    job = Run(recipe, folder, options, workers)
    job.start()
    if not job.splits:
        causes = "; ".join(f"{s.path}: {s.cause}" for s in job.shards[:3])
        log.warning("no shard can be read (%s)", causes)
        return summarise(job)
    for step in STEPS[: STEPS.index(until) + 1]:
        if step == "report":
            break
        if step == "mix" and not recipe.mix:
            continue
        getattr(job, step)()
        job.balance()
    if until in STEPS[: STEPS.index("rewrite")]:
        job.keep(until)
        job.balance()
    summary = summarise(job)
    if until == "report":
        from pipelines.report import write_report

        summary["report"] = write_report(folder)
        store.write_json(f"{folder}/summary.json", summary)
    return summary
