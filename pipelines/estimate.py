"""What deduplication will find and cost, from a sample of the text: before the full run.

Parts of row groups, in random order, are read and hashed as the scoring pass would. Shares of duplicates are estimated
for the whole corpus from how often content hashes (exact) and clusters of the sample (near) repeat in it; copies that
fall outside it are unseen, so there is a range as well (`transforms.distinct.duplicate_share`). Of a run folder
that has signatures, all of these are counted too, in HyperLogLog sketches of 16 KB. Memory: 250 bytes per sampled
document.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import near, shards, store
from pipelines.reading import Admission, read
from pipelines.recipe import RecipeError, load
from pipelines.shards import Split
from transforms.batch import Batch
from transforms.components import connected_components, edges_from_bands
from transforms.distinct import HyperLogLog, duplicate_share
from transforms.draws import mix64
from transforms.hashing import content_hash
from transforms.minhash import PRESETS

PLACES = 64  # row groups that the sample is spread over, where there are as many
START_SECONDS = 6.0  # imports and the starts of graphs and workers
DOCUMENT_SECONDS = 4e-6  # buckets and components (benchmarks/components.py)
ROW_MEMORY = 80  # bytes of the local engine per row of a shuffle (pipelines.near)
BASE_MB = 260  # a process with its imports
SPLIT_MB = 300  # a worker's batches and the columns it writes
SKETCH = PRESETS["fineweb"]


@dataclass
class Sample:
    """What was read: hashes of its documents, and how long reading and hashing took."""

    high: list[np.ndarray] = field(default_factory=list)
    bands: list[np.ndarray] = field(default_factory=list)
    rows: int = 0
    text_bytes: int = 0
    id_bytes: int = 0
    seconds: float = 0.0

    @property
    def documents(self) -> int:
        return sum(map(len, self.high))

    def add(self, split: Split, text: str, admission: Admission, limit: float) -> None:
        """Read up to `limit` bytes of text, or little more, from the start of a split."""
        started, before = time.perf_counter(), self.text_bytes
        for found in read(split, text, admission, columns=[]):
            batch = Batch(found.documents, text=text)
            self.high.append(content_hash(batch)[0])
            self.bands.append(SKETCH.sketch(batch)[0])
            self.rows += found.index.num_rows
            self.text_bytes += len(batch.bytes)
            self.id_bytes += pc.sum(pc.binary_length(found.documents.column("id"))).as_py() or 0
            if self.text_bytes - before >= limit:
                break
        self.seconds += time.perf_counter() - started


def estimate(data: str, sample_mb: float = 64, text: str = "text", workers: int = 1) -> dict[str, Any]:
    """Estimates for a run folder or a glob of shards.

    Returns documents, megabytes (10^6 bytes of text), the size of the sample; `exact` and `near`, each with the
    estimated distinct documents, the share of duplicates and its range; `whole`, counts over all signatures of a run
    (None without); and `seconds`, `memory_mb` per process and `disk_mb` of a run with both methods.

    Raises:
        RecipeError: no such shards, or none that can be read.
    """
    found, text, admission = _shards(data, text)
    groups = list(_groups(found, text))
    rows = sum(s.rows for s in groups)
    sample, budget = Sample(), sample_mb * 1e6
    place = mix64(np.arange(len(groups), dtype=np.uint64))
    _warm_up()
    for i in np.argsort(place):
        if sample.text_bytes >= budget:
            break
        sample.add(groups[i], text, admission, budget / min(len(groups), PLACES))
    if not sample.documents:
        raise RecipeError(f"{data}: none of {rows} rows could be read as a document")
    documents = max(sample.documents, round(rows * sample.documents / sample.rows))
    high, bands = np.concatenate(sample.high), np.concatenate(sample.bands)
    labels = connected_components(*edges_from_bands(bands, np.arange(len(bands))), len(bands))
    megabytes = sample.text_bytes / sample.documents * documents / 1e6
    return {
        "documents": documents,
        "megabytes": megabytes,
        "sample": {"documents": sample.documents, "megabytes": sample.text_bytes / 1e6},
        "exact": duplicate_share(high, documents)._asdict(),
        "near": duplicate_share(labels.astype(np.uint64), documents)._asdict(),
        "whole": _whole(data),
        **_costs(sample, documents, megabytes, workers),
    }


def _shards(data: str, text: str) -> tuple[list[shards.Shard], str, Admission]:
    sources: dict[str, str | list[str]] = {"documents": data}
    admission = Admission()
    if (Path(data) / "recipe.yaml").is_file():
        recipe = load(str(Path(data) / "recipe.yaml"))
        sources, text, admission = dict(recipe.sources), recipe.text, recipe.admission
    try:
        return shards.expand(sources), text, admission
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _groups(found: Sequence[shards.Shard], text: str) -> Iterator[Split]:
    """Every row group as a split; shards that cannot be read are left out. Footers alone are read.

    Raises:
        RecipeError: no shard can be read.
    """
    causes = []
    for shard in found:
        try:
            with store.open_read(shard.path) as file:
                metadata = pq.read_metadata(file)
            shards.check_columns(metadata.schema.to_arrow_schema(), text)
        except (OSError, ValueError) as error:  # what Arrow raises on a file that is no Parquet is one of these
            causes.append(f"{shard.path}: {error}".split("\n")[0])
            continue
        first = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            rows, size = group.num_rows, group.total_byte_size
            yield Split(
                shard.source, shard.name, f"{shard.name}.{number}", shard.path, "", number, (rows,), first, size
            )
            first += rows
    if len(causes) == len(found):
        raise RecipeError(f"no shard can be read ({'; '.join(causes[:3])})")


def _warm_up() -> None:
    """Load the kernels before the clock runs."""
    import pyarrow as pa

    batch = Batch(pa.record_batch({"text": pa.array(["a few words"], pa.large_string())}))
    content_hash(batch), SKETCH.sketch(batch)


def _costs(sample: Sample, documents: int, megabytes: float, workers: int) -> dict[str, float]:
    """Seconds, memory of the largest process and disk of a run with `exact` and `minhash` and no scorers."""
    speed = sample.text_bytes / 1e6 / sample.seconds
    shuffled = min(documents * SKETCH.bands, near.SHUFFLE_ROWS)
    row = 8 * SKETCH.bands + 8 + 16 + 17 + 33 + 6 * (8 + sample.id_bytes / sample.documents)  # sidecars, ids in each
    return {
        "mb_s_core": speed,
        "seconds": START_SECONDS + megabytes / speed / workers + documents * DOCUMENT_SECONDS,
        "memory_mb": BASE_MB + max(SPLIT_MB, (9 * documents + ROW_MEMORY * shuffled) / 1e6),
        "disk_mb": documents * row / 1e6,
    }


def _whole(run: str) -> dict[str, float] | None:
    """Distinct contents and distinct buckets over all signatures of a run.

    Documents less the buckets of a band are duplicates that this band alone shows, so the most of any band is a share
    of near duplicates that there is at least.
    """
    paths = sorted((Path(run) / near.FOLDER).rglob("*.parquet"))
    if not paths:
        return None
    contents, documents = HyperLogLog(), 0
    buckets: list[HyperLogLog] = []
    for path in paths:
        struct = pq.ParquetFile(path).read(columns=["minhash"]).column("minhash").combine_chunks()
        packed = struct.field("bands")
        width = packed.type.byte_width // 8
        bands = np.frombuffer(packed.buffers()[1] or b"", "<u8")[: len(packed) * width].reshape(-1, width)
        buckets = buckets or [HyperLogLog() for _ in range(width)]
        contents.add(struct.field("content").to_numpy())
        for sketch, column in zip(buckets, bands.T, strict=True):
            sketch.add(column)
        documents += len(packed)
    fewest = min(sketch.estimate() for sketch in buckets)
    return {
        "documents": documents,
        "distinct_contents": min(contents.estimate(), documents),
        "content_share": max(0.0, 1 - contents.estimate() / documents) if documents else 0.0,
        "near_share_at_least": max(0.0, 1 - fewest / documents) if documents else 0.0,
    }


def show(result: dict[str, Any]) -> None:
    """Print the estimates and what they rest on."""
    from rich.console import Console
    from rich.table import Table

    table = Table("duplicates", "share", "at least", "at most", "distinct documents")
    for name in ("exact", "near"):
        found = result[name]
        shares = (f"{found[key]:.1%}" for key in ("share", "least", "most"))
        table.add_row(name, *shares, f"{found['distinct']:,.0f}")
    console, sample = Console(), result["sample"]
    console.print(
        f"{result['documents']:,} documents, {result['megabytes']:,.0f} MB of text (estimated from "
        f"{sample['documents']:,} documents, {sample['megabytes']:,.0f} MB)"
    )
    console.print(table)
    if result["whole"]:
        whole = result["whole"]
        console.print(
            f"all {whole['documents']:,} signatures: {whole['content_share']:.1%} repeat a content, "
            f"near duplicates are at least {whole['near_share_at_least']:.1%} (within 1 % of the documents)"
        )
    console.print(
        f"a run takes about {result['seconds']:,.0f} s, {result['memory_mb']:,.0f} MB in the largest process, "
        f"{result['disk_mb']:,.0f} MB of disk"
    )
