"""A chat model made on the spot: a small random Llama with a chat template and special tokens around turns."""

from __future__ import annotations

import json
from pathlib import Path

TURN, END = "<|turn|>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXTS = ["the quick brown fox jumps over the lazy dog", "yes or no, perhaps or not at all", "Pack my box: 5 dozen jugs"]


def build_chat_model(out: Path, template: str | None = TEMPLATE, scale: float = 0.2, window: int = 256) -> Path:
    """Folder of a Llama of two layers over a byte-level tokenizer of 300 tokens, with safetensors weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    torch.manual_seed(0)
    # A head is 32 wide: vLLM's attention on CPUs takes no narrower ones.
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 2}
    config = LlamaConfig(**size, **words, max_position_embeddings=window, initializer_range=scale)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": END}
    settings |= {"chat_template": template} if template else {}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return out
