"""How well a causal language model predicts a document: loss per token, bits per byte and per character."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from scorers._causal import CausalScorer
from transforms.batch import Batch


class Perplexity(CausalScorer):
    """Every token of the document is scored, the first one after the model's begin-of-text token; a model that has none
    leaves the first token out of sums and means. Documents without a scored token have nulls.

    Bits per character are the normalised loss of PreSelect (arXiv 2503.00808). Perplexity is infinite where the loss
    exceeds 709.
    """

    name: ClassVar[str] = "perplexity"

    def fields(self) -> pa.StructType:
        units = {
            "loss": "nats per scored token",
            "perplexity": "exp(loss)",
            "bits_per_byte": "loss of all scored tokens in bits / bytes of UTF-8",
            "bits_per_character": "loss of all scored tokens in bits / code points",
        }
        fields = [pa.field(name, pa.float64(), metadata={"unit": unit}) for name, unit in units.items()]
        return pa.struct([*fields, pa.field("tokens", pa.int64(), nullable=False, metadata={"unit": "scored tokens"})])

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.losses import document_sums, token_losses

        losses = token_losses(self._loaded, batch.text, self.window, self.stride)
        tokens, total, _ = document_sums(len(batch), losses)
        none = tokens == 0
        loss = total / np.maximum(tokens, 1)
        bits = total / np.log(2)
        with np.errstate(over="ignore"):
            perplexity = np.exp(loss)
        sizes = [np.maximum(n, 1) for n in (np.diff(batch.offsets), batch.characters)]
        columns = [pa.array(x, mask=none) for x in (loss, perplexity, *(bits / size for size in sizes))]
        return pa.StructArray.from_arrays([*columns, pa.array(tokens)], fields=list(self.fields()))
