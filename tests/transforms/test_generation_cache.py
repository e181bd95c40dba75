"""The cache of answers: several processes, kills at any moment, and what counts as the same request."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from toy_server import Status, ToyServer

import transforms.generation.openai as openai
from transforms.generation.cache import Cache, generate_cached
from transforms.generation.engine import (
    Answer,
    Engine,
    Finished,
    Guided,
    Request,
    Sampling,
    failures,
    in_order,
    request_key,
)

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(max_tokens=50)
WRITER = """
import os, sys
from pathlib import Path
from transforms.generation.cache import Cache
from transforms.generation.engine import Answer
cache, who = Cache(Path(sys.argv[1])), sys.argv[2]
for k in range(int(sys.argv[3])):
    some = [(f"{who}:{k}:{j}".encode(), Answer(f"{who} {k} {j} " + "é" * 500, "stop", k, j)) for j in range(20)]
    cache.put(some)
    os.write(1, f"{k}\\n".encode())  # said after the commit
"""


class Echo(Engine):
    """Answers with the prompt, as far as the window reaches; keeps what it was asked, and breaks at `broken`."""

    name: ClassVar[str] = "echo"
    package: ClassVar[str] = "corpusmill"
    model: str = "echo"
    broken: str = "broken"
    window: int = 50  # tokens, each a letter
    asked: list[str] = []  # noqa: RUF012

    @property
    def identity(self) -> str:
        return self.model

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        for place in reversed(range(len(requests))):
            text = str(requests[place].prompt)
            self.asked.append(text)
            if text == self.broken:
                raise OSError("the engine broke")
            left = text.upper()[: min(self.window, sampling.max_tokens)]
            yield [(place, Answer(left, "stop" if len(left) == len(text) else "length", 1, len(left)))]


def prompts(*texts: str) -> list[Request]:
    return [Request(key=f"{k}", prompt=text) for k, text in enumerate(texts)]


def start(path: Path, who: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), who, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def test_a_second_run_asks_nothing_and_equal_requests_are_sent_once(tmp_path: Path) -> None:
    cache, asked = Cache(tmp_path / "new" / "cache.sqlite"), prompts("a", "b", "a", "c\0é🦊", "")
    engine = Echo(asked=[])
    answers = generate_cached(engine, cache, asked, SAMPLING)
    assert [answer.text for answer in answers] == ["A", "B", "A", "C\0É🦊", ""]
    assert sorted(engine.asked) == ["", "a", "b", "c\0é🦊"]
    cache.close()
    again = Echo(asked=[])
    assert generate_cached(again, Cache(cache.path), asked, SAMPLING) == answers and again.asked == []
    assert generate_cached(again, Cache(cache.path), [], SAMPLING) == []


def test_what_makes_a_request_another_one() -> None:
    base, warm = Request("k", prompt="p"), Sampling(max_tokens=5, temperature=0.5)
    cold = Sampling(max_tokens=5)
    talk = Request("k", messages=(("user", "p"),))
    different = [
        request_key("model", base, cold), request_key("other", base, cold), request_key("model", talk, cold),
        request_key("model", Request("k", messages=(("system", "p"),)), cold),
        request_key("model", base, Sampling(max_tokens=6)),
        request_key("model", base, Sampling(max_tokens=5, stop=("x",))),
        request_key("model", base, Sampling(max_tokens=5, guided=Guided(regex="x"))),
        request_key("model", base, Sampling(max_tokens=5, guided=Guided(grammar="x"))),
        request_key("model", base, warm), request_key("model", Request("l", prompt="p"), warm),
        *(request_key("model", base, warm.model_copy(update=u)) for u in ({"seed": 1}, {"top_p": 0.5}, {"top_k": 5})),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    same = Request("another name", prompt="p")  # nothing is drawn at temperature 0
    assert request_key("model", same, Sampling(max_tokens=5, seed=7, top_k=3)) == different[0]


def test_the_key_of_a_request_stays() -> None:
    """A changed key would make users pay for everything again."""
    talk = Request("k", messages=(("system", "s"), ("user", "ü")))
    found = request_key("m", talk, Sampling(max_tokens=5, temperature=0.5, stop=("x",)))
    assert found.hex() == "d18a06c124792c5d72e36c9c6d42e20d"


def test_what_an_engine_answered_before_it_broke_is_kept(tmp_path: Path) -> None:
    cache, asked = Cache(tmp_path / "cache.sqlite"), prompts("a", "broken", "c", "d")
    with pytest.raises(OSError, match="the engine broke"):
        generate_cached(Echo(asked=[]), cache, asked, SAMPLING)
    healed = Echo(broken="", asked=[])
    assert [a.text for a in generate_cached(healed, cache, asked, SAMPLING)] == ["A", "BROKEN", "C", "D"]
    assert healed.asked == ["broken", "a"]


def test_what_the_window_cut_is_asked_again_and_what_was_asked_for_is_not(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "answers.sqlite")
    small, large = Echo(window=2, asked=[]), Echo(asked=[])
    asked = prompts("abcd")
    assert [generate_cached(engine, cache, asked, SAMPLING)[0].text for engine in (small, large)] == ["AB", "ABCD"]
    short = Sampling(max_tokens=2)  # now the bound cuts, and not the window
    kept = [generate_cached(small, cache, asked, short)[0].text for _ in range(2)]
    assert kept == ["AB", "AB"] and small.asked == ["abcd", "abcd"] and large.asked == ["abcd"]


def test_failures_come_back_and_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE", 0.01)
    cache, asked = Cache(tmp_path / "cache.sqlite"), prompts("one two", "bad", "three four")
    with ToyServer({"bad": [Status(500)] * 2}) as server:
        engine = openai.OpenAI(base_url=server.url, model="toy", tries=2)
        answers = generate_cached(engine, cache, asked, SAMPLING)
        assert [a.text for a in answers] == ["two one", "", "four three"] and failures(answers) == {"HTTP 500": 1}
        assert [a.text for a in generate_cached(engine, cache, asked, SAMPLING)] == ["two one", "bad", "four three"]
        assert len(server.times("bad")) == 3 and len(server.times("one two")) == 1


@pytest.mark.parametrize("stream", [[[(0, "a")]], [[(0, "a"), (1, "b")], [(1, "b")]]])
def test_an_engine_that_loses_or_doubles_answers_is_found_out(stream: list[list[tuple[int, str]]]) -> None:
    with pytest.raises(RuntimeError, match="answered"):
        in_order(2, [[(place, Answer(text, "stop", 1, 1)) for place, text in some] for some in stream])


def test_several_processes_open_and_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writers = [start(path, who, 40) for who in "abcd"]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    keys = [f"{who}:{k}:{j}".encode() for who in "abcd" for k in range(40) for j in range(20)]
    found = Cache(path).get(keys)
    assert len(found) == len(keys) == 3200
    assert found[b"c:39:7"] == Answer("c 39 7 " + "é" * 500, "stop", 39, 7)


def test_kills_in_the_middle_of_writes_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    path, said = tmp_path / "cache.sqlite", {}
    chance = random.Random(0)
    for who in "abcde":
        writer = start(path, who, 1_000_000)
        assert writer.stdout
        writer.stdout.readline()
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.stdout.read().splitlines()
        said[who] = int(lines[-1]) if lines else 0
        writer.wait()
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cache = Cache(path)
    for who, last in said.items():
        keys = [f"{who}:{k}:{j}".encode() for k in range(last + 3) for j in range(20)]
        found = cache.get(keys)
        assert set(keys[: (last + 1) * 20]) <= set(found)
        assert len(found) % 20 == 0  # of a write all or nothing is there


def test_a_run_that_was_killed_sends_nothing_twice(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from transforms.generation.cache import Cache, generate_cached
from transforms.generation.engine import Request, Sampling
from transforms.generation.openai import OpenAI
asked = [Request(key=str(k), prompt=f"number {k}") for k in range(400)]
engine = OpenAI(base_url=sys.argv[1], model="toy", concurrency=8)
answers = generate_cached(engine, Cache(Path(sys.argv[2])), asked, Sampling(max_tokens=9))
print([a.text for a in answers] == [f"{k} number" for k in range(400)])
"""
    path = tmp_path / "cache.sqlite"
    with ToyServer(seconds=0.02) as server:
        command = [sys.executable, "-c", code, server.url, str(path)]
        killed = subprocess.Popen(command, cwd=ROOT)
        while len(server.seen) < 150:
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        time.sleep(0.5)  # for what lies in the server's sockets
        before = len(server.seen)
        (kept,) = sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout == "True\n", done.stderr
        # What is sent again was under way: 8 connections, and answers that had come but a moment ago.
        assert len(server.seen) - before == 400 - kept and before - 24 <= kept <= before


def test_files_that_are_no_cache_are_refused(tmp_path: Path) -> None:
    text, newer = tmp_path / "text", tmp_path / "newer"
    text.write_text("this is no database, whatever else it is " * 99)
    with pytest.raises(ValueError, match="give another file"):
        Cache(text)
    sqlite3.connect(newer).execute("PRAGMA user_version = 9")
    with pytest.raises(ValueError, match="version 9, expected 1"):
        Cache(newer)
