"""`clean: prox` by language models: programs cut planted noise, nothing is asked twice, what fails changes nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import Page, pages
from small_corpus import mixed, rows
from toy_server import HANG, ToyServer

from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from sql.views import query

CORPUS = [*pages(24), Page("Spam and more spam of spam\nTHE END", [0, 1], [], [], "spam.example")]
NOISE = {line for page in CORPUS for k, line in enumerate(page.text.split("\n")) if k in page.noise}
RUN = "import json, sys; from pipelines.recipe import parse; from pipelines.run import run; "
RUN += "run(parse(json.loads(sys.argv[1])), sys.argv[2], until='clean')"


def place(folder: Path, count: int = 2) -> Path:
    (folder / "web").mkdir(parents=True, exist_ok=True)
    for k in range(count):
        own = range(k, len(CORPUS), count)
        table = {"id": [f"{i:05d}" for i in own], "text": [CORPUS[i].text for i in own]}
        table |= {"host": [CORPUS[i].host for i in own], "program": [said(CORPUS[i]) for i in own]}
        pq.write_table(pa.table(table), folder / "web" / f"{k}.parquet")
    return folder


def said(page: Page) -> str:
    return "\n".join(f"remove_lines({i}, {i})" for i in page.noise)


def reply(prompt: str) -> tuple[str, str]:
    """Of a chunk, the program that removes what is planted; of a document, whether it is spam."""
    if not prompt.startswith("[doc]"):
        return "drop_doc()" if prompt.startswith("Spam") else "keep_doc()", "stop"
    found = re.findall(r"^\[(\d+)\](.*)$", prompt, re.M)
    return "\n".join(f"remove_lines({n}, {n})" for n, line in found if line in NOISE) or "keep_chunk()", "stop"


def asking(server: ToyServer, **more: Any) -> dict[str, Any]:
    return {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1, **more}


def recipe(folder: Path, made: Path, **prox: Any) -> dict[str, Any]:
    given = {"tokenizer": str(made), "prompts": {"chunk_tokens": 600}, **prox}
    given = {key: value for key, value in given.items() if value is not None}
    base = {"name": "prox", "sources": {"web": f"{folder}/web/*.parquet"}, "clean": {"prox": given}}
    return {**base, "mix": {"all": {}}, "tokenizer": str(made)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("prox"))


def refined(page: Page) -> str:
    return "\n".join(line for k, line in enumerate(page.text.split("\n")) if k not in page.noise)


def test_programs_are_executed_and_nothing_is_asked_twice(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    with ToyServer(reply=reply) as server:
        given = parse(recipe(folder, toy_tokenizer, engine=asking(server), documents=asking(server)))
        summary = run(given, str(tmp_path))
        first = [one.prompt for one in server.seen]
        assert len(first) == len(set(first)) and not any("Spam" in prompt for prompt in first if prompt[0] == "[")
        for sidecar in (tmp_path / "cuts").rglob("*.parquet"):
            sidecar.unlink()
        again = run(given, str(tmp_path))
        assert len(server.seen) == len(first), "the answers of the first run are in its cache"
    assert mixed(tmp_path) == {f"{i:05d}": refined(page) for i, page in enumerate(CORPUS[:-1])}
    for found in (summary, again):
        assert found["ledger_balanced"] and found["ledger"]["mix:all"]["dropped"] == {"emptied by cuts": 1}
        assert found["ledger"]["clean:prox"]["repaired"] == {"cut": 25, "dropped": 1, "refined": 24}
    told = query(
        str(tmp_path), "SELECT prox.status AS s, max(prox.errors) AS e, count(*) AS n FROM documents GROUP BY 1"
    )
    assert sorted(map(str, told.to_pylist())) == [
        "{'s': 'dropped', 'e': 0, 'n': 1}", "{'s': 'refined', 'e': 0, 'n': 24}",
    ]  # fmt: skip


def test_what_fails_leaves_pages_as_they_are(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """Page 3 hangs, page 4 gets prose, page 5 a program with two mistakes."""

    def badly(prompt: str) -> tuple[str, str]:
        if CORPUS[4].text.split("\n")[0] in prompt:
            return "I see a web page.", "stop"
        if CORPUS[5].text.split("\n")[0] in prompt:
            return "remove_lines(3, 1)\nremove_lines(first)\nremove_lines(0, 3)", "stop"
        return reply(prompt)

    pages_, texts = {3, 4, 5}, [page.text for page in CORPUS]
    with ToyServer(reply=badly) as server:
        lines = texts[3].split("\n")
        server.script["\n".join(["[doc]", *(f"[{i:03d}]{line}" for i, line in enumerate(lines)), "[/doc]"])] = [HANG]
        engine = asking(server, timeout=3)
        given = recipe(folder, toy_tokenizer, engine=engine, prompts={"chunk_tokens": 4000})
        summary = run(parse(given), str(tmp_path))
        asked = len(server.seen)
        left = mixed(tmp_path)
        assert {i: left[f"{i:05d}"] for i in pages_} == {i: texts[i] for i in pages_}
        counted = summary["ledger"]["clean:prox"]["repaired"]
        assert counted["chunk: timed out"] == 1 and counted["chunk: no program"] == 1
        assert (counted["kept"], counted["refused_errors"]) == (2, 1)
        found = {row["id"]: row["prox"] for row in rows(tmp_path / "cuts" / "prox")}
        assert found["00003"]["failures"] == ["chunk: timed out"] and found["00005"]["errors"] == 2
        assert not found["00006"]["failures"] and found["00006"]["status"] == "refined"
        summary = run(parse(given), str(tmp_path))
        assert len(server.seen) == asked + 1, "what timed out alone is asked again"
        assert "chunk: timed out" not in summary["ledger"]["clean:prox"]["repaired"]
        assert mixed(tmp_path)["00003"] == refined(CORPUS[3]), "what is made of the text is made again"
        summary = run(parse(given), str(tmp_path))
        assert len(server.seen) == asked + 1 and summary["ledger"]["clean:prox"]["reused"] == 2


def test_a_killed_run_asks_again_for_what_was_under_way_and_nothing_else(
    folder: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    with ToyServer(reply=reply, seconds=0.05) as server:
        given = recipe(folder, toy_tokenizer, engine=asking(server, concurrency=2, timeout=30))
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(given), str(tmp_path)], stderr=subprocess.DEVNULL
        )
        while len(server.seen) < 12 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL and len(server.seen) >= 12
        server.seconds = 0.0
        run(parse(given), str(tmp_path))
        counts = Counter(one.prompt for one in server.seen)
    assert sum(counts.values()) - len(counts) <= 2 and max(counts.values()) <= 2  # `concurrency` were under way
    assert mixed(tmp_path)["00000"] == refined(CORPUS[0])


def test_the_light_refiner_or_none_beside_a_judge(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    with ToyServer(reply=reply) as server:
        given = recipe(folder, toy_tokenizer, documents=asking(server))
        run(parse(given), str(tmp_path))
        assert mixed(tmp_path) == {f"{i:05d}": page.text for i, page in enumerate(CORPUS[:-1])}
        assert len(server.seen) == len(CORPUS)


def test_a_model_of_the_same_run_writes_the_programs(folder: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    fit = {"method": "refiner_lm", "program": "program", "group": "id", "draws": 1}
    fit |= {"prompts": {"chunk_tokens": 80, "output_tokens": 96, "line": 20}}
    fit |= {"lesson": {"vocabulary": 300, "train": {"tokens": 500, "row_length": 256, "model": size}}}
    given = recipe(folder, toy_tokenizer) | {"fit": {"writer": fit}}
    given["clean"] = {"prox": {"engine": {"engine": "transformers", "model": "fit:writer"}}}
    summary = run(parse(given), str(tmp_path))
    assert summary["ledger_balanced"]
    card = json.loads((tmp_path / "models" / "writer" / "card.json").read_text())
    assert card["holdout"]["lines"]["programs"] > 0
    found = [row["prox"] for row in rows(tmp_path / "cuts" / "prox")]
    assert len(found) == len(CORPUS) and all(row["status"] for row in found)
    assert run(parse(given), str(tmp_path))["ledger"]["clean:prox"]["reused"] > 0


@pytest.mark.parametrize(
    ("prox", "message"),
    [
        ({"engine": {"engine": "vlm", "model": "m"}}, "clean.prox.engine"),
        ({"engine": {"model": "nowhere"}}, "no model folder at nowhere"),
        ({"engine": {"model": "fit:writer"}}, "'fit:writer' is not under fit"),
        ({"engine": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"}, "tokenizer": None},
         "tokenizer: must be given"),
        ({"engine": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"}, "model": "nowhere"},
         "clean.prox.model: no refiner at nowhere"),
        ({"documents": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"},
          "prompts": {"document": "Stay?"}}, "{text} 0 times"),
        ({"engine": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"}, "keep": 0.9},
         "`keep` is for the light model, and no `model` is given"),
        ({"documents": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"}, "threshold": 0.5},
         "`threshold` is for the light model, and no `model` is given"),
        ({"documents": {"engine": "vllm", "model": "/gone"}},
         "clean.prox.documents: needs the package vllm; pip install 'corpusmill[vllm]'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(
    folder: Path, toy_tokenizer: Path, tmp_path: Path, prox: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        run(parse(recipe(folder, toy_tokenizer, **prox)), str(tmp_path / "run"))
    assert message in str(error.value) and not (tmp_path / "run").exists()
