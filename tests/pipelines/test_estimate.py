"""Estimates against a corpus whose duplicates are known; costs against what a run takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_corpus import write
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.estimate import estimate
from pipelines.recipe import RecipeError, parse
from pipelines.run import run

DISTINCT, EXACT, NEAR = 1500, 400, 300  # documents, copies of some, copies with a word more


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies stand anywhere. A share of 18 % is exact, 32 % exact or near."""
    draw = np.random.default_rng(0)
    words = [f"w{x}".translate({48 + d: 97 + d for d in range(10)}) for x in range(5000)]
    texts = [" ".join(words[i] for i in draw.integers(0, 5000, 150)) for _ in range(DISTINCT)]
    copies = [texts[i] for i in draw.permutation(DISTINCT)[:EXACT]]
    copies += [texts[i] + " furthermore" for i in draw.permutation(DISTINCT)[:NEAR]]
    everything = [(texts + copies)[i] for i in draw.permutation(DISTINCT + EXACT + NEAR)]
    folder = tmp_path_factory.mktemp("estimate")
    for k in range(4):
        write(folder / f"{k}.parquet", [*everything[k::4], None, " "], group=25)
    return folder


def glob(corpus: Path) -> str:
    return f"{corpus}/*.parquet"


def test_a_sample_of_everything_is_exact(corpus: Path) -> None:
    found = estimate(glob(corpus), sample_mb=1000)
    total = DISTINCT + EXACT + NEAR
    assert found["documents"] == found["sample"]["documents"] == total
    assert found["exact"]["distinct"] == DISTINCT + NEAR
    assert found["exact"]["least"] == found["exact"]["share"] == pytest.approx(EXACT / total)
    assert found["near"]["share"] == pytest.approx((EXACT + NEAR) / total, abs=0.002)
    assert found["whole"] is None


def test_a_part_gives_a_range_that_holds_the_truth(corpus: Path) -> None:
    whole = estimate(glob(corpus), sample_mb=1000)
    found = estimate(glob(corpus), sample_mb=0.8)
    total = DISTINCT + EXACT + NEAR
    assert 0.3 * total < found["sample"]["documents"] < 0.8 * total
    assert found["documents"] == pytest.approx(total, rel=0.02)
    assert found["megabytes"] == pytest.approx(whole["megabytes"], rel=0.03)
    for method in ("exact", "near"):
        truth = whole[method]["share"]
        assert found[method]["least"] < truth < found[method]["most"]
        assert found[method]["share"] == pytest.approx(truth, abs=0.1)
    assert found["near"]["share"] > found["exact"]["share"]


def test_a_run_is_counted_whole_and_costs_what_was_said(corpus: Path, tmp_path: Path) -> None:
    given = {"name": "x", "sources": {"all": glob(corpus)}, "dedupe": {"minhash": {}, "exact": {}}}
    run(parse(given), str(tmp_path), until="dedupe")
    found = estimate(str(tmp_path), sample_mb=0.5)
    total = DISTINCT + EXACT + NEAR
    assert found["whole"]["documents"] == total
    assert found["whole"]["content_share"] == pytest.approx(EXACT / total, abs=0.02)
    assert EXACT / total < found["whole"]["near_share_at_least"] < (EXACT + NEAR) / total + 0.02
    used = sum(p.stat().st_size for p in tmp_path.rglob("*.parquet")) / 1e6
    assert 0.4 * used < found["disk_mb"] < 2.5 * used
    assert found["seconds"] > 0 and found["memory_mb"] > 300


def test_costs_grow_with_the_corpus(corpus: Path, tmp_path: Path) -> None:
    for path in corpus.glob("*.parquet"):
        for copy in range(3):
            (tmp_path / f"{path.stem}{copy}.parquet").write_bytes(path.read_bytes())
    one, three = (estimate(glob(folder), sample_mb=0.3) for folder in (corpus, tmp_path))
    for name in ("documents", "megabytes", "disk_mb"):
        assert three[name] == pytest.approx(3 * one[name], rel=0.05)
    assert estimate(glob(corpus), 0.3, workers=2)["seconds"] > 6


def test_bad_input(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    for data, column, message in (
        (f"{tmp_path}/*.none", "text", "no file matches"),
        (f"{tmp_path}/*.parquet", "text", r"no shard can be read \(.*broken\.parquet: "),
        (glob(corpus), "body", "no column 'body'; there are "),
    ):
        with pytest.raises(RecipeError, match=message):
            estimate(data, text=column)


def test_command(corpus: Path) -> None:
    done = CliRunner().invoke(app, ["estimate", glob(corpus), "--sample-mb", "0.5", "--json"])
    assert done.exit_code == 0 and '"near": {' in done.output
    done = CliRunner().invoke(app, ["estimate", f"{corpus}/*.none"])
    assert done.exit_code == 2
