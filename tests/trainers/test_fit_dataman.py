"""The fit of a rater: planted ratings are learned, labels that will not do are counted, lengths fit the model."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toy_ratings import QUICK, Planted, simple

from scorers.dataman import DataMan
from trainers.fit_dataman import FitDataMan, Rated, balanced
from transforms.batch import Batch
from transforms.ratings import DOMAINS, RATINGS, read_prompts

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
BRIEF = {"epochs": 1, "vocabulary": 300, "train": {"row_length": 128, "model": SMALL}}  # a few steps: it learns nothing


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "short.yaml"
    modes = ("all_rating", "score_only", "domain_only")
    file.write_text(json.dumps({"prompts": dict.fromkeys(modes, "Rate: {text}")}))
    return file


def documents(count: int, seed: int = 0) -> list[Planted]:
    draw = np.random.default_rng(seed)
    return [simple(draw) for _ in range(count)]


def sample(texts: list[str], ratings: Any, domains: list[Any], **more: list[Any]) -> dict[str, pa.Table]:
    return {"documents": pa.table({"text": texts, "ratings": ratings, "domain": domains, **more})}


def planted(docs: list[Planted]) -> dict[str, pa.Table]:
    return sample([d.text for d in docs], [d.ratings for d in docs], [d.domain for d in docs])


def fit(prompts: Path, lesson: dict[str, Any] = BRIEF, **given: Any) -> FitDataMan:
    return FitDataMan(**{"ratings": "ratings", "domain": "domain", "prompts": prompts, "lesson": lesson, **given})


def numbered(count: int) -> list[str]:
    return [f"a text with the number {k}" for k in range(count)]


def agreement(model: Path, docs: list[Planted]) -> tuple[np.ndarray, float]:
    """How often the rater agrees with what is planted: on each of the ratings, and on the domain."""
    found = DataMan(engine={"model": model}).score(Batch(pa.record_batch({"text": [d.text for d in docs]})))
    hits = [
        np.mean([r == d.ratings[k] for r, d in zip(found.field(k).to_pylist(), docs, strict=True)]) for k in range(14)
    ]
    names = zip(found.field("domain").to_pylist(), docs, strict=True)
    return np.array(hits), float(np.mean([name == DOMAINS[d.domain] for name, d in names]))


@pytest.fixture(scope="module")
def model(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("rater")
    return out, fit(prompts, QUICK).fit(planted(documents(300)), out, 0)


def test_what_is_planted_is_learned(model: tuple[Path, dict[str, Any]]) -> None:
    out, card = model
    assert json.loads((out / "card.json").read_text()) == card
    ratings, domain = agreement(out, documents(60, seed=99))
    assert ratings.min() >= 0.9 and domain >= 0.9
    held = card["holdout"]
    assert min(one["commonest"] for one in held["by_rating"].values()) < 0.5 < 0.9 <= held["agreement"]


def test_the_card_has_what_the_scorer_says_of_every_tenth(model: tuple[Path, dict[str, Any]]) -> None:
    out, card = model
    distinct = list({d.text: d for d in documents(300)}.values())
    held = card["holdout"]
    ratings, domain = agreement(out, distinct[::10])
    assert [one["agreement"] for one in held["by_rating"].values()] == pytest.approx(ratings.tolist())
    assert held["domain"] == domain and held["agreement"] == pytest.approx(ratings.mean())
    assert held["documents"] == len(distinct[::10]) == card["documents"]["held out"] and held["failed"] == 0
    assert card["documents"]["learned"] == len(distinct) - len(distinct[::10])
    assert card["taught"]["conversations"] == card["documents"]["learned"] and card["taught"]["left_out"] == 0
    kept = read_prompts(out / "prompts.yaml")
    assert (
        kept.prompts == {"all_rating": "Rate: {text}"} and kept.most_tokens == card["parameters"]["most_tokens"] < 128
    )


def test_a_rater_is_taught_further(model: tuple[Path, dict[str, Any]], prompts: Path, tmp_path: Path) -> None:
    lesson = {"start": model[0], "epochs": 1, "train": {"lr": 1e-5}}
    card = fit(prompts, lesson).fit(planted(documents(60, seed=5)), tmp_path, 0)
    assert card["holdout"]["agreement"] >= 0.9
    assert (tmp_path / "tokenizer.json").read_bytes() == (model[0] / "tokenizer.json").read_bytes()


def test_labels_that_will_not_do_are_counted(prompts: Path, tmp_path: Path) -> None:
    good = [float(r) for r in documents(1)[0].ratings]
    bad: list[Any] = [None, good[:13], [*good, 3.0], [6.0, *good[1:]], [0.5, *good[1:]], [None, *good[1:]]]
    ratings, domains = [good] * 24 + bad + [good] * 5, ["C", "Law"] * 15 + [None, "P", "law", "C", "C"]
    texts = [*numbered(33), "![](x)\n", *numbered(1)]
    card = fit(prompts).fit(sample(texts, ratings, domains), tmp_path, 0)
    assert card["documents"] == {
        "learned": 21, "held out": 3, "repeated to balance": 0, "without valid ratings": 6,
        "without a valid domain": 3, "nothing to rate": 1, "shown as another": 1,
    }  # fmt: skip
    held = card["holdout"]
    assert held["failed"] == 3 and held["failures"] and held["agreement"] == held["within_one"] == held["domain"] == 0


def test_fractions_are_rounded_as_the_paper_has_it(prompts: Path) -> None:
    teacher = [2.9, 3.1, 1.0, 4.5, 5.0, *[3.0] * 9]
    assert fit(prompts)._whole(teacher) == (2, 4, 1, 5, 5, *[3] * 9)
    assert fit(prompts)._whole([Decimal(str(r)) for r in teacher]) == (2, 4, 1, 5, 5, *[3] * 9), "as DuckDB's literals"
    assert fit(prompts)._whole(dict(zip(RATINGS, teacher, strict=True))) == (2, 4, 1, 5, 5, *[3] * 9)


def test_equal_samples_give_equal_bytes_whatever_form_labels_have(prompts: Path, tmp_path: Path) -> None:
    """As lists and letters, or as the columns of a teacher are."""
    docs = documents(30)
    structs = [dict(zip(RATINGS, d.ratings, strict=True)) for d in docs]
    other = sample([d.text for d in docs], structs, [DOMAINS[d.domain] for d in docs])
    for name, given_ in (("a", planted(docs)), ("b", other)):
        fit(prompts).fit(given_, tmp_path / name, 3)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files and files == sorted(file.name for file in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("mode", ["score_only", "domain_only"])
def test_a_rater_of_one_thing(prompts: Path, tmp_path: Path, mode: str) -> None:
    needed = {"score_only": "ratings", "domain_only": "domain"}[mode]
    given_ = {"ratings": None, "domain": None, needed: needed}
    docs = documents(40)
    table = sample([d.text for d in docs], [d.ratings[-1:] for d in docs], [d.domain for d in docs])
    card = fit(prompts, mode=mode, **given_).fit(table, tmp_path, 0)
    held = card["holdout"]
    assert ("overall_score" in held, "domain" in held) == (mode == "score_only", mode == "domain_only")
    assert DataMan(engine={"model": tmp_path}, mode=mode).fields()
    with pytest.raises(ValidationError, match=f"there is one for {mode}"):
        DataMan(engine={"model": tmp_path})


def test_long_documents_are_cut_to_what_a_row_holds(prompts: Path, tmp_path: Path) -> None:
    texts = [f"{k} " + "one more word " * 500 + f"{k}" for k in range(30)]
    card = fit(prompts).fit(sample(texts, [[3] * 14] * 30, ["C"] * 30), tmp_path, 0)
    assert card["taught"]["left_out"] == 0 and card["documents"]["learned"] == 27
    kept = read_prompts(tmp_path / "prompts.yaml")
    assert 10 < kept.most_tokens < 128 - 29 and kept.most_tokens == card["parameters"]["most_tokens"]
    found = DataMan(engine={"model": tmp_path}).score(Batch(pa.record_batch({"text": texts[:2]})))
    assert found.field("truncated").to_pylist() == [True, True]
    assert max(found.field("tokens").to_pylist()) <= 128 - 32, "prompt and answer fit the window"


def test_the_rarer_class_of_each_source_comes_again(prompts: Path, tmp_path: Path) -> None:
    overall = [1, 2, 2, *[4] * 17] * 2
    rows = [[3] * 13 + [last] for last in overall]
    table = sample(numbered(40), rows, ["C"] * 40, source=["a", "b"] * 20)
    given_ = fit(prompts, balance=4)
    assert given_.samples()["documents"].columns["source"] == "source"
    card = given_.fit(table, tmp_path, 0)
    learned = [(k % 2, overall[k] < 3) for k in range(40) if k % 10]
    counts = [(learned.count((source, True)), learned.count((source, False))) for source in range(2)]
    assert all(0 < low < high for low, high in counts)
    assert card["documents"]["repeated to balance"] == sum(4 * min((high - low) // 5, low) for low, high in counts)
    assert card["taught"]["conversations"] == 36 + card["documents"]["repeated to balance"]


documents_of = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), max_size=60)


@given(documents_of, st.integers(1, 5))
def test_balance_repeats_as_many_as_the_paper(labels: list[tuple[str, int]], times: int) -> None:
    learned = [Rated(k, str(k), source, (3, overall), "C") for k, (source, overall) in enumerate(labels)]
    again = Counter(one.place for one in balanced(learned, times))
    for name in "ab":
        low = [one.place for one in learned if one.source == name and one.ratings[-1] < 3]
        high = [one.place for one in learned if one.source == name and one.ratings[-1] >= 3]
        rare = min(low, high, key=len)
        counts = [again[k] for k in rare]
        assert (
            sum(again[k] for k in low + high) == sum(counts) == times * min(abs(len(low) - len(high)) // 5, len(rare))
        )
        assert not counts or max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"ratings": None}, "ratings: the mode all_rating needs it"),
        ({"domain": None}, "domain: the mode all_rating needs it"),
        ({"mode": "score_only"}, "domain: the mode score_only has none; leave it out"),
        ({"mode": "domain_only", "ratings": None, "balance": 4}, "balance: is by the overall rating"),
        ({"mode": "step_by_step"}, "is for teachers"),
        ({"mode": "detprompt_score_only", "domain": None}, "no prompt for the mode detprompt_score_only"),
        ({"prompts": "nowhere.json"}, "cannot be read"),
        ({"documents": 19}, "documents"),
        ({"lesson": {"epoch": 1}}, "epoch"),
        ({"balanced": 4}, "balanced"),
    ],
)
def test_mistakes_in_parameters(prompts: Path, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        fit(**{"prompts": prompts, **given_})


def test_samples_that_do_not_serve(prompts: Path, tmp_path: Path) -> None:
    few = sample(numbered(20), [[3] * 14] * 19 + [[9] * 14], ["C"] * 20)
    with pytest.raises(ValueError, match=r"19 documents with valid labels .*'without valid ratings': 1.* at least 20"):
        fit(prompts).fit(few, tmp_path, 0)
    with pytest.raises(ValueError, match=r"prompt and answer take \d+ tokens of 64; give more"):
        fit(prompts, {"train": {"row_length": 64}}).fit(few, tmp_path, 0)
