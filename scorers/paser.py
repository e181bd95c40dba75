"""Whether a document may help a damaged model, and how many like it shall: its cluster's part of a budget.

Cost: the embedding, 2 d operations per cluster, and the document's key phrases.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from scorers._target_model import ClusterScorer, Loaded
from transforms.batch import Batch

WHOLE = 10**10  # of a cluster's weights; exact for budgets up to 100,000 documents of a cluster


class Paser(ClusterScorer):
    """PASER (He et al. 2025, arXiv 2502.12594). `model`: the folder that the fit `paser` makes.

    `weight` is such that as many documents as the cluster's budget weigh 1e10, so that this takes just those:
    `top_k(if(paser.consistent, divergence.ies, NULL), 1e10, weight := paser.weight, by := paser.cluster)`. They are the
    ones that the fit's walk took, if none of the documents it did not see would have come before them. `weight` is null
    in clusters whose budget is 0, all is null where there are no words.
    """

    name: ClassVar[str] = "paser"
    arrays: ClassVar[dict[str, tuple[type, str]]] = {
        "centroids": (np.int16, "kd"),
        "degradation": (np.float64, "k"),
        "budget": (np.int64, "k"),
        "graph": (np.uint64, "G"),
    }

    def fields(self) -> pa.StructType:
        return pa.struct(
            [
                pa.field("cluster", pa.int32(), metadata={"unit": "number of the nearest centroid, from 0"}),
                pa.field("degradation", pa.float64(), metadata={"unit": "nats, mean divergence of the cluster"}),
                pa.field("share", pa.float64(), metadata={"unit": "of the budget that the cluster is due"}),
                pa.field("weight", pa.int64(), metadata={"unit": "1e10 / documents that the cluster's budget is"}),
                pa.field("consistent", pa.bool_(), metadata={"unit": "its concepts contradict none of those taken"}),
            ]
        )

    def check(self, loaded: Loaded) -> None:
        super().check(loaded)
        degradation, budget, graph = (loaded.arrays[name] for name in ("degradation", "budget", "graph"))
        if not (np.isfinite(degradation).all() and degradation.min() >= 0 and degradation.any() and budget.min() >= 0):
            raise ValueError("degradation and budget are not those of clusters")
        if not (graph[1:] > graph[:-1]).all() or not 1 <= int(loaded.card["parameters"]["concepts"]) <= 100:
            raise ValueError("graph and concepts are not those of a walk")

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.concepts import agree, concepts

        model, cluster = self._loaded, self.clusters(batch)
        degradation, budget = model.arrays["degradation"], model.arrays["budget"]
        weight = -(-WHOLE // np.maximum(budget, 1))
        consistent = agree(*concepts(batch.text, int(model.card["parameters"]["concepts"])), model.arrays["graph"])
        none = cluster < 0
        columns = [
            pa.array(cluster.astype(np.int32), mask=none),
            pa.array(degradation[cluster], mask=none),
            pa.array((degradation / degradation.sum())[cluster], mask=none),
            pa.array(weight[cluster], mask=none | (budget[cluster] == 0)),
            pa.array(consistent, mask=none),
        ]
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))
