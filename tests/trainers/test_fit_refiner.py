"""The fit of the light refiner on planted pages: noise goes, articles stay, whatever the labels come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page, pages, program
from pydantic import ValidationError

from trainers.fit_refiner import FitRefiner, c4_goes, find_phrases, fineweb_goes, flat_trees, repeated_goes
from transforms.batch import Batch
from transforms.c4_lines import clean_lines
from transforms.line_features import SHAPES, filled_lines, line_shapes
from transforms.refiner import FEATURES, Refiner, load, save, tree_scores

LABELS = {"keep": "keep", "drop": "drop"}


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def sample(given: list[Page], **columns: Any) -> dict[str, pa.Table]:
    named = {"text": [p.text for p in given], "group": [p.host for p in given], **columns}
    return {"documents": pa.table(named)}


def labelled(given: list[Page]) -> dict[str, pa.Table]:
    return sample(given, keep=[p.keep for p in given], drop=[p.drop for p in given])


def line_f1(refiner: Refiner, given: list[Page], keep: float = 0.95) -> tuple[float, float]:
    """F1 of the planted lines, and the share of the others that stay."""
    batch = batch_of([p.text for p in given])
    gone = refiner.edits(batch, refiner.threshold(keep)).gone
    truth = np.zeros(len(gone), bool)
    for page, first in zip(given, batch.lines.offsets, strict=False):
        truth[first + np.array(page.noise)] = True
    return 2 * (truth & gone).sum() / (truth.sum() + gone.sum()), float((~gone[~truth]).mean())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("refiner")
    return out, FitRefiner(keep="keep", drop="drop", group="host").fit(labelled(pages(240)), out, 7)


def test_what_is_planted_is_learned(model: tuple[Path, dict[str, Any]]) -> None:
    out, card = model
    f1, stay = line_f1(load(out), pages(80, seed=99))
    assert f1 > 0.93 and stay > 0.9
    assert json.loads((out / "card.json").read_text()) == card
    held = card["holdout"]
    assert held["by"] == "host" and held["line_f1"] > 0.93 and card["documents"]["groups"] == 80
    kept, gone = ([row[name] for row in held["curve"]] for name in ("kept", "gone"))
    assert kept == sorted(kept) and gone == sorted(gone, reverse=True) and min(kept) >= 0.9
    assert all(row["kept"] >= row["keep"] for row in held["curve"])


def test_equal_samples_give_equal_bytes(model: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    FitRefiner(keep="keep", drop="drop", group="host").fit(labelled(pages(240)), tmp_path, 7)
    for name in ("model.npz", "card.json"):
        assert (tmp_path / name).read_bytes() == (model[0] / name).read_bytes()


def test_programs_teach_as_phrases_do(tmp_path: Path) -> None:
    given = pages(120, seed=3)
    programs = [program(p) if i % 4 else None for i, p in enumerate(given)]
    card = FitRefiner(program="program", group="host", trees=60).fit(sample(given, program=programs), tmp_path, 0)
    assert line_f1(load(tmp_path), pages(60, seed=98))[0] > 0.97
    assert card["phrases"]["go"] == sum(len(p.noise) for i, p in enumerate(given) if i % 4)


def test_rules_teach_what_they_agree_on(tmp_path: Path) -> None:
    given = pages(120, seed=4)
    FitRefiner(rules=("c4", "fineweb"), group="host", trees=60).fit(sample(given), tmp_path, 0)
    assert line_f1(load(tmp_path), pages(60, seed=97))[0] > 0.8


def test_a_whole_group_is_left_out_together() -> None:
    with pytest.raises(ValueError, match="too few groups"):
        tables = labelled(pages(60, per_host=60))
        FitRefiner(keep="keep", drop="drop", group="host").fit(tables, Path("unused"), 0)


def test_phrases_find_their_lines() -> None:
    batch = batch_of(["menu\n one two\n\nthree\nmenu", "other", "one two"])
    found = find_phrases(
        batch, filled_lines(batch), [["one two\n\nthree", "absent"], [], ["two"]], [["menu"], ["", "oth"], []]
    )
    assert found.stays.tolist() == [True, False, False, True] and found.missing == 1
    assert [found.lines[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        [1, 2],
        [0, 3],
        [4],
        [5],
    ]


def test_rules_vote_as_they_do_elsewhere() -> None:
    texts = [p.text for p in pages(30, seed=2)] + [
        "  A line that stays, it ends here. \nno\n\nA third one\x85Two lines in one."
    ]
    batch = batch_of(texts)
    lines = filled_lines(batch)
    data = batch.bytes.tobytes()
    own = [data[a:b].decode() for a, b in zip(lines.start, lines.end, strict=True)]
    document = np.repeat(np.arange(len(batch)), np.diff(lines.offsets))
    kept = [set(text.splitlines()) for text in clean_lines(batch)[0].to_pylist()]
    expected = [not any(part in kept[d] for part in line.splitlines()) for line, d in zip(own, document, strict=True)]
    assert c4_goes(batch, lines).tolist() == expected
    assert fineweb_goes(batch, lines).tolist() == [len(line) <= 30 and line[-1] not in ".!?" for line in own]
    pages_of = {line: len({d for other, d in zip(own, document, strict=True) if other == line}) for line in set(own)}
    assert repeated_goes(batch, lines).tolist() == [pages_of[line] > 1 for line in own]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_trees_in_arrays_equal_those_of_lightgbm(seed: int) -> None:
    import lightgbm

    draw = np.random.default_rng(seed)
    values = draw.normal(size=(120, 4)).astype(np.float32).round(1)
    target = (values[:, 0] + values[:, 1] > 0).astype(float)
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 6, "min_data_in_leaf": 3}
    booster = lightgbm.train(settings, lightgbm.Dataset(values, target), 5)
    trees = flat_trees([tree["tree_structure"] for tree in booster.dump_model()["tree_info"]])
    again = np.concatenate([values, draw.normal(size=(50, 4)).astype(np.float32)])
    assert tree_scores(trees, again) == pytest.approx(booster.predict(again, raw_score=True), abs=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "given none"), ({"keep": "a"}, "give both"), ({"keep": "a", "drop": "b", "rules": ["c4"]}, "given"),
        ({"rules": ["c5"]}, "c4"), ({"program": "p", "trees": 0}, "trees"), ({"programs": "p"}, "programs"),
    ],
)  # fmt: skip
def test_mistakes_in_parameters(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitRefiner(**given)


def test_samples_that_do_not_serve(tmp_path: Path) -> None:
    few = pages(6)
    with pytest.raises(ValueError, match=r"at least 20 .*: widen `where`"):
        FitRefiner(**LABELS).fit(labelled(few), tmp_path, 0)
    words = sample(few, keep=["a"] * 6, drop=["b"] * 6)
    with pytest.raises(ValueError, match="expected a list of phrases"):
        FitRefiner(**LABELS).fit(words, tmp_path, 0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "features", "loop", "no card", "nan"])
def test_a_damaged_model_is_refused(model: tuple[Path, dict[str, Any]], tmp_path: Path, damage: str) -> None:
    refiner = load(model[0])
    (tmp_path / "card.json").write_text("{}" if damage != "no card" else "")
    if damage == "loop":
        refiner = refiner._replace(trees=refiner.trees._replace(first=np.zeros_like(refiner.trees.first)))
    if damage == "nan":
        refiner = refiner._replace(words=np.full_like(refiner.words, np.nan))
    save(refiner, tmp_path)
    file = tmp_path / "model.npz"
    if damage == "missing":
        file.unlink()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    if damage == "features":
        held = dict(np.load(file))
        np.savez(file, **{**held, "features": np.array(FEATURES[::-1])})
    with pytest.raises(ValueError, match=r"refiner|damaged"):
        load(tmp_path)


def test_blank_lines_follow_the_line_before(model: tuple[Path, dict[str, Any]]) -> None:
    refiner = load(model[0])
    text = pages(1, seed=5)[0].text.replace("\n", "\n \n")
    batch = batch_of(["\n" + text, "", " \n "])
    lines, scores = refiner.scores(batch)
    gone = refiner.edits(batch, 0.0).gone
    assert gone[lines.number].tolist() == (scores > 0).tolist() and 0 < gone.mean() < 1
    assert gone[0] == gone[1] and all(gone[i + 1] == gone[i] for i in lines.number[:-1]) and not gone[-3:].any()


@pytest.mark.parametrize("piece", ["a", " ", "\n", "a\n", "日", "\u2028", ". ", "|", "A b. \n"])
def test_a_megabyte_of_one_piece(model: tuple[Path, dict[str, Any]], piece: str) -> None:
    batch = batch_of([piece * (1_000_000 // len(piece.encode()))])
    lines, scores = load(model[0]).scores(batch)
    assert len(scores) == len(lines.start) and np.isfinite(scores).all()
    assert line_shapes(batch, lines).shape == (len(scores), len(SHAPES))
