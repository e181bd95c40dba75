"""Where a damaged language model has lost most: how far its predictions are from those of the model it was made from.

Costs a reading by either model (see `transforms.divergence`).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from scorers._causal import CausalScorer
from transforms.batch import Batch
from transforms.model_folder import CAUSAL, check_model_folder, check_same_tokens, check_window

if TYPE_CHECKING:
    from transforms.causal_model import CausalModel


class Divergence(CausalScorer):
    """PASER's divergence and efficiency (He et al. 2025, arXiv 2502.12594). `damaged`: the folder of the model that was
    pruned, quantised or otherwise made from `model`; both have one tokenizer.

    `jsd` is the mean over the document's tokens (the published code sums, by which long documents look damaged).
    `ies` divides it by the logarithm of what training on the document costs, its tokens squared. Documents of fewer
    than `shortest` tokens count as having so many: the logarithm of a small cost is near 0, and they would all go
    first. Documents without a scored token have nulls.
    """

    name: ClassVar[str] = "divergence"
    damaged: Path
    shortest: int = Field(16, ge=2, description="tokens; ours")

    @model_validator(mode="after")
    def _comparable(self) -> Divergence:
        damaged = check_model_folder(self.damaged, CAUSAL)
        check_window(damaged, self.window)
        check_same_tokens(self._folder(), damaged)
        return self

    @cached_property
    def _damaged(self) -> CausalModel:
        from transforms.causal_model import load

        return load(self.damaged)

    def setup(self) -> None:
        _ = self._loaded, self._damaged

    def fields(self) -> pa.StructType:
        units = {
            "jsd": "nats, 0 to log 2: Jensen-Shannon divergence of both models' predictions, mean over scored tokens",
            "ies": f"jsd / log(tokens squared), of documents below {self.shortest} tokens as if they had so many",
        }
        fields = [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in units.items()]
        return pa.struct([*fields, pa.field("tokens", pa.int64(), nullable=False, metadata={"unit": "scored tokens"})])

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.divergence import token_divergences

        tokens, total = np.zeros(len(batch), np.int64), np.zeros(len(batch))
        for document, jsd in token_divergences(self._loaded, self._damaged, batch.text, self.window, self.stride):
            np.add.at(tokens, document, 1)
            np.add.at(total, document, jsd)  # token by token, wherever a part ends
        none = tokens == 0
        jsd = np.minimum(total / np.maximum(tokens, 1), np.log(2))  # float32 rounds log 2 up
        ies = jsd / (2 * np.log(np.maximum(tokens, self.shortest)))
        columns = [pa.array(values, mask=none) for values in (jsd, ies)]
        return pa.StructArray.from_arrays([*columns, pa.array(tokens)], fields=list(self.fields()))
