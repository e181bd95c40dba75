"""What rewriters have written, in runs after: steps before `rewrite` keep it, and the ledger tells of all of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ledger, shards, store, unfinished
from pipelines.recipe import parse
from pipelines.report import write_report
from pipelines.rewrite import RewriteSplit
from pipelines.run import Run, run
from sql.views import query

BANK = [
    f"{deed} the {thing} with care."
    for deed in ("Clean", "Store", "Paint", "Carry")
    for thing in ("kettle", "ladder", "pillow", "hammer", "basket")
]
CHATTER = ("so anyway folks welcome back", "my cousin says hello from abroad", "hit that button")
DOCUMENTS = 30  # of two shards; every fifth is chatter alone
Recipe = Callable[..., dict[str, Any]]


def text(k: int) -> str:
    said = [f"um {BANK[k % len(BANK)].lower()} okay"] if k % 5 else []
    return "\n".join([f"Note {'abcdefghijklmnopqrstuvwxyz'[k % 26] * (k // 26 + 1)}", CHATTER[k % 3], *said])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Recipe:
    work = tmp_path_factory.mktemp("corpus")
    pq.write_table(pa.table({"text": BANK, "id": [f"b{k}" for k in range(len(BANK))]}), work / "bank.parquet")
    (work / "talk").mkdir()
    for shard in range(2):
        some = range(shard, DOCUMENTS, 2)
        table = pa.table({"id": [f"d{k}" for k in some], "text": [text(k) for k in some]})
        pq.write_table(table, work / "talk" / f"{shard}.parquet")
    swap = {"rewriter": "sieve_and_swap", "bank": str(work / "bank.parquet"), "threshold": 0.3, "where": "row < 12"}

    def made(**changes: Any) -> dict[str, Any]:
        base = {
            "name": "talk",
            "sources": {"talk": f"{work}/talk/*.parquet"},
            "score": {"readability": {}},
            "dedupe": {"exact": {}},
            "clean": {"pii": {"kinds": ["email"]}},
            "fit": {"words": {"method": "tokenizer", "vocabulary": 300, "megabytes": 0.01}},
            "rewrite": {"swapped": swap},
            "tokenizer": str(toy_tokenizer),
            "select": {"unique": "exact.keep"},
            "mix": {"both": {}},
        }
        return {**base, **changes}

    return made


@pytest.fixture(scope="module")
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "talk"
    return folder, run(parse(recipe()), str(folder), until="mix")


@pytest.fixture
def done(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of a run that has come to its mixture."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


def rows(folder: Path, sql: str) -> list[dict[str, Any]]:
    return query(str(folder), sql).to_pylist()


def counts(folder: Path, what: str = "*") -> dict[str, int]:
    found = rows(folder, f"SELECT source, count({what}) AS n FROM documents GROUP BY source")
    return {row["source"]: row["n"] for row in found}


def of_ledger(folder: Path, step: str = "") -> dict[str, tuple[int, int]]:
    """In and out of every step."""
    query = f"""SELECT step, sum("in")::BIGINT AS came, sum(out)::BIGINT AS went FROM ledger
                WHERE starts_with(step, '{step}') GROUP BY step"""
    return {row["step"]: (row["came"], row["went"]) for row in rows(folder, query)}


def test_a_scorer_added_to_a_finished_run_scores_what_was_rewritten(done: Path, recipe: Recipe) -> None:
    before, told, shown = counts(done), of_ledger(done), rows(done, "SELECT count(*) AS n FROM shards")
    assert before["talk"] == DOCUMENTS and before["swapped"] > 10
    more = parse(recipe(score={"readability": {}, "gopher_quality": {}}))
    summary = run(more, str(done), until="score")
    assert (
        counts(done) == before == counts(done, "gopher_quality") == counts(done, "selection") == counts(done, "exact")
    )
    assert rows(done, "SELECT count(*) AS n FROM shards") == shown
    both = (sum(before.values()),) * 2
    assert of_ledger(done) == {**told, "scores:gopher_quality": both} and told["scores:readability"] == both
    assert summary["ledger_balanced"] and summary["ledger"]["index"]["out"] == both[0]
    assert counts(done, "swapped.pieces") == {**before, "swapped": 0}


@pytest.mark.parametrize("step", ["score", "dedupe", "clean", "fit"])
def test_steps_before_rewrite_keep_what_was_rewritten(
    step: str, done: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, told = counts(done), of_ledger(done)
    monkeypatch.setattr(RewriteSplit, "__call__", None)
    summary = run(parse(recipe()), str(done), until=step)
    assert counts(done) == before == counts(done, "tokens") and of_ledger(done) == told
    computed = [name for name, s in summary["ledger"].items() if s["reused"] < s["splits"]]
    assert summary["ledger_balanced"] and set(computed) <= {"select", "mix:both"}, "of the run before"
    again = {"words": recipe()["fit"]["words"], "more": {"method": "tokenizer", "vocabulary": 280, "megabytes": 0.01}}
    run(parse(recipe(fit=again)), str(done), until=step)  # nothing that rewriters read
    assert counts(done) == before


def test_requests_that_failed_are_not_made_again_by_a_step_before(
    done: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counts(done)
    monkeypatch.setattr(unfinished, "is_unfinished", lambda *counted: any("ok" in names for names in counted))
    monkeypatch.setattr(RewriteSplit, "__call__", None)
    run(parse(recipe()), str(done), until="score")
    assert counts(done) == before


@pytest.mark.parametrize("change", ["rewrite", "clean", "shards"])
def test_what_is_no_longer_current_is_left_out_until_it_is_made_again(
    change: str, done: Path, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, changed = counts(done), recipe()
    if change == "rewrite":
        changed["rewrite"]["swapped"] = {**changed["rewrite"]["swapped"], "threshold": 0.9}
    elif change == "clean":
        changed["clean"] = {"pii": {"kinds": ["email", "ipv4"]}}
    else:
        pq.write_table(pa.table({"id": ["x"], "text": ["another"]}), tmp_path / "more.parquet")
        changed["sources"] = {"talk": [changed["sources"]["talk"], str(tmp_path / "more.parquet")]}
    summary = run(parse(changed), str(done), until="score")
    assert counts(done) == {"talk": DOCUMENTS + (change == "shards")} and summary["ledger_balanced"]
    assert "what swapped has rewritten is not current" in caplog.text
    run(parse(recipe()), str(done), until="score")
    assert counts(done) == before


def test_one_rewriter_that_is_not_current_leaves_the_other(done: Path, recipe: Recipe) -> None:
    swap = recipe()["rewrite"]["swapped"]
    both = recipe(rewrite={"swapped": swap, "other": {**swap, "where": "row < 5"}})
    run(parse(both), str(done), until="rewrite")
    before = counts(done)
    assert before["other"] > 0
    both["rewrite"]["other"]["where"] = "row < 4"
    assert run(parse(both), str(done), until="dedupe")["ledger_balanced"]
    assert counts(done) == {name: n for name, n in before.items() if name != "other"}


def test_a_rerun_reads_no_new_document_again(
    made: tuple[Path, dict[str, Any]], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "scan", None)
    for until in ("rewrite", "score", "rewrite"):
        assert run(parse(recipe()), str(made[0]), until=until)["ledger_balanced"]


def test_new_documents_that_cannot_be_read_are_an_error(
    done: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (done / "scan.json").unlink()
    whole = store.file_digest

    def broken(path: str) -> str:
        if "/rewritten/" in path:
            raise OSError("Input/output error")
        return whole(path)

    monkeypatch.setattr(store, "file_digest", broken)
    words = (
        r"rewritten/swapped/talk/0\.parquet, which the rewriter 'swapped' has written, cannot be read: OSError: Input"
    )
    with pytest.raises(ledger.LedgerError, match=words):
        run(parse(recipe()), str(done), until="rewrite")


def test_older_signatures_are_those_of_the_recipes_sources(recipe: Recipe, tmp_path: Path) -> None:
    older = recipe(dedupe={"exact": {}, "minhash": {}}, fit={})
    run(parse(older), str(tmp_path / "older"), until="rewrite")
    given = recipe(dedupe={"minhash": {"against": str(tmp_path / "older")}}, fit={}, rewrite={}, select={})
    run(parse(given), str(tmp_path / "run"), until="dedupe")
    found = rows(tmp_path / "run", "SELECT minhash.keep AS keep, count(*) AS n FROM documents GROUP BY keep")
    assert found == [{"keep": False, "n": DOCUMENTS}]


def test_quarantine_counts_the_shards_that_the_recipe_names(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none")
    sources = {"talk": recipe()["sources"]["talk"], "bad": str(tmp_path / "bad.parquet")}
    summary = run(parse(recipe(sources=sources, quarantine=0.9)), str(tmp_path / "run"), until="rewrite")
    assert summary["shards"]["read"] == 2 and summary["shards"]["quarantined_share"] == pytest.approx(1 / 3)


def test_the_ledger_counts_documents_without_pieces(made: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = made
    (told,) = rows(
        folder,
        """SELECT count(*) FILTER (row >= 12) AS others, count(*) FILTER (row < 12 AND len(swapped.pieces) = 0) AS none,
                  count(*) FILTER (len(swapped.pieces) > 0) AS some, sum(len(swapped.pieces))::BIGINT AS pieces
           FROM documents WHERE source = 'talk'""",
    )
    counted = dict(summary["ledger"]["rewrite:swapped"]["repaired"])
    assert told["others"] == counted.pop("not chosen") == 6
    assert told["none"] == counted.pop("chosen, no piece", 0)
    assert sum(counted.values()) == told["pieces"] == summary["ledger"]["pieces:swapped"]["in"]
    assert told["others"] + told["none"] + told["some"] == DOCUMENTS


def test_pieces_that_are_lost_between_steps_are_no_balanced_ledger(done: Path, recipe: Recipe) -> None:
    job = Run(parse(recipe()), str(done))
    job.start()
    for step in ("score", "dedupe", "clean", "fit", "rewrite"):
        getattr(job, step)()
    job.balance()
    lost = job.context.records["rewrite:swapped"][1]
    lost.repaired["ok"] += 1
    n = sum(lost.repaired.values()) - lost.repaired["not chosen"] - lost.repaired.get("chosen, no piece", 0)
    words = f"talk/1: {n} pieces were let through before step pieces:swapped, which saw {n - 1}"
    with pytest.raises(ledger.LedgerError, match=words):
        job.balance()


def test_the_report_says_what_the_ledger_counts(done: Path) -> None:
    page = Path(write_report(str(done))).read_text()
    assert "Ledger, in documents, and pieces of them: in = out" in page
    assert "pieces:swapped" in page and "inherit:exact" not in page
