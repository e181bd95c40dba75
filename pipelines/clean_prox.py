"""Cleaning by programs: lines that a refiner calls noise are cut, and documents that it drops or leaves too little of.

The refiner is a light model (`transforms.refiner`, 19 MB/s per core) or language models (`transforms.program_writer`,
at the speed of their engines; finished answers are in the run's cache). Either goes by the rules of
`transforms.programs`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipelines.clean_local import Local, Told
from transforms.batch import Batch
from transforms.generation.ask import AnyEngine
from transforms.program_prompts import ProgramPrompts
from transforms.program_writer import ChunkWriter, DocumentJudge
from transforms.programs import DROPPED, DROPPED_RATIO, DROPPED_SHORT, STATUSES, Edits, Rules, execute, no_edits
from transforms.refiner import Refiner, load


class Prox(Local):
    """ProX (Zhou et al. 2024, arXiv 2409.17115). Lines are refined by the light model in the folder `model`, which the
    fit `refiner` makes, or by programs that a language model writes, `engine`, as the fit `refiner_lm` makes one; and,
    or only, documents by a language model, `documents`, which says what stays before lines are looked at.

    `keep`, for the light model: the share of what must stay that shall, by pages that the fit left out; or give a
    `threshold` of scores. `prompts`, `tokenizer`, `cache`: as in `transforms.program_writer`. A document is dropped,
    and cut whole, where `most_removed` of its words go or at most `short` words are left; it stays as it is where less
    than `least_left` would be. `prox.keep` and `prox.status` tell `select` which. A request that fails changes nothing;
    `prox.failures` and the ledger tell why.
    """

    model: Path | None = None
    keep: float = Field(0.95, ge=0, le=0.99)
    threshold: float | None = Field(None, allow_inf_nan=False)
    engine: AnyEngine | None = None
    documents: AnyEngine | None = None
    prompts: Path | ProgramPrompts | None = None
    tokenizer: Path | None = None
    cache: Path | None = Field(None, exclude=True)
    most_removed: float = Field(Rules().most_removed, gt=0, le=1)
    least_left: float = Field(Rules().least_left, ge=0, lt=1)
    short: int = Field(Rules().short, ge=0)

    fields: ClassVar[tuple[pa.Field, ...]] = (
        pa.field("status", pa.string(), metadata={"unit": f"one of {', '.join(STATUSES)}"}),
        pa.field(
            "keep", pa.bool_(), metadata={"unit": "false where the document is dropped; null where not looked at"}
        ),
        pa.field("errors", pa.int64(), metadata={"unit": "calls in its programs that cannot be done"}),
        pa.field("failures", pa.list_(pa.string()), metadata={"unit": "why requests came to nothing, one for each"}),
    )

    @field_validator("model")
    @classmethod
    def _whole(cls, path: Path | None) -> Path | None:
        if path is not None:
            load(path)
        return path

    @model_validator(mode="after")
    def _known(self) -> Prox:
        if self.model and self.engine:
            raise ValueError("give a light `model` or an `engine` that writes programs; both are given")
        if not (self.model or self.engine or self.documents):
            raise ValueError("give a light `model`, an `engine` that writes programs or `documents`; none is given")
        if not self.model and (given := sorted(self.model_fields_set & {"keep", "threshold"})):
            raise ValueError(f"`{given[0]}` is for the light model, and no `model` is given; leave it out")
        if self._refiner and self.threshold is None and not np.isfinite(self._refiner.threshold(self.keep)):
            known = ", ".join(sorted(self._refiner.thresholds)) or "none"
            raise ValueError(f"the refiner has no threshold for keep {self.keep}; it has {known}")
        _ = self._writer, self._judge
        return self

    @cached_property
    def _refiner(self) -> Refiner | None:
        return load(self.model) if self.model else None

    @cached_property
    def _writer(self) -> ChunkWriter | None:
        return ChunkWriter.model_validate(self._asking(self.engine)) if self.engine else None

    @cached_property
    def _judge(self) -> DocumentJudge | None:
        return DocumentJudge.model_validate(self._asking(self.documents)) if self.documents else None

    def _asking(self, engine: AnyEngine) -> dict[str, Any]:
        return {"engine": engine, "tokenizer": self.tokenizer, "prompts": self.prompts, "cache": self.cache}

    def cuts(self, batch: Batch) -> Told:
        judged = self._judge.judge(batch) if self._judge else None
        drop = judged.drop if judged else np.zeros(len(batch), bool)
        edits, failures = self._edits(batch, ~drop)
        edits = edits._replace(drop=edits.drop | drop)
        why: dict[int, list[str]] = defaultdict(list)
        for what, found in (("document", judged.failures if judged else []), ("chunk", failures)):
            for document, reason in found:
                why[document].append(f"{what}: {reason}")
        rules = Rules(self.least_left, self.most_removed, short=self.short)
        cuts, status = execute(batch, edits, rules)
        names = pa.array(STATUSES).take(pa.array(status))
        dropped = np.isin(status, (DROPPED, DROPPED_RATIO, DROPPED_SHORT))
        reasons = pa.array([why[d] for d in range(len(batch))], pa.list_(pa.string()))
        columns = (names, pa.array(~dropped), pa.array(edits.errors), reasons)
        return Told(cuts, columns, pa.concat_arrays([names, reasons.flatten()]))

    def _edits(self, batch: Batch, among: np.ndarray) -> tuple[Edits, list[tuple[int, str]]]:
        """What goes from the documents; a language model is asked about some alone."""
        if self._refiner:
            threshold = self._refiner.threshold(self.keep) if self.threshold is None else self.threshold
            return self._refiner.edits(batch, threshold), []
        if self._writer:
            written = self._writer.write(batch, among)
            return written.edits, written.failures
        return no_edits(batch), []
