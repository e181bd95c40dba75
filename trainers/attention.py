"""Attention that keeps the documents of a packed row apart.

Queries, keys and values are split at document boundaries; consecutive pieces of equal length go through one call of
causal attention. It is exact (each document sees itself alone), needs no mask over the row, and costs what the
documents cost: the sum of their squared lengths, not the square of the row.

On a CPU the call is `_BlockAttention`: blocks of queries against the keys up to them, in products of matrices that
stay in the cache. PyTorch's own CPU kernel multiplies the masked half too and has no fast bf16. Forward and backward
of 8,192 tokens, 3 heads of 64, one core with AVX-512, in ms (median document of 60, of 200, rows full with 512):
PyTorch 47, 78, 130; blocks 47, 63, 87; blocks in bf16 50, 46, 42; one explicit mask over rows of 512 in float32: 300.
On a GPU it is PyTorch's attention for variable lengths in bf16, and one call of its attention per distinct length in
float32. The paths of the GPU have not been run yet; every run begins with `check_packing`, which compares them with
each document alone.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "documents"
QUERIES = 128  # of a block
HEADS = 12  # of a block: its scores against 512 keys take 3 MB
KEEP = 512  # pieces up to this length keep their probabilities for the backward pass, longer ones compute them again


def split_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: list[int],
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the documents that lie end to end in one row.

    query [1, heads, tokens, width], key and value [1, key heads, tokens, width]; document_lengths sum up to tokens.
    Returns [1, tokens, heads, width]. Raises ValueError if a mask or dropout is given or the lengths do not fit.
    """
    if attention_mask is not None or dropout or query.shape[0] != 1 or sum(document_lengths) != query.shape[2]:
        raise ValueError(
            f"packed attention takes one row, no mask, no dropout, and lengths that sum up to its tokens; given "
            f"{query.shape[0]} rows of {query.shape[2]} tokens, lengths of {sum(document_lengths)}, "
            f"mask: {attention_mask is not None}, dropout: {dropout}"
        )
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    if query.device.type == "cuda" and dtype != torch.float32:
        return _varlen(query.to(dtype), key.to(dtype), value.to(dtype), document_lengths, scaling), None
    attend = _on_cpu if query.device.type == "cpu" else _elsewhere
    runs = [(length, len(list(run))) for length, run in groupby(document_lengths)]
    sizes = [length * count for length, count in runs]
    split = [x.to(dtype).squeeze(0).split(sizes, dim=1) for x in (query, key, value)]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for (length, count), *pieces in zip(runs, *split, strict=True):
            q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in pieces)
            outputs.append(attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    ends = torch.tensor([0, *lengths]).cumsum(0).to(query.device, torch.int32)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    longest = max(lengths)
    found: torch.Tensor = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0))
    return found[None]


def _elsewhere(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)


def _on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    documents, heads, length, width = query.shape
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    flat = (x.reshape(-1, length, width) for x in (query * scaling, key, value))
    out: torch.Tensor = _BlockAttention.apply(*flat)
    return out.view(documents, heads, length, width)


class _BlockAttention(torch.autograd.Function):
    """Causal softmax(q kᵀ) v over [heads, length, width]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        kept = []
        for h, a, b in _blocks(query):
            p = _probabilities(query, key, h, a, b)
            out[h, a:b] = p @ value[h, :b]
            if query.shape[1] <= KEEP:
                kept.append(p)
        ctx.save_for_backward(query, key, value, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        mean = (gradient.float() * out.float()).sum(-1, keepdim=True)  # of the gradient over the probabilities
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros(query.shape, dtype=torch.float32) for _ in range(2))
        for number, (h, a, b) in enumerate(_blocks(query)):
            p = kept[number] if kept else _probabilities(query, key, h, a, b)
            g = gradient[h, a:b]
            d_value[h, :b] += p.transpose(1, 2) @ g
            d_p = (g @ value[h, :b].transpose(1, 2)).float()
            d_scores = d_p.sub_(mean[h, a:b]).mul_(p).to(query.dtype)
            d_query[h, a:b] = d_scores @ key[h, :b]
            d_key[h, :b] += d_scores.transpose(1, 2) @ query[h, a:b]
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype)


def _blocks(query: torch.Tensor) -> list[tuple[slice, int, int]]:
    """(heads, first query, end of queries) of each block."""
    heads, length, _ = query.shape
    ends = [(a, min(a + QUERIES, length)) for a in range(0, length, QUERIES)]
    return [(slice(h, h + HEADS), a, b) for h in range(0, heads, HEADS) for a, b in ends]


def _probabilities(query: torch.Tensor, key: torch.Tensor, h: slice, a: int, b: int) -> torch.Tensor:
    """[heads, b - a, b]: what queries a:b attend to; products in the type of the query, softmax in float32."""
    scores = query[h, a:b] @ key[h, :b].transpose(1, 2)
    future = torch.full((b - a, b - a), float("-inf"), dtype=scores.dtype).triu(1)
    scores[:, :, a:] += future
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)


AttentionInterface.register(NAME, split_attention)
