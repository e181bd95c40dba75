"""The same bytes come out however a run is computed: in this process, in others, over a job server, in any order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_corpus import corpus, recipe

from pipelines import shards, steps, store
from pipelines.recipe import parse
from pipelines.run import run

Expected = tuple[dict[str, Any], dict[str, Any]]
DERIVED = ("index", "scores", "signatures", "dedupe", "selection", "mixtures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the plainest run: one process, every step."""
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def expected(folder: Path, plain: Path) -> Expected:
    """Its summary and sidecars."""
    return run(parse(recipe(folder)), str(plain), until="mix"), sidecars(plain)


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every graph goes to the worker processes, be it ever so small."""
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    yield


def sidecars(out: Path) -> dict[str, Any]:
    """Rows, key and record (but for the seconds) of every sidecar of a run."""
    found = {}
    for path in sorted(p for part in DERIVED for p in (out / part).rglob("*.parquet")):
        table, metadata = pq.ParquetFile(path).read(), pq.read_metadata(path).metadata
        record = json.loads(metadata[store.RECORD])
        del record["seconds"]
        found[str(path.relative_to(out))] = (table.replace_schema_metadata(None), metadata[store.KEY], record)
    return found


def assert_equal(made: dict[str, Any], expected: dict[str, Any]) -> None:
    assert made.keys() == expected.keys() and len(made) > 30
    for path, (table, key, record) in made.items():
        assert table.equals(expected[path][0]), path
        assert (key, record) == expected[path][1:], path


def with_models_of(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the models that a run has fitted, not fitted again: six graphs less to start workers for."""
    quality = {"scorer": "fasttext", "model": f"{run}/models/quality"}
    return {**given, "fit": {}, "tokenizer": f"{run}/models/tokenizer", "score": {**given["score"], "quality": quality}}


def test_the_plain_run_exercises_every_step(expected: Expected) -> None:
    summary = expected[0]
    steps = summary["ledger"]
    assert {
        "index",
        "scores:fineweb",
        "signatures:exact",
        "dedupe:exact",
        "scores:quality",
        "select",
        "mix:curated",
        "mix:heldout",
    } <= steps.keys()
    dropped = steps["select"]["dropped"]
    assert all(dropped[reason] > 10 for reason in ("unique", "quality", "holdout"))
    assert steps["index"]["dropped"] == {"null": 1, "empty": 1, "blank": 1} and steps["index"]["repaired"] == {"nul": 1}
    epochs = summary["mixtures"]["curated"]["epochs"]
    assert min(epochs.values()) <= 1 < max(epochs.values()), "one source is drawn from, one repeated"


@pytest.mark.usefixtures("crossing")
def test_two_worker_processes(folder: Path, plain: Path, expected: Expected, tmp_path: Path) -> None:
    summary = run(parse(with_models_of(plain, recipe(folder))), str(tmp_path), workers=2, until="mix")
    assert summary["mixture_digest"] == expected[0]["mixture_digest"]
    assert_equal(sidecars(tmp_path), expected[1])


@pytest.mark.usefixtures("crossing")
def test_portable_job_server(folder: Path, plain: Path, expected: Expected, tmp_path: Path) -> None:
    from pipelines.job_server import job_server

    with job_server() as options:
        summary = run(parse(with_models_of(plain, recipe(folder))), str(tmp_path), options, until="mix")
    assert summary["mixture_digest"] == expected[0]["mixture_digest"]
    assert_equal(sidecars(tmp_path), expected[1])


def test_globs_in_another_order(folder: Path, expected: Expected, tmp_path: Path) -> None:
    given = recipe(folder)
    web = [f"{folder}/web/{name}*.parquet" for name in ("c", "b", "a")]
    given["sources"] = {"code": given["sources"]["code"], "books": given["sources"]["books"], "web": web}
    summary = run(parse(given), str(tmp_path), until="mix")
    assert summary["mixture_digest"] == expected[0]["mixture_digest"]
    assert_equal(sidecars(tmp_path), expected[1])


def test_renamed_shards(folder: Path, expected: Expected, tmp_path: Path) -> None:
    for path in folder.rglob("*.parquet"):
        renamed = tmp_path / "corpus" / path.parent.name / f"{ord('z') - ord(path.stem)}.parquet"
        renamed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed)
    summary = run(parse(recipe(tmp_path / "corpus")), str(tmp_path / "run"), until="mix")
    assert summary["mixture_digest"] == expected[0]["mixture_digest"]


@pytest.mark.parametrize("size", [1, 20_000])
def test_shards_in_many_splits(
    size: int, folder: Path, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SPLIT_BYTES", size)
    summary = run(parse(recipe(folder)), str(tmp_path), until="mix")
    assert summary["ledger"]["index"]["splits"] > 2 * expected[0]["ledger"]["index"]["splits"]
    assert summary["mixture_digest"] == expected[0]["mixture_digest"]


def test_the_digest_tells_mixtures_apart(folder: Path, expected: Expected, tmp_path: Path) -> None:
    """Against a digest that is the same whatever happens: other documents, or more tokens asked of them."""
    given = recipe(folder)
    given["mix"] = {"curated": given["mix"]["curated"] | {"tokens": 61_000}}
    assert run(parse(given), str(tmp_path / "1"), until="mix")["mixture_digest"] != expected[0]["mixture_digest"]
    given = recipe(folder)
    given["select"] |= {"even": "row % 2 = 0"}
    assert run(parse(given), str(tmp_path / "2"), until="mix")["mixture_digest"] != expected[0]["mixture_digest"]
