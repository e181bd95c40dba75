"""Fitting the light refiner: which lines of a page go (`transforms.refiner`), from pages where that is known of some.

Lines are labelled by phrases that must stay and must go, by programs, or by rules that agree (weak labels). Pages are
dealt to FOLDS parts by `group`, a host or a cluster, never alone; each part is scored by models of the other parts, and
thresholds and figures are of those scores. Words learn by ridge regression, trees by LightGBM in one thread, so that
equal samples give equal bytes. 2,000 pages of 10 kB with three phrases each take half a minute and 0.2 GB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from trainers.fits import Fit, Wanted
from transforms.batch import Batch
from transforms.draws import hashes, ranges, seeded

if TYPE_CHECKING:
    from transforms.line_features import Grams, Lines
    from transforms.refiner import Trees

FOLDS = 5
FEWEST = 20  # phrases on each side
PENALTY = 1.0  # of the regression on words
SHARES = (0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99)  # of what must stay, for which the card has a threshold
SETTINGS = {
    "objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 10, "lambda_l2": 1.0,
    "feature_fraction_bynode": 0.25, "bagging_fraction": 0.7, "bagging_freq": 1, "num_threads": 1,
    "deterministic": True, "force_row_wise": True, "verbose": -1,
}  # fmt: skip
SHORT_LINE = 30  # characters of a line that FineWeb calls short

Rule = Literal["c4", "fineweb", "repeated"]


class Phrases(NamedTuple):
    """What is known of the pages: each phrase stands in lines lines[offsets[i]:offsets[i + 1]], and stays or goes."""

    stays: np.ndarray  # bool [phrases]
    lines: np.ndarray  # int64, places in `Lines`
    offsets: np.ndarray  # int64 [phrases + 1]
    missing: int  # phrases that no line has

    def among(self, lines: np.ndarray) -> Phrases:
        """Those that begin in one of some lines (bool [lines])."""
        sizes = np.diff(self.offsets)
        kept = lines[self.lines[self.offsets[:-1]]]
        offsets = np.concatenate([[0], np.cumsum(sizes[kept])])
        return Phrases(self.stays[kept], self.lines[np.repeat(kept, sizes)], offsets, self.missing)


class CrossFitted(NamedTuple):
    """What is known of the lines that are not blank, and what models say that saw no page of their group."""

    lines: Lines
    phrases: Phrases
    goes: np.ndarray  # float64 [lines]: 1, 0, or NaN where nothing is known
    weight: np.ndarray  # float64 [lines], of what is known
    grams: Grams
    values: np.ndarray  # float32 [lines, features]
    scores: np.ndarray  # float64 [lines], log-odds that it goes
    thresholds: dict[str, float]
    curve: list[dict[str, float]]
    groups: int


class FitRefiner(Fit):
    """Labels come from one of three places. `keep` and `drop`: SQL values, each a list of phrases that stand within a
    line; all lines with a phrase of `drop` go, of those with one of `keep` one must stay. `program`: an SQL value, a
    program (`transforms.programs`) whose numbers are those of the page's lines; null for pages without. `rules`: a line
    goes where all of them say so and stays where none does: the model learns what they agree on. `c4`: its line rules;
    `fineweb`: short, and ends no sentence; `repeated`: more than one page of the sample in a hundred has it.

    `group` is an SQL value; pages of one group are left out together, when thresholds and figures are made.
    """

    method: ClassVar[str] = "refiner"
    readers: ClassVar[tuple[str, ...]] = ("prox",)
    package: ClassVar[str] = "lightgbm"
    keep: str | None = None
    drop: str | None = None
    program: str | None = None
    rules: tuple[Rule, ...] = ()
    group: str = "id"
    where: str = "true"
    documents: int = Field(2000, ge=FOLDS, description="drawn at most")
    trees: int = Field(120, ge=1)

    @model_validator(mode="after")
    def _both(self) -> FitRefiner:
        if (self.keep is None) != (self.drop is None):
            raise ValueError("give both `keep` and `drop`: a model that sees one kind of lines alone knows no other")
        return self

    @model_validator(mode="after")
    def _labels(self) -> FitRefiner:
        given = [name for name in ("keep", "program", "rules") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"labels come from one of `keep` with `drop`, `program` or `rules`; given {given or 'none'}"
            )
        return self

    def samples(self) -> dict[str, Wanted]:
        named = {"keep": self.keep, "drop": self.drop, "program": self.program, "group": self.group}
        columns = {name: value for name, value in named.items() if value}
        return {"documents": Wanted(self.where, documents=self.documents, columns=columns)}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms import refiner

        table = samples["documents"]
        found = self.cross_fitted(table, seed)
        known = np.isfinite(found.goes)
        weights = _words(found.grams, found.goes, found.weight, known)
        trees = _trees(found.values, found.goes, found.weight, known, self.trees, seed)
        out.mkdir(parents=True, exist_ok=True)
        refiner.save(refiner.Refiner(weights, trees, found.thresholds), out)
        phrases = found.phrases
        card = {
            "parameters": self.model_dump(mode="json"),
            "seed": seed,
            "documents": {"pages": len(table), "groups": found.groups, "lines": len(found.scores)},
            "phrases": {
                "stay": int(phrases.stays.sum()),
                "go": int((~phrases.stays).sum()),
                "not in the text": phrases.missing,
            },
            "holdout": {
                "folds": FOLDS,
                "by": self.group,
                "curve": found.curve,
                **line_set(found.goes, found.scores > found.thresholds["0.95"]),
            },
        }
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def cross_fitted(self, table: pa.Table, seed: int, hidden: np.ndarray | None = None) -> CrossFitted:
        """Score every line by models that saw no page of its group.

        Args:
            hidden: bool [pages], those whose labels no model sees; thresholds are not of them either.

        Raises:
            ValueError: there are too few labels on a side, or in too few groups.
        """
        from transforms import refiner
        from transforms.line_features import filled_lines, line_grams

        batch = batch_of(table)
        lines = filled_lines(batch)
        phrases = self._phrases(table, batch, lines)
        page = np.repeat(np.arange(len(batch)), np.diff(lines.offsets))
        groups = group_hashes(table)
        fold = ranges(seeded(seed, groups), FOLDS)[page]
        goes, weight = _line_labels(phrases, len(fold))
        seen = np.ones(len(fold), bool) if hidden is None else ~hidden[page]
        shown, own = np.where(seen, goes, np.nan), phrases.among(seen)
        self._check(own, shown, fold)
        grams = line_grams(batch, lines)
        words = _cross_fitted_words(grams, shown, weight, fold)
        values = refiner.features(batch, lines, grams, words)
        scores = self._cross_fitted_trees(values, shown, weight, fold, seed)
        thresholds, curve = _thresholds(own, scores)
        count = len(np.unique(groups))
        return CrossFitted(lines, phrases, goes, weight, grams, values, scores, thresholds, curve, count)

    def _phrases(self, table: pa.Table, batch: Batch, lines: Lines) -> Phrases:
        if self.keep:
            lists = [_lists(table.column(name), name) for name in ("keep", "drop")]
            return find_phrases(batch, lines, *lists)
        if self.program:
            return _of_programs(table.column("program"), batch, lines)
        return _of_rules(self.rules, batch, lines)

    def _check(self, phrases: Phrases, goes: np.ndarray, fold: np.ndarray) -> None:
        stay, go = int(phrases.stays.sum()), int((~phrases.stays).sum())
        if min(stay, go) < FEWEST:
            raise ValueError(
                f"needs at least {FEWEST} phrases or lines on each side; given {stay} that stay, {go} that go: "
                "widen `where`, raise `documents`, or take fewer `rules`"
            )
        sides = [np.unique(goes[np.isfinite(goes) & (fold != k)]) for k in range(FOLDS)]
        if min(map(len, sides)) < 2 or len(np.unique(fold[np.isfinite(goes)])) < 2:
            raise ValueError(f"group {self.group!r}: labels lie in too few groups to leave some out; name a finer one")

    def _cross_fitted_trees(
        self, values: np.ndarray, goes: np.ndarray, weight: np.ndarray, fold: np.ndarray, seed: int
    ) -> np.ndarray:
        """float64 [lines]: scores by trees that saw no line of the same fold."""
        from transforms.refiner import tree_scores

        scores = np.zeros(len(fold))
        for k in range(FOLDS):
            mine = fold == k
            trees = _trees(values, goes, weight, np.isfinite(goes) & ~mine, self.trees, seed)
            scores[mine] = tree_scores(trees, values[mine])
        return scores


def batch_of(table: pa.Table) -> Batch:
    """The texts of a sample."""
    return Batch(pa.record_batch({"text": table.column("text").cast(pa.large_string()).combine_chunks()}))


def group_hashes(table: pa.Table) -> np.ndarray:
    """uint64 [pages]: equal for pages of one group; those without a group are one."""
    return hashes(pc.fill_null(table.column("group").cast(pa.large_string()), "").combine_chunks())


def _lists(column: pa.ChunkedArray, name: str) -> list[list[str]]:
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        raise ValueError(f"{name} is {column.type}; expected a list of phrases for each page")
    return [[phrase for phrase in phrases or () if phrase] for phrases in column.to_pylist()]


def find_phrases(batch: Batch, lines: Lines, keep: list[list[str]], drop: list[list[str]]) -> Phrases:
    """The lines that hold each phrase, from its first to its last if it has line breaks."""
    data = batch.bytes.tobytes()
    stays, hits, missing = [], [], 0
    for document, both in enumerate(zip(keep, drop, strict=True)):
        a, b = int(batch.offsets[document]), int(batch.offsets[document + 1])
        first, last = lines.offsets[document], lines.offsets[document + 1]
        for stay, phrases in zip((True, False), both, strict=True):
            for phrase in phrases:
                if not (wanted := phrase.strip().encode()):
                    continue
                found: set[int] = set()
                at = data.find(wanted, a, b)
                while at >= 0:
                    begin = first + np.searchsorted(lines.start[first:last], at, side="right") - 1
                    end = first + np.searchsorted(lines.start[first:last], at + len(wanted) - 1, side="right")
                    found.update(range(int(begin), int(end)))
                    at = data.find(wanted, at + len(wanted), b)
                missing += not found
                if found:
                    stays.append(stay)
                    hits.append(sorted(found))
    counts = np.array([len(hit) for hit in hits], np.int64)
    flat = np.array([line for hit in hits for line in hit], np.int64)
    return Phrases(np.array(stays, bool), flat, np.concatenate([[0], np.cumsum(counts)]), missing)


def _of_lines(known: np.ndarray, goes: np.ndarray) -> Phrases:
    """Lines (int64) whose fate is known, each a phrase of its own."""
    return Phrases(~goes, known, np.arange(len(known) + 1), 0)


def _of_programs(programs: pa.ChunkedArray, batch: Batch, lines: Lines) -> Phrases:
    from transforms.programs import Chunks, read_programs

    given = np.flatnonzero(programs.is_valid().to_numpy())
    last = np.diff(batch.lines.offsets)[given] - 1
    texts = [str(text) for text in programs.drop_null().to_pylist()]
    edits = read_programs(batch, Chunks(given, np.zeros(len(given), np.int64), last), texts)
    document = np.repeat(np.arange(len(batch)), np.diff(lines.offsets))
    known = np.flatnonzero(np.isin(document, given) & (edits.errors == 0)[document])
    return _of_lines(known, (edits.gone[lines.number] | edits.drop[document])[known])


def _of_rules(rules: tuple[Rule, ...], batch: Batch, lines: Lines) -> Phrases:
    """Lines on which all the rules agree."""
    votes = np.stack([VOTES[rule](batch, lines) for rule in rules])
    known = np.flatnonzero(votes.all(axis=0) | ~votes.any(axis=0))
    return _of_lines(known, votes[0][known])


def c4_goes(batch: Batch, lines: Lines) -> np.ndarray:
    """bool [lines]: C4's line rules remove it."""
    from transforms.c4_lines import KEPT, judge_lines

    judged = judge_lines(batch)
    kept = np.sort(judged.lines.start[judged.rule == KEPT])  # of lines as str.splitlines has them, stripped too
    at = np.searchsorted(kept, lines.start)
    return (at == len(kept)) | (np.append(kept, np.iinfo(np.int64).max)[at] >= lines.end)


def fineweb_goes(batch: Batch, lines: Lines) -> np.ndarray:
    """bool [lines]: of at most SHORT_LINE characters, and no mark that ends a sentence at its end."""
    from transforms.line_features import SHAPES, line_shapes

    shapes = line_shapes(batch, lines)
    short = shapes[:, SHAPES.index("log characters")] < np.log1p(SHORT_LINE + 0.5)
    return short & (shapes[:, SHAPES.index("ends a sentence")] == 0)


def repeated_goes(batch: Batch, lines: Lines) -> np.ndarray:
    """bool [lines]: more than one page in a hundred has it, and more than one page."""
    from transforms.repeated_lines import count, frequent, repeats

    cuts = repeats(batch, frequent(count(batch), max(1, len(batch) // 100)))
    base = batch.offsets[np.repeat(np.arange(len(batch)), np.diff(cuts.offsets))]
    start, end = cuts.start + base, cuts.end + base
    at = np.searchsorted(start, lines.end, side="left") - 1  # the last span that begins before the line ends
    return (at >= 0) & (np.append(end, 0)[at] > lines.start)


VOTES = {"c4": c4_goes, "fineweb": fineweb_goes, "repeated": repeated_goes}


def _line_labels(phrases: Phrases, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [lines] each: 1 for lines that go, 0 for those that stay, NaN for others; and their weights.

    Of several lines with a phrase that stays one would do, so they share its weight. Lines that must do both have none.
    """
    sizes = np.diff(phrases.offsets)
    stays = np.repeat(phrases.stays, sizes)
    weight, sides = np.zeros(lines), np.zeros((2, lines), bool)
    np.maximum.at(weight, phrases.lines, np.where(stays, 1 / np.repeat(sizes, sizes), 1.0))
    sides[0, phrases.lines[stays]] = True
    sides[1, phrases.lines[~stays]] = True
    return np.where(sides[0] ^ sides[1], sides[1], np.nan), weight


def _words(grams: Grams, goes: np.ndarray, weight: np.ndarray, among: np.ndarray) -> np.ndarray:
    """float64 [2 ** BITS]: weights of words by regression on the labels (-1 and 1, less their mean)."""
    from transforms.hashed_ridge import Features, ridge
    from transforms.line_features import BITS

    chosen = np.flatnonzero(among)
    value = 1 / np.sqrt(np.repeat(np.diff(grams.offsets), np.diff(grams.offsets)))
    own = Features(grams.place, value, grams.offsets).take(chosen)
    root, target = np.sqrt(weight[chosen]), goes[chosen] - np.average(goes[chosen], weights=weight[chosen])
    weighed = Features(own.place, own.value * np.repeat(root, np.diff(own.offsets)), own.offsets)
    found: np.ndarray = ridge(weighed, target * root, PENALTY, 1e-4)[: 1 << BITS]
    return found


def _cross_fitted_words(grams: Grams, goes: np.ndarray, weight: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """float64 [lines]: word scores by weights that saw no line of the same fold."""
    from transforms.refiner import word_scores

    scores = np.zeros(len(fold))
    for k in range(FOLDS):
        mine = fold == k
        scores[mine] = word_scores(grams, _words(grams, goes, weight, np.isfinite(goes) & ~mine))[mine]
    return scores


def _trees(values: np.ndarray, goes: np.ndarray, weight: np.ndarray, among: np.ndarray, count: int, seed: int) -> Trees:
    import lightgbm

    from transforms.refiner import FEATURES

    data = lightgbm.Dataset(
        values[among], goes[among], weight=weight[among], feature_name=[f"f{k}" for k in range(len(FEATURES))]
    )
    booster = lightgbm.train(SETTINGS | {"seed": seed % 2**31}, data, num_boost_round=count)
    return flat_trees([tree["tree_structure"] for tree in booster.dump_model()["tree_info"]])


def flat_trees(structures: list[dict[str, Any]]) -> Trees:
    """Trees as LightGBM dumps them, end to end; children come after their parents."""
    from transforms.refiner import Trees

    rows: list[list[float]] = []
    roots: list[int] = []
    for structure in structures:
        roots.append(len(rows))
        rows.append([])
        todo = [(structure, len(rows) - 1)]
        while todo:
            node, place = todo.pop()
            if "split_feature" not in node:
                rows[place] = [-1, 0.0, -1, node["leaf_value"]]
                continue
            first = len(rows)
            rows += [[], []]
            rows[place] = [node["split_feature"], node["threshold"], first, 0.0]
            todo += [(node["left_child"], first), (node["right_child"], first + 1)]
    feature, threshold, first, value = np.array(rows, np.float64).T
    return Trees(feature.astype(np.int32), threshold, first.astype(np.int32), value, np.array(roots, np.int32))


def _thresholds(phrases: Phrases, scores: np.ndarray) -> tuple[dict[str, float], list[dict[str, float]]]:
    """For each of SHARES the least threshold that leaves so many of the phrases that stay, and what goes by it."""
    least = np.minimum.reduceat(scores[phrases.lines], phrases.offsets[:-1])
    stay, go = np.sort(least[phrases.stays]), least[~phrases.stays]
    thresholds, curve = {}, []
    for share in SHARES:
        value = float(stay[min(len(stay) - 1, int(np.ceil(share * len(stay))) - 1)])
        thresholds[f"{share:g}"] = value
        kept, gone = float((stay <= value).mean()), float((go > value).mean())
        curve.append({"keep": share, "threshold": value, "kept": kept, "gone": gone})
    return thresholds, curve


def line_set(goes: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of the set of lines that go (found: bool [lines]) of those of which it is known."""
    known = np.isfinite(goes)
    truth, gone = goes[known] == 1, found[known]
    both = int((truth & gone).sum())
    sums = int(truth.sum()) + int(gone.sum())
    return {
        "line_precision": both / max(1, int(gone.sum())),
        "line_recall": both / max(1, int(truth.sum())),
        "line_f1": 2 * both / max(1, sums),
    }
