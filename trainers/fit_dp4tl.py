"""Fitting DP4TL: clusters or classes of the corpus, ranked by how many documents of a target vote for them.

Zhang et al. 2023 (arXiv 2310.08782). With a pool of 10,000 documents and 100 clusters about 0.03 s per round of
k-means, and some 10 s for the classifier that label mapping needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from trainers.targets import TargetFit, class_numbers, quoted

if TYPE_CHECKING:
    from trainers.fits import Wanted
    from trainers.targets import Embedded


class FitDp4tl(TargetFit):
    """Votes of the target's documents for parts of the corpus, learned from a sample of the pool.

    Parts are `clusters` of k-means or, with `classes`, the values of a column of the shards (text or numbers; documents
    without one are left out), which the scorer must be told too. `mapping: feature` lets a document vote for the
    nearest mean vector; `label`, for classes alone, for the class that a classifier takes it for, a softmax regression
    on the vectors of the pool. The paper has both, prunes whole classes of the source set and finds that 40 to 80 % of
    them can go. The card lists the parts by rank with their documents in the sample, to choose how many to keep. The
    defaults of `clusters` and `rounds` are ours.
    """

    method: ClassVar[str] = "dp4tl"
    readers: ClassVar[tuple[str, ...]] = ("dp4tl",)
    clusters: int = Field(100, ge=2)
    rounds: int = Field(20, ge=1)
    classes: str | None = None
    mapping: Literal["feature", "label"] = "feature"

    @model_validator(mode="after")
    def _has_labels(self) -> FitDp4tl:
        if self.mapping == "label" and self.classes is None:
            raise ValueError("mapping: label needs `classes`, a column that says of each document what it is")
        return self

    def samples(self) -> dict[str, Wanted]:
        wanted = super().samples()
        if self.classes:
            wanted["pool"] = replace(wanted["pool"], columns={"classes": quoted(self.classes)})
        return wanted

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        from transforms.feature_mapping import kmeans, means, nearest, ranks, votes

        own = {"clusters": self.clusters, "rounds": self.rounds}
        if self.classes:
            own, samples = {}, {**samples, "pool": samples["pool"].filter(pc.is_valid(samples["pool"]["classes"]))}
        sides = self.embedded(samples, seed)
        names: list[str] | None = None
        if self.classes:
            names, labels = class_numbers(samples["pool"]["classes"].take(pa.array(sides.row)), self.classes)
            centroids = means(sides.pool, labels, len(names))
        else:
            centroids = kmeans(sides.pool, sides.draw, self.clusters, self.rounds)
            labels = nearest(sides.pool, centroids)
        told: dict[str, Any] = {}
        counted = votes(sides.target, centroids)
        if self.mapping == "label":
            counted, told = label_votes(sides, labels, len(centroids))
        rank = ranks(sides.target, centroids, counted)
        sizes = np.bincount(labels, minlength=len(centroids))
        by_rank = [{"votes": int(counted[c]), "documents": int(sizes[c])} for c in np.argsort(rank)]
        if names:
            by_rank = [{"name": names[c], **one} for c, one in zip(np.argsort(rank), by_rank, strict=True)]
        card = {
            "embedding": self.embedding.keep(out),
            "parameters": {**own, "mapping": self.mapping},
            "seed": seed,
            "documents": sides.documents(),
            "classes": self.classes,
            "names": names,
            "clusters": by_rank,
            **told,
        }
        np.savez(out / "model.npz", centroids=centroids, votes=counted, rank=rank)
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card


def label_votes(sides: Embedded, labels: np.ndarray, k: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Votes of the target by a classifier of the pool, int64 [k]; for the card, how often it is right on the tenth of
    the pool that it did not learn from."""
    from transforms.softmax import fit_softmax, predict

    held = np.arange(len(labels)) % 10 == 0
    weights = fit_softmax(sides.pool[~held], labels[~held], k)
    right = float((predict(sides.pool[held], weights) == labels[held]).mean())
    counted = np.bincount(predict(sides.target, weights), minlength=k)
    return counted, {"holdout": {"documents": int(held.sum()), "accuracy": right}}
