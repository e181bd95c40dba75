"""A server that fails for a while: the next run asks for what failed and for nothing else, and what was made of it is
made again."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem
from toy_server import Status, ToyServer

from pipelines import unfinished
from pipelines.recipe import parse
from pipelines.run import run
from sql.views import query
from transforms.generation.engine import passes

WORDS = "the cat sat on a red mat and saw one old dog near house while rain fell over quiet hills".split()  # noqa: SIM905
MARK = "Passage:"  # stands before the text in the prompt


def text(k: int) -> str:
    draw = random.Random(k)
    said = (" ".join(draw.choices(WORDS, k=10)).capitalize() for _ in range(4))
    return f"Number {k} begins here. " + ". ".join(said) + "."


def reply(prompt: str) -> tuple[str, str]:
    """The words of each sentence in another order."""
    said = prompt[prompt.index(MARK) + len(MARK) :].split(". ")
    return ". ".join(" ".join(reversed(s.strip(" .\n").lower().split())).capitalize() for s in said) + ".", "stop"


class Dying:
    """Replies so many times, and then breaks off whatever comes in until it `lives` again."""

    def __init__(self, replies: int) -> None:
        self.replies, self.lives = replies, False

    def __call__(self, prompt: str) -> tuple[str, str]:
        self.replies -= 1
        if self.replies < 0 and not self.lives:
            raise ConnectionAbortedError
        return reply(prompt)


class Remote(LocalFileSystem):
    """Folders of this machine as `toy://FOLDER`, which stand for a bucket."""

    @classmethod
    def scheme(cls) -> str:
        return "toy"

    def _path_open(self, path: str, *args: Any, **more: Any) -> Any:
        if "wb" in args:
            Path(here(path)).parent.mkdir(parents=True, exist_ok=True)
        return super()._path_open(here(path), *args, **more)

    def rename(self, sources: list[str], targets: list[str]) -> None:
        super().rename([*map(here, sources)], [*map(here, targets)])

    def delete(self, paths: list[str]) -> None:
        super().delete([*map(here, paths)])

    def exists(self, path: str) -> bool:
        return super().exists(here(path))

    def metadata(self, path: str) -> FileMetadata:
        found = super().metadata(here(path))
        return FileMetadata(path, found.size_in_bytes, found.last_updated_in_seconds)


def here(path: str) -> str:
    return path.removeprefix("toy://")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for shard in range(2):
        table = pa.table({"id": [f"d{k}" for k in range(shard, 16, 2)], "text": [text(k) for k in range(shard, 16, 2)]})
        pq.write_table(table, tmp_path / "corpus" / f"{shard}.parquet")
    return tmp_path / "corpus"


def recipe(corpus: Path, tokenizer: Path, server: ToyServer, **rewriter: Any) -> dict[str, Any]:
    engine = {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1, "concurrency": 1}
    easy = {"rewriter": "wrap", "style": "easy", "engine": engine, "tokenizer": str(tokenizer)}
    easy |= {"acceptance": {"language": False, "length": None}, "where": "true", **rewriter}
    base = {"name": "again", "sources": {"web": f"{corpus}/*.parquet"}, "rewrite": {"easy": easy}}
    select = {"made": "rewrite.parent IS NOT NULL OR easy.accepted > 0"}
    return {**base, "select": select, "tokenizer": str(tokenizer), "mix": {"all": {}}}


def mixed(folder: str) -> dict[str, int]:
    """Documents of the mixture by source."""
    found = query(folder, "SELECT source, count(*) AS n FROM mixture WHERE mixture = 'all' GROUP BY 1").to_pylist()
    return {row["source"]: row["n"] for row in found}


def test_the_next_run_asks_for_the_pieces_that_failed_alone(corpus: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    dying, folder = Dying(11), str(tmp_path / "run")
    with ToyServer(reply=dying) as server:
        given = parse(recipe(corpus, toy_tokenizer, server))
        first = run(given, folder)
        failed = {"failed: connection broken": 5}
        assert first["rewrites"]["easy"] == {"pieces": 16, "documents": 11, "left_out": failed}
        assert mixed(folder) == {"web": 11, "easy": 11}
        dying.lives = True
        asked = len(server.seen)
        second = run(given, folder)
        again = Counter(seen.prompt for seen in server.seen[asked:])
        assert len(again) == sum(again.values()) == 5
        assert second["rewrites"]["easy"] == {"pieces": 16, "documents": 16, "left_out": {}}
        assert mixed(folder) == {"web": 16, "easy": 16}, "what is made of the answers is made again"
        third = run(given, folder)
        assert len(server.seen) == asked + 5 and third["mixtures"] == second["mixtures"]
        assert all(step["reused"] == step["splits"] for step in third["ledger"].values())


def test_joined_documents_hold_all_pieces_or_are_none(
    corpus: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "run")
    with ToyServer(reply=reply) as server:
        act = server.RequestHandlerClass.act

        def refuse(handler: Any, action: Any) -> None:
            act(handler, Status(400) if "Number 3 " in server.seen[-1].prompt else action)

        monkeypatch.setattr(server.RequestHandlerClass, "act", refuse)
        given = recipe(corpus, toy_tokenizer, server, join=True, chunk_tokens=40)
        summary = run(parse(given), folder, until="rewrite")
    found = query(folder, "SELECT id, unnest(easy.pieces) AS p FROM documents WHERE source = 'web'").to_pylist()
    pieces = {name: [d["p"] for d in found if d["id"] == name] for name in {d["id"] for d in found}}
    others = sum(len(mine) for name, mine in pieces.items() if name != "d3")
    assert summary["rewrites"]["easy"] == {
        "pieces": len(found),
        "documents": 15,
        "left_out": {
            "failed: HTTP 400": 1,
            "joined": others - 15,
            "of a document with a piece that is not ok": len(pieces["d3"]) - 1,
        },
    }
    assert summary["ledger_balanced"] and min(map(len, pieces.values())) > 1
    for d in query(folder, "SELECT * FROM documents WHERE source = 'easy'").to_pylist():
        made, mine = d["rewrite"], pieces[d["rewrite"]["parent"]]
        assert d["id"] == f"{made['parent']}:easy" and d["text"] == "\n\n".join(p["text"] for p in mine)
        assert (made["chunk"], made["seed"], made["status"]) == (None, None, "ok")
        assert made["output_tokens"] == sum(p["output_tokens"] for p in mine)


def test_a_run_folder_that_is_remote(corpus: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """There are no answers on disk there: what is made again is asked for again, split by split."""
    dying, folder = Dying(11), f"toy://{tmp_path}/run"
    with ToyServer(reply=dying) as server:
        given = parse(recipe(corpus, toy_tokenizer, server))
        first = run(given, folder, until="select")
        assert first["rewrites"]["easy"]["documents"] == 11 and not list(tmp_path.rglob("answers.sqlite"))
        dying.lives, asked = True, len(server.seen)
        second = run(given, folder, until="select")
        assert second["ledger_balanced"] and second["rewrites"]["easy"] == {
            "pieces": 16,
            "documents": 16,
            "left_out": {},
        }
        assert len(server.seen) == asked + 8, "of the split that pieces failed of"
    made = [pq.read_table(file) for file in (tmp_path / "run" / "rewritten").rglob("*.parquet")]
    assert sum(table.num_rows for table in made) == 16


def test_what_would_fail_again_is_not_asked_again(
    corpus: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ToyServer(reply=reply) as server:
        given = parse(recipe(corpus, toy_tokenizer, server))
        act = server.RequestHandlerClass.act

        def refuse(handler: Any, action: Any) -> None:
            act(handler, Status(400) if "Number 3 " in server.seen[-1].prompt else action)

        monkeypatch.setattr(server.RequestHandlerClass, "act", refuse)
        run(given, str(tmp_path / "run"))
        asked = len(server.seen)
        again = run(given, str(tmp_path / "run"))
        assert again["rewrites"]["easy"]["left_out"] == {"failed: HTTP 400": 1} and len(server.seen) == asked


def test_ratings_that_failed_are_asked_for_once_in_a_run(corpus: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """Rewriting comes with a second pass of scorers, which leaves to the next run what failed in the first."""

    dead = {text(3), text(8)}

    def rate_or_write(prompt: str) -> tuple[str, str]:
        if MARK not in prompt and any(one in prompt for one in dead):
            raise ConnectionAbortedError
        return reply(prompt) if MARK in prompt else ("5", "stop")

    folder = str(tmp_path / "run")
    with ToyServer(reply=rate_or_write) as server:
        given = recipe(corpus, toy_tokenizer, server)
        rater = {"mode": "score_only", "engine": given["rewrite"]["easy"]["engine"], "tokenizer": str(toy_tokenizer)}
        given |= {"score": {"dataman": rater}, "select": {"good": "dataman.overall_score = 5"}}
        first = run(parse(given), folder)
        assert first["ledger"]["scores:dataman"]["repaired"] == {"connection broken": 2} and mixed(folder)["web"] == 14
        asked = [seen.prompt for seen in server.seen]
        assert len(set(asked)) == len(asked) == 16 + 16 + 16
        dead.clear()
        second = run(parse(given), folder)
        assert len(server.seen) == len(asked) + 2 and not second["ledger"]["scores:dataman"]["repaired"]
        assert mixed(folder)["web"] == 16


@pytest.mark.parametrize(
    ("counted", "again"),
    [
        ("timed out", True),
        ("chunk: no connection", True),
        ("failed: connection broken", True),
        ("document: broken response", True),
        ("failed: HTTP 429", True),
        ("HTTP 503", True),
        ("failed: HTTP 400", False),
        ("failed: prompt too long", False),
        ("rejected: timed out", False),
        ("chunk: no program", False),
        ("ok", False),
    ],
)
def test_which_failures_are_asked_again(counted: str, again: bool) -> None:
    assert unfinished.is_unfinished({"ok": 3}, {counted: 1}) == again


def test_reasons_pass_whatever_is_said_after_them() -> None:
    assert passes("HTTP 500: oh: no") and passes("no connection: refused") and not passes("HTTP 404: timed out")
