"""Tokens per second of transforms.losses against the same model on full rows and on padded batches; memory; equality.

    python benchmarks/loss_engine.py --json [--shards DIR/*.parquet …] [--threads 1] [--pairs 5]

Documents have log-normal lengths (median 140 tokens, sigma 0.8, at most a window of 1,024) and are cut from the text
given, or from the docstrings found on this machine. The model is made on the spot: a Llama of 4 layers, 256 wide, 8,192
tokens. `full` is the same model, attention and chunked losses on rows of 1,024 tokens that are there already, one
document to a row: nothing to tokenise, pack or fill. `padded` is
transformers' model on batches of 16 documents in the order of arrival, from text to losses and entropies. All in one
process, in turns; figures are medians over pairs. Memory is the peak of processes that score one document each, by
a narrower model for the sake of time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WINDOW, STRIDE, BATCH, VOCABULARY = 1024, 512, 16, 8192
SIZE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}


def main() -> None:
    arguments = parse()
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.shards)
    result = speeds(work, arguments) | {"memory_mb": {n: memory(work, n) for n in ("10000", "1000000")}}
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--shards", nargs="*", default=[], help="Parquet files with a text column")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=60_000, help="about how many are scored in each run")
    parser.add_argument("--work", default=str(Path.home() / ".cache" / "corpusmill" / "benchmark-losses"))
    return parser.parse_args()


def prepare(work: Path, shards: list[str]) -> None:
    """Model folder and text."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pipelines.sample_corpus import build
    from trainers.fit_tokenizer import fit_tokenizer

    if not shards:
        build(work / "corpus", target_mb=12)
        shards = sorted(map(str, (work / "corpus").glob("docstrings/*.parquet")))
    texts = [t for shard in shards for t in pq.read_table(shard, columns=["text"])["text"].to_pylist() if t]
    (work / "text").write_text("\n".join(texts)[:8_000_000])
    fit_tokenizer(texts[::4], work / "model", VOCABULARY)
    torch.manual_seed(0)
    for name, size in {"model": SIZE, "narrow": NARROW}.items():
        config = LlamaConfig(**size, vocab_size=VOCABULARY, max_position_embeddings=WINDOW, initializer_range=0.05)
        AutoModelForCausalLM.from_config(config).save_pretrained(work / name)
        if name != "model":
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (work / name / file).write_bytes((work / "model" / file).read_bytes())


def speeds(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import pyarrow as pa
    import torch
    from transformers import AutoModelForCausalLM

    from transforms.causal_model import load
    from transforms.losses import token_losses

    torch.set_num_threads(arguments.threads)
    model = load(work / "model")
    plain = AutoModelForCausalLM.from_pretrained(work / "model", attn_implementation="sdpa", dtype=torch.float32).eval()
    texts, full_rows = documents(model, (work / "text").read_text(), arguments.tokens)
    column = pa.array(texts, pa.large_string())
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: np.concatenate([part.loss for part in token_losses(model, column, WINDOW, STRIDE)]),
        "full": lambda: full(model, full_rows),
        "padded": lambda: padded(model, plain, texts),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    found = {}
    for pair in range(arguments.pairs + 1):
        for name in list(runs) if pair % 2 else list(runs)[::-1]:
            started = time.perf_counter()
            found[name] = runs[name]()
            if pair:  # the first warms up
                rates[name].append(len(found[name]) / (time.perf_counter() - started))
        print(f"pair {pair}/{arguments.pairs}: {rates}", file=sys.stderr)
    ratio = {n: statistics.median(a / b for a, b in zip(rates["ours"], rates[n], strict=True)) for n in runs}
    return {
        "vs_full": ratio["full"],
        "vs_padded": ratio["padded"],
        "max_loss_diff": float(np.abs(found["ours"] - found["padded"]).max()),
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "documents": len(texts),
        "tokens": len(found["ours"]),
        "threads": arguments.threads,
    }


def documents(model: Any, text: str, tokens: int) -> tuple[list[str], np.ndarray]:
    """Documents of log-normal lengths, and int64 [rows, WINDOW + 1] of the same number of tokens in full rows."""
    ids = np.array(model.tokenizer.encode(text[: 12 * tokens], add_special_tokens=False).ids)
    lengths = np.random.default_rng(0).lognormal(np.log(140), 0.8, tokens).astype(int).clip(1, WINDOW - 24)
    ends = np.cumsum(lengths)
    ends = ends[ends <= min(tokens, len(ids))]
    texts = [model.tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in np.split(ids, ends)[:-1]]
    rows = int(ends[-1]) // WINDOW
    return texts, np.stack([ids[r * WINDOW : (r + 1) * WINDOW + 1] for r in range(rows)]).astype(np.int64)


def full(model: Any, rows: np.ndarray) -> np.ndarray:
    import torch

    from transforms.losses import head_losses

    found = []
    with torch.inference_mode():
        for row in torch.from_numpy(rows):
            found.append(head_losses(model, model.hidden(row[:-1], [WINDOW]), row[1:])[0])
    return np.concatenate(found)


def padded(model: Any, plain: Any, texts: list[str]) -> np.ndarray:
    """Losses in order of documents and tokens; entropies are computed too."""
    import torch

    found = []
    with torch.inference_mode():
        for a in range(0, len(texts), BATCH):
            encoded = model.tokenizer.encode_batch_fast(texts[a : a + BATCH], add_special_tokens=False)
            ids = [torch.tensor([model.begin, *e.ids]) for e in encoded]
            inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
            logits = plain(input_ids=inputs, attention_mask=real, use_cache=False).logits[:, :-1]
            log_p = torch.log_softmax(logits, dim=-1)
            _entropy = -(log_p.exp() * log_p).sum(dim=-1)
            losses = -log_p.gather(2, inputs[:, 1:, None])[:, :, 0]
            found.append(losses[real[:, 1:] == 1].numpy())
    return np.concatenate(found)


def memory(work: Path, tokens: str) -> int:
    """Peak memory in MB of a process that scores one document of so many tokens."""
    command = [sys.executable, __file__, "--one-document", str(work), tokens]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def one_document(work: Path, tokens: int) -> None:
    import pyarrow as pa

    from transforms.causal_model import load
    from transforms.losses import document_sums, token_losses

    model = load(work / "narrow")
    part = (work / "text").read_text()[:20_000]
    often = tokens / len(model.tokenizer.encode(part, add_special_tokens=False).ids)
    column = pa.array([part * int(often) + part[: int(often % 1 * len(part))]], pa.large_string())
    document_sums(1, token_losses(model, column, WINDOW, STRIDE))
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that starts this one
    print(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 // 10**6)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--one-document"]:
        one_document(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
