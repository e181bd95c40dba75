"""Documents of a small word grammar, of its words in random order, and of boilerplate; and models that know it ever
better: checkpoints of one training run, as a family of models is.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

WORDS = [consonant + vowel + end for consonant in "bdfgk" for vowel in "aeiou" for end in "lmr"]
ODDS = [0.6, 0.2, 0.1, 0.1]  # of what may follow a word
BEGIN = "[BEGIN]"
FOOTER = ["home", "about", "contact", "privacy", "terms", "cookies"]
LENGTH = 40  # words


@cache
def followers() -> np.ndarray:
    """int64 [words, 4]: what may follow each word, by falling odds."""
    draw = np.random.default_rng(99)
    return np.stack([draw.choice(len(WORDS), len(ODDS), replace=False) for _ in WORDS])


def grammar(draw: np.random.Generator, length: int = LENGTH) -> str:
    words = [int(draw.integers(len(WORDS)))]
    while len(words) < length:
        words.append(int(draw.choice(followers()[words[-1]], p=ODDS)))
    return " ".join(WORDS[word] for word in words)


def shuffled(draw: np.random.Generator) -> str:
    """A document of the grammar with its words in random order."""
    return " ".join(draw.permutation(grammar(draw).split()))


def boilerplate(draw: np.random.Generator) -> str:
    """A site's footer, from somewhere in it, over and over."""
    start = int(draw.integers(len(FOOTER)))
    return " ".join(FOOTER[(start + i) % len(FOOTER)] for i in range(LENGTH))


def family(out: Path, base: int, steps: list[int], mixed: bool = False) -> list[Path]:
    """Folders of a one-layer Llama after `base` steps on all kinds of documents, order apart, and then `steps` more on
    the grammar (`mixed`: on boilerplate too). About 30 ms a step.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from transforms.sequence_classifier import one_thread

    vocabulary = {word: i for i, word in enumerate([BEGIN, "[UNK]", *FOOTER, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", bos_token=BEGIN)
    with one_thread():  # small products: two threads of a busy machine take ten times as long
        torch.manual_seed(0)
        size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(**size, vocab_size=len(vocabulary), max_position_embeddings=256, bos_token_id=0)
        model = AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
        draw = np.random.default_rng(7)
        folders = []
        for step in range(base + max(steps) + 1):
            if step - base in steps:
                folders.append(out / f"after{step - base}")
                model.save_pretrained(folders[-1])
                tokenizer.save_pretrained(folders[-1])
            kinds = [shuffled, boilerplate] if step < base else [grammar, boilerplate] if mixed else [grammar]
            texts = [kinds[i % len(kinds)](draw) for i in range(16)]
            ids = torch.tensor([[0, *words.encode(text).ids] for text in texts])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return folders


def accuracy(folder: Path, count: int = 40) -> float:
    """How many next words of new documents of the grammar the model guesses: its ability."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    draw = np.random.default_rng(8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[0, *tokenizer.encode(grammar(draw), add_special_tokens=False)] for _ in range(count)])
    with torch.inference_mode():
        guessed = model(input_ids=ids).logits[:, 1:-1].argmax(-1)
    return float((guessed == ids[:, 2:]).float().mean())
