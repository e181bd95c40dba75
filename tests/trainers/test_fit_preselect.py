"""PreSelect with six models that know a grammar ever better: its positives are documents of the grammar."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_grammar
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from scorers.fasttext import FastText
from scorers.perplexity import Perplexity
from trainers.fit_preselect import FitPreselect, _told, seeds
from transforms.batch import Batch
from transforms.predictive_strength import LACKING, chance, predictive_strength

KINDS = {"g": toy_grammar.grammar, "s": toy_grammar.shuffled, "b": toy_grammar.boilerplate}
SMALL = {"window": 128, "stride": 64, "parameters": {"dim": 16, "bucket": 5000, "epoch": 20, "lr": 0.2}}


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def documents(count: int, seed: int) -> list[tuple[str, str]]:
    """Ids that begin with the kind, and texts, in some order: as many of each kind."""
    draw = np.random.default_rng(seed)
    made = [(f"{kind}{i}", KINDS[kind](draw)) for i in range(count) for kind in KINDS]
    return [made[i] for i in draw.permutation(len(made))]


def spec(family: list[tuple[Path, float]], **given: Any) -> FitPreselect:
    models = [{"model": model, "ability": ability} for model, ability in family]
    return FitPreselect.model_validate({"models": models, "domain": "site", **SMALL, **given})


@pytest.fixture(scope="module")
def fitted(
    toy_family: list[tuple[Path, float]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Of 480 documents, and one that no model can read; models are given in no order."""
    made = [("empty", ""), *documents(160, 1)]
    columns = {"id": [i for i, _ in made], "text": [t for _, t in made], "domain": ["site"] * len(made)}
    order = [3, 0, 5, 1, 4, 2]
    out = tmp_path_factory.mktemp("fit") / "model"
    fit = spec([toy_family[i] for i in order], per_domain=1000)
    return out, fit.fit({"seed": pa.table(columns)}, out, seed=1)


def test_abilities_rise(toy_family: list[tuple[Path, float]]) -> None:
    abilities = [ability for _, ability in toy_family]
    assert abilities == sorted(set(abilities)), "what the other tests rest on"


def test_positives_are_of_the_grammar(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    table = pq.read_table(out / "losses.parquet")
    assert table.num_rows == 481 and table.schema.names == ["id", "domain", "losses", "strength"]
    kinds: dict[int | None, Counter[str]] = {}
    for name, strength in zip(table["id"].to_pylist(), table["strength"].to_pylist(), strict=True):
        kinds.setdefault(strength, Counter())[name[0]] += 1
    positives = kinds[15]
    assert positives["g"] / positives.total() > 0.9 and positives["g"] > 80
    assert kinds[None] == {"e": 1} and not kinds[0]["g"], "the empty one has no loss"
    told = card["strength"]
    assert told["histogram"] == [kinds.get(n, Counter()).total() for n in range(16)]
    assert told["scored"] == 480 and told["without_loss"] == 1 and told["positives"] == positives.total()
    assert told["histogram_by_chance"][:2] == [0.67, 3.33] and "warning" not in told
    assert card["documents"] == {"good": told["positives"], "other": told["positives"]}
    assert json.loads((out / "card.json").read_text()) == card
    assert card["sample"] == {"drawn": 481, "without_domain": 0, "domains": 1, "seeds": 481}


def test_losses_are_those_of_the_documents_alone(fitted: Any, toy_family: list[tuple[Path, float]]) -> None:
    out, card = fitted
    table = pq.read_table(out / "losses.parquet")
    texts = dict(documents(160, 1))
    ids = table["id"].to_pylist()[1:30]
    for place, (model, _) in ((0, toy_family[3]), (4, toy_family[4])):
        assert card["models"][place]["model"] == model.name
        found = (
            Perplexity(model=model, window=128, stride=64).score(batch_of([texts[name] for name in ids])).to_pylist()
        )
        own = [losses[place] for losses in table["losses"].to_pylist()[1:30]]
        np.testing.assert_allclose(own, [row["loss"] * row["tokens"] for row in found], rtol=1e-12)


def test_the_classifier_finds_what_was_planted(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, card = fitted
    made = documents(60, 2)
    truth, texts = [name[0] == "g" for name, _ in made], [text for _, text in made]
    score = FastText(model=out).score(batch_of(texts)).field("score").to_numpy()
    assert roc_auc_score(truth, score) > 0.95 and card["holdout"]["auc"] > 0.9
    twice = FastText(model=out).score(batch_of([f"{text}\n{text}" for text in texts])).field("score").to_numpy()
    assert np.abs(twice - score).max() < 0.1, "length counts for nothing, but for the pair of words where both meet"


def test_the_same_sample_gives_the_same_bytes(toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    made = documents(60, 3)
    columns = {"id": [i for i, _ in made], "text": [t for _, t in made], "domain": ["x"] * len(made)}
    for name in ("one", "two"):
        spec(toy_family[3:]).fit({"seed": pa.table(columns)}, tmp_path / name, seed=1)
    for file in ("model.bin", "card.json", "losses.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_models_that_do_not_rank_are_said(toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    """The abilities turned about: the grammar's documents have strength 0, and hardly any has 15."""
    made = [(name, text) for name, text in documents(40, 4) if name[0] == "g"]
    turned = [(model, -ability) for model, ability in toy_family]
    columns = {"id": [i for i, _ in made], "text": [t for _, t in made], "domain": ["x"] * len(made)}
    with pytest.raises(ValueError, match="0 of 40 seed documents are positives and 0 are left as negatives"):
        spec(turned).fit({"seed": pa.table(columns)}, tmp_path, seed=1)


def test_exchangeable_losses_are_warned_of() -> None:
    losses = np.random.default_rng(0).normal(size=(50_000, 6))
    losses[7, 2] = np.nan
    told = _told(predictive_strength(losses, np.arange(6.0)), 6)
    assert told["scored"] == 49_999 and told["without_loss"] == 1
    expected = chance(6) * told["scored"]
    assert (np.abs(np.array(told["histogram"]) - expected) < 5 * np.sqrt(expected)).all()
    assert told["warning"].startswith(f"positives are {told['share_of_positives']:.2%} of 49999 seed documents")
    few = np.array([LACKING, 15] + [3] * 50)
    assert "warning" not in _told(few, 6) and "warning" in _told(np.append(few, [3] * 50), 6), "1 of 51, 1 of 101"


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "é", "", None]), max_size=40), st.integers(1, 6), st.integers(1, 6)
)
def test_seeds_equal_a_slow_reference(given: list[str | None], domains: int, per_domain: int) -> None:
    counts = Counter(one for one in given if one is not None)
    column = pa.chunked_array([pa.array(given[::2], pa.string()), pa.array(given[1::2], pa.string())])
    if not counts:
        with pytest.raises(ValueError, match=f"none of the {len(given)} documents drawn has a domain"):
            seeds(column, domains, per_domain)
        return
    frequent = sorted(counts, key=lambda one: (-counts[one], one.encode()))[:domains]
    taken: Counter[str] = Counter()
    expected = []
    for place, one in enumerate(column.to_pylist()):
        if one in frequent and taken[one] < per_domain:
            taken[one] += 1
            expected.append(place)
    found, number = seeds(column, domains, per_domain)
    assert found.tolist() == expected and number == len(frequent)


def test_domains_may_be_numbers_but_not_structs() -> None:
    assert seeds(pa.chunked_array([[3, 3, None, 1]]), 1, 5)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="`domain` is struct<"):
        seeds(pa.chunked_array([[{"a": 1}]]), 1, 5)


def without_begin(model: Path, out: Path, tokenizer: str = "") -> Path:
    """A copy that has no begin-of-text token, its tokenizer's file changed by what is added."""
    folder = Path(shutil.copytree(model, out))
    (folder / "tokenizer_config.json").write_text('{"bos_token": null}')
    with (folder / "tokenizer.json").open("a") as file:
        file.write(tokenizer)
    return folder


def test_the_first_token_counts_for_all_or_for_none(toy_family: list[tuple[Path, float]], tmp_path: Path) -> None:
    with_it = [model for model, _ in toy_family[:2]]
    none, same, other = (without_begin(with_it[0], tmp_path / str(i), " " * (i == 2)) for i in range(3))
    spec([(none, 1), (same, 2)])
    with pytest.raises(ValidationError, match=f"{none} has no token that begins a text and {with_it[1]} has one"):
        spec([(none, 1), (with_it[1], 2)])
    with pytest.raises(ValidationError, match=f"{none} and {other} have different tokenizers"):
        spec([(none, 1), (other, 2)])


def test_mistakes_are_found_at_construction(toy_family: list[tuple[Path, float]]) -> None:
    (one, _), (two, _) = toy_family[:2]
    for family, more, message in (
        ([(one, 1.0)], {}, "at least 2 items"),
        ([(one, 1.5), (two, 1.5)], {}, "models: 2 have the ability 1.5"),
        ([(one, 1.0), (one, 2.0)], {}, f"models: 2 have the folder {one}"),
        ([(one, float("nan")), (two, 2.0)], {}, "finite number"),
        ([(one, 1.0), (Path("nowhere"), 2.0)], {}, "no model folder at nowhere"),
        ([(one, 1.0), (two, 2.0)], {"window": 257}, "a window of 257 tokens; .* allows 256"),
        ([(one, 1.0), (two, 2.0)], {"stride": 128}, "stride 128 must be less than the window of 128"),
        ([(one, 1.0), (two, 2.0)], {"documents": 39}, "greater than or equal to 40"),
    ):
        with pytest.raises(ValidationError, match=message):
            spec(family, **more)
