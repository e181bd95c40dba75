"""Cleaning through the whole pipeline: planted lines and passages go, nothing else does, whatever workers and order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import mixed, place, rows, write

from pipelines import clean, shards, steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from pipelines.shares import MixError
from sql.views import query
from transforms.cut import Cuts, union

FOOTER = "Accept all cookies to go on reading this page"
RARE = "This line stands in four documents and may well stay there"
PASSAGE = " ".join(f"passage{i}" for i in range(40))


def corpus() -> list[tuple[str, str]]:
    """(text, what is to be left of it). Document i's id is i in five digits, so the first is the first."""
    draw = np.random.default_rng(2)
    letters = [chr(97 + c) for c in range(26)]

    def prose(words: int) -> str:
        return " ".join("".join(draw.choice(letters, 6)) for _ in range(words))

    made = []
    for i in range(60):
        first, second = prose(30), prose(20)
        if i < 4:
            made.append((f"{first}\n{RARE}\n{second}",) * 2)
        elif i < 20:  # spaced differently: white space is folded
            made.append((f"{first}\n{FOOTER.replace(' ', ' ' * (1 + i % 2))}\n{second}", f"{first}\n{second}"))
        elif i == 20:
            made.append((f"{first}\n{PASSAGE} {second}",) * 2)
        elif i < 24:
            made.append((f"{first}\n{PASSAGE} {second}", f"{first}\n{second}"))
        elif i == 24:  # neither method alone leaves nothing
            made.append((f"{FOOTER}\n\n{PASSAGE}\n", ""))
        elif i == 25:
            made.append((f"\n \n{FOOTER}\n", ""))
        else:
            made.append((f"{first}\n}}\n{second}",) * 2)  # a line too short to be cut
    return made


CORPUS = corpus()
TEXTS = [text for text, _ in CORPUS]
IDS = [f"{i:05d}" for i in range(len(CORPUS))]
CLEAN = {"substring": {"tokens": 20}, "lines": {"count": 10}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("clean"), TEXTS, list(range(len(CORPUS))), 3, 8)


def recipe(folder: Path, tokenizer: Path, **changes: Any) -> dict[str, Any]:
    base = {"name": "clean", "sources": {"web": f"{folder}/web/*.parquet"}, "clean": CLEAN, "mix": {"all": {}}}
    return {**base, "tokenizer": str(tokenizer), **changes}


def spans(out: Path) -> dict[str, dict[str, Any]]:
    return {name: {r["id"]: r[name] for r in rows(out / "cuts" / name)} for name in ("lines", "substring")}


@pytest.fixture(scope="module")
def plain(folder: Path, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain")
    return out, run(parse(recipe(folder, toy_tokenizer)), str(out))


def test_planted_text_goes_and_nothing_else(plain: tuple[Path, dict[str, Any]]) -> None:
    out, summary = plain
    assert summary["ledger_balanced"] and not (out / "scratch" / "lines").exists()
    assert mixed(out) == {i: left for i, (_, left) in zip(IDS, CORPUS, strict=True) if left}
    assert summary["ledger"]["mix:all"]["dropped"] == {"emptied by cuts": 2}
    assert summary["ledger"]["clean:lines"]["repaired"] == {"cut": 18}
    assert summary["ledger"]["clean:substring"]["repaired"] == {"cut": 4}
    found = query(str(out), "SELECT count(*) FROM documents WHERE lines.removed > 0")
    assert found.column(0).to_pylist() == [18]
    steps = query(str(out), "SELECT DISTINCT step FROM ledger").column(0).to_pylist()
    assert {"clean:lines", "clean:substring"} <= set(steps)


def test_spans_are_bytes_of_the_text_as_it_was(plain: tuple[Path, dict[str, Any]]) -> None:
    found = spans(plain[0])
    for i, (text, left) in zip(IDS, CORPUS, strict=True):
        data, gone = text.encode(), set()
        for method in found.values():
            own = [place for s in method[i]["spans"] for place in range(s["start"], s["end"])]
            assert len(own) == len(set(own)) == method[i]["removed"]
            gone.update(own)
        assert bytes(b for place, b in enumerate(data) if place not in gone).decode() == left


def test_tokens_are_those_of_the_text_that_is_left(plain: tuple[Path, dict[str, Any]], toy_tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    for row in rows(plain[0] / "mixtures" / "all"):
        assert row["tokens"] == len(tokenizer.encode(row["text"], add_special_tokens=False).ids) + 1


def test_exports_hold_the_text_that_is_left(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app

    given = {"name": "clean", "sources": {"web": f"{folder}/web/*.parquet"}, "clean": CLEAN}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    command = ["export", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    exported = {row["id"]: row["text"] for row in rows(tmp_path / "out")}
    assert exported == {i: left for i, (_, left) in zip(IDS, CORPUS, strict=True) if left}


def test_fits_see_the_text_that_is_left(folder: Path, tmp_path: Path) -> None:
    fit = {"tokenizer": {"method": "tokenizer", "vocabulary": 300, "megabytes": 1}}
    given = recipe(folder, tmp_path) | {"tokenizer": "fit:tokenizer", "fit": fit, "holdout": None}
    run(parse(given), str(tmp_path), until="mix")
    sample = {row["id"]: row["text"] for row in rows(tmp_path / "samples")}
    assert sample == mixed(tmp_path) and not any(FOOTER in text for text in sample.values())


def test_other_shards_and_splits_change_nothing(
    plain: tuple[Path, dict[str, Any]],
    folder: Path,
    toy_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turned = place(tmp_path / "turned", TEXTS, list(range(len(CORPUS)))[::-1], 2, 7)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 2000)
    monkeypatch.setattr(clean, "PIECES", 20)
    monkeypatch.setattr(clean, "SHUFFLE_ROWS", 30)
    run(parse(recipe(turned, toy_tokenizer)), str(tmp_path / "run"), until="mix")
    assert spans(tmp_path / "run") == spans(plain[0]) and mixed(tmp_path / "run") == mixed(plain[0])


def test_two_worker_processes(
    plain: tuple[Path, dict[str, Any]],
    folder: Path,
    toy_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), until="score")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), workers=2, until="clean")
    assert spans(tmp_path) == spans(plain[0])


def test_a_second_run_computes_nothing_and_another_count_the_rest(
    folder: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), until="mix")
    again = run(parse(recipe(folder, toy_tokenizer)), str(tmp_path), until="mix")["ledger"]
    assert all(step["reused"] == step["splits"] for step in again.values())
    other = recipe(folder, toy_tokenizer, clean={"lines": {"count": 3}})
    changed = run(parse(other), str(tmp_path), until="mix")["ledger"]
    assert changed["scores:tokens"]["reused"] == changed["mix:all"]["reused"] == 0
    assert not any(RARE in text or FOOTER in text for text in mixed(tmp_path).values())


def test_a_copy_that_dedupe_drops_takes_no_text_from_the_one_that_stays(toy_tokenizer: Path, tmp_path: Path) -> None:
    """The lowest id would be the first occurrence; dedupe keeps the longer copy."""
    short = CORPUS[30][0]
    write(tmp_path / "web" / "0.parquet", [short, short.replace(" ", "  ")], ["0", "1"])
    given = recipe(tmp_path, toy_tokenizer, dedupe={"exact": {}}, select={"unique": "exact.keep"})
    run(parse(given), str(tmp_path / "run"), until="mix")
    assert mixed(tmp_path / "run") == {"1": short.replace(" ", "  ")}
    given["clean"] = {"substring": {"tokens": 20, "where": "true"}}
    with pytest.raises(MixError, match="no document satisfies"):
        run(parse(given), str(tmp_path / "run"), until="mix")


def test_paragraphs(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    texts = [f"unlike {i} the others\n\n{FOOTER}\nand more\n\nthe end of {i} at last" for i in range(6)]
    write(tmp_path / "web" / "0.parquet", texts)
    given = recipe(tmp_path, toy_tokenizer, clean={"lines": {"count": 5, "unit": "paragraph"}})
    run(parse(given), str(tmp_path / "run"), until="mix")
    assert set(mixed(tmp_path / "run").values()) == {text.replace(f"{FOOTER}\nand more\n\n", "") for text in texts}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lime": {}}, "clean.lime: no such method; did you mean 'lines'"),
        ({"lines": {"counts": 3}}, "clean.lines.counts: no such key; did you mean 'count'"),
        ({"lines": {"where": "nothing.keep"}}, "clean.lines.where: "),
    ],
)
def test_mistakes_are_told_before_any_work(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        run(parse(recipe(folder, toy_tokenizer, clean=given)), str(tmp_path / "run"))
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_a_corpus_too_large_for_substring(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "SUBSTRING_BYTES", 1000)
    with pytest.raises(RecipeError, match=r"clean\.substring: the corpus has [0-9,]+ bytes of text, .* at most 1,000"):
        run(parse(recipe(folder, toy_tokenizer)), str(tmp_path))
    assert not (tmp_path / "index").exists()
    run(parse(recipe(folder, toy_tokenizer, clean={"lines": {}})), str(tmp_path), until="clean")


def cuts_of(sets: list[set[int]]) -> Cuts:
    """Maximal runs of places."""
    found = [[(a, a) for a in sorted(s) if a - 1 not in s] for s in sets]
    ends = [[b + 1 for b in sorted(s) if b + 1 not in s] for s in sets]
    start = np.array([a for spans in found for a, _ in spans], np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(spans) for spans in found])]).astype(np.int64)
    return Cuts(start, np.array([e for row in ends for e in row], np.int64), offsets)


@given(st.lists(st.tuples(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20))), max_size=4))
def test_union_equals_that_of_sets(pairs: list[tuple[set[int], set[int]]]) -> None:
    found = union(cuts_of([a for a, _ in pairs]), cuts_of([b for _, b in pairs]))
    for mine, wanted in zip(found, cuts_of([a | b for a, b in pairs]), strict=True):
        assert np.array_equal(mine, wanted)
