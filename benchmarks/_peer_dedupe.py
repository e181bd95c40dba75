"""datatrove's MinHash deduplication of a folder of Parquet shards, in datatrove's own environment; see dedupe.py.

Usage: python _peer_dedupe.py SHARDS OUT WORK WORKERS. OUT gets the kept documents; WORK/clusters.json has, by shard,
the [row, cluster] of each document that is not alone.
"""

import json
import struct
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.hashing import HashConfig


def main(shards, out, work, workers):
    paths = sorted(str(p.relative_to(shards)) for p in Path(shards).rglob("*.parquet"))
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    signatures, buckets, clusters = f"{work}/signatures", f"{work}/buckets", f"{work}/clusters"

    def reader():
        return ParquetReader(shards, glob_pattern="**/*.parquet")

    stages = [
        ([reader(), MinhashDedupSignature(output_folder=signatures, config=config)], len(paths)),
        ([MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)], config.num_buckets),
        ([MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True)], 1),
        ([reader(), MinhashDedupFilter(input_folder=clusters), ParquetWriter(out)], len(paths)),
    ]
    for number, (steps, tasks) in enumerate(stages):
        executor = LocalPipelineExecutor(
            steps,
            tasks=tasks,
            workers=min(int(workers), tasks),
            logging_dir=f"{work}/logs/{number}",
            start_method="fork",  # workers import nothing again, and their processor time is counted
        )
        executor.run()
    found = {}
    for rank, path in enumerate(paths):
        file = Path(clusters, f"{rank:06d}.clusters")
        found[path] = list(struct.iter_unpack("<2I", file.read_bytes())) if file.exists() else []
    Path(work, "clusters.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
