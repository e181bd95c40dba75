"""Rewriting in a run: new documents and their provenance, the ledger, holdout, mixing one to one, resume, mistakes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ledger
from pipelines.recipe import RecipeError, parse
from pipelines.report import write_report
from pipelines.rewrite import RewriteSplit, check_pieces
from pipelines.run import run
from sql.views import query
from transforms.rewriters import FAILED, OK, REJECTED, Piece
from transforms.rewriters.sieve_and_swap import SieveAndSwap

THINGS = ["kettle", "ladder", "pillow", "hammer", "basket", "candle", "mirror", "bucket"]
DEEDS = ["Clean the {} with warm water", "Store the {} in a dry room", "Paint the {} with a thin brush"]
BANK = [deed.format(thing) + "." for thing in THINGS for deed in DEEDS]
CHATTER = ["so anyway folks welcome back", "hit that button", "my cousin says hello from abroad"]
Run = Callable[..., dict[str, Any]]


def document(k: int) -> str:
    """Two or three lines near sentences of the bank among chatter; every seventh is chatter alone."""
    draw = random.Random(k)
    lines = draw.sample(CHATTER, 2)
    if k % 7:
        lines += [f"um {sentence.lower().rstrip('.')} okay" for sentence in draw.sample(BANK, draw.randint(2, 3))]
    return "\n".join([f"Note {'abcdefghijklmnopqrstuvwxyz'[k % 26] * (k // 26 + 1)}", *lines])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents in three shards, ten of them twice, and the bank."""
    folder = tmp_path_factory.mktemp("rewrite")
    pq.write_table(pa.table({"text": BANK, "id": [f"b{k}" for k in range(len(BANK))]}), folder / "bank.parquet")
    (folder / "talk").mkdir()
    for shard in range(3):
        numbers = [*range(shard * 20, shard * 20 + 20), *(range(10) if shard == 2 else ())]
        ids = [f"d{k}" if i < 20 else f"copy{k}" for i, k in enumerate(numbers)]
        columns = {"id": ids, "text": [document(k) for k in numbers], "token_count": numbers, "row": numbers}
        columns |= {"url": [f"http://x/{k}" for k in numbers]}
        pq.write_table(pa.table(columns), folder / "talk" / f"{shard}.parquet", row_group_size=7)
    return folder


@pytest.fixture(scope="module")
def recipe(work: Path, toy_tokenizer: Path) -> Callable[..., dict[str, Any]]:
    def made(**changes: Any) -> dict[str, Any]:
        swap = {"rewriter": "sieve_and_swap", "bank": str(work / "bank.parquet"), "threshold": 0.3}
        base = {
            "name": "talk",
            "sources": {"talk": f"{work}/talk/*.parquet"},
            "dedupe": {"exact": {}},
            "holdout": {"share": 0.2},
            "rewrite": {"swapped": swap},
            "tokenizer": str(toy_tokenizer),
            "select": {"unique": "exact.keep"},
            "mix": {"both": {}},
        }
        return {**base, **changes}

    return made


@pytest.fixture(scope="module")
def done(recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("runs") / "talk")
    return folder, run(parse(recipe()), folder, until="mix")


def rows(folder: str, sql: str) -> list[dict[str, Any]]:
    return query(folder, sql).to_pylist()


def test_new_documents_are_a_source_with_provenance_and_the_columns_of_their_parents(
    done: tuple[str, dict[str, Any]],
) -> None:
    folder, _ = done
    new = rows(folder, "SELECT * FROM documents WHERE source = 'swapped' ORDER BY id")
    old = {d["id"]: d for d in rows(folder, "SELECT * FROM documents WHERE source = 'talk'")}
    assert len(new) > 20 and len(old) == 70
    for d in new:
        parent = old[d["rewrite"]["parent"]]
        assert set(d["text"].split("\n")) <= set(BANK)
        assert d["id"] == f"{parent['id']}:swapped:0" and d["url"] == parent["url"] and d["token_count"] is None
        assert (d["rewrite"]["shard"], d["rewrite"]["row"]) == (parent["shard"], parent["row"])
        assert (d["rewrite"]["rewriter"], d["rewrite"]["status"]) == ("sieve_and_swap", OK)
        assert d["exact"] == parent["exact"] and d["holdout"] == parent["holdout"]
        assert d["swaps"]["segments"] == len(parent["text"].split("\n"))
    raw = pa.concat_tables(pq.read_table(f) for f in Path(folder, "rewritten").rglob("*.parquet"))
    assert dict(zip(raw["id"].to_pylist(), raw["row"].to_pylist(), strict=True)) == {
        d["id"]: int(d["url"].rsplit("/", 1)[1]) for d in new
    }


def test_what_is_rewritten_is_kept_by_dedupe_and_not_held_out(done: tuple[str, dict[str, Any]]) -> None:
    folder, _ = done
    held = rows(folder, "SELECT id FROM documents WHERE source = 'talk' AND (holdout OR NOT exact.keep)")
    asked = rows(folder, "SELECT id FROM documents WHERE len(swapped.pieces) > 0")
    assert held and asked and not {d["id"] for d in held} & {d["id"] for d in asked}
    assert len(held) + len(asked) == 70
    assert not rows(folder, "SELECT 1 FROM documents WHERE source = 'swapped' AND (holdout OR NOT exact.keep)")


def test_every_piece_is_a_document_or_counted_by_reason(done: tuple[str, dict[str, Any]]) -> None:
    folder, summary = done
    pieces = rows(folder, "SELECT unnest(swapped.pieces) AS p FROM documents")
    status = Counter(d["p"]["status"] for d in pieces)
    assert status.keys() == {OK, REJECTED}
    told = summary["rewrites"]["swapped"]
    assert told == {
        "pieces": len(pieces),
        "documents": status[OK],
        "left_out": {"rejected: irrelevant": status[REJECTED]},
    }
    (others,) = rows(folder, "SELECT count(*) AS n FROM documents WHERE source = 'talk' AND len(swapped.pieces) = 0")
    counted = {"ok": status[OK], **told["left_out"], "not chosen": others["n"]}
    assert summary["ledger"]["rewrite:swapped"]["repaired"] == counted
    assert summary["ledger"]["index"]["in"] == 70 + status[OK] and summary["documents_in"] == 70
    assert summary["ledger_balanced"]
    (balanced,) = rows(folder, "SELECT count(*) AS n FROM ledger WHERE step = 'pieces:swapped' AND \"in\" > 0")
    assert balanced["n"] == 3


def test_a_mixture_takes_as_many_tokens_of_rewrites_as_of_their_originals(done: tuple[str, dict[str, Any]]) -> None:
    folder, _ = done
    (tokens,) = rows(
        folder,
        """SELECT sum(tokens.count) FILTER (source = 'talk' AND swapped.accepted > 0)::BIGINT AS rewritten,
                  sum(tokens.count) FILTER (source = 'talk' AND selection.keep AND NOT holdout)::BIGINT AS talk,
                  sum(tokens.count) FILTER (source = 'swapped')::BIGINT AS swapped FROM documents""",
    )
    mixed = {m["source"]: m for m in rows(folder, "FROM mixtures WHERE mixture = 'both'")}
    assert mixed["talk"]["asked"] == tokens["talk"] and mixed["talk"]["epochs"] == 1
    assert mixed["swapped"]["available"] == tokens["swapped"] < tokens["rewritten"] == mixed["swapped"]["asked"]


def test_a_mixture_of_some_takes_as_many_rewrites_as_originals_of_these(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    some = "selection.keep AND (source = 'swapped' OR id < 'd4')"
    mixes = {"some": {"where": some}, "once": {"cap_epochs": 1}, "made": {"where": "source = 'swapped'"}}
    run(parse(recipe(mix=mixes)), str(tmp_path / "run"), until="mix")
    (tokens,) = rows(
        str(tmp_path / "run"),
        f"""SELECT sum(tokens.count) FILTER (source = 'talk' AND swapped.accepted > 0 AND {some})::BIGINT AS rewritten,
                   sum(tokens.count) FILTER (source = 'talk' AND {some})::BIGINT AS talk,
                   sum(tokens.count) FILTER (source = 'swapped')::BIGINT AS swapped
            FROM documents WHERE NOT holdout""",
    )
    mixed = {(m["mixture"], m["source"]): m["asked"] for m in rows(str(tmp_path / "run"), "FROM mixtures")}
    assert mixed["some", "talk"] == tokens["talk"]
    assert mixed["some", "swapped"] == min(tokens["rewritten"], 4 * tokens["swapped"])
    assert mixed["once", "swapped"] == mixed["made", "swapped"] == tokens["swapped"]


def test_what_two_rewriters_made_something_of_is_shared_and_read_at_most_four_times(
    recipe: Callable[..., dict[str, Any]], work: Path, tmp_path: Path
) -> None:
    swap = recipe()["rewrite"]["swapped"]
    short = {**swap, "where": "NOT holdout AND exact.keep AND row < 4", "most_reuse": 1}
    given = recipe(rewrite={"one": swap, "two": short}, mix={"all": {}, "half": {"weights": {"one": 1, "talk": 1}}})
    run(parse(given), str(tmp_path / "run"), until="mix")
    (tokens,) = rows(
        str(tmp_path / "run"),
        """SELECT sum(tokens.count) FILTER (one.accepted > 0)::BIGINT AS one,
                  sum(tokens.count) FILTER (two.accepted > 0)::BIGINT AS two FROM documents WHERE source = 'talk'""",
    )
    mixed = {(m["mixture"], m["source"]): m for m in rows(str(tmp_path / "run"), "FROM mixtures")}
    assert mixed["all", "one"]["asked"] == pytest.approx(tokens["one"] - tokens["two"] / 2, abs=2)
    assert mixed["all", "two"]["asked"] == pytest.approx(tokens["two"] / 2, abs=2)
    assert max(m["epochs"] for m in mixed.values()) <= 4
    half = [mixed["half", source]["weight"] for source in ("one", "talk")]
    assert half == pytest.approx([0.5, 0.5], abs=0.01) and ("half", "two") not in mixed


def test_what_was_made_much_shorter_is_read_four_times_and_no_more(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A sentence is made of forty lines: one to one, it would be read more than ten times."""
    long = [f"{' '.join(CHATTER)}\n" * 20 + f"{BANK[k].lower()}\nNote {'abcdefghijklmnopqrst'[k]}" for k in range(20)]
    pq.write_table(pa.table({"id": [f"d{k}" for k in range(20)], "text": long}), tmp_path / "0.parquet")
    run(parse(recipe(sources={"talk": f"{tmp_path}/0.parquet"})), str(tmp_path / "run"), until="mix")
    tokens = "SELECT sum(tokens.count)::BIGINT AS n FROM documents WHERE swapped.accepted > 0"
    (originals,) = rows(str(tmp_path / "run"), tokens)
    (made,) = rows(str(tmp_path / "run"), "FROM mixtures WHERE mixture = 'both' AND source = 'swapped'")
    assert originals["n"] > 10 * made["available"] > 0
    assert made["asked"] == 4 * made["available"] and made["epochs"] == 4


def content(folder: str) -> dict[str, str]:
    """Path -> digest of every file of rewriting and mixing."""
    root = Path(folder)
    files = [f for part in ("rewrites", "rewritten", "mixtures", "selection") for f in (root / part).rglob("*.parquet")]
    return {str(f.relative_to(root)): hashlib.md5(f.read_bytes()).hexdigest() for f in sorted(files)}


def test_two_workers_make_the_same_bytes(
    done: tuple[str, dict[str, Any]], recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run(parse(recipe()), str(tmp_path / "run"), workers=2, until="mix")
    assert content(str(tmp_path / "run")) == content(done[0])


def test_other_shards_make_the_same_documents(
    done: tuple[str, dict[str, Any]], recipe: Callable[..., dict[str, Any]], work: Path, tmp_path: Path
) -> None:
    table = pa.concat_tables(pq.read_table(f) for f in sorted((work / "talk").glob("*.parquet")))
    order = random.Random(1).sample(range(70), 70)
    for k in range(2):
        pq.write_table(table.take(order[k::2]), tmp_path / f"{k}.parquet")
    run(parse(recipe(sources={"talk": f"{tmp_path}/*.parquet"})), str(tmp_path / "run"), until="mix")
    mine, other = (
        sorted((m["id"], m["text"], m["draw"]) for m in rows(folder, "FROM mixture WHERE mixture = 'both'"))
        for folder in (done[0], str(tmp_path / "run"))
    )
    assert mine == other


def test_a_rerun_makes_nothing_again_and_an_edit_what_depends_on_it(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "run")
    before = run(parse(recipe()), folder, until="mix")
    held = content(folder)
    calls: list[str] = []
    whole = RewriteSplit.__call__
    monkeypatch.setattr(RewriteSplit, "__call__", lambda self, split: calls.append(split.name) or whole(self, split))
    again = run(parse(recipe()), folder, until="mix")
    assert not calls and content(folder) == held and again["rewrites"] == before["rewrites"]
    assert all(s["reused"] == s["splits"] for s in again["ledger"].values())
    edited = recipe()
    edited["rewrite"]["swapped"]["threshold"] = 0.99
    strict = run(parse(edited), folder, until="mix")
    assert len(calls) == 3
    assert strict["rewrites"]["swapped"]["documents"] < before["rewrites"]["swapped"]["documents"]
    assert strict["ledger_balanced"] and strict["ledger"]["dedupe:exact"]["reused"] == 3
    back = run(parse(recipe()), folder, until="mix")
    assert content(folder) == held and back["ledger_balanced"]


def test_rewriters_read_what_clean_has_left_and_nothing_is_cut_of_new_documents(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Chatter stands in more than five documents, so its lines go."""
    given = recipe(clean={"pii": {"kinds": ["email"]}, "lines": {"count": 5, "least": 5}})
    folder = str(tmp_path / "run")
    summary = run(parse(given), folder, until="mix")
    assert summary["ledger_balanced"] and summary["ledger"]["clean:lines"]["repaired"]["cut"]
    new = rows(folder, "SELECT text, lines, pii, swaps FROM documents WHERE source = 'swapped'")
    assert new and all(d["lines"] == {"spans": [], "removed": 0} and not d["pii"]["removed"] for d in new)
    left = rows(folder, "SELECT text FROM mixture WHERE mixture = 'both' AND source = 'talk'")
    assert not any(line in d["text"] for d in left for line in CHATTER)


def test_scorers_and_select_judge_new_documents_too(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    brush = "rewrite.parent IS NULL OR text LIKE '%brush%'"
    given = recipe(score={"readability": {}}, select={"short": "characters < 400", "brush": brush})
    folder = str(tmp_path / "run")
    run(parse(given), folder, until="mix")
    found = rows(folder, "SELECT text, readability, selection FROM documents WHERE source = 'swapped'")
    assert {d["selection"]["keep"] for d in found} == {True, False}
    assert all(d["selection"]["keep"] == ("brush" in d["text"]) and d["readability"] for d in found)
    mixed = rows(folder, "SELECT text FROM mixture WHERE source = 'swapped'")
    assert mixed and all("brush" in d["text"] for d in mixed)


def test_nothing_to_rewrite_is_a_source_without_documents(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = recipe()
    given["rewrite"]["swapped"]["where"] = "characters > 1e6"
    summary = run(parse(given), str(tmp_path / "run"))
    assert summary["rewrites"]["swapped"] == {"pieces": 0, "documents": 0, "left_out": {}}
    assert summary["ledger_balanced"] and set(summary["mixtures"]["both"]["asked"]) == {"talk"}


def test_the_report_shows_pieces_beside_their_originals(done: tuple[str, dict[str, Any]]) -> None:
    page = Path(write_report(done[0])).read_text()
    assert "<h2>Rewritten</h2>" in page and "swapped, rejected: irrelevant" in page
    assert any(sentence in page for sentence in BANK) and "nothing was written" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewrite": {"x": {"rewriter": "wrp"}}}, "rewrite.x: no rewriter 'wrp'"),
        ({"rewrite": {"talk": {"rewriter": "wrap"}}}, "rewrite: 'talk' is a source"),
        ({"rewrite": {"exact": {"rewriter": "wrap"}}}, "rewrite: 'exact' is the name of another column"),
        ({"rewrite": {"rewrite": {"rewriter": "wrap"}}}, "rewrite: 'rewrite' is the name of another column"),
        ({"score": {"Rewrite": {"scorer": "fineweb"}}}, "score: 'Rewrite' is the name of another column"),
        ({"rewrite": {"x": {"rewriter": "sieve_and_swap", "bank": "gone"}}}, "rewrite.x.bank: gone is no Parquet file"),
        ({"mix": {"m": {"weights": {"swaped": 1}}}}, "mix.m.weights: no source 'swaped'; did you mean 'swapped'?"),
        ({"select": {"a": "rewrite.parnt IS NULL"}}, "parnt"),
    ],
)
def test_mistakes_are_told_before_any_work(
    changes: dict[str, Any], message: str, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?").replace("(", r"\(")):
        run(parse(recipe(**changes)), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("swaps", "a", r"rewrite\.swapped: sieve_and_swap writes a column 'swaps' \(struct<.*\), and the shards have "
                       r"'swaps' \(string\); rename or drop that of the shards"),
        ("Swaps", 1, r"writes a column 'swaps' .* have 'Swaps' \(int64\)"),
        ("rewrite", {"parent": "a"}, r"writes a column 'rewrite' .* have 'rewrite' \(struct<parent: string>\)"),
    ],
)  # fmt: skip
def test_columns_that_the_shards_have_already_are_not_written(
    column: str, value: Any, message: str, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": [document(1)], column: [value]}), tmp_path / "0.parquet")
    given = recipe(sources={"talk": f"{tmp_path}/*.parquet"})
    with pytest.raises(RecipeError, match=message):
        run(parse(given), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_column_that_only_later_shards_have_is_met_before_anything_is_written(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": [document(1)]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": [document(2)], "swaps": [1]}), tmp_path / "1.parquet")
    with pytest.raises(RecipeError, match=r"rewrite\.swapped: .* the shards have 'swaps' \(int64\)"):
        run(parse(recipe(sources={"talk": f"{tmp_path}/*.parquet"})), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "rewrites").exists()


def test_two_rewriters_write_no_column_of_two_types(
    recipe: Callable[..., dict[str, Any]], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = recipe()["rewrite"]["swapped"]
    fields = SieveAndSwap.fields
    other = [pa.field("swaps", pa.int32())]
    monkeypatch.setattr(SieveAndSwap, "fields", lambda self: other if self.threshold == 0.5 else fields(self))
    given = recipe(rewrite={"one": swap, "two": {**swap, "threshold": 0.5}})
    with pytest.raises(RecipeError, match=r"rewrite\.two: writes a column 'swaps' \(int32\), which one writes too"):
        run(parse(given), str(tmp_path / "run"))


def test_conversations_are_not_rewritten(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    turns = pa.array([[{"role": "user", "content": "hello"}]])
    pq.write_table(pa.table({"text": turns}), tmp_path / "0.parquet")
    with pytest.raises(RecipeError, match="rewrite: makes new texts, but column 'text' holds conversations"):
        run(parse(recipe(sources={"talk": f"{tmp_path}/0.parquet"})), str(tmp_path / "run"))


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(1, 0, "a", OK), Piece(0, 0, "b", OK)],
        [Piece(0, 0, "a", OK), Piece(0, 0, "b", OK)],
        [Piece(2, 0, "a", OK)],
        [Piece(0, 0, " ", OK)],
        [Piece(0, 0, "a", REJECTED)],
        [Piece(0, 0, None, FAILED, None)],
        [Piece(0, 0, "a", "fine", "x")],
    ],
)
def test_a_rewriter_that_breaks_its_contract_is_stopped(pieces: list[Piece], work: Path) -> None:
    rewriter = SieveAndSwap(bank=work / "bank.parquet", threshold=0.5)
    with pytest.raises(ValueError, match="rewriter 'sieve_and_swap'"):
        check_pieces(rewriter, pieces, 2)


def test_lost_documents_are_no_balanced_ledger() -> None:
    pieces = [ledger.Record("pieces:x", "web", "0", "0", 5, 3, {"rejected: a": 2})]
    index = [ledger.Record("index", "x", "web/0", "web/0", 2, 2), ledger.Record("index", "web", "0", "0", 9, 9)]
    with pytest.raises(ledger.LedgerError, match="web/0: 3 new documents of x were written, 2 were read"):
        ledger.born(pieces, index, "x")
    ledger.born(pieces, [ledger.Record("index", "x", "web/0", "web/0", 3, 3)], "x")


def test_originals_stay_as_they_are(done: tuple[str, dict[str, Any]]) -> None:
    folder, _ = done
    texts = rows(folder, "SELECT id, text FROM documents WHERE source = 'talk' ORDER BY id")
    assert [d["text"] for d in texts] == [document(int(d["id"].removeprefix("copy").removeprefix("d"))) for d in texts]
