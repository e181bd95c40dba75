"""Decontamination through the whole pipeline: planted items are all named, whatever the workers and order of shards."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import documents, write
from typer.testing import CliRunner

from pipelines import steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run


def questions(count: int) -> list[str]:
    draw = np.random.default_rng(5)
    letters = [chr(97 + c) for c in range(26)]
    return [" ".join("".join(draw.choice(letters, 5)) for _ in range(int(draw.integers(8, 30)))) for _ in range(count)]


ITEMS = questions(40)
CLEAN = documents(120, seed=1)


def place(folder: Path) -> Path:
    """Two shards; every third document of the first 120 holds an item in its middle, in capitals."""
    texts = [f"{text}\n{ITEMS[i // 3].upper()}!\n{text}" if i % 3 == 0 else text for i, text in enumerate(CLEAN[:120])]
    ids = [f"{i * 7919 % 100_003:06d}" for i in range(len(texts))]
    for k in range(2):
        write(folder / "web" / f"{k}.parquet", texts[k::2], ids[k::2], group=20)
    with (folder / "items.jsonl").open("w") as file:
        for i, text in enumerate([*ITEMS, "far too short"]):
            first, _, rest = text.partition(" ")
            file.write(json.dumps({"id": i, "first": first, "rest": rest}) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("decontaminate"))


def recipe(folder: Path, shards: list[str] | None = None, **parameters: Any) -> dict[str, Any]:
    given = {"items": str(folder / "items.jsonl"), "columns": ["first", "rest"], **parameters}
    return {
        "name": "clean",
        "sources": {"web": shards or f"{folder}/web/*.parquet"},
        "score": {"decontaminate": given},
        "select": {"unseen": "decontaminate.overlap = 0"},
    }


def found(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for p in sorted((out / "scores").rglob("*.parquet")) for row in pq.ParquetFile(p).read().to_pylist()]
    return {row["id"]: row["decontaminate"] for row in rows}


def test_every_planted_item_is_found_and_dropped(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "corpusmill"):
        summary = run(parse(recipe(folder)), str(tmp_path), until="select")
    (warning,) = [r.getMessage() for r in caplog.records if "not looked for" in r.getMessage()]
    assert "1 of 41 items have fewer than 8 words" in warning and warning.endswith(": 40")
    assert summary["ledger"]["select"]["dropped"] == {"unseen": 40} and summary["ledger_balanced"]
    rows = found(tmp_path)
    for i in range(120):
        row = rows[f"{i * 7919 % 100_003:06d}"]
        if i % 3:
            assert row == {"overlap": 0.0, "matches": []}
            continue
        (match,) = row["matches"]
        assert (match["item"], match["share"]) == (str(i // 3), 1.0) and 0 < row["overlap"] < 1
        assert match["ngram"] == " ".join(ITEMS[i // 3].upper().split()[:13])


def test_workers_and_order_of_shards_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(parse(recipe(folder)), str(tmp_path / "one"), until="select")
    shards = [str(folder / "web" / f"{k}.parquet") for k in (1, 0)]
    run(parse(recipe(folder, shards)), str(tmp_path / "turned"), until="select")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    run(parse(recipe(folder)), str(tmp_path / "two"), workers=2, until="select")
    assert found(tmp_path / "one") == found(tmp_path / "turned") == found(tmp_path / "two")


def test_other_items_are_looked_for_again_and_the_same_are_not(folder: Path, tmp_path: Path) -> None:
    items = tmp_path / "evaluation"
    items.mkdir()
    pq.write_table(pa.table({"text": ITEMS[:10]}), items / "one.parquet")
    given = recipe(folder, items=str(items), columns=["text"])
    assert run(parse(given), str(tmp_path / "run"), until="select")["ledger"]["select"]["dropped"] == {"unseen": 10}
    matches = [row["matches"][0]["item"] for row in found(tmp_path / "run").values() if row["matches"]]
    assert sorted(matches) == [f"one:{i}" for i in range(10)], "file and row name items that have no id"
    again = run(parse(given), str(tmp_path / "run"), until="select")["ledger"]
    assert again["scores:decontaminate"]["reused"] == again["scores:decontaminate"]["splits"]
    pq.write_table(pa.table({"text": ITEMS[10:30]}), items / "two.parquet")
    changed = run(parse(given), str(tmp_path / "run"), until="select")["ledger"]
    assert changed["scores:decontaminate"]["reused"] == 0 and changed["select"]["dropped"] == {"unseen": 30}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": "nowhere.jsonl"}, "no evaluation items at nowhere.jsonl"),
        ({"columns": ["question"]}, "no text column 'question'; its columns are id, first, rest"),
        ({"columns": ["id"]}, "column 'id' is int64"),
        ({"n": 5}, "shortest=8 is more than n=5"),
    ],
)
def test_mistakes_are_told_before_any_work(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=r"score\.decontaminate") as error:
        run(parse(recipe(folder, **change)), str(tmp_path / "run"))
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_the_command_line_exits_with_2(folder: Path, tmp_path: Path) -> None:
    from pipelines.cli import app

    shutil.copy(folder / "items.jsonl", tmp_path / "broken.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"first": "a", \n')
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(folder, items=str(tmp_path / "broken.jsonl"))))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
