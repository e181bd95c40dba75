"""`clean: prox` through the whole pipeline: a model of the same run cuts planted noise, and pages of noise alone go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import Page, page, pages
from small_corpus import mixed, rows

from pipelines import shards, steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from sql.views import query
from transforms.programs import STATUSES

FIT = {"method": "refiner", "keep": "keep", "drop": "drop", "group": "host", "trees": 40}
NOISE = "\n".join(["Home", "Contact", "Newsletter", "Sign in", "Search", "Imprint", "Share on Facebook", "Tweet"] * 3)


def corpus() -> list[Page]:
    bare = Page(NOISE, list(range(24)), [], [], "noise.example")
    return [*pages(90), bare, bare._replace(text=NOISE + "\nShop", noise=list(range(25)))]


CORPUS = corpus()
DROPPED = {"00090", "00091"}


def place(folder: Path, given: list[Page], order: list[int], count: int, group: int) -> Path:
    (folder / "web").mkdir(parents=True, exist_ok=True)
    for k in range(count):
        mine = [given[i] for i in order[k::count]]
        table = {
            "id": [f"{i:05d}" for i in order[k::count]],
            "text": [p.text for p in mine],
            "keep": pa.array([p.keep for p in mine], pa.list_(pa.string())),
            "drop": pa.array([p.drop for p in mine], pa.list_(pa.string())),
            "host": [p.host for p in mine],
        }
        pq.write_table(pa.table(table), folder / "web" / f"{k}.parquet", row_group_size=group)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("prox"), CORPUS, list(range(len(CORPUS))), 2, 20)


def recipe(folder: Path, tokenizer: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "name": "prox", "sources": {"web": f"{folder}/web/*.parquet"}, "fit": {"noise": FIT}, "mix": {"all": {}},
        "clean": {"prox": {"model": "fit:noise"}}, "tokenizer": str(tokenizer),
    }  # fmt: skip
    return {**base, **changes}


@pytest.fixture(scope="module")
def plain(folder: Path, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain")
    return out, run(parse(recipe(folder, toy_tokenizer)), str(out))


def cuts(out: Path) -> dict[str, Any]:
    return {row["id"]: row["prox"] for row in rows(out / "cuts" / "prox")}


def test_noise_goes_and_articles_stay(plain: tuple[Path, dict[str, Any]]) -> None:
    out, summary = plain
    left = mixed(out)
    assert summary["ledger_balanced"] and set(left) == {f"{i:05d}" for i in range(90)}
    kept = gone = noise = 0
    for i, given in enumerate(CORPUS[:90]):
        lines = given.text.split("\n")
        rest = left[f"{i:05d}"].split("\n")
        assert all(line in lines for line in rest)
        noise += len(given.noise)
        gone += len(given.noise) - sum(lines[k] in rest for k in given.noise)
        kept += sum(phrase in left[f"{i:05d}"] for phrase in given.keep)
    assert kept > 0.93 * 3 * 90 and gone > 0.9 * noise


def test_the_ledger_counts_what_was_done(plain: tuple[Path, dict[str, Any]]) -> None:
    out, summary = plain
    found = summary["ledger"]["clean:prox"]["repaired"]
    assert found == {"cut": 92, "dropped_ratio": 2, "refined": 90}
    assert summary["ledger"]["mix:all"]["dropped"] == {"emptied by cuts": 2}
    told = query(str(out), "SELECT prox.status AS status, count(*) AS n FROM documents GROUP BY 1 ORDER BY 1")
    assert told.to_pylist() == [{"status": "dropped_ratio", "n": 2}, {"status": "refined", "n": 90}]
    assert {i for i, row in cuts(out).items() if not row["keep"]} == DROPPED
    assert all(row["status"] in STATUSES for row in cuts(out).values())


def test_select_uses_what_was_dropped(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    given = recipe(folder, toy_tokenizer, select={"refined": "prox.keep"})
    summary = run(parse(given), str(tmp_path), until="mix")
    assert summary["ledger"]["select"]["dropped"] == {"refined": 2}


def test_where_names_the_documents_that_are_cleaned(
    plain: tuple[Path, dict[str, Any]], folder: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    model = str(plain[0] / "models" / "noise")
    prox = {"model": model, "where": "id IN ('00003', '00090')", "keep": 0.9}
    run(parse(recipe(folder, toy_tokenizer, clean={"prox": prox}, fit={})), str(tmp_path), until="mix")
    found = cuts(tmp_path)
    assert {i for i, row in found.items() if row["status"]} == {"00003", "00090"}
    assert all(row["keep"] is None and not row["spans"] for row in found.values() if row["status"] is None)
    assert len(mixed(tmp_path)) == 91


def test_workers_shards_and_splits_change_nothing(
    plain: tuple[Path, dict[str, Any]],
    folder: Path,
    toy_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(parse(recipe(folder, toy_tokenizer)), str(tmp_path / "two"), until="score")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    run(parse(recipe(folder, toy_tokenizer)), str(tmp_path / "two"), workers=2, until="clean")
    assert cuts(tmp_path / "two") == cuts(plain[0])
    turned = place(tmp_path / "turned", CORPUS, list(range(len(CORPUS)))[::-1], 3, 9)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 4000)
    run(parse(recipe(turned, toy_tokenizer)), str(tmp_path / "one"), until="mix")
    assert cuts(tmp_path / "one") == cuts(plain[0]) and mixed(tmp_path / "one") == mixed(plain[0])


def test_a_second_run_computes_nothing_and_a_new_model_all(
    plain: tuple[Path, dict[str, Any]], folder: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    first = run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), until="clean")["ledger"]
    again = run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), until="clean")["ledger"]
    assert first["clean:prox"]["reused"] == 0 and again["clean:prox"]["reused"] == again["clean:prox"]["splits"]
    other = recipe(folder, toy_tokenizer, fit={"noise": {**FIT, "trees": 41}})
    assert run(parse(other), str(tmp_path), until="clean")["ledger"]["clean:prox"]["reused"] == 0
    asked = recipe(folder, toy_tokenizer, clean={"prox": {"model": "fit:noise", "keep": 0.9}}, fit=other["fit"])
    assert run(parse(asked), str(tmp_path), until="clean")["ledger"]["clean:prox"]["reused"] == 0


def test_beside_other_methods(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """The refiner reads texts as admitted, whatever the others cut; what is left is what none of them cuts."""
    both = recipe(folder, toy_tokenizer, clean={"prox": {"model": "fit:noise"}, "c4": {}}, dedupe={"exact": {}})
    run(parse(both), str(tmp_path), until="mix")
    for i, text in mixed(tmp_path).items():
        assert all(line in CORPUS[int(i)].text and line[-1] in ".?!" for line in text.split("\n"))


@pytest.mark.parametrize(
    ("prox", "message"),
    [
        ({}, "give a light `model`, an `engine` that writes programs or `documents`; none is given"),
        ({"model": "nowhere"}, "clean.prox.model: no refiner at nowhere"),
        ({"model": "fit:nose"}, "clean.prox.model: 'fit:nose' is not under fit; did you mean 'noise'"),
        ({"model": "fit:terms"}, "makes a model for safety, not for prox"),
        ({"model": "fit:noise", "shart": 3}, "clean.prox.shart: no such key; did you mean 'short'"),
        ({"model": "fit:badly"}, "fit.badly.group: "),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, prox: dict[str, Any], message: str
) -> None:
    fits = {"noise": FIT, "terms": {"method": "terms", "positives": "true"}, "badly": {**FIT, "group": "hast"}}
    given = recipe(folder, toy_tokenizer, clean={"prox": prox}, fit=fits)
    with pytest.raises(RecipeError) as error:
        run(parse(given), str(tmp_path / "run"))
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_planted_pages_are_what_they_say() -> None:
    import numpy as np

    one = page(np.random.default_rng(1), "h.example")
    lines = one.text.split("\n")
    assert all(any(phrase in lines[i] for i in range(len(lines)) if i not in one.noise) for phrase in one.keep)
    assert all(lines.index(phrase) in one.noise for phrase in one.drop)
