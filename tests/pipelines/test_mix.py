"""Mixtures: budgets in tokens, epochs, a digest of content alone, and every other column carried along."""

from __future__ import annotations

import json
import logging
import math
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
from pipelines.mix import content, mix
from pipelines.reading import Admission
from pipelines.recipe import RecipeError, parse
from pipelines.score import Column, Pass, ScoreSplit
from pipelines.shards import Split
from pipelines.shares import MixError, Mixture, apportion, capped
from pipelines.steps import Context
from pipelines.tables import Struct, Tables
from scorers.tokens import Tokens
from trainers.data import Batches
from trainers.mixture import Corpus, open_mixture
from transforms.draws import draws
from transforms.epochs import effective

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
        fitted: Any = None,
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
        if fitted is not None:
            store.write_json(f"{run}/models/found/weights.json", fitted)
        mixture = Mixture(**{"where": "true", **spec})
        manifest = mix(Context(run), tables, splits, "m", mixture, "true", documents, str(tokenizer), "recipe")
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
    asked = manifest["sources"]["c"]["asked"]
    worth = effective(asked, held["c"])
    assert [r.message for r in caplog.records] == [
        f"mix.m: source 'c' is read 5.5 times: its {asked:,} tokens are worth {worth:,.0f} of new text, "
        "one more 75% of one"
    ]
    assert manifest["sources"]["c"]["effective_tokens"] == round(worth)
    assert manifest["sources"]["c"]["marginal"] == pytest.approx(0.7464, abs=1e-3)
    assert manifest["sources"]["a"]["effective_tokens"] == round(effective(asked + 1, held["a"]))
    with pytest.raises(
        MixError,
        match=r"mix\.m: source 'c' has .* tokens and would be read 5\.5 times .* raise max_epochs \(now 5\)",
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
    assert apportion(30, {"a": 100, "b": 50}) == {"a": 20, "b": 10}
    assert apportion(40, {"a": 1, "b": 1e-9}) == {"a": 40, "b": 0}, "less than a token is none"
    assert apportion(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    rehearsal = 123_456_789_123 // 256
    exact = {"general": 987_654_321_987, "special": rehearsal}
    assert apportion(sum(exact.values()), exact) == exact, "weights that are numbers of tokens give just these"


@given(st.integers(0, 10**12), st.dictionaries(st.text(max_size=2), st.floats(1e-6, 1e6), min_size=1), st.data())
def test_shares_add_up_to_what_is_asked(total: int, weights: dict[str, float], data: st.DataObject) -> None:
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    for source, weight in weights.items():
        assert abs(parts[source] - total * weight / sum(weights.values())) < 1 + 1e-9 * total
    room = {source: data.draw(st.integers(0, 10**12)) for source in weights}
    held = capped(total, weights, room)
    assert sum(held.values()) == min(total, sum(room.values())) and all(held[s] <= room[s] for s in weights)
    free = [source for source in weights if held[source] < room[source]]
    for source in free:  # those that are not full keep their proportions, and give no less than without caps
        assert held[source] >= parts[source] - 1
        slack = 3 * max(weights.values()) + 1e-6 * total
        assert held[source] * weights[free[0]] == pytest.approx(held[free[0]] * weights[source], abs=slack)


def asked_of(manifest: dict[str, Any]) -> list[dict[str, int]]:
    return [{s: part["asked"] for s, part in phase["sources"].items()} for phase in manifest["phases"]]


def realised(manifest: dict[str, Any], cache: Path) -> tuple[Corpus, list[dict[str, int]]]:
    """The mixture as the trainer opens it, and what it reads of each phase and source."""
    corpus = open_mixture(Path(manifest["folder"]), cache)
    told = Batches(corpus, 32, 4, seed=0).plan_report()["phases"]
    return corpus, [{s: part["tokens"] for s, part in phase["sources"].items()} for phase in told]


def test_the_trainer_reads_of_each_phase_what_was_asked(mixed: Mixed, tmp_path: Path) -> None:
    """To the token; and no document lies on disk that no phase takes."""
    phases = [{"tokens": 901, "weights": {"a": 2, "b": 1}}, {"tokens": "1k"}, {"tokens": 333, "weights": {"c": 1}}]
    manifest = mixed(phases=phases, weights={"temperature": 2})
    asked = asked_of(manifest)
    assert [phase["tokens"] for phase in manifest["phases"]] == [901, 1000, 333] and manifest["tokens"] == 2234
    assert asked[0] == {"a": 601, "b": 300} and asked[2] == {"c": 333}
    for source, part in manifest["sources"].items():
        assert part["asked"] == sum(phase.get(source, 0) for phase in asked)
        assert part["epochs"] == part["asked"] / part["tokens"] and part["weight"] == part["asked"] / 2234
    corpus, found = realised(manifest, tmp_path / "cache")
    assert found == asked
    assert corpus.copies.tolist() == [1] * len(corpus), "there is more than enough of each: nothing repeats"
    reversed_rows = {source: rows[::-1] for source, rows in reversed(CORPUS.items())}
    again = mixed(reversed_rows, pieces=3, phases=phases, weights={"temperature": 2})
    assert again["digest"] == manifest["digest"]
    other = mixed(phases=[{**phases[0], "tokens": 902}, *phases[1:]], weights={"temperature": 2})
    assert other["digest"] != manifest["digest"]


LONG = "tokens.count > 40"


def test_phases_choose_their_own_documents(mixed: Mixed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything, long = mixed(), mixed(where=LONG)
    pool = long["sources"]["a"]["tokens"]
    half = everything["sources"]["a"]["tokens"] // 2
    phases = [{"tokens": half}, {"tokens": 3 * pool, "where": LONG}]
    manifest = mixed(phases=phases, weights={"a": 1})
    corpus, found = realised(manifest, tmp_path / "cache")
    assert found == asked_of(manifest) == [{"a": half}, {"a": 3 * pool}]
    tokens = corpus.length  # with the end token, as tokens.count has it
    first, second = (phase.copies for phase in corpus.phases)
    assert set(first) == {0, 1} and (second[tokens <= 40] == 0).all() and (corpus.copies > 0).all()
    assert np.ptp(corpus.copies[tokens > 40]) <= 1, "whoever qualifies comes as often as the others, phases together"
    share = manifest["phases"][1]["sources"]["a"]
    used = int((first * tokens)[tokens > 40].sum())
    assert share["available"] == pool and share["epochs"] == pytest.approx(3 + used / pool)
    assert share["effective_tokens"] == round(pool - used + effective(3 * pool + used, pool) - pool)
    total = manifest["sources"]["a"]["effective_tokens"]
    assert total == pytest.approx(corpus.report()["a"]["effective_tokens"], rel=0.01), "as the trainer counts it"
    swapped = [row | {"text": row["text"] + " word" * 41} if row["id"] == "a 3" else row for row in CORPUS["a"]]
    assert mixed({**CORPUS, "a": swapped}, phases=phases, weights={"a": 1})["digest"] != manifest["digest"]
    with caplog.at_level(logging.WARNING, "corpusmill"):
        mixed(phases=[{"tokens": half}, {"tokens": 5 * pool, "where": LONG}], weights={"a": 1})
    assert [r.message.split(" times")[0] for r in caplog.records] == [
        f"mix.m.phases.1: source 'a' is read {5 + used / pool:.1f}"
    ]
    with pytest.raises(MixError, match=r"mix\.m\.phases\.1: source 'a' has .* read 16\.\d times .* set cap_epochs"):
        mixed(phases=[{"tokens": half}, {"tokens": 16 * pool, "where": LONG}], weights={"a": 1})


def test_repeats_of_one_pool_add_up_over_phases(mixed: Mixed) -> None:
    held = mixed()["sources"]["c"]["tokens"]
    phases = [{"tokens": round(1.5 * held)}, {"tokens": round(1.75 * held)}]
    manifest = mixed(phases=phases, weights={"c": 1})
    epochs = [phase["sources"]["c"]["epochs"] for phase in manifest["phases"]]
    assert epochs == pytest.approx([1.5, 3.25], abs=2e-3)
    worth = effective(manifest["tokens"], held)
    assert manifest["sources"]["c"]["effective_tokens"] == pytest.approx(worth, abs=2)
    mixed(phases=[{"tokens": 2 * held}] * 8, weights={"c": 1})
    with pytest.raises(MixError, match=r"phases\.7: .* read 16\.0 times to give"):
        mixed(phases=[{"tokens": 2 * held}] * 7 + [{"tokens": 2 * held + 2}], weights={"c": 1})


def test_the_surplus_over_a_cap_goes_to_the_others(mixed: Mixed, caplog: pytest.LogCaptureFixture) -> None:
    held = {s: part["tokens"] for s, part in mixed()["sources"].items()}
    total = 6 * held["c"]
    with caplog.at_level(logging.WARNING, "corpusmill"):
        manifest = mixed(tokens=total, weights={"a": 1, "b": 1, "c": 4}, cap_epochs=2)
    c, rest = 2 * held["c"], total - 2 * held["c"]
    assert asked_of(manifest) == [{"a": rest - rest // 2, "b": rest // 2, "c": c}] and not caplog.records
    phases = mixed(phases=[{"tokens": 3 * held["c"]}] * 2, weights={"a": 1, "b": 1, "c": 1}, cap_epochs=1.5)
    assert [phase["c"] for phase in asked_of(phases)] == [held["c"], (3 * held["c"]) // 2 - held["c"]]
    assert phases["tokens"] == total and [sum(phase.values()) for phase in asked_of(phases)] == [total // 2] * 2
    with pytest.raises(MixError, match=rf"asked for {total:,} tokens, and the sources give {c:,} at cap_epochs 2;"):
        mixed(tokens=total, weights={"c": 1}, cap_epochs=2)


def test_weights_by_temperature(mixed: Mixed) -> None:
    held = {s: part["tokens"] for s, part in mixed()["sources"].items()}
    natural = mixed(tokens=1200)
    assert asked_of(mixed(tokens=1200, weights={"temperature": 1})) == asked_of(natural)
    assert asked_of(mixed(tokens=1200, weights={"temperature": math.inf})) == [{"a": 400, "b": 400, "c": 400}]
    roots = {s: n**0.5 for s, n in held.items()}
    found = asked_of(mixed(tokens=1200, weights={"temperature": 2}))[0]
    assert found == {s: pytest.approx(1200 * root / sum(roots.values()), abs=1) for s, root in roots.items()}
    assert asked_of(mixed(tokens=1200, weights={"temperature": 1e-3})) == [{"a": 1200}], "the largest takes all"
    some = mixed(tokens=900, where="source <> 'b'", weights={"temperature": math.inf})
    assert asked_of(some) == [{"a": 450, "c": 450}], "nothing is asked of a source that has nothing"


@pytest.mark.parametrize("given", [0, -1, float("nan"), "warm"])
def test_what_is_no_temperature(given: Any) -> None:
    with pytest.raises(ValidationError, match=r"temperature|are no weights"):
        Mixture(weights={"temperature": given})


def test_weights_that_a_fit_has_found(mixed: Mixed) -> None:
    found = mixed(tokens=1000, weights="fit:found", fitted={"weights": {"a": 0.5, "b": 0.3, "c": 0.2}, "more": 1})
    assert asked_of(found) == [{"a": 500, "b": 300, "c": 200}]
    with pytest.raises(MixError, match=r"mix\.m\.weights names z; the sources are a, b, c"):
        mixed(tokens=1000, weights="fit:found", fitted={"weights": {"z": 1}})
    for broken in ({"a": 1}, {"weights": 3}, {"weights": {"a": "x"}}, {"weights": {"a": -1}}, [1]):
        with pytest.raises(MixError, match=r'found/weights\.json holds no \{"weights": \{SOURCE: SHARE\}\}'):
            mixed(tokens=1000, weights="fit:found", fitted=broken)
    with pytest.raises(MixError, match=r"models/other/weights\.json holds no"):
        mixed(tokens=1000, weights="fit:other")


def test_recipes_know_where_weights_come_from() -> None:
    base = {"name": "r", "sources": {"a": "a/*"}, "tokenizer": "t.json"}
    fit = {"found": {"method": "regmix"}, "words": {"method": "terms"}}
    parse({**base, "fit": fit, "mix": {"m": {"phases": [{"tokens": 5, "weights": "fit:found"}]}}})
    for mix_of, line in (
        ({"weights": "fit:fuond"}, r"mix\.m\.weights: 'fit:fuond' is not under fit; did you mean 'found'"),
        ({"weights": "fit:words"}, r"mix\.m\.weights: 'fit:words' makes a model for .*, not for mix"),
        ({"phases": [{"weights": "fit:x"}]}, r"mix\.m\.phases\.0\.weights: 'fit:x' is not under fit"),
    ):
        with pytest.raises(RecipeError, match=line):
            parse({**base, "fit": fit, "mix": {"m": mix_of}})


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"tokens": 5, "phases": [{"tokens": 5}]}, "a mixture with phases has the tokens of its phases"),
        ({"phases": [{"tokens": "many"}]}, "phases.0.tokens"),
        ({"phases": [{"weights": {"a": -1}}]}, "are no weights"),
        ({"phases": [{"toekns": 5}]}, "phases.0.toekns"),
        ({"phases": [{}] * 65}, "at most 64"),
        ({"cap_epochs": 0}, "cap_epochs"),
        ({"weights": "naturel"}, "did you mean 'natural'"),
        ({"weights": ["a"]}, "are no weights"),
    ],
)
def test_what_is_no_mixture(spec: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        Mixture(**spec)


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
    context, tables, splits, name, _, also, *rest = calls[0]
    stray = folder / "gone" / "9-9.parquet"
    stray.parent.mkdir()
    shutil.copy(next((folder / "a").glob("*.parquet")), stray)

    class StoppedError(Exception):
        pass

    def stopped(*_: Any, **__: Any) -> None:
        raise StoppedError

    def remixed(mixture: Mixture) -> dict[str, Any]:
        return mix(context, tables, splits, name, mixture, also, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "run_splits", stopped)
        with pytest.raises(StoppedError):
            remixed(Mixture(where="true"))
        assert (folder / "manifest.json").exists() and stray.exists(), "no shard was to be replaced"
        with pytest.raises(StoppedError):
            remixed(Mixture(where="true", tokens=500))
        assert not (folder / "manifest.json").exists()
    manifest = remixed(Mixture(where="true", tokens=500))
    assert store.read_json(f"{folder}/manifest.json") == manifest
    assert not stray.exists()
    assert {str(f.relative_to(folder)) for f in folder.rglob("*.parquet")} >= {
        f["path"] for source in manifest["sources"].values() for f in source["files"]
    }
