import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tokenizer
from pydantic import ValidationError
from toy_topics import noise, sample, topic, words

from trainers.fit_doremi import FitDoremi, Robust
from trainers.fits import find
from trainers.proxies import make, pool

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PROXY = {"model": SIZE, "row_length": 128, "batch_tokens": 512, "lr": 1e-2, "tokens": 60_000}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    draw = np.random.default_rng(0)
    known = words(draw, 140)
    texts = {
        "easy": topic(draw, known[:20], 1, 200),
        "hard": topic(draw, known[20:], 2, 400),
        "noise": noise(draw, 300),
    }
    return {name: sample(name, some) for name, some in texts.items()}


@pytest.fixture(scope="module")
def tokenizer(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [t for table in tables.values() for t in table["text"].to_pylist()]
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts, 400)


def test_what_can_be_learned_gets_the_weight_and_noise_does_not(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    fit = FitDoremi(sources=("noise", "hard", "easy"), tokenizer=tokenizer, rounds=1, proxy=PROXY)
    card = fit.fit(tables, tmp_path, 0)
    weights = card["weights"]
    natural = card["rounds"][0]["reference_weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["hard"] > max(natural["hard"], 0.5)
    assert weights["noise"] < natural["noise"] / 2
    held = json.loads((tmp_path / "weights.json").read_text())
    assert held["weights"] == weights
    assert held["method"] == "doremi"
    assert json.loads((tmp_path / "card.json").read_text()) == card
    history = card["rounds"][0]["history"]
    assert len(history["hard"]) == len(history["steps"]) == 100
    assert {p.name for p in tmp_path.iterdir()} == {"weights.json", "card.json", "tokenizer"}


def test_rounds_go_on_from_the_answer_and_the_same_samples_give_the_same_bytes(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    proxy = {**PROXY, "tokens": 6000}
    reference = {"noise": 2.0, "hard": 1.0, "easy": 1.0}
    outs = []
    for number, sources in enumerate([("noise", "hard", "easy"), ("easy", "hard", "noise")]):
        fit = FitDoremi(sources=sources, tokenizer=tokenizer, reference=reference, rounds=2, tolerance=0, proxy=proxy)
        outs.append(tmp_path / str(number))
        outs[-1].mkdir()
        fit.fit(tables, outs[-1], 3)
    assert (outs[0] / "card.json").read_bytes() == (outs[1] / "card.json").read_bytes()
    first, second = json.loads((outs[0] / "card.json").read_text())["rounds"]
    assert first["reference_weights"] == {"easy": 0.25, "hard": 0.25, "noise": 0.5}
    assert second["reference_weights"] == first["weights"]
    assert second["weights"] != first["weights"]


def test_rounds_stop_where_nothing_moves(tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path) -> None:
    fit = FitDoremi(
        sources=("easy", "hard"), tokenizer=tokenizer, rounds=3, tolerance=1.0, proxy={**PROXY, "tokens": 2000}
    )
    card = fit.fit(tables, tmp_path, 0)
    assert len(card["rounds"]) == 1
    assert card["settled"]


def test_a_step_weighs_its_whole_batch_however_it_is_cut(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    """Alphas and weights against the definition, token by token."""
    from trainers.data import Batches

    fit = FitDoremi(sources=("easy", "hard", "noise"), tokenizer=tokenizer, proxy=PROXY)
    config = fit.config(0)
    with pool(tables, fit.sources, tokenizer, tmp_path) as found:
        proxy, reference = (make(config.model_copy(update={"seed": seed}), found.learn) for seed in (0, 1))
        batch = Batches(found.learn, 128, 8, 0).batch(0)
        weighed = []
        for part_tokens in (16384, 130):
            robust = Robust(fit, proxy, reference, found, config.model_copy(update={"part_tokens": part_tokens}))
            weighed.append(robust(batch))
        np.testing.assert_allclose(weighed[0].weights, weighed[1].weights, rtol=1e-5)
        alpha, excess = robust.alpha, robust.excess
        source = np.repeat(found.learn.source[batch.documents], batch.lengths)
        whole = replace(batch)
        losses = [_losses(model, whole) for model in (proxy, reference)]
        by_hand = [np.maximum(losses[0] - losses[1], 0)[source == d].mean() for d in range(3)]
        np.testing.assert_allclose(excess, by_hand, rtol=1e-3)
        grown = np.exp(by_hand) / np.exp(by_hand).sum()
        np.testing.assert_allclose(alpha, (1 - 1e-4) * grown + 1e-4 / 3, rtol=1e-3)
        np.testing.assert_allclose(weighed[0].weights, (3 * alpha)[source], rtol=1e-4)


def _losses(model: object, batch: object) -> np.ndarray:
    """Of each token of a packed batch, each document alone through the model's own head."""
    import torch

    model.set_attn_implementation("sdpa")
    first = 0
    found = []
    for length in batch.lengths:
        tokens = torch.from_numpy(batch.inputs[first : first + length])[None]
        targets = torch.from_numpy(batch.targets[first : first + length])
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[0]
        found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy())
        first += length
    model.set_attn_implementation("documents")
    return np.concatenate(found).astype(np.float64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sources": ("a",)}, "at least 2"),
        ({"sources": ("a", "b", "a")}, "a source stands twice"),
        ({"sources": ("a", "b"), "reference": {"a": 1.0}}, "expected a weight above 0 for each of a, b"),
        ({"sources": ("a", "b"), "reference": {"a": 1.0, "b": 0.0}}, "expected a weight above 0"),
        ({"sources": ("a", "b"), "proxy": {"row_lenght": 3}}, "row_lenght: no setting of a proxy"),
        ({"sources": ("a", "b"), "proxy": {"seed": 3}}, "seed: no setting of a proxy"),
        ({"sources": ("a", "b"), "proxy": {"tokens": 0}}, "greater than 0"),
        ({"sources": ("a", "b"), "proxy": {"model": {"hidden": 3}}}, r"model\.hidden"),
        ({"sources": ("a", "b"), "tokenizer": Path("/nowhere")}, "/nowhere is no tokenizer"),
    ],
)
def test_wrong_parameters_are_told(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitDoremi(**given)


def test_samples_are_of_the_sources() -> None:
    wanted = find("doremi")(sources=("b'c", "a"), where="x > 1").samples()
    assert {name: w.where for name, w in wanted.items()} == {
        "a": "(x > 1) AND source = 'a'",
        "b'c": "(x > 1) AND source = 'b''c'",
    }
