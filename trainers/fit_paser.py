"""Fitting PASER: which documents give a damaged model back what it lost, within a budget?

He et al. 2025 (arXiv 2502.12594). A sample tells the clusters and how much of each ability was lost; a walk over
candidates, most efficient first, then finds those that do not contradict one another. Divergences come from the scorer
`divergence`. Clusters of 2,000 documents take 15 s and 130 MB on a core; candidates are held in memory with their
texts, and take what their vectors and words cost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from trainers.fits import Fit, Wanted
from trainers.targets import class_numbers, quoted
from transforms.embedding import Embedding

log = logging.getLogger(__name__)


class FitPaser(Fit):
    """`budget` is in documents. `jsd` and `ies` are SQL: what the scorer `divergence` gives.

    `clusters` are spectral ones of a sample of `sample_documents` (`transforms.spectral`); every other document belongs
    to the nearest of their means. With `classes`, a column of the shards, its values are the clusters, and the scorer
    must be told so too. A cluster's degradation is the mean `jsd` of its part of the sample, and its share of the
    budget is in proportion; where candidates run out, the rest goes to other clusters. `candidates` is an SQL condition
    besides `where`, and should name those of high `ies`: of more than `candidate_documents` a random part is walked.
    The `concepts` best key phrases of a document must not contradict the graph (`transforms.concepts`): the more of
    them, the more is refused. Of 7,000 solutions to school problems, 5 refuse 1,798 before 1,400 are taken; with 10
    only 1,060 are left to take.

    `select` then takes, of each cluster, as many as its budget:
    `top_k(if(paser.consistent, divergence.ies, NULL), 1e10, weight := paser.weight, by := paser.cluster)`.
    """

    method: ClassVar[str] = "paser"
    readers: ClassVar[tuple[str, ...]] = ("paser",)
    budget: int = Field(ge=1)
    where: str = "true"
    candidates: str = "true"
    jsd: str = "divergence.jsd"
    ies: str = "divergence.ies"
    clusters: int = Field(10, ge=2)
    classes: str | None = None
    concepts: int = Field(5, ge=1, le=100)
    sample_documents: int = Field(2000, ge=20, le=10_000)
    candidate_documents: int = Field(100_000, ge=1)
    embedding: Embedding = Embedding()

    def samples(self) -> dict[str, Wanted]:
        classes = {"classes": quoted(self.classes)} if self.classes else {}
        some = f"({self.where}) AND ({self.candidates})"
        return {
            "sample": Wanted(self.where, documents=self.sample_documents, columns={"jsd": self.jsd, **classes}),
            "candidates": Wanted(some, documents=self.candidate_documents, columns={"ies": self.ies, **classes}),
        }

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms.concepts import concepts
        from transforms.degradation import spend

        sample, some = (
            self._known(samples[name], column) for name, column in (("sample", "jsd"), ("candidates", "ies"))
        )
        found = self._clusters(sample)
        cluster = found.of(some)
        order = np.lexsort((some.table.column("draw").to_numpy(), -some.value, cluster))
        order = order[cluster[order] >= 0]  # of a class that the sample has
        if not len(order):
            raise ValueError("none of the candidates has words and an efficiency; widen `candidates`")
        walked, cluster = some.table.take(pa.array(order)), cluster[order]
        phrases = concepts(walked.column("text"), self.concepts)
        taken, refused, graph = spend(self.budget, found.degradation, cluster, *phrases)
        if taken.sum() < self.budget:
            given = f"{taken.sum()} of a budget of {self.budget} taken, {refused.sum()} of {len(order)} contradict them"
            log.warning("fit paser: %s; lower `concepts`, or widen `candidates`", given)
        spent = np.bincount(cluster[taken], minlength=len(found.sizes))
        left = len(samples["sample"]) + len(samples["candidates"]) - len(sample.value) - len(order)
        card = {
            "embedding": self.embedding.keep(out),
            "parameters": {"budget": self.budget, "concepts": self.concepts},
            "seed": seed,
            "documents": {"sample": len(sample.value), "candidates": len(order), "taken": int(taken.sum())}
            | {"contradicting": int(refused.sum()), "left out": left},
            "classes": self.classes,
            **found.told(spent),
        }
        held = {"degradation": found.degradation, "budget": spent, "graph": graph.edges()}
        np.savez(out / "model.npz", centroids=found.centroids, **held)  # type: ignore[arg-type]  # as numpy's stub has it
        kept = walked.select([name for name in ("id", "draw") if name in walked.column_names])
        for name, values in (("cluster", cluster.astype(np.int32)), ("ies", some.value[order]), ("taken", taken)):
            kept = kept.append_column(name, pa.array(values))
        pq.write_table(kept.append_column("refused", pa.array(refused)), out / "walk.parquet")
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card

    def _known(self, table: pa.Table, column: str) -> Known:
        """The documents that have words, a number and, where it is asked for, a class.

        Raises:
            ValueError: the column holds no numbers from 0 on.
        """
        try:
            value = table.column(column).cast(pa.float64())
        except pa.ArrowException:
            given = table.schema.field(column).type
            raise ValueError(f"{column}: {getattr(self, column)} is {given}; expected a number") from None
        finite = pc.fill_null(pc.is_finite(value), False)
        if self.classes:
            finite = pc.and_(finite, pc.is_valid(table.column("classes")))
        table, value = table.filter(finite), value.filter(finite).to_numpy()
        if len(value) and value.min() < 0:
            raise ValueError(f"{column}: {getattr(self, column)} is {value.min()} of a document; expected at least 0")
        vectors = self.embedding.vectors(table.column("text"))
        words = vectors.any(axis=1)
        return Known(table.filter(pa.array(words)), vectors[words], value[words])

    def _clusters(self, sample: Known) -> Clusters:
        """Raises ValueError: too few documents, or none on which the models differ."""
        from transforms import spectral
        from transforms.degradation import cluster_means
        from transforms.feature_mapping import means, nearest

        least = max(20, 0 if self.classes else self.clusters)
        if len(sample.value) < least:
            given = f"{len(sample.value)} documents with words and a divergence"
            raise ValueError(f"{given}; expected at least {least}: widen `where` or raise `sample_documents`")
        names, error = None, None
        if self.classes:
            names, own = class_numbers(sample.table.column("classes"), self.classes)
            centroids = means(sample.vectors, own, len(names))
        else:
            labels, error = spectral.clusters(sample.vectors, self.clusters)
            _, labels = np.unique(labels, return_inverse=True)
            centroids = means(sample.vectors, labels, int(labels.max()) + 1)
            own = nearest(sample.vectors, centroids)
        degradation = cluster_means(sample.value, own, len(centroids))
        if not degradation.any():
            raise ValueError(f"{self.jsd} is 0 in all of {len(own)} documents: the models agree, nothing was lost")
        return Clusters(names, centroids, degradation, np.bincount(own, minlength=len(centroids)), error)


class Known(NamedTuple):
    """Documents of a sample, their vectors (int16 [documents, dimensions]) and numbers (float64 [documents])."""

    table: pa.Table
    vectors: np.ndarray
    value: np.ndarray


class Clusters(NamedTuple):
    """Clusters of a sample: means, mean divergences, documents in the sample, and the error of what they come from."""

    names: list[str] | None  # of classes
    centroids: np.ndarray  # int16 [clusters, dimensions]
    degradation: np.ndarray  # float64 [clusters], nats
    sizes: np.ndarray  # int64 [clusters]
    error: float | None  # of the non-negative factors, relative

    def of(self, known: Known) -> np.ndarray:
        """int64 [documents]: the cluster of each, -1 with a class that the sample lacks."""
        from transforms.feature_mapping import nearest

        if self.names is None:
            return nearest(known.vectors, self.centroids)
        given = known.table.column("classes").cast(pa.large_string())
        found = pc.index_in(given, pa.array(self.names, pa.large_string()))
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def told(self, spent: np.ndarray) -> dict[str, Any]:
        """For the card."""
        share = self.degradation / self.degradation.sum()
        columns = {"documents": self.sizes, "degradation": self.degradation, "share": share, "budget": spent}
        listed = [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)
        ]
        return {"names": self.names, "factors_error": self.error, "clusters": listed}
