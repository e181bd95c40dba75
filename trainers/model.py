"""The language model: a Llama of transformers with this project's attention, new or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from trainers import attention, checkpoint
from trainers.adapters import head_matrix
from trainers.data import Batch
from trainers.formats import Template
from trainers.loss import token_losses
from trainers.mixture import Corpus
from trainers.tokenise import end_token

if TYPE_CHECKING:
    from trainers.config import TrainConfig


class ModelConfig(BaseModel):
    """Size of a new Llama, under the names of transformers' LlamaConfig; the vocabulary is the tokenizer's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: int = Field(default=128, gt=0)
    intermediate_size: int = Field(default=384, gt=0)
    num_hidden_layers: int = Field(default=2, gt=0)
    num_attention_heads: int = Field(default=2, gt=0)
    num_key_value_heads: int = Field(default=2, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}, "
                f"and that one of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(f"head width {self.hidden_size // self.num_attention_heads} is odd; rotary needs pairs")
        return self


def new_model(config: ModelConfig, corpus: Corpus, row_length: int, seed: int) -> PreTrainedModel:
    """A Llama with random weights drawn from the seed."""
    torch.manual_seed(seed)
    size = config.model_dump(exclude={"rope_theta"})
    llama = LlamaConfig(
        **size,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        vocab_size=corpus.vocabulary,
        max_position_embeddings=row_length,
        bos_token_id=corpus.end_token,
        eos_token_id=corpus.end_token,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(llama, attn_implementation=attention.NAME, dtype=torch.float32)


def make_model(config: TrainConfig, corpus: Corpus, device: str) -> PreTrainedModel:
    """The model of a run on its device. ValueError if a model to go on from does not fit tokenizer or row length."""
    if config.start is None:
        return new_model(config.model, corpus, config.row_length, config.seed).to(device)
    folder = checkpoint.model_of(config.start)
    torch.manual_seed(config.seed)
    model = load_model(folder)
    size, longest = model.config.vocab_size, model.config.max_position_embeddings
    if size < corpus.vocabulary or longest < config.row_length:
        raise ValueError(
            f"{folder} has {size} token embeddings and positions up to {longest}; the mixture's tokenizer "
            f"has {corpus.vocabulary} tokens, row_length is {config.row_length}: mix with the model's own tokenizer"
        )
    return model.to(device)


def load_model(folder: Path) -> PreTrainedModel:
    """A causal language model from a folder: safetensors only, no remote code, nothing downloaded."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=attention.NAME,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )


def save_model(model: PreTrainedModel, tokenizer: Path, folder: Path, conversations: bool = False) -> None:
    """Write a folder that transformers loads with AutoModelForCausalLM and AutoTokenizer.

    conversations: give it the chat template it was trained with, and let it stop generating where an answer ends.
    """
    end = end_token(tokenizer)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), bos_token=end, eos_token=end)
    if conversations:
        template = Template(tokenizer, end)
        fast.chat_template = template.source
        model.generation_config.eos_token_id = sorted({*fast.convert_tokens_to_ids([end, template.stop])})
    model.config.use_cache = True  # for those who generate with it
    model.save_pretrained(folder)
    model.config.use_cache = False
    fast.save_pretrained(folder)


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[tokens, width]: what the head of the language model reads, for each token of a packed batch."""
    device = model.device
    return model.base_model(
        input_ids=torch.from_numpy(batch.inputs)[None].to(device),
        position_ids=torch.from_numpy(batch.positions)[None].to(device),
        use_cache=False,
        document_lengths=batch.lengths.tolist(),
    ).last_hidden_state[0]


def head(model: PreTrainedModel) -> torch.Tensor:
    """[vocabulary, width]: the matrix of the language-model head, with what an adapter adds to it."""
    return head_matrix(model.get_output_embeddings())


def layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers."""
    return list(model.base_model.layers)


def training_flops(model: PreTrainedModel, lengths: np.ndarray) -> float:
    """Multiplications and additions of a forward and backward pass over documents of the given lengths (int [n]).

    6 per weight of a matrix and token, and 6 per layer, width and pair of positions that see each other
    (arXiv 2204.02311, appendix B); the embedding is looked up, the head counts.
    """
    tables = {id(p) for p in (model.get_input_embeddings().weight, head(model))}
    weights = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in tables) + head(model).numel()
    seen = (lengths.astype(np.float64) ** 2).sum()
    return float(6 * weights * lengths.sum() + 6 * model.config.num_hidden_layers * model.config.hidden_size * seen)


@torch.no_grad()
def check_packing(model: PreTrainedModel, batch: Batch, tolerance: float = 1e-4) -> None:
    """Compare the packed losses of a batch's first documents with those of each alone through the model's own head.

    Raises ValueError if they differ: the architecture ignores the attention function, scales its logits, or keeps state
    across documents, and packed training would silently learn something else.
    """
    training = model.training
    model.eval()
    count = min(4, len(batch.lengths))
    used = int(batch.lengths[:count].sum())
    few = Batch(batch.inputs[:used], batch.targets[:used], batch.lengths[:count], batch.documents[:count])
    packed = token_losses(hidden_states(model, few), head(model), torch.from_numpy(few.targets).to(model.device))
    model.set_attn_implementation("sdpa")
    alone = [
        _alone(model, inputs, targets)
        for inputs, targets in zip(
            torch.from_numpy(few.inputs).split(few.lengths.tolist()),
            torch.from_numpy(few.targets).split(few.lengths.tolist()),
            strict=True,
        )
    ]
    model.set_attn_implementation(attention.NAME)
    model.train(training)
    difference = float((packed - torch.cat(alone)).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{model.config.model_type}: the loss of packed documents differs from that of each alone by up to "
            f"{difference:.3g} nats per token (allowed {tolerance:.0e}); it cannot be trained on packed rows"
        )


def _alone(model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits: Any = model(input_ids=inputs[None].to(model.device), use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(model.device), reduction="none")
