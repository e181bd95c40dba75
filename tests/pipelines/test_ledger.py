"""The ledger finds every row that went missing or came out of nothing."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from pipelines import ledger
from pipelines.ledger import LedgerError, Record
from pipelines.shards import Split

SPLITS = [Split("s", name, name, "", "", 0, (10,), 0, 0) for name in "abc"]


def records(step: str = "x", **changes: dict[str, object]) -> list[Record]:
    base = {"dropped": {"empty": 2}, "quarantined": 0, "repaired": {"nul": 1}}
    made = [Record.of(step, s, 10, 8, **base) for s in SPLITS]
    for record in made:
        for name, value in changes.get(record.split, {}).items():
            setattr(record, name, value)
    return made


def test_what_balances_passes() -> None:
    ledger.check("x", SPLITS, records())
    ledger.check("x", SPLITS, records(a={"rows_out": 0, "dropped": {}, "quarantined": 10}))
    ledger.chain(records(), records("y", a={"rows_in": 8}, b={"rows_in": 8}, c={"rows_in": 8}))


@pytest.mark.parametrize("wrong", [{"rows_out": 7}, {"rows_in": 11}, {"dropped": {}}, {"quarantined": 1}])
def test_a_row_too_many_or_too_few_is_found(wrong: dict[str, object]) -> None:
    with pytest.raises(LedgerError, match=r"step x, s/b: .* This is a bug of the step"):
        ledger.check("x", SPLITS, records(b=wrong))


def test_a_split_that_is_lost_or_doubled_is_found() -> None:
    with pytest.raises(LedgerError, match=r"step x: 1 splits did not come back \(s/c\), 0 came twice or unasked \(-\)"):
        ledger.check("x", SPLITS, records()[:2])
    with pytest.raises(LedgerError, match=r"0 splits did not come back \(-\), 1 came twice or unasked \(s/a\)"):
        ledger.check("x", SPLITS, [*records(), records()[0]])
    with pytest.raises(LedgerError, match=r"1 splits did not come back \(s/a\), 1 came twice or unasked \(s/b\)"):
        ledger.check("x", SPLITS, [records()[1], *records()[1:]])


def test_steps_must_join() -> None:
    with pytest.raises(LedgerError, match="s/b: 8 documents were let through before step y, which saw 9"):
        ledger.chain(records(), records("y", a={"rows_in": 8}, b={"rows_in": 9}, c={"rows_in": 8}))
    with pytest.raises(LedgerError, match="s/c: None documents"):
        ledger.chain(records()[:2], records("y", a={"rows_in": 8}, b={"rows_in": 8}, c={"rows_in": 8}))


def test_pieces_must_join() -> None:
    made, seen = records("rewrite:x"), records("pieces:x", a={"rows_in": 1}, b={"rows_in": 2}, c={"rows_in": 1})
    with pytest.raises(LedgerError, match="s/b: 1 pieces were let through before step pieces:x, which saw 2"):
        ledger.chain(made, seen, lambda r: r.repaired["nul"], "pieces")


@pytest.mark.parametrize(("index", "words"), [([], "3 .* were written, 0 were read"), ([5, 4], "0 .* written, 4 were")])
def test_new_documents_are_compared_whatever_is_read(index: list[int], words: str) -> None:
    pieces = [Record("pieces:x", "web", "0", "0", 5, 3, {"rejected: a": 2})] * (not index)
    read = [Record("index", "x", f"web/{n}", f"web/{n}", n, n) for n in index]
    with pytest.raises(LedgerError, match=words):
        ledger.born(pieces, read, "x")


def test_totals_and_file(tmp_path: Path) -> None:
    made = records(a={"reused": True, "cause": "bad", "detail": {"tokens": 3}})
    total = ledger.totals(made)
    assert (total["in"], total["out"], total["dropped"], total["repaired"]) == (30, 24, {"empty": 6}, {"nul": 3})
    assert (total["splits"], total["reused"]) == (3, 1)
    assert ledger.totals([])["in"] == 0
    ledger.write(f"{tmp_path}/x.parquet", reversed(made))
    query = "SELECT split, \"in\", out, dropped['empty'], quarantined, cause, reused FROM read_parquet(?)"
    rows = duckdb.execute(query, [f"{tmp_path}/x.parquet"]).fetchall()
    assert rows == [("a", 10, 8, 2, 0, "bad", True), ("b", 10, 8, 2, 0, None, False), ("c", 10, 8, 2, 0, None, False)]
    ledger.write(f"{tmp_path}/empty.parquet", [])
