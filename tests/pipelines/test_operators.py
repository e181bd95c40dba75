"""top_k, gumbel_top_k and quantile by weight and group are what sorting the whole table gives, in runs and in SQL."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import search

from pipelines import shards, steps, thresholds
from pipelines.recipe import RecipeError, parse
from pipelines.report_data import Facts, Threshold
from pipelines.run import run
from pipelines.select import cuts, described, resolved, statistic, turned
from pipelines.thresholds import Statistic, ThresholdError
from sql import views
from sql.expressions import Expression, evaluate
from transforms.draws import draws

SCHEMA = pa.schema({"v": pa.float64(), "w": pa.float64(), "n": pa.int64(), "g": pa.string(), "draw": pa.uint64()})
Row = dict[str, Any]
NOISE = "-ln(-ln((CAST('0x' || left(md5(CAST(draw AS VARCHAR)), 13) AS BIGINT) + 0.5) / pow(2, 52)))"


def through_cuts(parts: Sequence[pa.Table], condition: str, exact: bool = True, order: Sequence[int] = ()) -> list[Any]:
    """The condition's value for every document as a run finds it: cuts over all parts, then part by part."""
    expression = Expression(condition)
    expression.check(parts[0].schema)
    wanted = [statistic(o) for o in expression.operators]
    found = search(parts, wanted, exact, order or range(len(parts)), rounds=2 if exact else 100)
    texts, lookups = resolved({"x": condition}, {o: turned(o, found[str(o)]) for o in expression.operators})
    values = []
    for part in parts:
        for lookup in lookups:
            part = part.append_column(lookup.name, lookup.column(part))
        values += evaluate(texts, part).column("x").to_pylist()
    return values


def in_sql(whole: pa.Table, condition: str) -> list[Any]:
    """The condition's value for every document as `corpusmill sql` has it."""
    connection = duckdb.connect(config={"threads": 1})
    connection.register("documents", whole.append_column("place", pa.array(range(len(whole)))))
    views._operators(connection)
    rows = connection.execute(f"SELECT place, {condition} FROM documents ORDER BY place").fetchall()
    return [value for _, value in rows]


def beginning(rows: Sequence[Row], k: float | None, share: float | None, weight: str | None, by: bool) -> list[bool]:
    """Which rows a sort over the whole table takes: highest first, then by draw, until the weight is reached."""
    sums: dict[Any, dict[Any, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for row in rows:
        if known(row, weight):
            sums[row["g"] if by else ""][-row["v"], row["draw"]] += unit(row, weight)
    taken: dict[Any, set[Any]] = {}
    for group, weights in sums.items():
        asked = Fraction(repr(k)) if k is not None else Fraction(repr(share)) * sum(weights.values())
        so_far, taken[group] = Fraction(0), set()
        for place in sorted(weights):
            if so_far >= asked:
                break
            so_far += weights[place]
            taken[group].add(place)
    return [known(r, weight) and (-r["v"], r["draw"]) in taken[r["g"] if by else ""] for r in rows]


def known(row: Row, weight: str | None) -> bool:
    needed = [row["v"], *([row[weight]] if weight else [])]
    return all(x is not None and not math.isnan(x) for x in needed)


def unit(row: Row, weight: str | None) -> Fraction:
    """Weights count in 1/65,536; those in the tests are multiples of it."""
    return Fraction(row[weight]) if weight else Fraction(1)


values = st.none() | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan]) | st.floats(width=64)
halves = st.integers(0, 30).map(lambda n: n / 2)
documents = st.fixed_dictionaries(
    {
        "v": st.integers(-2, 2).map(float) | values,
        "w": st.none() | st.just(math.nan) | halves | halves,
        "n": st.none() | st.integers(0, 9),
        "g": st.none() | st.sampled_from(["a", "b", "", "=", 'it\'s "c"', "NULL"]),
        "draw": st.integers(0, 2**64 - 1) | st.integers(0, 6),
    }
)
numbers = st.integers(0, 12).map(float) | st.sampled_from([1e6, 5e12])
shares = st.sampled_from([0.0, 1.0, 0.1, 0.3, 0.5, 0.55, 0.999]) | st.integers(0, 1000).map(lambda n: n / 1000)


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(documents, max_size=10), min_size=1, max_size=4),
    numbers | shares.map(lambda s: -1 - s),  # below -1: a share
    st.sampled_from([None, "w", "n"]),
    st.booleans(),
    st.booleans(),
    st.randoms(),
)
def test_top_k_is_the_beginning_of_the_whole_table_sorted(
    parts: list[list[Row]], asked: float, weight: str | None, by: bool, exact: bool, random: Any
) -> None:
    k, share = (asked, None) if asked >= 0 else (None, round(-1 - asked, 3))
    call = f"top_k(v, {'k' if share is None else 'share'} := {k if share is None else share}"
    call += (f", weight := {weight}" if weight else "") + (", by := g" if by else "") + ")"
    tables = [table(part) for part in parts]
    expected = beginning([row for part in parts for row in part], k, share, weight, by)
    order = random.sample(range(len(parts)), len(parts))
    assert through_cuts(tables, call, exact, order) == expected
    assert in_sql(pa.concat_tables(tables), call) == expected
    assert through_cuts(tables, f"NOT {call}", exact) == [not taken for taken in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(documents, max_size=25), shares, st.sampled_from([None, "w", "n"]), st.booleans(), st.booleans())
def test_a_quantile_by_weight_and_group_is_that_of_the_sorted_group(
    rows: list[Row], share: float, weight: str | None, by: bool, exact: bool
) -> None:
    """The least value up to which documents hold the share; the least with any weight where the share is 0."""
    call = f"quantile(v, {share}" + (f", weight := {weight}" if weight else "") + (", by := g" if by else "") + ")"
    sums: dict[Any, dict[float, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for row in rows:
        if known(row, weight):
            sums[row["g"] if by else ""][row["v"]] += unit(row, weight)
    expected: dict[Any, float] = {}
    for group, weights in sums.items():
        target, so_far = Fraction(repr(share)) * sum(weights.values()), Fraction(0)
        for value in sorted(weights):
            so_far += weights[value]
            expected[group] = value
            if so_far and so_far >= target:
                break
    wanted = [expected.get(row["g"] if by else "") for row in rows]
    assert through_cuts([table(rows)], call, exact) == wanted
    assert in_sql(table(rows), call) == wanted


@settings(max_examples=30, deadline=None)
@given(st.lists(documents, max_size=25), st.integers(0, 9), st.sampled_from([0, 0.25, 1, 3]), st.booleans())
def test_gumbel_top_k_is_top_k_of_the_value_with_noise(rows: list[Row], k: int, heat: float, by: bool) -> None:
    group = ", by := g" if by else ""
    drawn = through_cuts([table(rows)], f"gumbel_top_k(v, {k}, {heat}{group})")
    assert drawn == through_cuts([table(rows)], f"top_k({f'v / {heat} + {NOISE}' if heat else 'v'}, {k}{group})")
    assert drawn == in_sql(table(rows), f"gumbel_top_k(v, {k}, {heat}{group})")


def normal(n: int = 200_000, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    ids = pa.array([f"document {i}" for i in range(n)])
    return pa.table({"v": draw.normal(size=n), "n": draw.integers(1, 2000, n), "draw": draws(seed, ids)})


@pytest.mark.parametrize(("heat", "best", "mean"), [(0.5, 0.671, 1.140), (1, 0.481, 0.782)])
def test_gumbel_shares_of_normal_scores(heat: float, best: float, mean: float) -> None:
    """20 % of 200,000, numpy's means of 12 seeds, to 4 deviations. Noise on a cost gives 0.73, 1.24 and 0.57, 1.00."""
    whole = normal()
    taken = np.array(through_cuts([whole], f"gumbel_top_k(v, 40000, {heat})"))
    scores = whole.column("v").to_numpy()
    assert taken.sum() == 40_000
    assert (scores[taken] >= np.sort(scores)[-40_000]).mean() == pytest.approx(best, abs=0.006)
    assert scores[taken].mean() == pytest.approx(mean, abs=0.016)
    cheap = np.array(through_cuts([whole], f"gumbel_top_k(-v, 40000, {heat})"))
    assert scores[cheap].mean() == pytest.approx(-mean, abs=0.016), "the lowest by a minus sign"


def test_gumbel_inclusion_is_proportional_to_exp() -> None:
    """The first of six documents is drawn by softmax, the second by softmax of the rest: chi-square, 5 and 29 cells."""
    trials, scores = 12_000, np.array([0.0, 0.3, -0.7, 1.1, 0.5, -0.2])
    ids = pa.array([f"{t}/{i}" for t in range(trials) for i in range(6)])
    rows = {"v": np.tile(scores, trials), "g": np.repeat(np.arange(trials), 6), "draw": draws(3, ids)}
    whole = pa.table(rows)
    share = np.exp(scores / 0.7) / np.exp(scores / 0.7).sum()
    first = np.array(through_cuts([whole], "gumbel_top_k(v, 1, 0.7, by := g)")).reshape(trials, 6)
    both = np.array(through_cuts([whole], "gumbel_top_k(v, 2, 0.7, by := g)")).reshape(trials, 6)
    assert (first.sum(1) == 1).all() and (both.sum(1) == 2).all() and (both | ~first).all()
    pairs, expected = np.zeros((6, 6)), np.zeros((6, 6))
    for a, b in zip(first.argmax(1), (both & ~first).argmax(1), strict=True):
        pairs[a, b] += 1
    expected = trials * share[:, None] * share / (1 - share[:, None])
    off = ~np.eye(6, dtype=bool)
    single = ((first.sum(0) - trials * share) ** 2 / (trials * share)).sum()
    assert single < 20.5 and ((pairs - expected)[off] ** 2 / expected[off]).sum() < 58.3  # 0.1 % of chance each


def test_a_share_of_characters_is_kept_within_one_document() -> None:
    """PreSelect's threshold: the best documents that hold a tenth of all characters, whatever the ties."""
    whole = normal(20_000)
    tied = whole.append_column("tied", pa.array(np.round(whole.column("v").to_numpy())))
    lengths = whole.column("n").to_numpy()
    for share in (0.01, 0.1, 0.3):
        for condition in (f"top_k(tied, share := {share}, weight := n)", f"v >= quantile(v, {1 - share}, n)"):
            kept = lengths[np.array(through_cuts([tied], condition))].sum()
            assert share * lengths.sum() <= kept <= share * lengths.sum() + lengths.max()
    more = np.array(through_cuts([tied], "tied >= quantile(tied, 0.9, n)"))
    assert lengths[more].sum() > 0.1 * lengths.sum() + lengths.max(), "a value alone does not part ties"


def test_quotas_by_group_are_met_within_one_document_and_nest() -> None:
    """The mix stays that of the corpus: a tenth of each language's tokens; smaller budgets lie within larger ones."""
    whole = normal(30_000)
    language = np.where(np.arange(30_000) % 7 == 0, "de", np.where(np.arange(30_000) % 3 == 0, "fr", "en"))
    whole = whole.append_column("language", pa.array(language))
    tokens = whole.column("n").to_numpy()
    quota = np.array(through_cuts([whole], "top_k(v, weight := n, by := language, share := 0.1)"))
    small = np.array(through_cuts([whole], "top_k(v, 125e3, n, by := language)"))
    large = np.array(through_cuts([whole], "top_k(v, 250e3, n, by := language)"))
    assert (large | ~small).all()
    for name in ("de", "fr", "en"):
        mine = language == name
        assert 0 <= tokens[mine & quota].sum() - 0.1 * tokens[mine].sum() <= 2000
        assert 0 <= tokens[mine & small].sum() - 125e3 <= 2000 and 0 <= tokens[mine & large].sum() - 250e3 <= 2000
    chosen = np.array(through_cuts([whole], "top_k(CASE WHEN language = 'de' THEN v END, 50)"))
    assert chosen.sum() == 50 and set(language[chosen]) == {"de"}, "NULL is never chosen"


def test_many_documents_and_groups_take_rounds_of_fewer_bits() -> None:
    draw = np.random.default_rng(5)
    rows = {
        "v": draw.integers(0, 40, 6000) / 8,
        "g": draw.integers(0, 2000, 6000),
        "draw": draws(0, pa.array(map(str, range(6000)))),
    }
    whole = pa.table(rows)
    condition = "top_k(v, 2, by := g)"
    assert through_cuts([whole], condition, exact=False) == through_cuts([whole], condition)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "BIN_BITS", 13)  # as 100,000 groups are to 2^19 bins
        assert through_cuts([whole], condition, exact=False) == through_cuts([whole], condition)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources whose documents have few scores, lengths, and a language that is null for some."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    for source, count in (("web", 300), ("books", 120)):
        (folder / source).mkdir()
        rows = {
            "id": [f"{source}{i}" for i in range(count)],
            "text": [f"{source} {i} " + "word " * int(draw.integers(1, 60)) for i in range(count)],
            "score": pa.array(draw.integers(0, 5, count) / 4, mask=draw.random(count) < 0.05),
            "language": pa.array(draw.choice(["en", "de", "fr"], count), mask=draw.random(count) < 0.1),
        }
        pq.write_table(pa.table(rows), folder / source / "0.parquet", row_group_size=50)
    return folder


SELECT = {
    "unique": "exact.keep",
    "best": "top_k(if(exact.keep, score, NULL), 330)",
    "quota": "top_k(score, weight := characters, by := language, share := 0.6) OR language IS NULL",
    "drawn": "gumbel_top_k(score, 12000, 0.5, weight := characters, by := source)",
    "length": "characters >= quantile(characters, 0.1, by := source)",
}


def recipe(corpus: Path, select: Mapping[str, str] = SELECT) -> Any:
    sources = {name: f"{corpus}/{name}/*.parquet" for name in ("web", "books")}
    return parse(
        {"name": "s", "sources": sources, "score": {"fineweb": {}}, "dedupe": {"exact": {}}, "select": dict(select)}
    )


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run(recipe(corpus), str(folder), until="select")
    return folder


def selected(folder: Path) -> dict[str, str | None]:
    rows = views.query(str(folder), "SELECT id, selection.reason AS reason FROM documents").to_pylist()
    return {row["id"]: row["reason"] for row in rows}


def test_what_was_tried_in_sql_is_what_the_run_does(plain: Path, corpus: Path, tmp_path: Path) -> None:
    cases = " ".join(f"WHEN NOT coalesce({text}, false) THEN '{name}'" for name, text in SELECT.items())
    tried = f"SELECT id, CASE {cases} END AS reason FROM documents"
    done = selected(plain)
    assert {row["id"]: row["reason"] for row in views.query(str(plain), tried).to_pylist()} == done
    assert set(done.values()) == {None, "best", "quota", "drawn", "length"}
    run(recipe(corpus), str(tmp_path), until="dedupe")
    assert {row["id"]: row["reason"] for row in views.query(str(tmp_path), tried).to_pylist()} == done, "before select"


def test_workers_shards_and_their_order_change_nothing(
    plain: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plain, tmp_path / "two", ignore=shutil.ignore_patterns("selection", "thresholds"))
    with monkeypatch.context() as patch:
        patch.setattr(steps, "LIGHT_ROWS", 0)
        summary = run(recipe(corpus), str(tmp_path / "two"), workers=2, until="select")
    assert selected(tmp_path / "two") == selected(plain) and summary["ledger_balanced"]
    draw = np.random.default_rng(1)
    for source in ("web", "books"):
        (tmp_path / "other" / source).mkdir(parents=True)
        whole = pq.read_table(corpus / source / "0.parquet")
        whole = whole.take(draw.permutation(len(whole)))
        for i, at in enumerate(range(0, len(whole), 70)):
            pq.write_table(whole.slice(at, 70), tmp_path / "other" / source / f"{9 - i}.parquet", row_group_size=9)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 6000)
    run(recipe(tmp_path / "other"), str(tmp_path / "shuffled"), until="select")
    assert selected(tmp_path / "shuffled") == selected(plain)


def test_summary_and_report_show_the_thresholds(plain: Path) -> None:
    facts = Facts(str(plain))
    held = facts.summary["thresholds"]
    grouped = held['top_k(score, weight := characters, by := "language", share := 0.6)']
    assert grouped["groups"] == 4 and set(grouped["largest"]) == {"en", "de", "fr", "NULL"}
    for part in grouped["largest"].values():
        assert 0.6 * part["weight"] <= part["reached"] < 0.6 * part["weight"] + 310
    assert facts.summary["ledger_balanced"] and sum(facts.summary["ledger"]["select"]["dropped"].values()) > 0


def test_the_report_draws_the_value_of_top_k(corpus: Path, tmp_path: Path) -> None:
    run(recipe(corpus, {"long": "top_k(characters, 50)"}), str(tmp_path), until="select")
    facts = Facts(str(tmp_path))
    lengths = facts.rows("SELECT characters AS n FROM documents ORDER BY n DESC")
    assert facts.thresholds()[0] == Threshold("long", "characters", ">", float(lengths[49]["n"]))


def test_a_negative_weight_is_told(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"x": "top_k(score, 10, weight := characters - 100)"}
    run(recipe(corpus, bad), str(tmp_path), until="dedupe")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    message = r"top_k\(score, 10.*the weight \(characters - 100\) is negative"
    with pytest.raises(ThresholdError, match=message) as error:
        run(recipe(corpus, bad), str(tmp_path), workers=2, until="select")  # the error crosses processes
    assert error.value.exit_code == 2
    with pytest.raises(views.QueryError, match="a weight is negative"):
        views.query(str(tmp_path), f"SELECT count(*) FROM documents WHERE {bad['x']}")


def test_too_many_groups_and_too_much_weight_are_told(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "MAX_GROUPS", 100)
    with pytest.raises(ThresholdError, match="`by` gives more than 100 groups"):
        run(recipe(corpus, {"x": "top_k(score, 1, by := id)"}), str(tmp_path / "a"), until="select")
    for weight in ("1e300", "'inf'::DOUBLE", "characters * 1000000000000000"):
        with pytest.raises(ThresholdError, match=r"the weight .* adds up to .* divide it by a constant"):
            search(
                [table([{"v": 1.0, "w": 1.0}])] * 2,
                [Statistic("x", "v", total=1, weight=weight.replace("characters", "300"))],
                True,
                [0, 1],
            )


def test_operators_stand_in_select_only(corpus: Path, tmp_path: Path) -> None:
    base = recipe(corpus).model_dump(mode="json")
    with pytest.raises(
        RecipeError, match=r"dedupe.exact.prefer: 'CAST.*' asks for a top_k, which only conditions under"
    ):
        run(
            parse({**base, "dedupe": {"exact": {"prefer": "CAST(top_k(score, 3) AS INT)"}}}),
            str(tmp_path),
            until="dedupe",
        )


def test_what_is_described_is_what_was_found(corpus: Path, plain: Path) -> None:
    assert described({}) == {} and cuts(None, None, [], {"x": "true"}, 0) == {}  # type: ignore[arg-type]
