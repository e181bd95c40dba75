import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tokenizer
from pydantic import ValidationError
from toy_topics import sample, topic, words

from trainers.fit_merging import FitMerging, Parts
from trainers.holdout import regression
from trainers.proxies import make, measure, mixture, pool, train

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PROXY = {"model": SIZE, "row_length": 128, "batch_tokens": 512, "lr": 5e-3, "tokens": 8000}
TOPICS = [f"t{i}" for i in range(5)]


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """Topics whose words overlap with those of their neighbours, in an order of their own."""
    known = words(np.random.default_rng(0), 120)
    return {
        name: sample(name, topic(np.random.default_rng(i), known[i * 15 : i * 15 + 40], 2, 150))
        for i, name in enumerate(TOPICS)
    }


@pytest.fixture(scope="module")
def tokenizer(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [t for table in tables.values() for t in table["text"].to_pylist()]
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts, 400)


def test_averages_rank_mixtures_as_training_does(tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path) -> None:
    fit = FitMerging(
        sources=tuple(TOPICS), target=("t1", "t3"), tokenizer=tokenizer, seed_tokens=40_000, units=2, drawn=20,
        checked=12, proxy={**PROXY, "tokens": 4000},
    )  # fmt: skip
    card = fit.fit(tables, tmp_path, 0)
    weights = card["weights"]
    assert weights["t1"] + weights["t3"] > 0.7
    assert min(weights["t1"], weights["t3"]) > 0.2
    assert card["truth"]["spearman"] > 0.7
    assert card["parameters"]["units"] == dict.fromkeys(TOPICS, 2)
    losses = [c["loss"] for c in card["candidates"]]
    assert losses == sorted(losses)
    assert losses[0] < card["seed_model"]["loss"]
    assert card["candidates"][0]["weights"] == weights
    assert json.loads((tmp_path / "weights.json").read_text())["weights"] == weights
    kinds = [c["kind"] for c in card["candidates"]]
    assert kinds.count("macro") == 5 + 10 + 10 + 1  # sets of one, two, three, and all
    assert kinds.count("drawn") == 20
    assert {p.name for p in tmp_path.iterdir()} == {"weights.json", "card.json", "tokenizer"}


def test_parts_that_begin_from_other_seeds_cannot_be_averaged(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    """The same data and settings, once from one seed model and once from one of its own for each part."""
    config = FitMerging(sources=tuple(TOPICS), proxy=PROXY).config(0)
    of_all = config.model_copy(update={"tokens": 30_000})
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(5, 0.5), 12)
    with pool(tables, TOPICS, tokenizer, tmp_path) as found:
        even = mixture(found.learn, dict.fromkeys(TOPICS, 0.2), of_all)
        seeds = [config.model_copy(update={"seed": seed}) for seed in range(5)]
        begins = [train(make(seed, even), even, of_all) for seed in seeds]

        def loss(model: object) -> float:
            return float(np.mean([measure(model, found.held, config)[name] for name in ("t0", "t1")]))

        def continued(begin: object, some: np.ndarray) -> object:
            return train(deepcopy(begin), mixture(found.learn, dict(zip(TOPICS, some, strict=True)), config), config)

        truth = np.array([loss(continued(begins[0], some)) for some in shares])
        losses = []
        for of_part in ([begins[0]] * 5, begins):
            parts = Parts(begins[0], [[continued(b, one)] for b, one in zip(of_part, np.eye(5), strict=True)])
            losses.append(np.array([loss(parts.merged(some)) for some in shares]))
        seed_loss = loss(begins[0])
    spearman = [regression(truth, found)["spearman"] for found in losses]
    assert spearman[0] > 0.75  # 0.92 measured
    assert spearman[1] < spearman[0]  # 0.67 measured
    assert losses[0].min() < seed_loss
    assert losses[1].min() > seed_loss + 0.2  # averages over several seeds forget what each knew


def test_the_average_is_that_of_the_parameters(tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path) -> None:
    import torch

    config = FitMerging(sources=tuple(TOPICS), proxy=PROXY).config(0)
    with pool(tables, TOPICS, tokenizer, tmp_path) as found:
        models = [make(config.model_copy(update={"seed": seed}), found.learn) for seed in range(3)]
    named = [dict(model.named_parameters()) for model in models]
    merged = dict(Parts(models[0], [models[:2], models[2:]]).merged(np.array([0.25, 0.75])).named_parameters())
    for name, parameter in merged.items():
        expected = 0.125 * named[0][name] + 0.125 * named[1][name] + 0.75 * named[2][name]
        torch.testing.assert_close(parameter, expected)
    torch.testing.assert_close(models[0].lm_head.weight, named[0]["model.embed_tokens.weight"])  # left as it was


def test_it_goes_on_from_a_given_model_and_the_same_samples_give_the_same_bytes(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    from trainers.model import save_model

    first = FitMerging(sources=("t0", "t1"), proxy=PROXY).config(0)
    some = {name: tables[name] for name in ("t0", "t1")}
    (tmp_path / "first").mkdir()
    with pool(some, ("t0", "t1"), tokenizer, tmp_path / "first") as found:
        begin = train(make(first, found.learn), mixture(found.learn, {"t0": 1.0}, first), first)
        save_model(begin, tmp_path / "first" / "tokenizer", tmp_path / "start")
    proxy = {name: value for name, value in PROXY.items() if name != "model"} | {"tokens": 1000}
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        fit = FitMerging(sources=("t1", "t0"), start=tmp_path / "start", units=1, drawn=3, checked=0, proxy=proxy)
        card = fit.fit(some, tmp_path / str(number), 1)
    assert (tmp_path / "0" / "card.json").read_bytes() == (tmp_path / "1" / "card.json").read_bytes()
    losses = card["seed_model"]["by_source"]
    assert losses["t0"] < losses["t1"]  # that is what the given model had learned
    with pytest.raises(ValidationError, match=r"leave out `tokenizer` and `proxy\.model`"):
        FitMerging(sources=("t0", "t1"), start=tmp_path / "start", proxy={"model": SIZE})
    with pytest.raises(ValidationError, match=r"a window of 4096 tokens; .* allows"):
        FitMerging(sources=("t0", "t1"), start=tmp_path / "start", proxy={"row_length": 4096})
