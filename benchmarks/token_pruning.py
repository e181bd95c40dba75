"""What pruning of samples and tokens is worth where the truth is planted: tuning a small model on what Q-Tuning keeps.

    python benchmarks/token_pruning.py [--seeds 3] [--steps 16] [--json]

A base model (62,000 parameters) has learned a world of facts, some rightly, some with doubts, some wrongly
(tests/trainers/toy_groups.py). Tuning data are right facts, random answers to unknown keys (noise), and corrupted runs
inside the answers that correct mistakes. Each method takes as many steps and draws as many samples; what it learns of:

    full         every token
    random       a share of samples and tokens as large as Q-Tuning keeps
    q_tuning     50 % of the samples, 75 % of the tokens of mistakes
    no_tokens    q_tuning without pruning of tokens
    reversed     q_tuning that keeps the tokens of highest perplexity
    oracle       all but noise, corrupted tokens and what is known

Accuracy: share of slots whose likeliest value is right, for mistakes, hesitant facts and known ones. Printed too: which
planted group went into which corner, and precision and recall of corrupted tokens among those that were pruned.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "trainers"))

import toy_groups as toy

from trainers.data import Batch
from trainers.learner import Learner
from trainers.model import head, hidden_states
from trainers.reweigh import QTuning
from trainers.token_scores import Answers, Step, losses_and_entropies, piece_keys, reading
from transforms.quadrants import MISTAKE, sample_stage

RULES = {
    "q_tuning": QTuning(samples=0.5, tokens=0.75),
    "no_tokens": QTuning(samples=0.5, tokens=1.0),
    "reversed": QTuning(samples=0.5, tokens=0.75, keep="high"),
}
METHODS = ("full", "random", *RULES, "oracle")
CORNERS = ("middle", "Q1 noise", "Q2 mistake", "Q3 known", "Q4 hesitant")
SAMPLES = 128  # of a step


def tuned(base: Any, facts: toy.Facts, method: str, seed: int, steps: int) -> tuple[Any, float]:
    """The base model after tuning, and the share of tokens that it learned from."""
    model, draw = copy.deepcopy(base), np.random.default_rng(1000 + seed)
    learner, optimiser = Learner(model), torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    learned = trained = 0
    for step in range(steps):
        batch, kind, corrupt = facts.tuning(draw, SAMPLES)
        weights = decided(model, batch, method, kind, corrupt, np.random.default_rng([seed, step]))
        learned, trained = learned + (weights > 0).sum(), trained + (batch.weights > 0).sum()
        batch = Batch(batch.inputs, batch.targets, batch.lengths, batch.documents, weights).trained()
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        sums = learner(batch, 0.0)
        (sums.loss / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model, float(learned / trained)


def decided(
    model: Any, batch: Batch, method: str, kind: np.ndarray, corrupt: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    if method in RULES:
        return RULES[method].weights(model, batch, Step())
    if method == "full":
        return batch.weights
    piece = np.repeat(np.arange(len(kind)), batch.lengths)
    if method == "oracle":
        useful = np.isin(kind, [toy.MISTAKE, toy.HESITANT])[piece] & ~corrupt
        return np.where(useful, batch.weights, 0).astype(np.float32)
    samples = draw.permutation(len(kind)) < 0.5 * len(kind)
    tokens = draw.random(len(corrupt)) < 0.87  # half of what is kept is pruned to 75 %
    return np.where(samples[piece] & tokens, batch.weights, 0).astype(np.float32)


def accuracy(model: Any, facts: toy.Facts) -> dict[str, float]:
    """Of the right values, by kind of key: each value is asked for after the right ones before it."""
    batch = toy.packed(np.arange(3 * toy.KEYS), facts.right[: 3 * toy.KEYS])
    with reading(model):
        best = (hidden_states(model, batch) @ head(model).T)[:, : toy.VALUES].argmax(1).numpy()
    right = (best == batch.targets)[batch.weights > 0].reshape(3, -1).mean(1)
    return {toy.NAMES[kind]: float(right[kind]) for kind in (toy.MISTAKE, toy.HESITANT, toy.KNOWN)}


def corners(base: Any, facts: toy.Facts, seed: int) -> tuple[np.ndarray, float, float]:
    """Samples by group and corner (int [groups, corners]), precision and recall of pruned tokens."""
    batch, kind, corrupt = facts.tuning(np.random.default_rng(2000 + seed), 512)
    loss, entropy = losses_and_entropies(base, batch, Step())
    answers, rule = Answers.of(batch), RULES["q_tuning"]
    stage = sample_stage(answers.means(loss), answers.means(entropy), rule.samples, piece_keys(batch))
    table = np.array([[((kind == k) & (stage.quadrant == c)).sum() for c in range(5)] for k in range(4)])
    inside = np.repeat(stage.quadrant == MISTAKE, batch.lengths) & (batch.weights > 0)
    pruned = inside & (rule.decide(batch, loss, entropy) == 0)
    return table, float(corrupt[pruned].mean()), float(pruned[corrupt & inside].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"base": [], **{method: [] for method in METHODS}}
    tables, precisions, recalls = [], [], []
    for seed in range(given.seeds):
        facts = toy.Facts.make(seed)
        base = toy.base_model(facts, seed)
        found["base"].append({"kept": 0.0, **accuracy(base, facts)})
        table, precision, recall = corners(base, facts, seed)
        tables.append(table), precisions.append(precision), recalls.append(recall)
        for method in METHODS:
            model, kept = tuned(base, facts, method, seed, given.steps)
            found[method].append({"kept": kept, **accuracy(model, facts)})
    if not given.json:
        show(found, sum(tables), precisions, recalls)
    print(json.dumps({"accuracy": found, "precision": precisions, "recall": recalls}))


def show(found: dict[str, list[dict[str, float]]], table: Any, precisions: list[float], recalls: list[float]) -> None:
    names = ["kept", "mistake", "hesitant", "known"]
    console, shown = Console(width=120), Table(title="accuracy after tuning: mean (lowest to highest of the seeds)")
    for name in ("method", *names):
        shown.add_column(name)
    for method, runs in found.items():
        columns = [[run[name] for run in runs] for name in names]
        shown.add_row(method, *(f"{np.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns))
    console.print(shown)
    groups = Table("group", *CORNERS, title="samples by planted group and corner, before tuning")
    for name, row in zip(toy.NAMES, table, strict=True):
        groups.add_row(name, *map(str, row))
    console.print(groups)
    console.print(f"pruned tokens: precision {np.mean(precisions):.2f}, recall {np.mean(recalls):.2f} (chance: 0.25)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
