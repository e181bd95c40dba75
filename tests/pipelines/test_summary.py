"""The summary: what it says of a run that was left early, of a run that read nothing, and of a changed recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines import summary as module
from pipelines.recipe import parse
from pipelines.run import Run, run


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "books").mkdir()
    texts = [f"Document {k} tells of {k % 5} rivers and of the stones in them." for k in range(40)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "books/0.parquet")
    return {
        "name": "r",
        "sources": {"books": f"{tmp_path}/books/*.parquet"},
        "score": {"fineweb": {}},
        "dedupe": {"exact": {}},
        "select": {"long": "bytes >= quantile(bytes, 0.5)"},
    }


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_a_scorer_more_leaves_what_later_steps_told(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(parse(parts), str(folder), until="select")
    trained = {**summary_of(folder), "heldout_loss": {"a": {"mean": 1.5}}, "mixture_digest": "d", "documents_out": 7}
    (folder / "summary.json").write_text(json.dumps({**trained, "report": "old.html"}))
    more = {**parts, "score": {"fineweb": {}, "gopher_quality": {}}}
    for _ in range(2):  # the second time carries over what was carried over
        run(parse(more), str(folder), until="score")
        held = summary_of(folder)
        assert (held["heldout_loss"], held["mixture_digest"]) == ({"a": {"mean": 1.5}}, "d")
        assert held["documents_out"] == 7 and "report" not in held
        assert held["thresholds"] == first["thresholds"] != {}
        assert held["ledger"]["select"] == first["ledger"]["select"]
        assert "scores:gopher_quality" in held["ledger"]


@pytest.mark.parametrize("change", ["select", "score", "shards", "hidden"])
def test_what_no_longer_holds_is_not_carried_over(parts: dict[str, Any], tmp_path: Path, change: str) -> None:
    folder = tmp_path / "run"
    if change == "hidden":
        shard = pq.read_table(tmp_path / "books/0.parquet")
        pq.write_table(shard.append_column("c4", pa.array(range(40))), tmp_path / "books/0.parquet")
    run(parse(parts), str(folder), until="select")
    changed = {
        "select": {**parts, "select": {"long": "bytes > 10"}},
        "score": {**parts, "score": {"gopher_quality": {}}},
        "hidden": {**parts, "score": {"fineweb": {}, "c4": {}}},
        "shards": parts,
    }[change]
    if change == "shards":
        pq.write_table(pa.table({"text": ["Another text."]}), tmp_path / "books/1.parquet")
    run(parse(changed), str(folder), until="score")
    assert summary_of(folder)["thresholds"] == {} and "select" not in summary_of(folder)["ledger"]


def test_balance_is_computed(parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Run(parse(parts), str(tmp_path / "run"))
    job.start()
    assert module.summarise(job)["ledger_balanced"] is None
    job.score()
    assert module.summarise(job)["ledger_balanced"] is True
    job.context.records["scores:fineweb"][0].rows_in -= 1
    broken = module.summarise(job)
    assert broken["ledger_balanced"] is False
    module.show(broken)
    assert "NOT balanced" in capsys.readouterr().out


def test_nothing_read_is_not_balanced(
    parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books/0.parquet").write_bytes(b"PAR1 this is none")
    made = run(parse(parts), str(tmp_path / "run"), until="score")
    assert made["ledger_balanced"] is None
    module.show(made)
    printed = capsys.readouterr().out
    assert "nothing was read" in printed and "balanced" not in printed


def test_tokens_are_told_for_every_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    mixtures = {
        "small": {"asked": {"books": 1000}, "epochs": {"books": 0.5}},
        "repeated": {"asked": {"books": 7000, "forum": 20}, "epochs": {"books": 3.5, "forum": 1.0}},
        "heldout": {"asked": {"books": 10}, "epochs": {"books": 1.0}},
    }
    sources = {"books": {"before": 2000, "after": 1000}, "forum": {"before": 20, "after": 0}}
    Console(width=120).print(module._token_table(sources, mixtures))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["books", "2,000", "1,000", "7,000 (3.5 epochs)"] in rows and ["forum", "20", "0", "20"] in rows
