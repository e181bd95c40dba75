import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tokenizer
from pydantic import ValidationError
from toy_topics import sample, topic, words

from trainers.fit_regmix import FitRegmix

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PROXY = {"model": SIZE, "row_length": 128, "batch_tokens": 256, "lr": 1e-2, "tokens": 4000}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """`twin` is of the target's topic, `half` has its words in another order, `other` has words of its own."""
    draw = np.random.default_rng(0)
    known = words(draw, 120)
    twins = topic(draw, known[:60], 2, 280)
    texts = {"twin": twins[:250], "half": topic(draw, known[:60], 2, 250), "other": topic(draw, known[60:], 2, 250)}
    return {name: sample(name, some) for name, some in (texts | {"target": twins[250:]}).items()}


@pytest.fixture(scope="module")
def tokenizer(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [t for table in tables.values() for t in table["text"].to_pylist()]
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts, 400)


def test_the_source_of_the_targets_topic_wins(tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path) -> None:
    fit = FitRegmix(
        sources=("other", "twin", "half"), target=("target",), mixtures=20, tokenizer=tokenizer, proxy=PROXY
    )
    card = fit.fit(tables, tmp_path, 0)
    weights = card["weights"]
    assert list(weights) == ["half", "other", "twin"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["twin"] > 0.6
    assert card["regressions"]["log_linear"]["spearman"] > 0.7  # 0.88 measured
    assert len(card["mixtures"]) == len(card["regressions"]["log_linear"]["predicted"]) == 20
    measured = {name: told["measured"] for name, told in card["check"].items()}
    assert measured["found"] < measured["natural"]
    assert measured["found"] < np.quantile([m["loss"] for m in card["mixtures"]], 0.25)
    assert all(m["loss"] == m["by_source"]["target"] for m in card["mixtures"])
    held = json.loads((tmp_path / "weights.json").read_text())
    assert held["weights"] == weights
    assert held["tokens"]["twin"] == pytest.approx(held["tokens"]["half"], rel=0.3)
    assert {p.name for p in tmp_path.iterdir()} == {"weights.json", "card.json", "tokenizer"}


def test_the_same_samples_give_the_same_bytes_and_caps_hold(
    tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path
) -> None:
    some = {"twin": tables["twin"].slice(0, 40), "half": tables["half"], "other": tables["other"]}
    cards = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        fit = FitRegmix(
            sources=tuple(some),
            mixtures=16,
            tokenizer=tokenizer,
            regression="lightgbm",
            max_epochs=1.5,
            proxy={**PROXY, "tokens": 1000},
        )
        cards.append(fit.fit(some, tmp_path / str(number), 5))
    files = ["card.json", "weights.json", "tokenizer/tokenizer.json"]
    assert all((tmp_path / "0" / f).read_bytes() == (tmp_path / "1" / f).read_bytes() for f in files)
    natural = cards[0]["natural"]
    for shares in [cards[0]["weights"], *(m["weights"] for m in cards[0]["mixtures"])]:
        assert all(shares[name] <= 1.5 * natural[name] + 1e-9 for name in natural)
    held = cards[0]["regressions"]
    assert held.keys() >= {"lightgbm", "log_linear"}
    assert ("note" in held) == (held["log_linear"]["mse"] < held["lightgbm"]["mse"])


def test_caps_that_no_mixture_keeps_are_told(tables: dict[str, pa.Table], tokenizer: Path, tmp_path: Path) -> None:
    fit = FitRegmix(sources=("twin", "half"), tokenizer=tokenizer, max_epochs=1.0000001, proxy=PROXY)
    with pytest.raises(ValueError, match="raise `max_epochs`"):
        fit.fit({name: tables[name] for name in fit.sources}, tmp_path, 0)


def test_the_target_is_sampled_too() -> None:
    assert list(FitRegmix(sources=("b", "a"), target=("c", "a")).samples()) == ["a", "b", "c"]


@pytest.mark.parametrize(("given", "message"), [({"mixtures": 8}, "16"), ({"regression": "forest"}, "log_linear")])
def test_wrong_parameters_are_told(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitRegmix(sources=("a", "b"), **given)
