"""Tokens per second of trainers.train against TRL's SFTTrainer with packing; packed against unpacked loss.

    python benchmarks/trainer.py --json [--shards DIR/*.parquet …] [--threads 1] [--precision fp32] [--pairs 3]

Same model (same initial weights), documents, row length, tokens per batch, optimiser settings, precision and threads.
Runs alternate, each in a process of its own; a rate is that of all steps after the first two, and figures are medians
over pairs. TRL gets the documents as token ids, gradient checkpointing off, rows one by one with accumulation (a
whole batch at once is about 4 times slower there: it joins the rows into one with a mask of all tokens against all),
and its own defaults for the rest. It runs in an environment of its own (`--environment`, made with venv and pip where
it does not exist yet). Without --shards the documents are the docstrings and code found on this machine. Target
tokens are counted for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROW_LENGTH, ROWS, WARM, LR = 512, 16, 2, 1e-3
MODEL = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}


def main() -> None:
    arguments = parse()
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(Path(arguments.environment).resolve())
    job = {"steps": arguments.steps + WARM, "threads": arguments.threads, "bf16": arguments.precision == "bf16"}
    call(sys.executable, "prepare", work, job | {"shards": arguments.shards})
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for pair in range(arguments.pairs):
        order = ["ours", "trl"] if pair % 2 == 0 else ["trl", "ours"]
        for side in order:
            runs[side].append(call(sys.executable if side == "ours" else python, side, work, job))
            print(f"pair {pair + 1}/{arguments.pairs} {side}: {runs[side][-1]}", file=sys.stderr)
    rates = {side: [run["tokens_per_second"] for run in results] for side, results in runs.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)]
    report = {
        "speedup": statistics.median(ratios),
        "speedups": ratios,
        "tokens_per_second": {side: statistics.median(values) for side, values in rates.items()},
        "data_wait": statistics.median(run["data_wait"] for run in runs["ours"]),
        "first_loss": {side: results[0]["first_loss"] for side, results in runs.items()},
        "threads": arguments.threads,
        "precision": arguments.precision,
    } | call(sys.executable, "equality", work, job)
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--shards", nargs="*", default=[], help="Parquet files with a text column")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each run")
    cache = Path.home() / ".cache" / "corpusmill"
    parser.add_argument("--environment", default=str(cache / "trl"), help="virtual environment with TRL")
    parser.add_argument("--work", default=str(cache / "benchmark-trainer"), help="folder for data and runs")
    return parser.parse_args()


def environment(folder: Path) -> str:
    """Python of the environment that has TRL."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import trl"], capture_output=True).returncode:
        print(f"installing TRL into {folder}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", "trl"], check=True, stdout=sys.stderr)
    return str(python)


def call(python: str, part: str, work: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one part of this file in a process; its answer is the last line it prints."""
    threads = {"OMP_NUM_THREADS": str(job["threads"]), "RAYON_NUM_THREADS": str(job["threads"])}
    path = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [python, __file__, "--part", part, str(work), json.dumps(job)]
    done = subprocess.run(command, env=os.environ | threads | path, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def prepare(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Tokenizer, mixture folder, initial weights, and the same documents as token ids for TRL."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainers.fit_tokenizer import fit_tokenizer
    from trainers.mixture import file_digest, open_mixture
    from trainers.model import ModelConfig, new_model, save_model
    from transforms.draws import draws

    shards = job["shards"] or found_text(work / "corpus")
    texts = [text for shard in shards for text in pq.read_table(shard, columns=["text"])["text"].to_pylist() if text]
    tokenizer = fit_tokenizer(texts[::4], work / "tokenizer", 4096)
    rows = np.arange(len(texts))
    ids = pa.array([str(row) for row in rows])
    columns = {"id": ids, "text": texts, "source": ["text"] * len(rows), "shard": ["0"] * len(rows), "row": rows}
    (work / "mixture").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns | {"draw": draws(0, ids)}), work / "mixture" / "text.parquet")
    file = {"path": "text.parquet", "documents": len(rows), "digest": file_digest(work / "mixture" / "text.parquet")}
    manifest = {
        "digest": file["digest"],
        "tokenizer": {"path": "../tokenizer", "digest": file_digest(tokenizer / "tokenizer.json")},
        "sources": {"text": {"documents": len(rows), "epochs": 1.0, "files": [file]}},
    }
    (work / "mixture" / "manifest.json").write_text(json.dumps(manifest))
    corpus = open_mixture(work / "mixture", work)
    save_model(new_model(ModelConfig(**MODEL), corpus, ROW_LENGTH, seed=0), corpus.tokenizer, work / "model")
    documents = [corpus.tokens[a - 1 : b] for a, b in zip(corpus.start, corpus.end, strict=True)]
    pq.write_table(pa.table({"input_ids": pa.array([d.astype(np.int64) for d in documents])}), work / "trl.parquet")
    return {"documents": len(documents), "tokens": int(corpus.length.sum())}


def found_text(folder: Path) -> list[Path]:
    from pipelines.sample_corpus import build

    build(folder, target_mb=12)
    return sorted([*folder.glob("docstrings/*.parquet"), *folder.glob("code/*.parquet")])


def ours(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    from trainers.config import TrainConfig
    from trainers.mixture import open_mixture
    from trainers.run import Run
    from trainers.schedules import Schedule
    from trainers.train import keep_freed_memory

    config = TrainConfig(
        start=work / "model",
        tokens=10**12,
        row_length=ROW_LENGTH,
        batch_tokens=ROWS * ROW_LENGTH,
        lr=LR,
        schedule=Schedule(kind="constant", warmup=0),
        precision="bf16" if job["bf16"] else "fp32",
        threads=job["threads"],
    )
    keep_freed_memory()
    out = work / "out"
    out.mkdir(exist_ok=True)
    run = Run(config, open_mixture(work / "mixture", work), out, {})
    run.model.train()
    lines = [run._step() for _ in range(job["steps"])]
    counts = [b["tokens"] - a["tokens"] for a, b in pairwise(lines[WARM - 1 :])]
    seconds = sum(count / line["tokens_s"] for count, line in zip(counts, lines[WARM:], strict=True))
    wait = statistics.median(line["data_wait"] for line in lines[WARM:])
    rate = sum(counts) / seconds
    return {"tokens_per_second": rate, "data_wait": wait, "first_loss": lines[0]["loss"]}


def trl(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    import datasets  # type: ignore[import-not-found]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(job["threads"])
    ends: list[float] = []
    targets: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    config = SFTConfig(
        output_dir=str(work / "trl"),
        packing=True,
        packing_strategy="bfd_split",
        max_length=ROW_LENGTH,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ROWS,
        max_steps=job["steps"],
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=job["bf16"],
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = datasets.Dataset.from_parquet(str(work / "trl.parquet"), cache_dir=str(work / "trl"))
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    tokenizer = AutoTokenizer.from_pretrained(work / "model", pad_token="<|endoftext|>")
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        targets.append(int((batch["labels"] != -100).sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()
    rate = sum(targets[WARM * ROWS : len(ends) * ROWS]) / (ends[-1] - ends[WARM - 1])
    return {"tokens_per_second": rate, "first_loss": trainer.state.log_history[0]["loss"]}


def equality(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of a token's loss between a packed batch and its pieces alone in transformers, in float32."""
    import torch

    from trainers.data import Batches
    from trainers.loss import token_losses
    from trainers.mixture import open_mixture
    from trainers.model import head, hidden_states, load_model

    batch = Batches(open_mixture(work / "mixture", work), ROW_LENGTH, ROWS, seed=1).batch(0)
    model = load_model(work / "model")
    lengths = batch.lengths.tolist()
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    with torch.no_grad():
        packed = token_losses(hidden_states(model, batch), head(model), targets)
        model.set_attn_implementation("eager")
        alone = [
            torch.nn.functional.cross_entropy(model(input_ids=i[None], use_cache=False).logits[0], t, reduction="none")
            for i, t in zip(inputs.split(lengths), targets.split(lengths), strict=True)
        ]
    return {"max_loss_diff": float((packed - torch.cat(alone)).abs().max()), "pieces": len(lengths)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        parts = {"prepare": prepare, "ours": ours, "trl": trl, "equality": equality}
        print(json.dumps(parts[sys.argv[2]](Path(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
