"""A causal language model that reads documents packed into rows, each document as if it were alone.

Rows have one length, and documents of a row attend to themselves alone, at positions that restart. Because every matrix
product then has the same shape whatever lies in the row, and attention is computed for each document by itself, a
document's numbers have the same bits in any company: reductions run in the order that the shape dictates. Only another
processor or another version of torch changes them, by about 1e-6.

On a CPU the arithmetic is float32, one row to a thread. Attention of documents up to SHORT tokens is one call of
PyTorch's kernel; longer ones go in blocks of queries against the keys up to them, which spares the masked half:
4,096 tokens of 4 heads of 64 in documents of 60, 300, 1,024 tokens take 9, 30, 69 ms by the kernel, 10, 20, 45 by
blocks (one core with AVX-512). On a GPU it is bf16 and PyTorch's attention for variable lengths, without splits of the
keys, whose order would depend on the neighbours. The GPU path has not been run yet.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from transforms.model_folder import CAUSAL, ModelFolder, check_model_folder, files_state, load_model

NAME = "packed_documents"  # of the attention, among those of transformers
SHORT = 192  # tokens
QUERIES = 128  # of a block
PROBE = (3, 17, 44)  # lengths of the documents on which packed and separate losses are compared
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # nats, and as much for each nat of loss

_lock = threading.Lock()
_loaded: WeakValueDictionary[tuple[Any, ...], CausalModel] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class CausalModel:
    """A model with its tokenizer. Threads may share it."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    begin: int | None  # id of the token put before each document, None where the model has none

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def hidden(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """[tokens, width]: the last hidden states of documents of the given lengths that lie end to end in one row."""
        ends = torch.tensor(lengths).cumsum(0)
        if int(ends[-1]) != len(tokens):
            raise ValueError(f"lengths that sum up to {int(ends[-1])} were given for a row of {len(tokens)} tokens")
        positions = torch.arange(len(tokens)) - (ends - torch.tensor(lengths)).repeat_interleave(torch.tensor(lengths))
        states: torch.Tensor = self.model.base_model(
            input_ids=tokens[None].to(self.device),
            position_ids=positions[None].to(self.device),
            use_cache=False,
            document_lengths=lengths,
        ).last_hidden_state[0]
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [tokens, vocabulary]."""
        found: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return found.float()


def load(folder: Path) -> CausalModel:
    """The model in a folder: one in this process, shared by all who hold it, on the GPU if there is one.

    Raises:
        ValueError: it holds no whole, safe causal model (see `check_model_folder`), lacks tensors, or gives another
            loss to packed documents than to each alone: its architecture cannot be scored on packed rows.
    """
    checked = check_model_folder(folder, CAUSAL)
    files = files_state(folder)
    with _lock:
        model = _loaded.get(files)
        if model is None:
            model = _loaded[files] = _load(checked)
        return model


def _load(folder: ModelFolder) -> CausalModel:
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    model, _ = load_model("AutoModelForCausalLM", folder.path, attn_implementation=NAME, dtype=dtype)
    model = model.eval().requires_grad_(False).to("cuda" if cuda else "cpu")
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    made = CausalModel(model, tokenizer, folder.begin)
    _check_packing(made, folder)
    return made


@torch.inference_mode()
def _check_packing(made: CausalModel, folder: ModelFolder) -> None:
    """Compare packed losses with those that the model itself, with its own attention, gives to each document alone."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(folder.vocabulary, (sum(PROBE),), generator=generator)
    targets = tokens.roll(-1).to(made.device)
    packed = cross_entropy(made.logits(made.hidden(tokens, list(PROBE))), targets, reduction="none")
    made.model.set_attn_implementation("eager")
    alone = [made.model(input_ids=t[None].to(made.device), use_cache=False).logits[0] for t in tokens.split(PROBE)]
    made.model.set_attn_implementation(NAME)
    separate = cross_entropy(torch.cat(alone).float(), targets, reduction="none")
    difference = float((packed - separate).abs().max())
    allowed = TOLERANCE[made.model.dtype] * (1 + float(separate.abs().max()))
    if not difference <= allowed:
        raise ValueError(
            f"{folder.path}: {json.dumps(folder.config.get('model_type'))} gives packed documents losses that differ "
            f"by up to {difference:.3g} nats from those of each alone (allowed {allowed:.0e}); its attention or its "
            "head is of a kind that cannot be scored on packed rows"
        )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a row, as transformers calls it.

    query [1, heads, tokens, width], key and value [1, key heads, tokens, width]. Returns [1, tokens, heads, width].
    """
    if attention_mask is not None or dropout or (sliding_window and sliding_window < max(document_lengths)):
        raise ValueError("packed attention takes no mask, no dropout and no sliding window shorter than the documents")
    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cuda":
        return _varlen(query, key, value, document_lengths, scaling), None
    out = query.new_empty(query.shape[2], heads, value.shape[-1])
    start = 0
    for length in document_lengths:
        q, k, v = (x[:, :, start : start + length].contiguous() for x in (query, key, value))
        attend = _kernel if length <= SHORT else _blocks
        out[start : start + length] = attend(q, k, v, scaling)[0].transpose(0, 1)
        start += length
    return out[None], None


def _kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same in blocks of queries; holds the scores of one block, [heads, QUERIES, length]."""
    out = torch.empty_like(query)
    length = query.shape[2]
    future = torch.full((QUERIES, QUERIES), float("-inf")).triu(1)
    for a in range(0, length, QUERIES):
        b = min(a + QUERIES, length)
        scores = (query[:, :, a:b] * scaling) @ key[:, :, :b].transpose(2, 3)
        scores[:, :, :, a:] += future[: b - a, : b - a]
        out[:, :, a:b] = torch.softmax(scores, dim=-1) @ value[:, :, :b]
    return out


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(query.device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    longest = max(lengths)
    found = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), num_splits=1
    )  # no splits: a document's bits shall not depend on its neighbours
    return found[None]


AttentionInterface.register(NAME, _attention)
