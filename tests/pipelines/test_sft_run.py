"""Prompts, completions and conversations through a recipe, from the shards to what a trainer reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.plan import Plan
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from pipelines.shards import expand
from sql.views import query
from trainers.data import Batches
from trainers.formats import Format
from trainers.mixture import open_mixture

TURN = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.string())})
TALKS = pa.list_(TURN)
COUNT = 90


def talk(number: int) -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": f"what is {number} and one?"}]
    turns.append({"role": "assistant", "content": f"it is {number + 1}.", "tool_calls": None})
    if number % 3 == 0:
        turns += [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes, sure."}]
    return turns


BAD: list[Any] = [
    None,
    [],
    [{"role": "user", "content": " \n"}],
    [{"role": "user", "content": "nul \0 here"}, {"role": "assistant", "content": "ok"}],
    talk(7),  # once more
]


@pytest.fixture(scope="module")
def tokenizer(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat template beside the tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    file = toy_tokenizer / "tokenizer.json" if toy_tokenizer.is_dir() else toy_tokenizer
    shutil.copy(file, folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    return folder


def write(path: Path, talks: list[Any], kind: pa.DataType = TALKS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"talk": pa.array(talks, kind)}), path, row_group_size=17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    talks = [talk(i) for i in range(COUNT)] + BAD
    write(folder / "talks" / "0.parquet", talks[::2])
    write(folder / "talks" / "1.parquet", talks[1::2], pa.large_list(TURN))
    return folder


def recipe(folder: Path, tokenizer: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "talks",
        "sources": {"talks": f"{folder}/talks/*.parquet"},
        "text": "talk",
        "score": {"statistics": {}},
        "dedupe": {"exact": {}},
        "select": {"first": "exact.keep"},
        "tokenizer": str(tokenizer),
        "mix": {"all": {}},
        **changes,
    }


@pytest.fixture(scope="module")
def done(folder: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    return out, run(parse(recipe(folder, tokenizer)), str(out))


def test_conversations_reach_the_mixture_as_they_are(done: tuple[Path, dict[str, Any]]) -> None:
    out, summary = done
    texts = query(str(out), "SELECT talk FROM documents WHERE talk = 'nul  here\n\nok' OR talk LIKE 'what is 7 and%8.'")
    assert texts.num_rows == 3
    assert summary["ledger_balanced"] and (out / "report.html").stat().st_size > 10_000
    rows = [
        row for file in sorted((out / "mixtures" / "all").rglob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    found = sorted(json.dumps(row["messages"]) for row in rows)
    kept = [talk(i) for i in range(COUNT)] + [BAD[3]]
    assert found == sorted(json.dumps(pa.array([turns], TALKS).to_pylist()[0]) for turns in kept)
    for row in rows:
        assert row["text"] == "\n\n".join(turn["content"] for turn in row["messages"]).replace("\0", "")
    index = [row for file in (out / "index").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    statuses = sorted(row["status"] for row in index if row["status"] != "ok")
    assert statuses == ["blank", "empty", "null"] and sum(row["repaired"] == "nul" for row in index) == 1


def test_the_trainer_reads_every_conversation_once_per_pass(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The manifest counts tokens of texts; templates add theirs, and a pass is a pass all the same."""
    out, _ = done
    corpus = open_mixture(out / "mixtures" / "all", tmp_path, Format(kind="messages"))
    assert corpus.copies.tolist() == [1] * (COUNT + 1)
    assert corpus.length.sum() > 1.1 * corpus.documents["bytes"].to_numpy().sum() / 4
    batches = Batches(corpus, 256, 2, seed=0)
    report = batches.plan_report()
    assert report["tokens"] == corpus.length.sum() and report["documents_truncated"] == 0
    answers = sum(len([t for t in turns if t["role"] == "assistant"]) for turns in map(talk, range(COUNT))) + 1
    ends = (corpus.tokens == corpus.end_token) & (np.asarray(corpus.weights) > 0)
    assert ends.sum() == answers  # the template in the folder, not the default one, ends turns with the end token
    assert (out / "mixtures" / "all" / "tokenizer" / "chat_template.jinja").is_file()


def test_prompts_are_carried_beside_completions(tokenizer: Path, tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"what is {i}?" for i in range(40)], "completion": [f"it is {i}." for i in range(40)]})
    (tmp_path / "qa").mkdir()
    pq.write_table(table, tmp_path / "qa" / "0.parquet")
    given = recipe(tmp_path, tokenizer, sources={"qa": f"{tmp_path}/qa/*.parquet"}, text="completion")
    run(parse(given), str(tmp_path / "run"))
    folder = tmp_path / "run" / "mixtures" / "all"
    rows = [row for file in folder.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert sorted((row["prompt"], row["text"]) for row in rows) == sorted(
        (row["prompt"], row["completion"]) for row in table.to_pylist()
    )
    for format in (Format(kind="prompt_completion"), Format(kind="prompt_completion", chat=True)):
        corpus = open_mixture(folder, tmp_path / "cache", format)
        assert corpus.copies.tolist() == [1] * 40 and (corpus.targets < corpus.length).all()


def test_conversations_as_json_may_be_the_text(tokenizer: Path, tmp_path: Path) -> None:
    talks = [json.dumps(talk(i)) for i in range(20)] + ["[]"]
    (tmp_path / "talks").mkdir()
    pq.write_table(pa.table({"messages": talks}), tmp_path / "talks" / "0.parquet")
    config = {"mixtures": ["all"], "config": {"format": {"kind": "messages"}}}
    given = recipe(tmp_path, tokenizer, text="messages", train=config)
    Plan(parse(given), str(tmp_path / "run")).check(expand(given["sources"]))
    run(parse(given), str(tmp_path / "run"), until="mix")
    corpus = open_mixture(tmp_path / "run" / "mixtures" / "all", tmp_path / "cache", Format(kind="messages"))
    assert (corpus.targets > 0).sum() == 20 and len(corpus.targets) == 21


def test_spans_are_not_cut_out_of_conversations(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    given = recipe(folder, tokenizer, clean={"pii": {}})
    with pytest.raises(RecipeError, match="column 'talk' holds conversations, which mixtures carry as they are"):
        Plan(parse(given), str(tmp_path)).check(expand(given["sources"]))


def test_invalid_text_is_repaired_in_conversations_too(tokenizer: Path, tmp_path: Path) -> None:
    raw = pa.list_(pa.struct({"role": pa.string(), "content": pa.binary()}))
    column = pa.array([[{"role": "user", "content": b"a\xffb"}, None], [{"role": "user", "content": b"fine"}]], raw)
    broken = pa.ListArray.from_arrays(
        column.offsets,
        pa.StructArray.from_arrays(
            [
                column.values.field("role"),
                pa.Array.from_buffers(pa.string(), 3, column.values.field("content").buffers()),
            ],
            ["role", "content"],
            mask=column.values.is_null(),
        ),
    )
    (tmp_path / "talks").mkdir()
    pq.write_table(pa.table({"talk": broken}), tmp_path / "talks" / "0.parquet")
    summary = run(parse(recipe(tmp_path, tokenizer, mix={})), str(tmp_path / "run"))
    assert summary["ledger_balanced"]
    assert query(str(tmp_path / "run"), "SELECT talk FROM documents ORDER BY 1")["talk"].to_pylist() == [
        "a\ufffdb",
        "fine",
    ]


def test_lists_of_anything_else_are_set_aside(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    write(tmp_path / "talks" / "good.parquet", [talk(1)])
    write(tmp_path / "talks" / "parts.parquet", [[{"role": "user"}]], pa.list_(pa.struct({"role": pa.string()})))
    summary = run(parse(recipe(tmp_path, tokenizer, quarantine=0.5)), str(tmp_path / "run"))
    (refused,) = [s for s in json.loads((tmp_path / "run" / "shards.json").read_text()) if s["cause"]]
    assert (
        refused["name"] == "parts" and "column 'talk' is list<" in refused["cause"] and "not text" in refused["cause"]
    )
    assert summary["ledger_balanced"]
