"""DataMan through a run: selection by cells of source and domain as published, and raters fitted, asked and counted."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_corpus import write
from toy_ratings import QUICK, simple
from toy_server import ToyServer
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import parse
from pipelines.run import run
from sql.views import query
from transforms.ratings import DOMAINS, RATINGS

SHARE = "0.3"
MARGIN = Fraction(1, 10)
CELLS = f"top_k(rating, share := {SHARE}, weight := n, by := source || ' ' || domain)"


class Document(NamedTuple):
    id: str
    source: str
    domain: str
    rating: int
    n: int  # tokens
    draw: int = 0


def documents() -> list[Document]:
    """Two sources, three domains; most ratings are 4 and 5. In one cell the best documents are very short."""
    draw = np.random.default_rng(2)
    found = []
    for k in range(400):
        source, domain = ("web", "books")[k % 3 == 0], "ACH"[int(draw.integers(3))]
        rating = int(draw.choice([1, 2, 3, 4, 5], p=[0.05, 0.05, 0.1, 0.4, 0.4]))
        short = (source, domain) == ("books", "H") and rating == 5
        found.append(
            Document(f"d{k * 7919 % 1009}", source, domain, rating, 3 if short else int(draw.integers(20, 400)))
        )
    return found


DOCUMENTS = documents()


def place(folder: Path, order: list[int], shards: int) -> Path:
    for source in ("web", "books"):
        mine = [DOCUMENTS[i] for i in order if DOCUMENTS[i].source == source]
        for k in range(shards):
            rows = [(d.id, f"text {d.id}", d.domain, d.rating, d.n) for d in mine[k::shards]]
            columns = dict(zip(("id", "text", "domain", "rating", "n"), zip(*rows, strict=True), strict=True))
            write(folder / source / f"{k}.parquet", {name: list(values) for name, values in columns.items()})
    return folder


def selected(folder: Path, out: Path) -> list[tuple[Document, bool]]:
    sources = {name: f"{folder}/{name}/*.parquet" for name in ("web", "books")}
    run(parse({"name": "cells", "sources": sources, "select": {"best": CELLS}}), str(out), until="select")
    columns = "id, source, domain, rating, n, draw"
    rows = query(str(out), f"SELECT {columns}, selection.keep AS keep FROM documents").to_pylist()
    return [(Document(*(row[name] for name in Document._fields)), row["keep"]) for row in rows]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Document, bool]]:
    folder = tmp_path_factory.mktemp("cells")
    return selected(place(folder, list(range(400)), 2), folder / "run")


def published(cell: list[Document], quota: int) -> tuple[list[Document], bool]:
    """Of one cell, in the order of a sort by rating with ties shuffled: the shortest prefix that reaches the quota,
    among the documents that the margin lets in; and whether these reach it, else some of them would be drawn again."""
    total = sum(d.n for d in cell)
    ordered = sorted(cell, key=lambda d: (-d.rating, d.draw))
    within = ordered[: ceil(len(cell) * (Fraction(quota, total) + MARGIN))]
    sums = np.cumsum([d.n for d in within])
    if sums[-1] < quota:
        return within, False
    return within[: int(np.argmax(sums >= quota)) + 1], True


def test_cells_get_what_the_published_procedure_gives_them(chosen: list[tuple[Document, bool]]) -> None:
    cells: dict[tuple[str, str], list[tuple[Document, bool]]] = defaultdict(list)
    for document, keep in chosen:
        cells[document.source, document.domain].append((document, keep))
    total = sum(d.n for d, _ in chosen)
    budget = Fraction(SHARE) * total
    assert len(cells) == 6 and len(chosen) == 400
    unreached = []
    for (source, domain), cell in cells.items():
        of_source = sum(d.n for d, _ in chosen if d.source == source)
        of_cell = sum(d.n for d, _ in cell)
        quota = floor(floor(budget * of_source / total) * Fraction(of_cell, of_source))
        ours = [d for d, keep in sorted(cell, key=lambda row: (-row[0].rating, row[0].draw)) if keep]
        ordered = sorted((d for d, _ in cell), key=lambda d: (-d.rating, d.draw))
        assert ours == ordered[: len(ours)], "the best, and of those rated alike by draw"
        taken = sum(d.n for d in ours)
        assert 0 <= taken - Fraction(SHARE) * of_cell < max(d.n for d, _ in cell)
        assert quota <= Fraction(SHARE) * of_cell < quota + 2, "rounding twice loses less than two tokens"
        theirs, reached = published([d for d, _ in cell], quota)
        if not reached:  # they would repeat documents; here the next best follow
            unreached.append((source, domain))
            assert theirs == ours[: len(theirs)] and len(ours) > len(theirs)
        elif sum(d.n for d in theirs) >= Fraction(SHARE) * of_cell:
            assert ours == theirs
        else:
            assert ours[:-1] == theirs
    assert unreached == [("books", "H")]


def test_cells_do_not_depend_on_shards(chosen: list[tuple[Document, bool]], tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(400).tolist()
    again = selected(place(tmp_path, order, 5), tmp_path / "run")
    assert {d.id for d, keep in again if keep} == {d.id for d, keep in chosen if keep}


def test_ties_do_not_favour_what_stands_first(chosen: list[tuple[Document, bool]]) -> None:
    """Of the documents with the rating at which a cell ends, those that are kept stand all over its shards."""
    place_of = {d.id: k for k, d in enumerate(DOCUMENTS)}
    places: list[float] = []
    for cell in {(d.source, d.domain) for d, _ in chosen}:
        mine = [(d, keep) for d, keep in chosen if (d.source, d.domain) == cell]
        last = min(d.rating for d, keep in mine if keep)
        tied = sorted((place_of[d.id], keep) for d, keep in mine if d.rating == last)
        places += [k / (len(tied) - 1) for k, (_, keep) in enumerate(tied) if keep]
    assert len(places) > 60 and 0.4 < np.mean(places) < 0.6 and np.std(places) > 0.2


# With a rater


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """280 documents with planted ratings in two shards; one of them repeats another, one is nothing but an image."""
    folder, draw = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    docs = [simple(draw) for _ in range(280)]
    texts = [d.text for d in docs]
    texts[200], texts[201] = texts[199], "![](a.png)\n"
    for k in range(2):
        columns = {"id": [f"d{i}" for i in range(280)], "text": texts, "domain": [d.domain for d in docs]}
        columns["ratings"] = [d.ratings for d in docs]  # type: ignore[assignment]
        write(folder / "corpus" / f"{k}.parquet", {name: values[k::2] for name, values in columns.items()})
    (folder / "prompts.yaml").write_text("prompts: {all_rating: 'Rate: {text}'}")
    return folder


def copies(corpus: Path) -> int:
    texts = [text for k in range(2) for text in pq.read_table(corpus / "corpus" / f"{k}.parquet")["text"].to_pylist()]
    return len(texts) - len({*texts})


@pytest.fixture(scope="module")
def fitted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that fits a rater on some documents and rates all."""
    rater = {"method": "dataman", "ratings": "ratings", "domain": "domain", "prompts": f"{corpus}/prompts.yaml"}
    given = {
        "name": "rated",
        "sources": {"corpus": f"{corpus}/corpus/*.parquet"},
        "fit": {"rater": {**rater, "where": "text NOT LIKE '![]%'", "lesson": QUICK}},
        "score": {"dataman": {"engine": {"model": "fit:rater"}}},
        "select": {"good": "dataman.overall_score >= 4"},
    }
    out = tmp_path_factory.mktemp("rated")
    return out, run(parse(given), str(out), until="select")


def test_a_fitted_rater_rates_in_the_same_run(fitted: tuple[Path, dict[str, Any]], corpus: Path) -> None:
    out, summary = fitted
    card = json.loads((out / "models" / "rater" / "card.json").read_text())
    assert card["documents"]["shown as another"] == copies(corpus) > 0 and card["holdout"]["overall_score"] >= 0.9
    rows = query(
        str(out),
        "SELECT id, ratings[14] AS truth, domain AS letter, dataman AS said, selection.keep AS keep FROM documents",
    )
    found = {row["id"]: row for row in rows.to_pylist()}
    assert found.pop("d201")["said"]["status"] == "nothing to rate" and found["d200"]["said"] == found["d199"]["said"]
    found.pop("d200")
    assert np.mean([row["said"]["overall_score"] == row["truth"] for row in found.values()]) >= 0.9
    assert np.mean([row["said"]["domain"] == DOMAINS[row["letter"]] for row in found.values()]) >= 0.9
    assert all(row["keep"] == (row["said"]["overall_score"] >= 4) for row in found.values())
    assert summary["ledger_balanced"]
    counts = query(str(out), "SELECT repaired FROM ledger WHERE step = 'scores:dataman'").to_pylist()
    assert [dict(row["repaired"]) for row in counts if row["repaired"]] == [{"nothing to rate": 1}]


def test_the_bundled_recipe(
    fitted: tuple[Path, dict[str, Any]], corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """With a released rater's folder it would need DATAMAN_PROMPTS; a fitted one brings its own."""
    monkeypatch.setenv("CORPUS", f"{corpus}/corpus/*.parquet")
    monkeypatch.delenv("DATAMAN_MODEL", raising=False)
    where = ("run", "dataman", "--run", str(tmp_path / "run"), "--until", "mix", "--json")
    failed = CliRunner().invoke(app, list(where))
    assert failed.exit_code == 2 and "score.dataman.engine.model: set the environment variable DATAMAN_MODEL" in (
        failed.output
    )
    monkeypatch.setenv("DATAMAN_MODEL", str(fitted[0] / "models" / "rater"))
    done = CliRunner().invoke(app, list(where))
    assert done.exit_code == 0, done.output
    columns = "dataman.domain AS domain, dataman.overall_score AS rating, tokens.count AS n, draw, selection"
    rows = query(str(tmp_path / "run"), f"SELECT {columns} FROM documents").to_pylist()
    reasons = [row["selection"]["reason"] for row in rows]
    assert reasons.count("unique") == copies(corpus) and reasons.count("rated") == 1
    cells = defaultdict(list)
    for row in rows:
        if row["selection"]["reason"] in (None, "best"):
            cells[row["domain"]].append(row)
    assert len(cells) == 3
    for cell in cells.values():
        ordered = sorted(cell, key=lambda row: (-row["rating"], row["draw"]))
        kept = [row["selection"]["keep"] for row in ordered]
        taken = sum(row["n"] for row in cell if row["selection"]["keep"])
        assert kept == sorted(kept, reverse=True), "the best of the domain"
        assert 0 <= taken - 0.1 * sum(row["n"] for row in cell) < max(row["n"] for row in cell)


def test_a_teacher_rates_what_a_rater_learns_from(toy_tokenizer: Path, tmp_path: Path) -> None:
    """A large model behind a server, whose fractions are rounded, and that fails once. A second run asks nothing."""
    draw = np.random.default_rng(1)
    docs = {d.text: d for d in (simple(draw) for _ in range(41))}
    failing = min(docs)

    def reply(prompt: str) -> tuple[str, str]:
        text = prompt.rpartition("Text: ")[2]
        given = [r + 0.5 if r < 3 else r - 0.5 * (r > 3) for r in docs[text].ratings]
        scores = [f"[{k}] {name}: {r}/5" for k, (name, r) in enumerate(zip(RATINGS, given, strict=True), 1)]
        return "\n".join([*scores[text == failing :], f"Domain: [{docs[text].domain}]"]), "stop"

    write(tmp_path / "in" / "a.parquet", {"text": [*docs]})
    with ToyServer(reply=reply) as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "teacher"}
        teacher = {"scorer": "dataman", "mode": "step_by_step", "engine": engine, "tokenizer": str(toy_tokenizer)}
        size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        lesson = {"epochs": 1, "vocabulary": 600, "train": {"row_length": 512, "model": size}}
        labels = {"ratings": "teacher", "domain": "teacher.domain", "where": "teacher.status = 'ok'"}
        recipe = parse(
            {
                "name": "taught",
                "sources": {"web": f"{tmp_path}/in/*.parquet"},
                "score": {"teacher": teacher},
                "fit": {"rater": {"method": "dataman", **labels, "lesson": lesson}},
            }
        )
        out = tmp_path / "run"
        summary = run(recipe, str(out), until="fit")
        assert summary["ledger"]["scores:teacher"]["repaired"] == {"not 14 scores in order": 1}
        for row in query(str(out), "SELECT text, teacher FROM documents").to_pylist():
            said = [row["teacher"][name] for name in RATINGS]
            assert said == ([None] * 14 if row["text"] == failing else docs[row["text"]].ratings)
        card = json.loads((out / "models" / "rater" / "card.json").read_text())
        assert card["documents"]["learned"] + card["documents"]["held out"] == len(docs) - 1
        shutil.rmtree(out / "scores")
        run(recipe, str(out), until="fit")
        assert len(server.seen) == len(docs), "the answers lie in the run"
