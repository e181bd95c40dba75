"""A run that rewrites through vLLM itself. Needs the environment of tests/vllm_environment.sh."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_chat import TEXTS, build_chat_model

from pipelines.recipe import parse
from pipelines.run import run
from sql.views import query
from transforms.generation.transformers import Transformers
from transforms.generation.vllm import VLLM

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 40 documents in two shards."""
    folder = tmp_path_factory.mktemp("vllm")
    build_chat_model(folder / "model", window=1024)
    (folder / "corpus").mkdir()
    for shard in range(2):
        numbers = range(shard * 20, shard * 20 + 20)
        texts = [". ".join(random.Random(k).choices(TEXTS, k=1 + k % 5)) + f". End of {k}." for k in numbers]
        table = pa.table({"id": [f"d{k}" for k in numbers], "text": texts})
        pq.write_table(table, folder / "corpus" / f"{shard}.parquet")
    return folder


def recipe(work: Path, engine: dict[str, Any], **changes: Any) -> Any:
    plain = {"rewriter": "wrap", "style": "medium", "engine": {"model": str(work / "model"), **engine}}
    plain |= {"chunk_tokens": 80, "max_tokens": 24, "temperature": 0, "acceptance": {"language": False}, **changes}
    return parse({"name": "t", "sources": {"words": f"{work}/corpus/*.parquet"}, "rewrite": {"plain": plain}})


def test_a_run_through_vllm_balances_and_its_answers_serve_every_engine(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(work / "run")
    summary = run(recipe(work, {"engine": "vllm", "dtype": "float32"}), folder, until="rewrite")
    assert summary["ledger_balanced"]
    told = summary["rewrites"]["plain"]
    pieces = query(folder, "SELECT unnest(plain.pieces) AS p FROM documents WHERE source = 'words'").to_pylist()
    assert told["pieces"] == len(pieces) > 40
    assert told["documents"] + sum(told["left_out"].values()) == len(pieces)
    assert {d["p"]["finish_reason"] for d in pieces} <= {"stop", "length", "error"}
    assert sum(d["p"]["output_tokens"] for d in pieces) > len(pieces)

    def refuse(*_: object) -> None:
        raise AssertionError("an answer was there and was asked for again")

    for engine in (VLLM, Transformers):
        monkeypatch.setattr(engine, "stream", refuse)
    bounds = {"language": False, "length": [0.01, 100]}
    again = run(recipe(work, {"engine": "transformers"}, acceptance=bounds), folder, until="rewrite")
    assert again["rewrites"]["plain"]["pieces"] == len(pieces)
    other = query(folder, "SELECT unnest(plain.pieces) AS p FROM documents WHERE source = 'words'").to_pylist()
    assert [d["p"]["output_tokens"] for d in other] == [d["p"]["output_tokens"] for d in pieces]
