"""Output tokens per second through engine and cache against vLLM's own offline call; what a killed run sends twice.

    python benchmarks/generation.py --json [--environment .venv-vllm] [--requests 1500] [--pairs 3]

Runs itself again in an environment with vLLM: the one given, or one that `tests/vllm_environment.sh` makes outside of
the checkout (3.5 GB, some minutes, once). The model is made on the spot: a Llama of 4 layers, 256 wide, with a
byte-level tokenizer. Prompts are texts of 30 to 120 words behind one instruction; outputs are bounded by 100 tokens.

`ours` is `generate_cached` with an empty cache in calls of `--batch` requests, as a worker feeds the documents of a
split; `offline` is one `LLM.generate` on all prompts, on the same engine, without a cache. They take turns in one
process; figures are medians over pairs. `sent_twice` counts requests whose answers had been handed over before a
process was killed (SIGKILL) in the middle and that the next run sent again; `start_seconds` is what loading takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SIZE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
CACHE = Path.home() / ".cache" / "corpusmill" / "benchmark-generation"
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
INSTRUCTION = "Rewrite the following text in plain words and keep every fact that it holds. Text: "


def main() -> None:
    arguments = parse()
    if not arguments.inside:
        inside(arguments)
    elif arguments.inside == "victim":
        victim(Path(arguments.work), arguments.requests)
    else:
        print(json.dumps(measure(arguments)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--environment", help="folder of an environment with vLLM and corpusmill")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=1500, help="requests of one call")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


def inside(arguments: argparse.Namespace) -> None:
    """This benchmark again, by the Python of the environment."""
    folder = Path(arguments.environment or CACHE / "environment").resolve()
    if not arguments.environment:
        made = [str(ROOT / "tests" / "vllm_environment.sh"), "--only-make"]
        subprocess.run(
            made, check=True, stdout=sys.stderr, env={**os.environ, "VENV": str(folder), "PYTHON": sys.executable}
        )
    command = [str(folder / "bin" / "python"), __file__, "--inside", "measure", "--requests", str(arguments.requests)]
    command += ["--batch", str(arguments.batch), "--pairs", str(arguments.pairs)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=settings, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=None if arguments.json else 1))


def asked(count: int, run: int) -> list[Any]:
    """Requests of one measurement: no text twice, so that neither side finds what it has computed before."""
    from transforms.generation.engine import Request

    draw = random.Random(run)
    texts = (" ".join(draw.choices(WORDS, k=draw.randint(30, 120))) for _ in range(count))
    return [Request(key=f"{run} {k}", prompt=f"{INSTRUCTION}{run} {text}") for k, text in enumerate(texts)]


def prepare(work: Path) -> Any:
    """The engine over a model made here."""
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
    from transforms.generation.engine import Sampling

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        started = time.perf_counter()
        engine = prepare(work)
        engine.setup()
        start = time.perf_counter() - started
        sampling = Sampling(max_tokens=100)
        ours(engine, work, 200, 200, 99), offline(engine, 200, 98)  # both once to warm up
        rates: dict[str, list[float]] = {"ours": [], "offline": []}
        for pair in range(arguments.pairs):
            turns = [("ours", 2 * pair), ("offline", 2 * pair + 1)]
            for side, run in turns if pair % 2 else turns[::-1]:
                tokens, seconds = (
                    ours(engine, work, arguments.requests, arguments.batch, run)
                    if side == "ours"
                    else offline(engine, arguments.requests, run)
                )
                rates[side].append(tokens / seconds)
                print(f"{side}: {tokens} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)
        ratios = [a / b for a, b in zip(rates["ours"], rates["offline"], strict=True)]
        found = {f"{side}_tokens_per_second": round(statistics.median(rate)) for side, rate in rates.items()}
        found |= {"vs_offline": round(statistics.median(ratios), 3), "pairs": [round(r, 3) for r in ratios]}
        return found | {"start_seconds": round(start, 1)} | killed(engine, work, arguments.requests, sampling)


def ours(engine: Any, work: Path, count: int, batch: int, run: int) -> tuple[int, float]:
    from transforms.generation.cache import Cache, generate_cached
    from transforms.generation.engine import Sampling

    requests, tokens = asked(count, run), 0
    cache = Cache(work / f"{run}.sqlite")
    started = time.perf_counter()
    for k in range(0, count, batch):
        answers = generate_cached(engine, cache, requests[k : k + batch], Sampling(max_tokens=100))
        tokens += sum(answer.output_tokens for answer in answers)
    return tokens, time.perf_counter() - started


def offline(engine: Any, count: int, run: int) -> tuple[int, float]:
    from vllm import SamplingParams

    prompts = [request.prompt for request in asked(count, run)]
    started = time.perf_counter()
    outputs = engine._shared.llm.generate(prompts, SamplingParams(max_tokens=100, temperature=0.0), use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def killed(engine: Any, work: Path, count: int, sampling: Any) -> dict[str, int]:
    """A process of its own is killed in the middle; what this one then sends."""
    from transforms.generation.cache import Cache, generate_cached

    command = [sys.executable, __file__, "--inside", "victim", "--work", str(work), "--requests", str(count)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    file = work / "told"
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= count // 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told = {int(line) for line in file.read_text().splitlines()}
    sent: list[int] = []
    kind = type(engine)

    class Counted(kind):  # type: ignore[misc, valid-type]
        def stream(self, requests, sampling):  # type: ignore[no-untyped-def]
            sent.extend(int(request.key.split()[1]) for request in requests)
            return engine.stream(requests, sampling)

    generate_cached(Counted(**dict(engine)), Cache(work / "victim.sqlite"), asked(count, 1000), sampling)
    return {"handed_over_before_kill": len(told), "sent_after": len(sent), "sent_twice": len(told & set(sent))}


def victim(work: Path, count: int) -> None:
    """Generates until it is killed, and tells which answers it has handed over to the cache."""
    from transforms.generation.cache import Cache, generate_cached
    from transforms.generation.engine import Sampling
    from transforms.generation.vllm import VLLM

    class Told(VLLM):
        def stream(self, requests, sampling):  # type: ignore[no-untyped-def]
            for finished in super().stream(requests, sampling):
                yield finished  # comes back when these are committed
                os.write(told, b"".join(b"%d\n" % int(requests[place].key.split()[1]) for place, _ in finished))

    told = os.open(work / "told", os.O_WRONLY | os.O_CREAT)
    engine = Told(model=work / "model", dtype="float32")
    generate_cached(engine, Cache(work / "victim.sqlite"), asked(count, 1000), Sampling(max_tokens=100))


if __name__ == "__main__":
    main()
