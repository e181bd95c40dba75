"""Does choosing samples and tokens by the model help supervised fine-tuning? Q-Tuning against random and all.

    python benchmarks/sft_pruning.py --data FILE [--documents 4000] [--epochs 2] [--seeds 3] [--folder FOLDER] [--json]

FILE is Parquet with columns prompt and completion (as GSM8K's). A small Llama is pretrained on a sample corpus and the
texts of a third of the problems, then fine-tuned on answers of the others; a tenth of these is held out.

    full           every sample, `epochs` times
    q_tuning s     each step pools 1 / s batches and learns from a share s of the samples, half of the tokens of the
                   confident mistakes among them left out (arXiv 2509.23873)
    random s       as many steps, each on one batch: a share s of the samples by chance
    compute s      full, stopped where it has cost what q_tuning cost: scoring a batch is a third of learning from it

`heldout_loss`: nats per token of held-out answers, with 95 % intervals over documents and seeds. `prompts_matter` is
the loss with the prompts of other problems less that with their own. What is learned of is checked beforehand: targets
are the tokens of the completions and an end token each, and do not change when the prompts do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from _runs import heldout, train_all

from pipelines import recipe, sample_corpus
from pipelines.run import run

SHARES = (0.125, 0.25)
MODEL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}
MODEL |= {"num_attention_heads": 6, "num_key_value_heads": 2}
FORMAT = {"kind": "prompt_completion"}
SCORING = 1 / 3  # of what it costs to learn from the same tokens


def corpora(data: Path, documents: int, folder: Path) -> None:
    """folder/problems (some to pretrain on), folder/answers (to fine-tune on) and folder/sample (prose)."""
    table = pq.read_table(data, columns=["prompt", "completion"])
    table = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    cut = len(table) // 3
    known, asked = table.slice(0, cut), table.slice(cut, documents)
    texts = [f"{p}\n{c}" for p, c in zip(known["prompt"].to_pylist(), known["completion"].to_pylist(), strict=True)]
    for name, made in (("problems", pa.table({"text": texts})), ("answers", asked)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(made, folder / name / "0.parquet")
    sample_corpus.build(folder / "sample", 12)


def base_model(folder: Path, tokens: int) -> Path:
    """Pretrain; returns the model folder."""
    sources = {name: f"{folder}/sample/{name}/*.parquet" for name in ("docstrings", "manuals", "readme")}
    sources = {name: glob for name, glob in sources.items() if list(folder.glob(f"sample/{name}/*.parquet"))}
    weights = {"problems": 0.3} | {name: 0.7 / len(sources) for name in sources}
    asked = {
        "name": "base",
        "sources": {"problems": f"{folder}/problems/*.parquet", **sources},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.02},
        "fit": {"bpe": {"method": "tokenizer", "vocabulary": 4096}},
        "tokenizer": "fit:bpe",
        "mix": {"base": {"where": "exact.keep", "tokens": tokens, "weights": weights, "max_epochs": 1e6}},
    }
    run(recipe.parse(asked), str(folder / "base"))
    config = {"model": MODEL, "row_length": 512, "batch_tokens": 4096, "lr": 3e-3, "tokens": tokens}
    train_all({folder / "base_model" / "seed0": {"config": config, "mixture": folder / "base/mixtures/base"}})
    return folder / "base_model" / "seed0" / "model"


def answers(folder: Path, base: Path) -> tuple[Path, Path]:
    """Mixture of the answers to learn and of those held out."""
    asked = {
        "name": "answers",
        "sources": {"answers": f"{folder}/answers/*.parquet"},
        "text": "completion",
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.1},
        "tokenizer": str(base),
        "mix": {"answers": {"where": "exact.keep"}},
    }
    run(recipe.parse(asked), str(folder / "answers_run"))
    return folder / "answers_run/mixtures/answers", folder / "answers_run/mixtures/heldout"


def other_prompts(mixture: Path, target: Path) -> Path:
    """The same mixture, each answer with the prompt of another document of its shard."""
    import xxhash

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(mixture, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for source in manifest["sources"].values():
        for file in source["files"]:
            path = target / file["path"]
            table = pq.read_table(path)
            prompts = table["prompt"].to_pylist()
            place = table.schema.get_field_index("prompt")
            pq.write_table(table.set_column(place, "prompt", [prompts[1:] + prompts[:1]]), path)
            file["digest"] = xxhash.xxh3_128_hexdigest(path.read_bytes())
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def check_targets(mixture: Path, perturbed: Path, cache: Path) -> dict[str, int]:
    """Raises SystemExit if anything but answers is learned, or if the prompts change what is."""
    from trainers.formats import Format
    from trainers.mixture import open_mixture
    from trainers.tokenise import load_tokenizer

    found = [open_mixture(folder, cache, Format(**FORMAT)) for folder in (mixture, perturbed)]
    learned = [[c.tokens[a:b][c.weights[a:b] > 0] for a, b in zip(c.start, c.end, strict=True)] for c in found]
    if any(not np.array_equal(a, b) for a, b in zip(*learned, strict=True)):
        raise SystemExit("other prompts change what is learned")
    tokenizer, end = load_tokenizer(found[0].tokenizer)
    shards = [pq.read_table(path)["text"].to_pylist() for path in sorted(mixture.glob("answers/*.parquet"))]
    texts = [text for shard in shards for text in shard]
    wanted = sorted([*e.ids, end] for e in tokenizer.encode_batch(texts, add_special_tokens=False))
    if sorted(tokens.tolist() for tokens in learned[0]) != wanted:
        raise SystemExit("targets are not the tokens of the completions and an end token each")
    return {"tokens": int(found[0].length.sum()), "targets": int(found[0].targets.sum())}


def variants(tokens: int) -> dict[str, dict[str, Any]]:
    """What each method adds to the config; tokens: of the whole run over all samples."""
    made: dict[str, dict[str, Any]] = {"full": {"tokens": tokens}}
    for share in SHARES:
        rule = {"method": "q_tuning", "samples": share, "tokens": 0.5}
        made[f"q_tuning {share:g}"] = {"tokens": tokens, "window": round(1 / share), "reweigh": rule}
        made[f"random {share:g}"] = {"tokens": round(tokens * share)}
        made[f"compute {share:g}"] = {"tokens": round(tokens * (share + SCORING))}
    return made


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    if not (folder / "sample").exists():
        corpora(arguments.data, arguments.documents, folder)
    base = base_model(folder, arguments.base_tokens)
    mixture, held = answers(folder, base)
    counts = check_targets(mixture, other_prompts(mixture, folder / "perturbed"), folder)
    common = {"start": str(base), "format": FORMAT, "row_length": 512, "batch_tokens": 2048, "lr": arguments.lr}
    made = variants(arguments.epochs * counts["tokens"])
    data = {"mixture": mixture, "heldout": held}
    jobs = {
        folder / name / f"seed{seed}": {"config": {**common, **given, "seed": seed}, **data}
        for seed in range(arguments.seeds)
        for name, given in made.items()
    }
    results = train_all(jobs)
    groups = {name: [folder / name / f"seed{seed}" for seed in range(arguments.seeds)] for name in made}
    found = heldout(groups)
    logs = {name: (runs[0] / "log.jsonl").read_text().splitlines() for name, runs in groups.items()}
    targets = {name: sum(json.loads(line).get("targets", 0) for line in lines) for name, lines in logs.items()}
    seconds = {name: float(np.median([results[run]["seconds"] for run in runs])) for name, runs in groups.items()}
    return {
        "heldout_loss": {name: found.mean(name) for name in made},
        "pairs": [p for p in found.pairs() if _told(p["first"], p["second"])],
        "prompts_matter": prompts_matter(folder, groups["full"][0], held),
        "learned_targets": targets,
        "seconds_of_training": seconds,
        "documents": pq.read_metadata(folder / "answers" / "0.parquet").num_rows,  # FILE may hold fewer than asked for
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        **counts,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def _told(first: str, second: str) -> bool:
    """Pairs of one share, and all against full."""
    return "full" in (first, second) or first.split()[-1] == second.split()[-1]


def prompts_matter(folder: Path, trained: Path, held: Path) -> float:
    """Loss of held-out answers with the prompts of others less that with their own, nats per token."""
    from trainers.evaluate import evaluate
    from trainers.formats import Format
    from trainers.mixture import open_mixture
    from trainers.model import load_model

    model = load_model(trained / "model")
    perturbed = other_prompts(held, folder / "perturbed_heldout")
    losses = [
        evaluate(model, open_mixture(mixture, folder, Format(**FORMAT)), 512)[0]["overall"]["nats_per_token"]
        for mixture in (held, perturbed)
    ]
    return losses[1] - losses[0]


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['documents']:,} samples, {result['epochs']} epochs, {result['seeds']} seeds")
    for heading in ("method", "held-out loss", "95 % interval", "targets learned", "seconds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, loss in sorted(result["heldout_loss"].items(), key=lambda item: item[1]["mean"]):
        interval = f"{loss['low']:.4f} to {loss['high']:.4f}"
        seconds = f"{result['seconds_of_training'][name]:.0f}"
        table.add_row(name, f"{loss['mean']:.4f}", interval, f"{result['learned_targets'][name]:,}", seconds)
    console = Console(width=120)
    console.print(table)
    for pair in result["pairs"]:
        span = f"{pair['mean']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f})"
        console.print(f"{pair['first']} less {pair['second']}: {span}{', real' if pair['real'] else ''}")
    console.print(f"prompts of other problems add {result['prompts_matter']:.4f} nats per token of the answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with prompt and completion")
    parser.add_argument("--documents", type=int, default=4000, help="to fine-tune on, a tenth of them held out")
    parser.add_argument("--epochs", type=int, default=2, help="of the samples")
    parser.add_argument("--seeds", type=int, default=3, help="models per method")
    parser.add_argument("--base-tokens", type=int, default=3_000_000, help="to pretrain on")
    parser.add_argument("--lr", type=float, default=1e-3, help="of fine-tuning")
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on from what is there")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpusmill-sft-") as temporary:
        result = measured(arguments, (arguments.folder or Path(temporary)).resolve())
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
