"""Code cleaning in a run: tests come from a column of lists, programs go on as documents of a source of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_programmer import Programmer, ends, modularise, plan, rename
from toy_programs import TOYS, batch_of
from toy_server import ToyServer

from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from transforms.sandbox import Sandbox, SandboxUnavailable


def test_programs_and_their_provenance(tmp_path: Path, recipe_of: Callable[..., dict[str, Any]]) -> None:
    try:
        Sandbox().check()
        sandbox = {}
    except SandboxUnavailable:
        sandbox = {"isolation": "limits"}
    table = pa.Table.from_batches([batch_of(TOYS[:2], 1)]).append_column("number", pa.array([1, 2]))
    pq.write_table(table, tmp_path / "code.parquet")
    with ToyServer(reply=Programmer()) as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "toy"}
        better = {"rewriter": "code_clean", "tests": "tests", "engine": engine, "where": "true", "sandbox": sandbox}
        sources = {"code": str(tmp_path / "code.parquet")}
        wrong = recipe_of(sources, rewrite={"better": {**better, "tests": "number"}})
        with pytest.raises(RecipeError, match=r"rewrite\.better: column 'number' is int64; expected list<struct"):
            run(parse(wrong), str(tmp_path / "wrong"), until="select")
        run(parse(recipe_of(sources, rewrite={"better": better})), str(tmp_path / "run"), until="select")
    made = pq.read_table(tmp_path / "run" / "rewritten" / "better").to_pylist()
    names = {toy.name: rename(toy.source) for toy in TOYS[:2]}
    wanted = {name: [first, modularise(first), plan(ends(modularise(first)))] for name, first in names.items()}
    assert [row["text"] for row in made] == [ends(code) for name in wanted for code in wanted[name]]
    assert [row["id"] for row in made] == [f"{name}:better:{number}" for name in wanted for number in (1, 2, 3)]
    assert [row["stage"] for row in made] == ["rename", "modularise", "plan"] * 2
    assert [row["tests"] for row in made[::3]] == [toy.tests(1) for toy in TOYS[:2]]
    assert {row["rewrite"]["prompt"] for row in made[:1]} == {"code_clean/rename@1"}
