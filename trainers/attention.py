"""Attention that keeps the documents of a packed row apart.

Queries, keys and values are split at document boundaries and each piece goes through PyTorch's causal attention;
consecutive pieces of equal length go together. It is exact (each document sees itself alone), needs no mask, and costs
what the documents cost: the sum of their squared lengths, not the square of the row. Measured on one core for 8,192
tokens, 5 heads of 32, forward and backward: documents of median 200 tokens 72 ms, of 60 tokens 44 ms; padding pieces
to shared lengths 114 and 83 ms; rows of 512 with an explicit block mask 430 ms.

Where autocast is on for the CPU, attention still runs in float32: its bf16 kernel was slower (107 and 118 ms).
The same code runs on a GPU, one kernel call per distinct length. It was measured on CPUs only.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "documents"


def split_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the documents that lie end to end in one row.

    query [1, heads, tokens, width], key and value [1, key heads, tokens, width]; document_lengths sum up to tokens.
    Returns [1, tokens, heads, width]. Raises ValueError if a mask is given or the lengths do not fit.
    """
    if attention_mask is not None or query.shape[0] != 1 or sum(document_lengths) != query.shape[2]:
        raise ValueError(
            f"packed attention takes one row, no mask, and lengths that sum up to its tokens; given {query.shape[0]} "
            f"rows of {query.shape[2]} tokens, lengths of {sum(document_lengths)}, mask: {attention_mask is not None}"
        )
    if query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    runs = [(length, len(list(run))) for length, run in groupby(document_lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for (length, count), *pieces in zip(
            runs, *(x.squeeze(0).split(sizes, dim=1) for x in (query, key, value)), strict=True
        ):
            q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in pieces)
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=k.shape[1] != q.shape[1]
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


AttentionInterface.register(NAME, split_attention)
