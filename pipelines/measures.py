"""What trained models were measured by, read from their folders: held-out losses and task items, ready to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.comparison import Comparison, Measure

Folders = Mapping[str, Sequence[Path]]  # of each mixture's models, one for each seed


@dataclass(frozen=True)
class Heldout:
    """Losses of all models on the held-out documents of which something is predicted, by (source, shard, row)."""

    nats: dict[str, np.ndarray]  # mixture -> float [seeds, documents]
    tokens: np.ndarray  # int [documents]
    source: np.ndarray  # str [documents]

    @classmethod
    def read(cls, folders: Folders) -> Heldout:
        order = [(name, "ascending") for name in ("source", "shard", "row")]
        tables = {
            name: [pq.read_table(f"{folder}/evaluation.parquet").sort_by(order) for folder in mine]
            for name, mine in folders.items()
        }
        first = next(iter(tables.values()))[0]
        tokens, source = first["tokens"].to_numpy(), first["source"].to_numpy()
        counts = tokens > 0
        nats = {name: np.stack([t["nats"].to_numpy() for t in mine])[:, counts] for name, mine in tables.items()}
        return cls(nats, tokens[counts], source[counts])

    @property
    def sources(self) -> list[str]:
        return sorted(set(self.source))

    def of(self, sources: Sequence[str]) -> dict[str, Measure]:
        """Nats per token on the documents of some sources, by mixture."""
        mine = np.isin(self.source, sources)
        return {name: Measure(nats[:, mine], self.tokens[mine]) for name, nats in self.nats.items()}


def task_measures(folders: Folders, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, Measure]]]:
    """task -> metric -> mixture -> what its models got on the items; every metric is a mean over items."""
    found: dict[str, dict[str, dict[str, Measure]]] = {}
    for task in tasks:
        tables = {name: [pq.read_table(f"{f}/tasks/{task}.parquet") for f in mine] for name, mine in folders.items()}
        names = next(iter(tables.values()))[0].column_names
        metrics = [name for name in names if name.startswith("accuracy") or name == "log_probability"]
        found[task] = {
            metric: {name: _mean([table[metric].to_numpy() for table in mine]) for name, mine in tables.items()}
            for metric in metrics
        }
    return found


def _mean(values: list[np.ndarray]) -> Measure:
    return Measure(np.stack(values).astype(np.float64), np.ones(len(values[0])))


def against(measures: Mapping[str, Measure], base: str) -> dict[str, Any]:
    """{"mean": of each mixture, "difference": of each other one less `base`}, all with 95 % intervals."""
    comparison = Comparison(measures)
    others = [name for name in measures if name != base]
    return {
        "mean": {name: comparison.mean(name) for name in measures},
        "difference": {f"{name} - {base}": comparison.difference(name, base) for name in others},
    }
