"""Documents of four topics, phrases of a topic's own words between function words; a causal model of them, and what is
left of it when one topic was damaged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

TOPICS = 4
DAMAGED = 2
BEGIN = "[BEGIN]"
LINKS = ["of the", "and a", "in the", "with", "from the", "under a"]
WORDS = [[f"{a}{b}{end}" for a in "bdgk" for b in "aeio"] for end in ("lum", "rix", "sot", "ven")]


def phrase(topic: int, draw: np.random.Generator) -> str:
    """Two of the topic's sixteen words; there are 240."""
    return " ".join(draw.choice(WORDS[topic], 2, replace=False))


def document(topic: int, draw: np.random.Generator, phrases: int = 8) -> str:
    parts = [phrase(topic, draw) for _ in range(phrases)]
    return "the " + " ".join(f"{part} {draw.choice(LINKS)}" for part in parts[:-1]) + f" {parts[-1]} ."


def models(out: Path, steps: int = 120) -> tuple[Path, Path]:
    """Folders of a one-layer Llama that has learned all topics, and of the same without its outputs for one of them
    (about 4 s)."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from transforms.sequence_classifier import one_thread

    common = sorted({word for link in LINKS for word in link.split()} | {"."})
    vocabulary = {word: i for i, word in enumerate([BEGIN, "[UNK]", *common, *(w for own in WORDS for w in own)])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", bos_token=BEGIN)
    folders = (out / "original", out / "damaged")
    with one_thread():
        torch.manual_seed(0)
        size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(**size, vocab_size=len(vocabulary), max_position_embeddings=256, bos_token_id=0)
        model = AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
        draw = np.random.default_rng(7)
        for _ in range(steps):
            rows = [[0, *words.encode(document(t, draw)).ids[:32]] for t in range(TOPICS) for _ in range(4)]
            ids = torch.tensor([row for row in rows if len(row) == 33])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folders[0])
        lost = [vocabulary[word] for word in WORDS[DAMAGED]]
        with torch.no_grad():
            model.get_output_embeddings().weight[lost] = 0
        model.save_pretrained(folders[1])
    for folder in folders:
        tokenizer.save_pretrained(folder)
    return folders
