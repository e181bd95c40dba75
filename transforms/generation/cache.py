"""Finished requests on disk: what was paid for once is not sent again, whatever killed the run that paid.

One SQLite file with a write-ahead log. Answers are committed as they become ready, so that a process killed at any
moment, in the middle of a write too, leaves all that were handed over and nothing half-written; several processes may
write at once. Only answers without an error are kept: what failed is asked again by the next run. So is what a window
cut short, as a larger window does not.

The file has to lie on a disk of this machine: SQLite needs locks, on which network file systems keep no promise.
A power cut, unlike a kill, may take the last second's answers with it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from transforms.generation.engine import Answer, Engine, Finished, Request, Sampling, in_order, request_key

VERSION = 1  # of the table
PATIENCE = 120.0  # seconds that a write waits for those of other processes
ROWS = 500  # looked up by one statement
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key BLOB NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS answers_key ON answers (key);
"""


class Cache:
    """Answers by `request_key`. Threads may share it; every process opens its own.

    Raises:
        ValueError: the path cannot hold a cache, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be used as a cache of answers: {error}; give another file") from error

    def _prepare(self) -> None:
        run = self._database.execute
        with self._lock:
            run("BEGIN IMMEDIATE")  # of several processes that make the file, one does
            (version,) = run("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                run("ROLLBACK")
                raise ValueError(f"{self.path} is a cache of version {version}, expected {VERSION}; give another file")
            if version == 0:
                for statement in _TABLE.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {VERSION}")
            run("COMMIT")
            if run("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise ValueError(f"{self.path} lies where SQLite has no write-ahead log; give a file on a local disk")
            run("PRAGMA synchronous = NORMAL")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The answers there are, by key."""
        found: dict[bytes, Answer] = {}
        for start in range(0, len(keys), ROWS):
            some = keys[start : start + ROWS]
            marks = ",".join("?" * len(some))
            with self._lock:
                rows = self._database.execute(f"SELECT * FROM answers WHERE key IN ({marks})", some).fetchall()
            found.update((key, Answer(*answer)) for key, *answer in rows)
        return found

    def put(self, answers: Sequence[tuple[bytes, Answer]]) -> None:
        """Commit answers; an answer that is there stays."""
        rows = [(k, a.text, a.finish_reason, a.prompt_tokens, a.output_tokens) for k, a in answers]
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._database.close()


def generate_cached(engine: Engine, cache: Cache, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
    """The answers in the order of the requests: those in the cache, and of the engine those that are not.

    Requests of one key are sent once. Every whole answer is committed before the next one is taken from
    the engine. Answers with an error come back too (count them with `failures`) and are asked again by the next call.

    Raises:
        ValueError, EngineUnavailable: see `Engine.stream`; what was answered before is kept.
        sqlite3.OperationalError: the cache cannot be written, as when the disk is full.
    """
    engine.check(sampling)
    identity = engine.identity
    keys = [request_key(identity, request, sampling) for request in requests]
    answers = cache.get(list(dict.fromkeys(keys)))
    first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in answers}
    todo = sorted(first.values())

    def kept() -> Iterator[Finished]:
        for finished in engine.stream([requests[place] for place in todo], sampling):
            cache.put([(keys[todo[i]], answer) for i, answer in finished if _whole(answer, sampling)])
            yield finished

    made = in_order(len(todo), kept()) if todo else []  # an engine that has nothing to do need not be loaded
    answers.update((keys[place], answer) for place, answer in zip(todo, made, strict=True))
    return [answers[key] for key in keys]


def _whole(answer: Answer, sampling: Sampling) -> bool:
    """Whether it is all that was asked for: no error, and not cut by the model's window (0: a server does not tell)."""
    cut = answer.finish_reason == "length" and 0 < answer.output_tokens < sampling.max_tokens
    return answer.error is None and not cut
