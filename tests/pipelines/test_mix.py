"""Mixtures: budgets in tokens, epochs, a digest of content alone, and every other column carried along."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import shards, store
from pipelines.mix import MixError, Mixture, _asked, content, mix
from pipelines.reading import Admission
from pipelines.score import Column, Pass, ScoreSplit
from pipelines.shards import Split
from pipelines.steps import Context
from pipelines.tables import Struct, Tables
from scorers.tokens import Tokens
from trainers.mixture import open_mixture
from transforms.draws import draws

Mixed = Callable[..., dict[str, Any]]
mix_of_the_module = mix


def corpus(sizes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    draw = np.random.default_rng(3)
    return {
        source: [
            {"id": f"{source} {i}", "text": "word " * int(draw.integers(1, 60)) + f"{source}{i}", "url": f"u{i}"}
            for i in range(n)
        ]
        for source, n in sizes.items()
    }


CORPUS = corpus({"a": 120, "b": 60, "c": 30})


@pytest.fixture
def mixed(tmp_path: Path, toy_tokenizer: Path) -> Mixed:
    """Score the tokens of a corpus and write a mixture of it, in a folder of its own; `pieces` are its files."""
    count = iter(range(100))

    def made(
        rows: dict[str, list[dict[str, Any]]] = CORPUS,
        pieces: int = 2,
        tokenizer: Path = toy_tokenizer,
        seed: int = 0,
        where: str = "true",
        **spec: Any,
    ) -> dict[str, Any]:
        folder = tmp_path / str(next(count))
        for source, documents in rows.items():
            (folder / source).mkdir(parents=True)
            for k in range(pieces):
                pq.write_table(
                    pa.Table.from_pylist(documents[k::pieces]),
                    folder / source / f"{pieces}-{k}.parquet",
                    row_group_size=9,
                )
        found = [shards.scan(s, "text") for s in shards.expand({s: f"{folder}/{s}/*.parquet" for s in rows})]
        splits: list[Split] = shards.splits(found)
        run = f"{folder}/run"
        column = Column("tokens", "scores/tokens", Tokens(tokenizer=toy_tokenizer))
        step = Pass.plan(run, "text", Admission(), [column])
        assert all(list(ScoreSplit(step).process(split)) for split in splits)
        structs = {"tokens": Struct("scores/tokens", column.scorer.fields(), step.bases["scores/tokens"])}
        raw = {name: kind for name, (kind, _) in shards.schema_of(found).items()}
        tables = Tables(run, "text", Admission(), seed, raw, structs)
        documents = sum(map(len, rows.values()))
        manifest = mix(Context(run), tables, splits, "m", Mixture(**spec), where, documents, str(tokenizer), "recipe")
        assert store.read_json(f"{run}/mixtures/m/manifest.json") == manifest
        return {**manifest, "folder": f"{run}/mixtures/m"}

    return made


def rows_of(manifest: dict[str, Any], source: str) -> list[dict[str, Any]]:
    files = [f"{manifest['folder']}/{f['path']}" for f in manifest["sources"][source]["files"]]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_budgets_are_reached_within_one_document(mixed: Mixed) -> None:
    manifest = mixed(tokens=1500, weights={"a": 3, "b": 1, "c": 1}, max_epochs=9)
    assert {s: v["asked"] for s, v in manifest["sources"].items()} == {"a": 900, "b": 300, "c": 300}
    for source, part in manifest["sources"].items():
        rows = rows_of(manifest, source)
        assert part["tokens"] == sum(r["tokens"] for r in rows) and part["documents"] == len(rows)
        last = max(rows, key=lambda r: r["draw"])
        assert part["tokens"] - last["tokens"] < part["asked"] <= part["tokens"]
        assert part["epochs"] == part["asked"] / part["tokens"] and part["weight"] == part["asked"] / 1500
        drawn = draws(0, pa.array([r["id"] for r in CORPUS[source]]))
        taken = {r["id"] for r in rows}
        assert taken == {r["id"] for r, d in zip(CORPUS[source], drawn, strict=True) if d <= last["draw"]}, (
            "in order of draw"
        )
        assert all(f["digest"] == store.file_digest(f"{manifest['folder']}/{f['path']}") for f in part["files"])


def test_sources_that_have_less_are_repeated(mixed: Mixed, caplog: pytest.LogCaptureFixture) -> None:
    everything = mixed()
    held = {s: v["tokens"] for s, v in everything["sources"].items()}
    assert all(v["epochs"] == 1 and v["asked"] == v["tokens"] == v["available"] for v in everything["sources"].values())
    with caplog.at_level(logging.WARNING, "corpusmill"):
        manifest = mixed(tokens=round(5.5 * held["c"] * 2), weights={"a": 1, "c": 1})
    assert set(manifest["sources"]) == {"a", "c"}
    assert manifest["sources"]["c"]["epochs"] == pytest.approx(5.5, abs=1e-3)
    assert manifest["sources"]["c"]["tokens"] == held["c"], "repeats are epochs, not copies"
    assert [r.message for r in caplog.records] == [
        "mix.m: source 'c' is repeated 5.5 times; beyond 4 repeats add less than new text would"
    ]
    with pytest.raises(
        MixError,
        match=r"mix\.m: source 'c' has .* tokens and would be repeated 5\.5 times .* raise max_epochs \(now 5\)",
    ):
        mixed(tokens=round(5.5 * held["c"]), weights={"c": 1}, max_epochs=5)
    with pytest.raises(MixError, match="no document satisfies"):
        mixed(where="false")


def test_the_digest_is_of_content_alone(mixed: Mixed, toy_tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "u.json"
    other.write_text((toy_tokenizer / "tokenizer.json").read_text() + "\n")
    spec = {"tokens": 1200, "weights": {"a": 1, "b": 1, "c": 1}}
    digest = mixed(**spec)["digest"]
    reversed_rows = {source: rows[::-1] for source, rows in reversed(CORPUS.items())}
    assert mixed(reversed_rows, pieces=5, **spec)["digest"] == digest, "other names, cuts and order of shards"
    for name, change in {
        "tokenizer": {"tokenizer": other},
        "seed": {"seed": 1},
        "weight": {"weights": {"a": 1.1, "b": 1, "c": 1}},
        "budget": {"tokens": 1260},
    }.items():
        assert mixed(**{**spec, **change})["digest"] != digest, name


@pytest.mark.parametrize("change", [{"id": "a  0"}, {"text": "word\nword"}])
def test_the_digest_changes_with_every_byte(mixed: Mixed, change: dict[str, str]) -> None:
    """White space too, which the hash for duplicates overlooks."""
    rows = {"a": [{"id": "a 0", "text": "word word", "url": ""}, {"id": "a 1", "text": "x", "url": ""}]}
    other = {"a": [rows["a"][0] | change, rows["a"][1]]}
    assert mixed(rows, pieces=1)["digest"] != mixed(other, pieces=1)["digest"]


@given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from("ab"), st.text(max_size=6)), max_size=8), st.randoms())
def test_content_is_a_sum_that_no_order_changes(rows: list[tuple[str, str, str]], random: Any) -> None:
    def made(rows: list[tuple[str, str, str]]) -> pa.Table:
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table([pa.array(c, pa.large_string()) for c in columns], names=["id", "source", "text"])

    whole, at = made(rows), random.randint(0, len(rows))
    halves = [content(whole[:at]), content(whole[at:])]
    assert [sum(lane) % 2**64 for lane in zip(*halves, strict=True)] == content(whole)
    assert content(made(random.sample(rows, len(rows)))) == content(whole)
    if rows:
        i, _, text = rows[0]
        for moved in ((i + " ", "a", text), (i, "c", text), (i, rows[0][1], text + "\n"), (i + text, rows[0][1], "")):
            if moved != rows[0]:
                assert content(made([moved, *rows[1:]])) != content(whole)


def test_every_other_column_is_carried_along(mixed: Mixed) -> None:
    rows = {
        "a": [
            {
                "id": "1",
                "text": "x y",
                "tokens": 7,
                "row": "r",
                "draw": None,
                "tags": ["t"],
                "meta": {"k": 1},
                "shard": b"s",
            },
            {"text": ""},
        ]
    }
    manifest = mixed(rows, pieces=1)
    [row] = rows_of(manifest, "a")
    assert {k: v for k, v in row.items() if k not in ("tokens", "draw")} == {
        "id": "1",
        "text": "x y",
        "source": "a",
        "shard": "1-0",
        "row": 0,
        "tags": ["t"],
        "meta": {"k": 1},
        "tokens_original": 7,
        "row_original": "r",
        "draw_original": None,
        "shard_original": b"s",
    }
    assert row["tokens"] > 1 and row["draw"] == int(draws(0, pa.array(["1"]))[0])


def test_shards_without_documents_give_empty_files(mixed: Mixed) -> None:
    manifest = mixed({"a": CORPUS["a"][:1], "b": CORPUS["b"]}, pieces=3)
    assert manifest["sources"]["a"]["documents"] == 1 and len(manifest["sources"]["a"]["files"]) == 1


def test_equal_ids_live_and_are_drawn_together(mixed: Mixed) -> None:
    rows = {"a": [{"id": "same", "text": f"text {i}"} for i in range(10)]}
    assert mixed(rows, tokens=1, max_epochs=1)["sources"]["a"]["documents"] == 10


@pytest.mark.parametrize(
    ("given", "tokens"), [("300k", 300_000), ("1.5M", 1_500_000), ("2B", 2_000_000_000), (7, 7), (None, None)]
)
def test_numbers_of_tokens(given: Any, tokens: int | None) -> None:
    assert Mixture(tokens=given).tokens == tokens


@pytest.mark.parametrize("given", ["", "k", "5X", "-1k", "nanM", "infB", 0, -5, "0k"])
def test_what_is_no_number_of_tokens(given: Any) -> None:
    with pytest.raises(ValidationError):
        Mixture(tokens=given)


def test_shares_by_hand() -> None:
    have = {"a": 100, "b": 50, "c": 0}
    assert _asked("m", Mixture(), have) == {"a": 100, "b": 50}
    assert _asked("m", Mixture(tokens=30), have) == {"a": 20, "b": 10}
    assert _asked("m", Mixture(tokens=600), have) == {"a": 400, "b": 200}
    assert _asked("m", Mixture(weights={"a": 1, "b": 1}), have) == {"a": 75, "b": 75}
    assert _asked("m", Mixture(weights={"a": 1, "b": 0}, tokens=40), have) == {"a": 40}
    assert _asked("m", Mixture(weights={"a": 1, "b": 1e-9}, tokens=40), have) == {"a": 40}, "less than a token is none"
    with pytest.raises(MixError, match="source 'c' is to give 20 tokens but no document of it"):
        _asked("m", Mixture(weights={"a": 1, "c": 1}, tokens=40), have)
    with pytest.raises(MixError, match="names d; the sources are a, b, c"):
        _asked("m", Mixture(weights={"d": 1}), have)


def test_a_mixture_brings_its_tokenizer(mixed: Mixed, toy_tokenizer: Path, tmp_path: Path) -> None:
    """Whatever the file's name; the folder can be moved and trained on, with the end token that its config names."""
    named = json.loads((toy_tokenizer / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>"))
    (tmp_path / "tk").mkdir()
    (tmp_path / "tk" / "mine.json").write_text(json.dumps(named))
    (tmp_path / "tk" / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    manifest = mixed(tokenizer=tmp_path / "tk" / "mine.json")
    digest = store.file_digest(f"{tmp_path}/tk/mine.json")
    assert manifest["tokenizer"] == {"path": "tokenizer", "digest": digest}
    shutil.rmtree(tmp_path / "tk")
    moved = Path(shutil.move(manifest["folder"], tmp_path / "moved"))
    corpus = open_mixture(moved, tmp_path / "cache")
    assert len(corpus) == sum(map(len, CORPUS.values()))
    assert corpus.end_token == named["model"]["vocab"]["</s>"] == corpus.tokens[0]


def test_an_interrupted_remix_leaves_no_manifest(mixed: Mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    """No old one over new shards; and a finished one leaves no shard that it does not know."""
    calls: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "mix", lambda *given: calls.append(given) or mix_of_the_module(*given))
        folder = Path(mixed()["folder"])
    context, tables, splits, name, _, where, *rest = calls[0]
    stray = folder / "gone" / "9-9.parquet"
    stray.parent.mkdir()
    shutil.copy(next((folder / "a").glob("*.parquet")), stray)

    class StoppedError(Exception):
        pass

    def stopped(*_: Any, **__: Any) -> None:
        raise StoppedError

    def remixed(mixture: Mixture) -> dict[str, Any]:
        return mix(context, tables, splits, name, mixture, where, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "run_splits", stopped)
        with pytest.raises(StoppedError):
            remixed(Mixture())
        assert (folder / "manifest.json").exists() and stray.exists(), "no shard was to be replaced"
        with pytest.raises(StoppedError):
            remixed(Mixture(tokens=500))
        assert not (folder / "manifest.json").exists()
    manifest = remixed(Mixture(tokens=500))
    assert store.read_json(f"{folder}/manifest.json") == manifest
    assert not stray.exists()
    assert {str(f.relative_to(folder)) for f in folder.rglob("*.parquet")} >= {
        f["path"] for source in manifest["sources"].values() for f in source["files"]
    }
