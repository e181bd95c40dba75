"""A run folder as the views find it: shards, splits, sidecars, ledgers and mixtures of its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

HELDOUT = "heldout"


class QueryError(ValueError):
    """A folder that is no run, or SQL that DuckDB refuses; the message is DuckDB's own, with its candidates."""

    exit_code = 2


@dataclass(frozen=True)
class Split:
    """One split of the current run; `number` is that of its shard in the `shards` table."""

    number: int
    source: str
    name: str


@dataclass(frozen=True)
class Folder:
    """What the views need to know of a run."""

    path: Path
    recipe: Mapping[str, Any]
    shards: Sequence[Mapping[str, Any]]
    splits: Sequence[Split]
    current: frozenset[str] | None  # folders of the columns of the last run that ended; None: none did

    @classmethod
    def open(cls, run: str) -> Folder:
        path = Path(run)
        if not (path / "shards.json").is_file() or not (path / "recipe.yaml").is_file():
            raise QueryError(
                f"{run} is not a run folder: it lacks shards.json or recipe.yaml; give what `corpusmill run` wrote"
            )
        shards = json.loads((path / "shards.json").read_text())
        recipe = yaml.safe_load((path / "recipe.yaml").read_text())
        summary = path / "summary.json"
        columns = json.loads(summary.read_text()).get("columns") if summary.is_file() else None
        return cls(path, recipe, shards, list(_splits(path, shards)), None if columns is None else frozenset(columns))

    @property
    def text(self) -> str:
        return self.recipe.get("text", "text")

    @property
    def union(self) -> bool:
        """Whether shards differ in their columns."""
        return len({json.dumps(s["columns"]) for s in self.shards if not s["cause"]}) > 1

    @property
    def sidecars(self) -> list[tuple[str, str]]:
        """(folder, column) of every sidecar the recipe asks for, in the order of the columns.

        A recipe that was edited and run part of the way has left sidecars of its later steps from the run before.
        """
        scores = [*self.recipe.get("score", {}), *(["tokens"] if self.recipe.get("tokenizer") else [])]
        columns = [(f"scores/{name}", name) for name in scores]
        columns += [(f"dedupe/{name}", name) for name in self.recipe.get("dedupe", {})]
        columns += [(f"cuts/{name}", name) for name in self.recipe.get("clean", {})]
        columns += [(f"rewrites/{name}", name) for name in self.recipe.get("rewrite", {})]
        columns.append(("selection", "selection"))
        return [(folder, name) for folder, name in columns if self.current is None or folder in self.current]

    @property
    def mixtures(self) -> list[str]:
        """Names of the recipe's mixtures; the held-out documents are one more, where it holds some out."""
        return [*self.recipe.get("mix", {}), *([HELDOUT] if self.recipe.get("holdout") else [])]

    @property
    def ledgers(self) -> list[str]:
        """Ledger files of the recipe's steps, whatever other recipes have left in the folder."""
        parts = {
            "scores": {n for _, n in self.sidecars},
            "mix": self.mixtures,
            "sample": self.recipe.get("fit", {}),
            "clean": self.recipe.get("clean", {}),
            "inherit": {n for _, n in self.sidecars},
        }
        parts |= dict.fromkeys(("rewrite", "pieces"), self.recipe.get("rewrite", {}))
        parts |= dict.fromkeys(("signatures", "dedupe"), self.recipe.get("dedupe", {}))
        found = []
        for file in sorted((self.path / "ledger").glob("*.parquet")):
            step, _, rest = file.stem.partition(".")
            if not rest or any(rest == name or rest.startswith(f"{name}.") for name in parts.get(step, ())):
                found.append(str(file))
        return found

    def has(self, sidecar: str) -> bool:
        return any((self.path / sidecar / s.source / f"{s.name}.parquet").is_file() for s in self.splits)

    def files(self, sidecar: str) -> dict[str, str]:
        """Literals of the files of a sidecar that are there, and of the numbers of their shards."""
        held = [
            (s.number, f) for s in self.splits if (f := self.path / sidecar / s.source / f"{s.name}.parquet").is_file()
        ]
        return {
            "numbers": f"({literal([n for n, _ in held])}::BIGINT[])",
            "files": literal([str(f) for _, f in held]),
        }

    def manifests(self) -> dict[str, dict[str, Any]]:
        files = {name: self.path / "mixtures" / name / "manifest.json" for name in self.mixtures}
        return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}

    def trainings(self) -> Iterator[tuple[str, int, Path]]:
        """(mixture, seed, folder) of every training run that has begun."""
        train = self.recipe.get("train") or {}
        for mixture in train.get("mixtures", ()):
            for seed in train.get("seeds", ()):
                folder = self.path / "training" / mixture / f"seed{seed}"
                if folder.is_dir():
                    yield mixture, seed, folder


def _splits(path: Path, shards: Sequence[Mapping[str, Any]]) -> Iterator[Split]:
    """The splits of the current shards by the ledger of the first step, which lists each once."""
    ledger = path / "ledger" / "index.parquet"
    if not ledger.is_file():
        return
    numbers = {(s["source"], s["name"]): n for n, s in enumerate(shards) if not s["cause"]}
    for row in pq.read_table(ledger, columns=["source", "shard", "split", "quarantined"]).to_pylist():
        number = numbers.get((row["source"], row["shard"]))
        if number is not None and not row["quarantined"]:
            yield Split(number, row["source"], row["split"])


def literal(value: Any) -> str:
    """A value as SQL has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value).lower()
