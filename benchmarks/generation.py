"""Output tokens/s of a run that rewrites by vLLM against vLLM's own offline call; what a killed run sends twice.

    python benchmarks/generation.py --json [--environment .venv-vllm] [--documents 1500] [--pairs 3]

Runs itself again in an environment with vLLM: the one given, or one that `tests/vllm_environment.sh` makes outside of
the checkout (4 GB, some minutes, once). The model is made on the spot: a Llama of 4 layers, 256 wide, with a byte-level
tokenizer and a chat template. Documents have 30 to 120 words, one to a chunk; outputs are bounded by 100 tokens.

`ours` is a whole run, `rewrite: {plain: {rewriter: wrap}}` over Parquet shards up to the step `rewrite`: scan, index,
chunks, prompts, generation, acceptance checks, the cache, new shards, their index and the ledger. `offline` is one
`LLM.chat` on the same conversations, on the same engine. They take turns in one process, each with an empty cache of
prefixes; figures are medians over pairs. `sent_twice` counts requests whose answers a run had on disk when it was
killed (SIGKILL, a third of the way) and that the next run of the same folder sent again; `start_seconds` is what
loading takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _vllm import in_environment

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
sys.path.append(str(ROOT / "tests"))
SIZE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
WORDS = [
    "river",
    "stone",
    "light",
    "winter",
    "market",
    "engine",
    "garden",
    "letter",
    "silver",
    "window",
    "bread",
    "north",
]
TOKENS = 100  # of an output, at most
SHARDS = 3


def main() -> None:
    arguments = parse()
    if not arguments.inside:
        inside(arguments)
    elif arguments.inside == "victim":
        from pipelines.run import run

        run(recipe(Path(arguments.work), "killed"), f"{arguments.work}/runs/killed", until="rewrite")
    else:
        print(json.dumps(measure(arguments)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--environment", help="folder of an environment with vLLM and corpusmill")
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


def inside(arguments: argparse.Namespace) -> None:
    """This benchmark again, by the Python of the environment."""
    told = [__file__, "--inside", "measure"]
    told += ["--documents", str(arguments.documents), "--pairs", str(arguments.pairs)]
    result = json.loads(in_environment(arguments.environment, told))
    print(json.dumps(result, indent=None if arguments.json else 1))


def texts(name: str, count: int) -> list[str]:
    """Documents of one measurement; none stands in another."""
    draw = random.Random(name)
    return [f"{name} " + " ".join(draw.choices(WORDS, k=draw.randint(30, 120))) + "." for _ in range(count)]


def write_corpus(work: Path, name: str, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = texts(name, count)
    (work / "corpus" / name).mkdir(parents=True)
    for k in range(SHARDS):
        some = range(k, count, SHARDS)
        table = pa.table({"id": [f"{name} {i}" for i in some], "text": [found[i] for i in some]})
        pq.write_table(table, work / "corpus" / name / f"{k}.parquet")


def recipe(work: Path, name: str) -> Any:
    from pipelines.recipe import parse as parse_recipe

    engine = {"engine": "vllm", "model": f"{work}/model", "dtype": "float32"}
    plain = {"rewriter": "wrap", "style": "medium", "engine": engine, "temperature": 0, "chunk_tokens": 1500}
    plain |= {"max_tokens": TOKENS, "acceptance": {"language": False}}
    sources = {"words": f"{work}/corpus/{name}/*.parquet"}
    return parse_recipe({"name": name, "sources": sources, "rewrite": {"plain": plain}})


def prepare(work: Path) -> Any:
    """The engine, over a model made here."""
    from toy_chat import build_chat_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from transforms.generation.vllm import VLLM

    folder = build_chat_model(work / "model")
    config = LlamaConfig.from_pretrained(
        folder, **SIZE, head_dim=64, num_key_value_heads=4, max_position_embeddings=2048
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return VLLM(model=folder, dtype="float32")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        started = time.perf_counter()
        engine = prepare(work)
        engine.setup()
        start = time.perf_counter() - started
        compared(engine, work, "warm", 100, ("ours", "offline"))
        rates: dict[str, list[float]] = {"ours": [], "offline": [], "step": []}
        for pair in range(arguments.pairs):
            order = ("ours", "offline") if pair % 2 else ("offline", "ours")
            for side, rate in compared(engine, work, f"pair{pair}", arguments.documents, order).items():
                rates[side].append(rate)
        ratios = [a / b for a, b in zip(rates["ours"], rates["offline"], strict=True)]
        steps = [a / b for a, b in zip(rates["step"], rates["offline"], strict=True)]
        found = {f"{side}_tokens_per_second": round(statistics.median(rate)) for side, rate in rates.items()}
        found |= {"vs_offline": round(statistics.median(ratios), 3), "pairs": [round(r, 3) for r in ratios]}
        found |= {"step_vs_offline": round(statistics.median(steps), 3)}
        return found | {"start_seconds": round(start, 1)} | killed(engine, work, arguments.documents)


def compared(engine: Any, work: Path, name: str, count: int, order: tuple[str, str]) -> dict[str, float]:
    """Output tokens per second of both sides on the same documents; `step`: ours by the seconds of its step alone."""
    write_corpus(work, name, count)
    rates = {}
    for side in order:
        engine._shared.llm.reset_prefix_cache()
        tokens, seconds, step = ours(work, name) if side == "ours" else offline(engine, name, count)
        rates |= {side: tokens / seconds} | ({"step": tokens / step} if side == "ours" else {})
        print(f"{name} {side}: {tokens} tokens in {seconds:.1f} s, {step:.1f} of the step", file=sys.stderr, flush=True)
    return rates


def ours(work: Path, name: str) -> tuple[int, float, float]:
    from pipelines.run import run
    from sql.views import query

    folder = f"{work}/runs/{name}"
    started = time.perf_counter()
    summary = run(recipe(work, name), folder, until="rewrite")
    seconds = time.perf_counter() - started
    pieces = "SELECT sum(list_sum([p.output_tokens FOR p IN plain.pieces]))::BIGINT AS tokens FROM documents"
    tokens = query(folder, pieces).column("tokens").to_pylist()[0]
    return tokens, seconds, summary["seconds"]["rewrite plain"]


def offline(engine: Any, name: str, count: int) -> tuple[int, float, float]:
    from vllm import SamplingParams

    from transforms.rewriters._prompts import load

    prompt = load("wrap", "medium")
    asked = [
        [{"role": role, "content": said} for role, said in prompt.messages(text=text)] for text in texts(name, count)
    ]
    started = time.perf_counter()
    outputs = engine._shared.llm.chat(asked, SamplingParams(max_tokens=TOKENS, temperature=0.0), use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds, seconds


def answered(work: Path) -> set[bytes]:
    """Keys of the answers that the run to be killed has on disk."""
    try:
        with sqlite3.connect(f"file:{work}/runs/killed/answers.sqlite?mode=ro", uri=True) as database:
            return {key for (key,) in database.execute("SELECT key FROM answers")}
    except sqlite3.Error:  # not there yet
        return set()


def killed(engine: Any, work: Path, count: int) -> dict[str, int]:
    """A run in a process of its own is killed a third of the way; what the next run of its folder then sends."""
    from pipelines.run import run
    from transforms.generation.engine import request_key
    from transforms.generation.vllm import VLLM

    write_corpus(work, "killed", count)
    process = subprocess.Popen([sys.executable, __file__, "--inside", "victim", "--work", str(work)], stdout=sys.stderr)
    while process.poll() is None and len(answered(work)) < count // 3:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before, sent = answered(work), []
    stream = VLLM.stream

    def watched(self: Any, requests: Any, sampling: Any) -> Any:
        sent.extend(request_key(self.identity, request, sampling) for request in requests)
        return stream(self, requests, sampling)

    VLLM.stream = watched  # type: ignore[method-assign]
    run(recipe(work, "killed"), f"{work}/runs/killed", until="rewrite")
    VLLM.stream = stream  # type: ignore[method-assign]
    twice = len(before & set(sent)) + len(sent) - len(set(sent))
    return {"documents": count, "on_disk_when_killed": len(before), "sent_after": len(sent), "sent_twice": twice}


if __name__ == "__main__":
    main()
