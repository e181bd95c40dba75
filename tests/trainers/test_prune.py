"""Weights of tokens that are written beside a mixture, and read again by the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_mixture, make_tokenizer, toy_text
from tokenizers import Tokenizer

from trainers.data import gather
from trainers.formats import Format
from trainers.mixture import Corpus, open_mixture
from trainers.model import ModelConfig, load_model, new_model, save_model
from trainers.prune import METHODS, prune
from trainers.reweigh import QTuning
from trainers.token_scores import Step

TINY = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
Files = dict[str, Path]
TOOLS = ["get_user", "get_usage", "get_user_name", "set_user", "list"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Files:
    """A mixture in one file and in three, two models, and one whose positions are few."""
    root = tmp_path_factory.mktemp("prune")
    draw = np.random.default_rng(0)
    texts = {"small": toy_text(draw, 40), "large": toy_text(draw, 90, 50)}
    columns: dict[str, dict[str, list]] = {
        name: {"prompt": [None if i % 7 == 0 else "the old stone" for i in range(len(held))]}
        for name, held in texts.items()
    }
    tokenizer = make_tokenizer(root / "tokenizer", [t for source in texts.values() for t in source])
    found = {"tokenizer": tokenizer}
    for name, files in (("mixture", 1), ("split", 3)):
        found[name] = make_mixture(root / name, texts, tokenizer, files=files, columns=columns)
    corpus = open_mixture(found["mixture"], root / "cache")
    for name, (seed, positions) in {"model": (0, 2048), "other": (1, 2048), "short": (2, 64)}.items():
        model = new_model(TINY, corpus, positions, seed)
        for parameter in model.parameters():
            parameter.data.mul_(3)
        (root / name).mkdir()
        save_model(model, tokenizer, root / name)
        found[name] = root / name
    return found


def spec(method: str, folder: Files, **given: Any) -> Any:
    models = {
        "q_tuning": ("model",),
        "sstoken": ("model", "history"),
        "excess_loss": ("model", "reference"),
        "critical_tokens": ("positive", "negative"),
        "key_tokens": (),
    }[method]
    folders = {name: folder[held] for name, held in zip(models, ("model", "other"), strict=False)}
    return METHODS[method].model_validate({"row_length": 128, "pool": 40, **folders, **given})


def weights_of(mixture: Path, name: str) -> dict[tuple[str, str, int], list[float]]:
    rows = pq.read_table(mixture / "weights" / name / "weights.parquet").to_pylist()
    return {(row["source"], row["shard"], row["row"]): row["weights"] for row in rows}


def opened(mixture: Path, cache: Path, **format: Any) -> Corpus:
    return open_mixture(mixture, cache, Format(**format))


@pytest.mark.parametrize("method", ["q_tuning", "sstoken", "excess_loss", "critical_tokens"])
def test_weights_do_not_depend_on_files_and_the_trainer_reads_them(method: str, folder: Files, tmp_path: Path) -> None:
    format = {"kind": "prompt_completion"}
    cards = {}
    for mixture in ("mixture", "split"):
        corpus = opened(folder[mixture], tmp_path / mixture, **format)
        cards[mixture] = prune(corpus, folder[mixture], method, spec(method, folder))
    found = weights_of(folder["mixture"], method)
    assert found == weights_of(folder["split"], method) and len(found) == 130
    assert cards["mixture"]["kept"] == cards["split"]["kept"] and 0 < cards["mixture"]["mean_weight"] < 1

    plain = opened(folder["mixture"], tmp_path / "mixture", **format)
    read = opened(folder["mixture"], tmp_path / "read", **format, weights=folder["mixture"] / "weights" / method)
    rows = plain.documents.select(["source", "shard", "row"]).to_pylist()
    flat = np.concatenate([found[(r["source"], r["shard"], r["row"])] for r in rows])
    assert np.array_equal(read.weights[1:], flat.astype(np.float32) * plain.weights[1:])
    assert not read.weights[1:][plain.weights[1:] == 0].any(), "prompts stay context"
    trained = cards["mixture"]["trained"]
    assert (
        trained == (plain.weights[1:] > 0).sum() and cards["mixture"]["kept"] == (read.weights[1:] > 0).sum() / trained
    )


def test_q_tuning_is_that_of_a_step_within_each_pool(folder: Files, tmp_path: Path) -> None:
    """One pool of all documents, none longer than a row: what reweighing says of that batch."""
    corpus = opened(folder["mixture"], tmp_path)
    card = prune(corpus, folder["mixture"], "one", spec("q_tuning", folder, pool=1000, row_length=2048, samples=0.3))
    assert corpus.length.max() < 2048
    order = np.argsort(-corpus.length, kind="stable")
    batch = gather(corpus, order, corpus.start[order], corpus.length[order])
    expected = QTuning(samples=0.3).weights(load_model(folder["model"]), batch, Step())
    found = weights_of(folder["mixture"], "one")
    rows = corpus.documents.select(["source", "shard", "row"]).to_pylist()
    flat = np.concatenate([found[tuple(rows[i].values())] for i in order])
    assert np.array_equal(flat, expected) and 0 < expected.mean() < 0.5
    assert card["kept"] == pytest.approx(expected.mean()) and card["parameters"]["samples"] == 0.3


def test_shares_and_rejected_solutions(folder: Files, tmp_path: Path) -> None:
    corpus = opened(folder["mixture"], tmp_path)
    kept = [
        prune(corpus, folder["mixture"], "excess", spec("excess_loss", folder, tokens=share))["kept"]
        for share in (0.25, 0.6)
    ]
    assert kept == pytest.approx([0.25, 0.6], abs=0.005)
    good = prune(corpus, folder["mixture"], "good", spec("critical_tokens", folder))
    bad = prune(corpus, folder["mixture"], "bad", spec("critical_tokens", folder, rejected=True))
    assert good["mean_weight"] + bad["mean_weight"] == pytest.approx(1)
    s, t = (weights_of(folder["mixture"], name) for name in ("good", "bad"))
    assert all(np.allclose(np.add(s[k], t[k]), 1) for k in s)


def test_what_is_there_is_kept_until_something_changes(folder: Files, tmp_path: Path) -> None:
    corpus = opened(folder["mixture"], tmp_path)
    first = prune(corpus, folder["mixture"], "kept", spec("q_tuning", folder))
    file = folder["mixture"] / "weights" / "kept" / "weights.parquet"
    before = file.stat().st_mtime_ns
    again = prune(corpus, folder["mixture"], "kept", spec("q_tuning", folder))
    assert again["reused"] and not first["reused"] and file.stat().st_mtime_ns == before
    assert {k: v for k, v in again.items() if k != "reused"} == {k: v for k, v in first.items() if k != "reused"}
    other = prune(corpus, folder["mixture"], "kept", spec("q_tuning", folder, model=folder["other"]))
    assert not other["reused"] and other["key"] != first["key"] and file.stat().st_mtime_ns != before
    held = json.loads((file.parent / "weights.json").read_text())
    manifest = json.loads((folder["mixture"] / "manifest.json").read_text())
    assert held["tokenizer"] == manifest["tokenizer"]["digest"] and held["mixture"] == manifest["digest"]


def test_models_that_cannot_read_the_mixture(folder: Files, tmp_path: Path) -> None:
    corpus = opened(folder["mixture"], tmp_path)
    with pytest.raises(ValueError, match="reads 64 tokens at once"):
        prune(corpus, folder["mixture"], "short", spec("q_tuning", folder, model=folder["short"]))
    assert not (folder["mixture"] / "weights" / "short").exists()
    with pytest.raises(ValueError, match=r"config\.json"):
        spec("q_tuning", folder, model=tmp_path)
    with pytest.raises(ValueError, match="has no column 'tools'"):
        prune(corpus, folder["mixture"], "tools", spec("key_tokens", folder))


def test_key_tokens_of_planted_calls(tmp_path: Path) -> None:
    """Calls stand in prose; what is key is told from the text, character by character."""
    draw = np.random.default_rng(1)
    texts, tools = [], []
    for number in range(60):
        chosen = [str(t) for t in draw.choice(TOOLS, 4, replace=False)]
        name = chosen[0]
        texts.append(f"the old cat wants {name}(id={number}) and then keeps a_{name} near the river under a red tree")
        tools.append(chosen if number % 10 else None)
    tokenizer = make_tokenizer(tmp_path / "own", [*texts, *[" ".join(TOOLS)] * 20], vocabulary=320)
    mixture = make_mixture(tmp_path / "calls", {"calls": texts}, tokenizer, columns={"calls": {"tools": tools}})
    corpus = open_mixture(mixture, tmp_path / "cache")
    card = prune(corpus, mixture, "keys", METHODS["key_tokens"]())
    found = weights_of(mixture, "keys")
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    spelled = {t: encoder.encode(" " + t).ids for t in TOOLS}
    marked = 0
    for row, (text, names) in enumerate(zip(texts, tools, strict=True)):
        ids, weights = encoder.encode(text).ids, np.array(found[("calls", "00000", row)])
        assert len(weights) == len(ids) + 1
        if names is None:
            assert (weights == 1).all()
            continue
        gold = spelled[names[0]]
        start = next(i for i in range(len(ids)) if ids[i : i + len(gold)] == gold)
        key = {start}
        for other in (spelled[n] for n in names[1:]):
            shared = next((i for i, (a, b) in enumerate(zip(gold, other, strict=False)) if a != b), None)
            shared = min(len(gold), len(other)) if shared is None else shared
            key |= {start + shared} if shared else set()
        assert set(np.flatnonzero(weights > 1)) == key
        assert weights.max() == pytest.approx(min(9, (len(weights) - len(key)) / len(key)))
        marked += len(key)
    assert marked > 80 and card["kept"] == 1 and card["mean_weight"] > 1


def test_conversations_have_a_weight_for_every_target(folder: Files, tmp_path: Path) -> None:
    """Nothing stands before the first token of a conversation: it is no target. Turns of users stay context."""
    turns = [
        [
            {"role": role, "content": f"{word} {number}"}
            for word in ("red", "blue", "old")
            for role in ("user", "assistant")
        ]
        for number in range(20)
    ]
    mixture = make_mixture(
        folder["mixture"].parent / "chats",
        {"chats": ["-"] * 20},
        folder["tokenizer"],
        columns={"chats": {"messages": turns}},
    )
    corpus = opened(mixture, tmp_path / "cache", kind="messages")
    card = prune(corpus, mixture, "half", spec("q_tuning", folder, samples=0.5))
    read = opened(mixture, tmp_path / "read", kind="messages", weights=mixture / "weights" / "half")
    kept = read.weights > 0
    assert not kept[corpus.weights == 0].any() and kept.sum() == round(card["kept"] * card["trained"])
    assert 0.3 < card["kept"] < 0.7
    every = np.concatenate([np.arange(a, b) for a, b in zip(corpus.start, corpus.end, strict=True)])
    assert len(every) == sum(len(w) for w in weights_of(mixture, "half").values())


@pytest.mark.parametrize("as_json", [False, True])
def test_turns_that_failed_are_not_learned(folder: Files, tmp_path: Path, as_json: bool) -> None:
    draw = np.random.default_rng(2)
    chats, planted = [], []
    for number in range(50):
        turns = [{"role": "user", "content": f"the {number}"}]
        for _ in range(draw.integers(1, 4)):
            fails = bool(draw.random() < 0.4)
            turns.append({"role": "assistant", "content": "takes the red stone"})
            turns.append({"role": "tool", "content": "Connection-Error: 1" if fails else "fine"})
            planted.append(not fails)
        chats.append([*turns, {"role": "assistant", "content": "finds one"}])
        planted.append(True)
    held = [json.dumps(chat) for chat in chats] if as_json else chats
    mixture = make_mixture(
        folder["mixture"].parent / f"tools{as_json}",
        {"chats": ["-"] * 50},
        folder["tokenizer"],
        columns={"chats": {"messages": held}},
    )
    corpus = opened(mixture, tmp_path / "cache", kind="messages")
    card = prune(corpus, mixture, "adverse", METHODS["adverse_turns"](row_length=16))
    read = opened(mixture, tmp_path / "read", kind="messages", weights=mixture / "weights" / "adverse")
    trained = np.append(corpus.weights, 0) > 0
    starts, ends = (np.flatnonzero(np.diff(trained.astype(int)) == step) + 1 for step in (1, -1))
    learned = [set(read.weights[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]
    assert learned == [{float(p)} for p in planted] and 0.5 < card["kept"] < 1
    plain = opened(folder["mixture"], tmp_path / "plain")
    with pytest.raises(ValueError, match="has no column 'messages'"):
        prune(plain, folder["mixture"], "adverse", METHODS["adverse_turns"]())
    last = opened(mixture, tmp_path / "last", kind="messages", turns="last")
    with pytest.raises(ValueError, match="cannot be told apart"):
        prune(last, mixture, "last", METHODS["adverse_turns"]())


def test_scores_are_those_of_one_thread_or_more(folder: Files, tmp_path: Path) -> None:
    corpus = opened(folder["mixture"], tmp_path)
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        prune(corpus, folder["mixture"], f"threads{count}", spec("q_tuning", folder))
    torch.set_num_threads(threads)
    assert weights_of(folder["mixture"], "threads1") == weights_of(folder["mixture"], "threads2")


def test_documents_of_the_corpus_have_weights_for_each_target(folder: Files, tmp_path: Path) -> None:
    corpus = opened(folder["mixture"], tmp_path)
    prune(corpus, folder["mixture"], "lengths", spec("excess_loss", folder, row_length=16))
    found = weights_of(folder["mixture"], "lengths")
    rows = corpus.documents.select(["source", "shard", "row"]).to_pylist()
    assert [len(found[tuple(r.values())]) for r in rows] == corpus.length.tolist()
