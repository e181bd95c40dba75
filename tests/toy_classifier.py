"""Tiny sequence classifiers with random weights, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WINDOW = 64


def make_classifier(folder: Path, tokenizer: Path, architecture: str = "Bert", labels: int = 2, **config: Any) -> Path:
    """A folder as transformers saves it: two layers, large random weights so that scores differ, and a byte-level
    tokenizer that puts [CLS] and [SEP] around texts.

    Args:
        tokenizer: folder of a tokenizer of 400 tokens. architecture: the first part of the names of transformers.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, processors

    folder.mkdir(parents=True, exist_ok=True)
    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    around = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": WINDOW}))
    torch.manual_seed(0)
    ids = {"pad_token_id": 400, "bos_token_id": 401, "eos_token_id": 402, "vocab_size": 403}
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {**size, **ids, "max_position_embeddings": 512, "initializer_range": 0.2, "num_labels": labels, **config}
    kind = getattr(transformers, f"{architecture}ForSequenceClassification")
    kind(getattr(transformers, f"{architecture}Config")(**given)).save_pretrained(folder)
    return folder
