"""Influence through a recipe: a model that reads prose as its reference wants prose, and the draw takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_corpus import junk, prose, write

from pipelines.recipe import RecipeError, parse
from pipelines.run import run

EACH = 150
DRAW = "gumbel_top_k({}influence.score, share := 0.2, temperature := 0.5)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose and menus in two shards, and a reference of prose."""
    folder = tmp_path_factory.mktemp("influence")
    draw = np.random.default_rng(0)
    texts = [prose(draw, 3) for _ in range(EACH)] + [junk(draw, 8) for _ in range(EACH)]
    ids = [f"{'prose' if i < EACH else 'menu'} {i * 7919 % 100_003}" for i in range(2 * EACH)]
    order = draw.permutation(2 * EACH)
    for k in range(2):
        chosen = order[k::2]
        write(folder / "pool" / f"{k}.parquet", {"id": [ids[i] for i in chosen], "text": [texts[i] for i in chosen]})
    write(folder / "reference.parquet", {"text": [prose(draw, 3) for _ in range(12)]})
    return folder


def recipe(folder: Path, model: Path, sign: str = "") -> dict[str, Any]:
    fit = {"method": "influence", "files": f"{folder}/reference.parquet", "model": str(model), "pool_documents": 80}
    return {
        "name": "wanted",
        "sources": {"pool": f"{folder}/pool/*.parquet"},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.2, "clusters": "exact"},
        "fit": {"wanted": {**fit, "window": 64}},
        "score": {"influence": {"model": "fit:wanted"}},
        "select": {"wanted": DRAW.format(sign)},
    }


def reasons(out: Path) -> dict[str, str | None]:
    """Why each document was refused; None for those selected."""
    rows = [row for p in sorted((out / "selection").rglob("*.parquet")) for row in pq.ParquetFile(p).read().to_pylist()]
    return {row["id"]: row["selection"]["reason"] for row in rows}


def test_the_draw_takes_what_helps(folder: Path, toy_causal: Path, tmp_path: Path) -> None:
    """A fifth of all, most of it prose; with the other sign most of it menus. No probe is held out."""
    summary = run(parse(recipe(folder, toy_causal)), str(tmp_path), until="select")
    found = reasons(tmp_path)
    assert summary["ledger_balanced"] and len(found) == 2 * EACH
    kept, held = ({name for name, reason in found.items() if reason == why} for why in (None, "holdout"))
    assert 35 <= len(kept) <= 2 * EACH // 5 and len(held) > 30
    assert sum(name.startswith("prose") for name in kept) / len(kept) > 0.7
    probes = pq.read_table(tmp_path / "models" / "wanted" / "probes.parquet").column("id").to_pylist()
    assert len(set(probes)) == 80 and not held.intersection(probes)
    run(parse(recipe(folder, toy_causal, "-")), str(tmp_path), until="select")
    kept = {name for name, reason in reasons(tmp_path).items() if reason is None}
    assert sum(name.startswith("menu") for name in kept) / len(kept) > 0.7


def test_a_missing_model_is_told_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fit\.wanted\.model: no model folder at"):
        run(parse(recipe(folder, tmp_path / "nowhere")), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "models").exists()
