"""The language model: a Llama of transformers with this project's attention, new or from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from trainers import attention, checkpoint
from trainers.adapters import head_matrix
from trainers.data import Batch
from trainers.formats import Template
from trainers.loss import token_losses
from trainers.mixture import Corpus, file_digest
from trainers.tokenise import end_token
from transforms import model_folder

if TYPE_CHECKING:
    from trainers.config import TrainConfig


def _causal_model(folder: Path) -> Path:
    model_folder.check_model_folder(folder, model_folder.CAUSAL)
    return folder


ModelPath = Annotated[Path, AfterValidator(_causal_model)]  # folder of a causal language model, checked when named


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
    """The model of a run on its device. ValueError: one to go on from is not whole or cannot read the mixture."""
    if config.start is None:
        return new_model(config.model, corpus, config.row_length, config.seed).to(device)
    folder = _causal_model(checkpoint.model_of(config.start))
    torch.manual_seed(config.seed)
    model = load_model(folder)
    check_reads(model, folder, corpus.tokenizer, config.row_length)
    return model.to(device)


def check_reads(model: PreTrainedModel, folder: Path, tokenizer: Path, row_length: int) -> None:
    """ValueError unless the model of `folder` can read a mixture with that tokenizer (folder) in rows of that length.

    Either may have added tokens that the other lacks, if there are embeddings for them.
    """
    files = [Tokenizer.from_file(str(f / "tokenizer.json")) for f in (folder, tokenizer)]
    own, mixed = (file.get_vocab() for file in files)
    size, most = model.get_input_embeddings().weight.shape[0], 1 + max(mixed.values())
    longest = getattr(model.config, "max_position_embeddings", row_length)
    if size < most:
        raise ValueError(
            f"{folder} has {size} token embeddings and the mixture's tokenizer {most} tokens: "
            "mix with the model's own tokenizer"
        )
    if longest < row_length:
        raise ValueError(f"{folder} reads {longest} tokens at once, row_length is {row_length}: lower it")
    learned = set().union(*(file.get_vocab(with_added_tokens=False) for file in files))
    both = learned | (own.keys() & mixed.keys())
    differ = sorted(token for token in both if own.get(token) != mixed.get(token))
    if differ:
        raise ValueError(
            f"{folder} has other ids than the mixture's tokenizer for {len(differ)} tokens ({differ[0]!r}: "
            f"{own.get(differ[0])}, there {mixed.get(differ[0])}); mix with the model's own tokenizer"
        )


def load_model(folder: Path) -> PreTrainedModel:
    """A causal language model from a folder: safetensors only, no remote code, nothing downloaded.

    Raises ValueError: it cannot be loaded, or tensors are missing.
    """
    found: PreTrainedModel
    found, _ = model_folder.load_model("AutoModelForCausalLM", folder, attn_implementation=attention.NAME)
    return found


def model_digest(folder: Path) -> str:
    """Of the files of a model that decide what it says; of a folder that is not there, of none."""
    files = sorted(p for p in folder.glob("*") if p.suffix == ".safetensors" or p.name == "config.json")
    return xxhash.xxh3_128_hexdigest("".join(file_digest(p) for p in files).encode())


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
    disable_progress_bar()
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


def training_flops(model: PreTrainedModel) -> Callable[[np.ndarray], float]:
    """Multiplications and additions of a forward and backward pass over documents of given lengths (int [n]).

    6 per weight of a matrix and token, 4 for those that are not trained, and 12 per layer, width and pair of positions
    of which one sees the other (arXiv 2204.02311, appendix B); the embedding is looked up, the head counts.
    """
    tables = {id(p) for p in model.get_input_embeddings().parameters()}
    within = [p for p in model.base_model.parameters() if p.ndim >= 2 and id(p) not in tables]
    matrices = [*within, *(p for p in model.get_output_embeddings().parameters() if p.ndim >= 2)]
    per_token = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
    per_pair = 12 * model.config.num_hidden_layers * model.config.hidden_size

    def flops(lengths: np.ndarray) -> float:
        return float(per_token * lengths.sum() + per_pair * (lengths.astype(np.float64) ** 2).sum() / 2)

    return flops


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
