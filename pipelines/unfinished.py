"""Splits whose requests to language models failed for reasons that may pass: the next run makes them again.

What was answered comes from the cache then. `RUN/unfinished.json` holds a digest of every sidecar with such failures;
it goes into the keys of what is made of them, which is made again when the answers have come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipelines import store
from transforms.generation.engine import passes
from transforms.rewriters import REJECTED

FILE = "unfinished.json"


def is_unfinished(*counted: Iterable[str]) -> bool:
    """Whether failures that may pass are among the names that a record counts, as `failed: timed out`."""
    names = (name for names in counted for name in names if not name.startswith(REJECTED))
    return any(passes(name.rpartition(": ")[2]) for name in names)


def held(record: dict[str, Any] | None, tried: Collection[str]) -> dict[str, Any] | None:
    """The record of a committed split, or None where it is to be made again.

    Args:
        tried: keys of what this run has made: that is not asked for a second time.
    """
    if record is None or record["key"] in tried or not is_unfinished(record["repaired"], record["dropped"]):
        return record
    return None


def note(run: str, sidecars: Mapping[str, bool]) -> None:
    """Write down which sidecars are unfinished; they are named by their path below the run."""
    before = store.read_json(f"{run}/{FILE}") or {}
    after = {path: digest for path, digest in before.items() if path not in sidecars}
    after |= {path: store.file_digest(f"{run}/{path}") for path, is_open in sidecars.items() if is_open}
    if after != before:
        store.write_json(f"{run}/{FILE}", after)


def mark(run: str, folder: str) -> str:
    """What the keys of all that is made of the sidecars in a folder hold besides their base; mostly nothing."""
    noted = store.read_json(f"{run}/{FILE}") or {}
    mine = sorted((path, digest) for path, digest in noted.items() if path.startswith(f"{folder}/"))
    return store.digest(mine) if mine else ""
