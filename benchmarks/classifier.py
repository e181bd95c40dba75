"""Tokens/s of the classifier against plain batches: transformers, padded to the longest, in the order of arrival.

    python benchmarks/classifier.py [--layers 6 --width 384 --tokens 60000 --median 120 --sigma 1 --window 512]

Both run the same chunks through the same model (a BERT with random weights) with one thread of torch, in turns; lengths
are log-normal. Printed as JSON: tokens/s of each and their ratio (median of the turns), and the tokens computed for
each token asked for. The results are compared: largest difference of a logit, and whether a shuffled corpus has logits
of the same bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transforms.chunks import Chunks
from transforms.sequence_classifier import SequenceClassifier, check_classifier, load, one_thread

VOCABULARY = 8000


def make_model(folder: Path, layers: int, width: int, window: int) -> SequenceClassifier:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{k}" for k in range(VOCABULARY - 4))]
    tokenizer = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    config = BertConfig(
        **shape, intermediate_size=4 * width, vocab_size=VOCABULARY, max_position_embeddings=window, pad_token_id=0
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return load(check_classifier(folder))


def make_chunks(tokens: int, median: float, sigma: float, window: int, draw: np.random.Generator) -> Chunks:
    """Documents of log-normal lengths, cut at the window."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < tokens:
        left = max(1, int(draw.lognormal(np.log(median), sigma)))
        pieces = -(-left // (window - 2))
        for k in range(pieces):
            size = (k + 1) * left // pieces - k * left // pieces
            parts.append(np.concatenate([[1], draw.integers(4, VOCABULARY, size), [2]]).astype(np.int32))
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    zeros = np.zeros(len(parts), np.int64)
    return Chunks(np.concatenate(parts), offsets, np.ones(len(parts), np.int64), zeros, zeros)


def plain(model: Any, chunks: Chunks, size: int) -> tuple[np.ndarray, int]:
    """Logits of chunks in padded batches of `size`, in order, and the tokens computed."""
    found, computed = [], 0
    with one_thread(), torch.inference_mode():
        for at in range(0, len(chunks), size):
            ids = [chunks.ids[a:b] for a, b in zip(chunks.offsets[at:-1], chunks.offsets[at + 1 :], strict=True)][:size]
            table = np.zeros((len(ids), max(map(len, ids))), np.int64)
            mask = np.zeros_like(table)
            for row, chunk in enumerate(ids):
                table[row, : len(chunk)], mask[row, : len(chunk)] = chunk, 1
            computed += table.size
            found.append(model(input_ids=torch.from_numpy(table), attention_mask=torch.from_numpy(mask)).logits.numpy())
    return np.concatenate(found), computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 6, "width": 384, "tokens": 60_000, "window": 512, "batch": 32, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--median", type=float, default=120)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), given.layers, given.width, given.window)
        draw = np.random.default_rng(0)
        chunks = make_chunks(given.tokens, given.median, given.sigma, given.window, draw)
        rates: dict[str, list[float]] = {"corpusmill": [], "plain": []}
        ours = theirs = np.zeros(0)
        padded = 0
        for _ in range(given.turns):
            model.padding = [0, 0]
            started = time.perf_counter()
            ours = model.logits(chunks)
            rates["corpusmill"].append(len(chunks.ids) / (time.perf_counter() - started))
            started = time.perf_counter()
            theirs, padded = plain(model.model, chunks, given.batch)
            rates["plain"].append(len(chunks.ids) / (time.perf_counter() - started))
        order = draw.permutation(len(chunks))
        parts = [chunks.ids[chunks.offsets[k] : chunks.offsets[k + 1]] for k in order]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
        shuffled = Chunks(np.concatenate(parts), offsets, chunks.counts, chunks.tokens, chunks.unread)
        medians = {name: float(np.median(found)) for name, found in rates.items()}
        result = {
            "chunks": len(chunks),
            "tokens": len(chunks.ids),
            "tokens_per_second": medians,
            "ratio": medians["corpusmill"] / medians["plain"],
            "computed_per_token": {
                "corpusmill": model.padding[0] / model.padding[1],
                "plain": padded / len(chunks.ids),
            },
            "largest_difference": float(np.abs(ours - theirs).max()),
            "same_bits_shuffled": bool(np.array_equal(model.logits(shuffled), ours[order])),
        }
        if not given.json:
            print(json.dumps(result, indent=1))
        print(json.dumps(result))


if __name__ == "__main__":
    main()
