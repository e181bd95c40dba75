"""`clean: c4` and `clean: pii` through the whole pipeline: what is planted goes or is masked, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_corpus import documents, mixed, place, rows, write

from pipelines import plan, shards, steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from sql.views import query

NAV = "Home | About | Contact"
PLANTED = [  # what stands in a document -> what is left of it
    ("Write to jane@example.org or call (650) 253-0000 today.", "Write to <EMAIL> or call <PHONE> today."),
    ("The host 93.184.216.34 has no 192.168.1.1 at all.", "The host <IPV4> has no 192.168.1.1 at all."),
    ("Pay to DE89 3704 0044 0532 0130 00 in time please.", "Pay to <IBAN> in time please."),
    ("Nothing is masked in this sentence of ours.",) * 2,
]
ONLY_A_NAME = "boss@example.org"  # masked, not emptied
CLEAN = {"c4": {}, "pii": {}}


def corpus() -> list[tuple[str, str]]:
    """(text, what is to be left of it)."""
    made = [(ONLY_A_NAME, ""), (NAV, "")]
    for i, text in enumerate(documents(60, seed=3, share_of_noise=0)):
        planted, left = PLANTED[i % len(PLANTED)]
        kept = "\n".join(line.strip() for line in text.strip().split("\n"))
        made.append((f"{NAV}\n{kept}\n{planted}\n{NAV}", f"{kept}\n{left}"))
    return made


CORPUS = corpus()
TEXTS = [text for text, _ in CORPUS]
IDS = [f"{i:05d}" for i in range(len(CORPUS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("local"), TEXTS, list(range(len(CORPUS))), 2, 16)


def recipe(folder: Path, tokenizer: Path, **changes: Any) -> dict[str, Any]:
    base = {"name": "local", "sources": {"web": f"{folder}/web/*.parquet"}, "clean": CLEAN, "mix": {"all": {}}}
    return {**base, "tokenizer": str(tokenizer), **changes}


def spans(out: Path) -> dict[str, dict[str, Any]]:
    return {name: {r["id"]: r[name] for r in rows(out / "cuts" / name)} for name in CLEAN}


@pytest.fixture(scope="module")
def plain(folder: Path, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain")
    return out, run(parse(recipe(folder, toy_tokenizer)), str(out))


def test_lines_go_and_placeholders_stand(plain: tuple[Path, dict[str, Any]]) -> None:
    out, summary = plain
    assert summary["ledger_balanced"]
    assert mixed(out) == {i: left for i, (_, left) in zip(IDS, CORPUS, strict=True) if left}
    assert summary["ledger"]["mix:all"]["dropped"] == {"emptied by cuts": 2}
    assert summary["ledger"]["clean:c4"]["repaired"] == {"cut": len(CORPUS)}
    masked = sum("<" in left for _, left in CORPUS) + 1
    assert summary["ledger"]["clean:pii"]["repaired"] == {"cut": masked}
    emails = query(
        str(out), "SELECT count(*) FROM documents WHERE list_contains([s.put for s in pii.spans], '<EMAIL>')"
    )
    assert emails.column(0).to_pylist() == [sum("<EMAIL>" in left for _, left in CORPUS) + 1]


def test_every_span_is_recorded(plain: tuple[Path, dict[str, Any]]) -> None:
    """The mixture can be made again from the admitted text and the sidecars of both methods."""
    found = spans(plain[0])
    for i, (text, left) in zip(IDS, CORPUS, strict=True):
        data = text.encode()
        for method in found.values():
            assert method[i]["removed"] == sum(s["end"] - s["start"] for s in method[i]["spans"] if s["put"] is None)
        if left:
            every = [*found["c4"][i]["spans"], *found["pii"][i]["spans"]]
            for s in sorted(every, key=lambda s: -s["start"]):
                data = data[: s["start"]] + (s["put"] or "").encode() + data[s["end"] :]
            assert data.decode() == left


def test_a_document_of_placeholders_alone_is_not_empty(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    given = recipe(folder, toy_tokenizer, clean={"pii": {"kinds": ["email"]}})
    run(parse(given), str(tmp_path), until="mix")
    left = mixed(tmp_path)
    assert left[IDS[0]] == "<EMAIL>" and len(left) == len(CORPUS)
    assert sum("(650) 253-0000" in text for text in left.values()) == sum("<PHONE>" in left for _, left in CORPUS)


def test_where_names_the_documents_that_are_cleaned(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    given = recipe(folder, toy_tokenizer, clean={"pii": {"where": f"id = '{IDS[2]}'"}}, dedupe={"exact": {}})
    run(parse(given), str(tmp_path), until="mix")
    assert [i for i, text in mixed(tmp_path).items() if "<EMAIL>" in text] == [IDS[2]]


def test_local_and_global_methods_together(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """A line that repeats goes with the address in it; no placeholder is left of it."""
    shared = "Ask our office at office@example.org about this."
    texts = [f"Document {i} is unlike the other ones.\n{shared}\nMail x{i}@example.org for more." for i in range(12)]
    write(tmp_path / "web" / "0.parquet", texts, [f"{i}" for i in range(12)])
    given = recipe(tmp_path, toy_tokenizer, clean={"lines": {"count": 5}, "pii": {}})
    run(parse(given), str(tmp_path / "run"), until="mix")
    wanted = {f"Document {i} is unlike the other ones.\nMail <EMAIL> for more." for i in range(12)}
    assert set(mixed(tmp_path / "run").values()) == wanted


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
    assert spans(tmp_path / "two") == spans(plain[0])
    turned = place(tmp_path / "turned", TEXTS, list(range(len(CORPUS)))[::-1], 3, 7)
    monkeypatch.setattr(shards, "SPLIT_BYTES", 2000)
    run(parse(recipe(turned, toy_tokenizer)), str(tmp_path / "one"), until="mix")
    assert spans(tmp_path / "one") == spans(plain[0]) and mixed(tmp_path / "one") == mixed(plain[0])


def test_a_second_run_computes_nothing_and_a_new_shard_its_own(toy_tokenizer: Path, tmp_path: Path) -> None:
    place(tmp_path, TEXTS, list(range(len(CORPUS))), 2, 16)
    run(parse(recipe(tmp_path, toy_tokenizer)), str(tmp_path / "run"), until="mix")
    again = run(parse(recipe(tmp_path, toy_tokenizer)), str(tmp_path / "run"), until="mix")["ledger"]
    assert all(step["reused"] == step["splits"] for step in again.values())
    write(tmp_path / "web" / "9.parquet", ["One more sentence from z@example.org came in."], ["new"])
    more = run(parse(recipe(tmp_path, toy_tokenizer)), str(tmp_path / "run"), until="clean")["ledger"]
    assert [more[f"clean:{name}"]["reused"] for name in CLEAN] == [2, 2]
    fewer = recipe(tmp_path, toy_tokenizer, clean={"c4": {}, "pii": {"kinds": ["phone"]}})
    changed = run(parse(fewer), str(tmp_path / "run"), until="mix")["ledger"]
    assert changed["clean:c4"]["reused"] == 3 and changed["clean:pii"]["reused"] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pii": {"kinds": ["mail"]}}, "clean.pii.kinds.0: expected 'email'"),
        ({"pii": {"region": "UK"}}, "clean.pii.region: no region 'UK'"),
        ({"c4": {"min_word": 3}}, "clean.c4.min_word: no such key; did you mean 'min_words'"),
        ({"c5": {}}, "clean.c5: no such method; there is lines, substring, c4, pii"),
    ],
)
def test_mistakes_are_told_before_any_work(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        run(parse(recipe(folder, toy_tokenizer, clean=given)), str(tmp_path / "run"))
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_masking_needs_its_package(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"clean\.pii: needs the package phonenumbers; pip install 'corpusmill\[pii\]'"
    ):
        plan.Plan(parse(recipe(folder, toy_tokenizer, clean={"pii": {}})), str(tmp_path / "run"))
