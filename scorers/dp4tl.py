"""The cluster or class that a document falls into, and how many documents of a target vote for it.

Cost: the embedding, and 2 d operations per cluster for each document; next to nothing with classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from scorers._target_model import ClusterScorer, Loaded
from transforms.batch import Batch


class Dp4tl(ClusterScorer):
    """DP4TL (Zhang et al. 2023, arXiv 2310.08782). `model`: the folder that the fit `dp4tl` makes; `classes`: the
    column that the fit took classes from, where it did.

    `dp4tl.rank <= k` keeps the k clusters that the target voted for most; each k keeps what smaller ones do. All null
    where there are no words, or no class that the fit has seen.
    """

    name: ClassVar[str] = "dp4tl"
    arrays: ClassVar[dict[str, tuple[type, str]]] = {
        "centroids": (np.int16, "kd"),
        "votes": (np.int64, "k"),
        "rank": (np.int32, "k"),
    }

    def fields(self) -> pa.StructType:
        return pa.struct(
            [
                pa.field(
                    "cluster",
                    pa.int32(),
                    metadata={"unit": "number of the nearest centroid or of the class by name, from 0"},
                ),
                pa.field("rank", pa.int32(), metadata={"unit": "place of the cluster by votes, 1 has most"}),
                pa.field("share", pa.float64(), metadata={"unit": "share of the target's documents in the cluster"}),
            ]
        )

    def check(self, loaded: Loaded) -> None:
        super().check(loaded)
        votes, rank = loaded.arrays["votes"], loaded.arrays["rank"]
        if votes.min() < 0 or not votes.any() or not np.array_equal(np.sort(rank), np.arange(1, len(rank) + 1)):
            raise ValueError("votes and ranks are not those of clusters")

    def score(self, batch: Batch) -> pa.StructArray:
        arrays, cluster = self._loaded.arrays, self.clusters(batch)
        share = arrays["votes"] / arrays["votes"].sum()
        found = [cluster.astype(np.int32), arrays["rank"][cluster], share[cluster]]
        return pa.StructArray.from_arrays([pa.array(v, mask=cluster < 0) for v in found], fields=list(self.fields()))
