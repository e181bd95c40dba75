"""Batched decoding by transformers' `generate`: per-row draws, per-row ends, choices by a tree of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from transforms.generation.engine import Answer, Sampling
from transforms.generation.prompts import Prompts
from transforms.model_folder import CAUSAL, ModelFolder, check_model_folder, load_model

WINDOWS = ("max_position_embeddings", "n_positions", "n_ctx")  # how config.json calls the most tokens of a model


def load(path: Path) -> Decoder:
    """The model of a folder, on the GPU if there is one. Raises ValueError: it holds no whole, safe causal model."""
    folder = check_model_folder(path, CAUSAL)
    cuda = torch.cuda.is_available()
    model, _ = load_model("AutoModelForCausalLM", path, dtype=torch.bfloat16 if cuda else torch.float32)
    model = model.eval().requires_grad_(False).to("cuda" if cuda else "cpu")
    ends = end_tokens(model, path)
    model.generation_config = GenerationConfig()  # that of the folder would set penalties and cuts nobody asked for
    return Decoder(model, Prompts(folder), window(folder), ends)


def window(folder: ModelFolder) -> int:
    """The most tokens that the model takes, prompt and output together; 2³¹ where config.json does not say."""
    return min((n for name in WINDOWS if isinstance(n := folder.config.get(name), int)), default=1 << 31)


def end_tokens(model: PreTrainedModel, path: Path) -> list[int]:
    """Ids at which an output ends: those of generation_config.json or config.json, and the tokenizer's eos_token."""
    from transformers import PreTrainedTokenizerFast

    named = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    own = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True).eos_token_id
    return sorted({*(named if isinstance(named, list) else [named]), own} - {None})


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model with its tokenizer."""

    model: PreTrainedModel
    prompts: Prompts
    window: int
    ends: list[int]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompts.tokenizer

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Answer]:
        """The answers to prompts that go through the model together."""
        columns = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[0] * (columns - len(p)) + [*p] for p in prompts], device=device)
        mask = torch.tensor([[0] * (columns - len(p)) + [1] * len(p) for p in prompts], device=device)
        allowed = [min(sampling.max_tokens, self.window - len(p)) for p in prompts]
        ends = Ends(self, columns, allowed, sampling.stop)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(max_new_tokens=max(allowed), do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList(drawing(sampling, seeds, device)),
            stopping_criteria=StoppingCriteriaList([ends]),
            prefix_allowed_tokens_fn=self._choices(sampling, columns),
        )
        rows = output[:, columns:].tolist()
        return [
            self._answer(row[:n], len(prompt), ends.reasons[i], sampling.stop)
            for i, (row, n, prompt) in enumerate(zip(rows, ends.lengths, prompts, strict=True))
        ]

    def _answer(self, ids: list[int], prompt: int, reason: str, stop: Sequence[str]) -> Answer:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if reason == "length":
            text = text.rstrip("\ufffd")  # the first bytes of a character that came no further
        cut = min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))
        return Answer(text[:cut], reason, prompt, len(ids))

    def _choices(self, sampling: Sampling, columns: int) -> Callable[[int, torch.Tensor], list[int]] | None:
        """What may follow what was chosen so far; after a whole choice the output may, or has to, end."""
        if sampling.guided is None or sampling.guided.choice is None:
            return None
        if not self.ends:
            raise ValueError(f"{self.prompts.folder.path} names no end token, so no choice can end: name eos_token_id")
        follow: dict[tuple[int, ...], set[int]] = {}
        for choice in sampling.guided.choice:
            ids = (*self.prompts.text_tokens(choice), self.ends[0])
            for n, token in enumerate(ids):
                follow.setdefault(ids[:n], set()).add(token)
        allowed = {begun: sorted(tokens) for begun, tokens in follow.items()}
        return lambda _, ids: allowed.get(tuple(ids[columns:].tolist()), self.ends[:1])


class Ends(StoppingCriteria):
    """Ends each row by itself: at an end token, at its own bound, at a stop text. Keeps how long it became, and why."""

    def __init__(self, decoder: Decoder, columns: int, allowed: Sequence[int], stop: Sequence[str]) -> None:
        self.decoder, self.columns, self.allowed, self.stop = decoder, columns, allowed, stop
        self.lengths, self.reasons = [0] * len(allowed), [""] * len(allowed)
        # Every token of a text has a byte at least; a few more for those that have none.
        self._reach = max((len(s.encode()) for s in stop), default=0) + 4

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        made = input_ids.shape[1] - self.columns
        tails = input_ids[:, self.columns :][:, -self._reach :].tolist()
        for row, tail in enumerate(tails):
            if not self.reasons[row] and (reason := self._reason(tail, made, self.allowed[row])):
                self.lengths[row], self.reasons[row] = made, reason
        return torch.tensor([bool(reason) for reason in self.reasons], device=input_ids.device)

    def _reason(self, tail: list[int], made: int, allowed: int) -> str:
        if tail[-1] in self.decoder.ends:
            return "stop"
        if self.stop:
            text = self.decoder.tokenizer.decode(tail, skip_special_tokens=True)
            if any(s in text for s in self.stop):
                return "stop"
        return "length" if made >= allowed else ""


def drawing(sampling: Sampling, seeds: Sequence[int], device: torch.device) -> list[LogitsProcessor]:
    """What turns logits into scores whose greatest is the token drawn."""
    if sampling.temperature == 0:
        return []
    return [
        TemperatureLogitsWarper(sampling.temperature),
        *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
        Gumbel(seeds, device),
    ]


class Gumbel(LogitsProcessor):
    """Adds Gumbel noise, of a generator for each row: the greatest is a draw from the softmax."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.empty_like(scores[0]).exponential_(generator=g) for g in self.generators])
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
