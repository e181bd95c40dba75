"""Which documents are hard yet learnable for a small causal language model: the selection of SALT (Rawat et al. 2024,
arXiv 2410.18779).

Costs one reading by the model (see `transforms.losses`). Boilerplate scores low because its losses are, random text
because the model holds its tokens for unlikely.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from scorers._causal import CausalScorer
from transforms.batch import Batch


class Salt(CausalScorer):
    """`score`: the median loss, in which only tokens count that are among the `k` most likely ones.

    `masked_tokens`: the others count as zero, or are dropped. Which one the paper means could not be verified; with
    `zero` a document of which more than half is unlearnable scores 0, with `drop` random text can score high by the
    tokens that happen to be likely. Medians of short documents are unstable: compare documents of about one length.
    Documents without a token that counts have nulls.

    Many documents share the score 0. To order these by `mean_masked_loss`, below all others:
    `top_k(if(salt.score > 0, salt.score, salt.mean_masked_loss - 1000), share := 0.2, weight := salt.tokens)`.
    """

    name: ClassVar[str] = "salt"
    k: int = Field(10, ge=1)
    masked_tokens: Literal["zero", "drop"] = "zero"

    def fields(self) -> pa.StructType:
        others = "others as 0" if self.masked_tokens == "zero" else "others dropped"
        units = {
            "score": f"nats, median over tokens among the {self.k} most likely, {others}",
            "frac_in_topk": f"share of scored tokens among the {self.k} most likely",
            "mean_masked_loss": f"nats per scored token, those not among the {self.k} most likely as 0",
        }
        fields = [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in units.items()]
        return pa.struct([*fields, pa.field("tokens", pa.int64(), nullable=False, metadata={"unit": "scored tokens"})])

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.learnable_loss import learnable_loss
        from transforms.losses import token_losses

        parts = list(token_losses(self._loaded, batch.text, self.window, self.stride))
        document, loss, rank = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("document", "loss", "rank")
        )
        found = learnable_loss(document, loss, rank, len(batch), self.k, self.masked_tokens == "drop")
        columns = [pa.array(x, from_pandas=True) for x in (found.score, found.share, found.mean)]  # NaN is null
        tokens = np.bincount(document, minlength=len(batch))
        return pa.StructArray.from_arrays([*columns, pa.array(tokens)], fields=list(self.fields()))
