"""Error and uncertainty of a causal language model on a document: the plane of Q-Tuning (arXiv 2509.23873).

Of the four corners two are kept: confident mistakes (high error, low uncertainty) and hesitant successes (low error,
high uncertainty). Which documents are high is a question about all of them, so it is asked in `select`. For tails of a
share a (at most 0.49) of the documents, here 0.3:

    (eu_plane.error >= quantile(eu_plane.error, 0.7) and eu_plane.uncertainty <= quantile(eu_plane.uncertainty, 0.3))
    or (eu_plane.error <= quantile(eu_plane.error, 0.3) and eu_plane.uncertainty >= quantile(eu_plane.uncertainty, 0.7))

`transforms.quadrants` finds by bisection the smallest a that keeps a wanted share, and writes the condition for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from scorers._causal import CausalScorer
from scorers._columns import texts
from transforms.batch import Batch

if TYPE_CHECKING:
    from transforms.losses import TokenLosses


class EuPlane(CausalScorer):
    """Means over the tokens of the text, or of the column `completion` given the column `prompt` before it.

    `tokens` stores the loss and the entropy of each scored token too, for pruning; they belong to the tokenizer whose
    digest stands in the metadata of these fields. Prompt and completion are tokenised each for itself; nulls are empty.
    Documents without a scored token have nulls.
    """

    name: ClassVar[str] = "eu_plane"
    prompt: str | None = None
    completion: str | None = None
    tokens: bool = False

    @model_validator(mode="after")
    def _pair(self) -> EuPlane:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` name two columns: give both, or neither to score the text")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.prompt is None or self.completion is None else (self.prompt, self.completion)

    def fields(self) -> pa.StructType:
        what = "text" if self.completion is None else self.completion
        fields = [
            pa.field("error", pa.float64(), metadata={"unit": f"mean loss, nats per token of {what}"}),
            pa.field("uncertainty", pa.float64(), metadata={"unit": f"mean entropy, nats per token of {what}"}),
            pa.field("scored", pa.int64(), nullable=False, metadata={"unit": "scored tokens"}),
        ]
        if self.tokens:
            series = {"unit": f"nats, the last `scored` tokens of {what}", "tokenizer": _digest(self.model)}
            fields += [pa.field(name, pa.list_(pa.float32()), metadata=series) for name in ("losses", "entropies")]
        return pa.struct(fields)

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.losses import document_sums, token_losses

        prompts, scored_texts = self._texts(batch)
        kept: list[TokenLosses] = []
        found = token_losses(self._loaded, scored_texts, self.window, self.stride, prompts)
        scored, loss, entropy = document_sums(len(batch), (self._keep(part, kept) for part in found))
        columns = [pa.array(total / np.maximum(scored, 1), mask=scored == 0) for total in (loss, entropy)]
        columns.append(pa.array(scored))
        if self.tokens:
            offsets = pa.array(np.concatenate([[0], np.cumsum(scored)]), pa.int32())
            for name in ("loss", "entropy"):
                values = np.concatenate([np.zeros(0, np.float32), *(getattr(part, name) for part in kept)])
                columns.append(pa.ListArray.from_arrays(offsets, pa.array(values)))
        return pa.StructArray.from_arrays(columns, fields=list(self.fields()))

    def _keep(self, part: TokenLosses, kept: list[TokenLosses]) -> TokenLosses:
        if self.tokens:
            kept.append(part)
        return part

    def _texts(self, batch: Batch) -> tuple[pa.LargeStringArray | None, pa.LargeStringArray]:
        if not self.needs:
            return None, batch.text
        prompts, completions = (pc.fill_null(texts(batch, name), "") for name in self.needs)
        return prompts, completions


def _digest(model: Path) -> str:
    """Of the tokenizer; empty before the model is there (a model that the run will fit)."""
    import xxhash

    file = model / "tokenizer.json"
    return xxhash.xxh3_128_hexdigest(file.read_bytes()) if file.is_file() else ""
