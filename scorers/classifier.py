"""A transformers classifier or regression model's score of documents, as FineWeb-Edu's or Arctic-SnowCoder's.

The cost is the model's: about 3,500 tokens/s and core for 6 layers of 384, 350 for 12 layers of 768.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from scorers import Scorer
from scorers._chunk_scores import finite, pooled
from transforms.batch import Batch
from transforms.chunks import Sections
from transforms.model_folder import check_device
from transforms.sequence_classifier import ClassifierFolder, SequenceClassifier, check_classifier, load

FIELDS = {
    "score": (pa.float64(), "mean over chunks: probability of the label, or the value of a regression"),
    "highest": (pa.float64(), "highest of the chunks' scores"),
    "lowest": (pa.float64(), "lowest of the chunks' scores"),
    "chunks": (pa.int32(), "chunks read"),
    "tokens": (pa.int64(), "tokens read, special tokens not counted, overlaps counted twice"),
    "unread": (pa.int64(), "characters that no chunk holds"),
}


class Classifier(Scorer):
    """`model`: a folder of any `…ForSequenceClassification` of transformers (config.json, safetensors, tokenizer.json).

    `sections` says what of a document is read (see `transforms.chunks.Chunker.cut`): `whole`; `beginning`, as
    FineWeb-Edu's classifier (arXiv 2406.17557); or `top_middle_bottom`, as Arctic-SnowCoder (arXiv 2409.02326). At most
    `most_chunks` are read; `unread` counts the characters left out. `label` names the output whose probability is
    wanted; models with one output, and those fitted here, need none. A document without tokens, or to which the model
    gives no finite number, has null scores.

    Scores have the same bits whatever the neighbours, on one processor and one version of torch; on another they
    differ by about 1e-6.
    """

    name: ClassVar[str] = "classifier"
    package: ClassVar[str] = "torch"
    model: Path
    label: str | int | None = None
    sections: Sections = "whole"
    most_chunks: int = Field(64, ge=1)
    device: Annotated[str, AfterValidator(check_device)] = "cpu"

    @model_validator(mode="after")
    def _usable(self) -> Classifier:
        self._checked.output(self.label)
        return self

    def fields(self) -> pa.StructType:
        return pa.struct([pa.field(name, kind, metadata={"unit": unit}) for name, (kind, unit) in FIELDS.items()])

    @cached_property
    def _checked(self) -> ClassifierFolder:
        return check_classifier(self.model)

    @cached_property
    def _loaded(self) -> SequenceClassifier:
        return load(self._checked, self.device)

    def setup(self) -> None:
        _ = self._loaded

    def score(self, batch: Batch) -> pa.StructArray:
        chunks = self._loaded.chunker.cut(batch.text, self.sections, self.most_chunks)
        pools = pooled(self._loaded.scores(chunks, self._checked.output(self.label)), chunks.counts)
        columns = [finite(pools["mean"]), finite(pools["highest"]), finite(pools["lowest"])]
        columns += [pa.array(chunks.counts.astype(np.int32)), pa.array(chunks.tokens), pa.array(chunks.unread)]
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))
