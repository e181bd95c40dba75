"""GOT-D through a recipe: of 990 documents on cats and 10 on dogs, a target of both wants the dogs, and only those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import write

from pipelines import steps
from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from transforms.embedding import Embedding

CATS, DOGS = 990, 10


def about(first: str, count: int, seed: int) -> list[str]:
    """Documents of 150 words, three in four of them from twenty that begin with the letter."""
    draw = np.random.default_rng(seed)
    letters = [chr(97 + i) for i in range(26)]
    own = [first + "".join(draw.choice(letters, 4)) for _ in range(20)]
    common = [f"the {a}{b}" for a in "aeiou" for b in "mnrst"]
    order = np.random.default_rng([seed, count])
    return [
        " ".join(np.where(order.random(150) < 0.75, order.choice(own, 150), order.choice(common, 150)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of a pool, and targets of 60 cats and 60 dogs: as JSONL and as a source of its own."""
    folder = tmp_path_factory.mktemp("got_d")
    texts = [*about("c", CATS, 1), *about("d", DOGS, 2)]
    ids = [f"{'dog' if i >= CATS else 'cat'}-{i * 7919 % 100_003:06d}" for i in range(len(texts))]
    order = np.random.default_rng(3).permutation(len(texts))
    for k in range(2):
        write(
            folder / "pool" / f"{k}.parquet", [texts[i] for i in order[k::2]], [ids[i] for i in order[k::2]], group=200
        )
    wishes = [*about("c", 60, 1), *about("d", 60, 2)]
    write(folder / "wishes" / "w.parquet", wishes, [f"wish-{i}" for i in range(len(wishes))])
    (folder / "target.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in wishes))
    return folder


def recipe(folder: Path, sources: dict[str, Any] | None = None, **fit: Any) -> dict[str, Any]:
    return {
        "name": "wanted",
        "sources": sources or {"pool": f"{folder}/pool/*.parquet"},
        "fit": {"wanted": {"method": "got_d", "files": f"{folder}/*.jsonl", **fit}},
        "score": {"got_d": {"model": "fit:wanted"}},
        "select": {"wanted": f"got_d.gradient <= quantile(got_d.gradient, {DOGS / (CATS + DOGS)})"},
    }


def sidecars(folder: Path) -> list[dict[str, Any]]:
    return [row for p in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(p).read().to_pylist()]


def selected(out: Path) -> set[str]:
    return {row["id"] for row in sidecars(out / "selection") if row["selection"]["keep"]}


def gradients(out: Path) -> dict[str, float]:
    return {row["id"]: row["got_d"]["gradient"] for row in sidecars(out / "scores" / "got_d")}


def test_the_dogs_are_selected_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    summary = run(parse(recipe(folder)), str(tmp_path), until="select")
    found = selected(tmp_path)
    assert len(found) == DOGS and all(name.startswith("dog") for name in found)
    assert summary["ledger"]["select"]["dropped"] == {"wanted": CATS} and summary["ledger_balanced"]
    card = json.loads((tmp_path / "models" / "wanted" / "card.json").read_text())
    assert card["documents"] == {"target": 120, "pool": CATS + DOGS, "without words": 0}
    assert card["marginal_error"] <= card["parameters"]["tolerance"]


def test_a_nearest_neighbour_matcher_takes_cats_and_dogs_alike(folder: Path) -> None:
    """The contrast, on the same vectors."""
    pool = pa.concat_tables([pq.read_table(p) for p in sorted((folder / "pool").iterdir())])
    target = pq.read_table(folder / "wishes" / "w.parquet")
    there, wished = (Embedding().vectors(t.column("text")).astype(float) for t in (pool, target))
    matched = (wished @ there.T).argmax(axis=1)  # of vectors of one length the largest product is the nearest
    dogs = [pool.column("id")[int(i)].as_py().startswith("dog") for i in matched]
    assert 0.45 <= np.mean(dogs) <= 0.55


def test_workers_and_order_of_shards_change_no_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of the pool that is smaller than it, so that what is drawn matters too."""
    run(parse(recipe(folder, pool_documents=400)), str(tmp_path / "one"), until="select")
    turned = {"pool": [f"{folder}/pool/{k}.parquet" for k in (1, 0)]}
    run(parse(recipe(folder, turned, pool_documents=400)), str(tmp_path / "turned"), until="select")
    monkeypatch.setattr(steps, "LIGHT_ROWS", 0)
    run(parse(recipe(folder, pool_documents=400)), str(tmp_path / "two"), workers=2, until="select")
    assert gradients(tmp_path / "one") == gradients(tmp_path / "turned") == gradients(tmp_path / "two")
    for file in ("card.json", "model.npz"):
        models = [(tmp_path / name / "models" / "wanted" / file).read_bytes() for name in ("one", "turned", "two")]
        assert models[0] == models[1] == models[2]


def test_the_target_may_be_a_condition(folder: Path, tmp_path: Path) -> None:
    sources = {"pool": f"{folder}/pool/*.parquet", "wishes": f"{folder}/wishes/*.parquet"}
    given = recipe(folder, sources, target="source = 'wishes'", pool="source = 'pool'")
    del given["fit"]["wanted"]["files"]
    given["select"] = {"pool": "source = 'pool'", "wanted": "got_d.gradient < -0.2"}
    run(parse(given), str(tmp_path), until="select")
    found = selected(tmp_path)
    assert len(found) == DOGS and all(name.startswith("dog") for name in found)


def test_a_changed_target_is_fitted_anew_and_the_same_is_not(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "target.jsonl"
    file.write_text((folder / "target.jsonl").read_text())
    given = recipe(folder, files=str(file))
    run(parse(given), str(tmp_path / "run"), until="select")
    again = run(parse(given), str(tmp_path / "run"), until="select")["ledger"]["scores:got_d"]
    assert again["reused"] == again["splits"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in about("c", 60, 1)))
    changed = run(parse(given), str(tmp_path / "run"), until="select")["ledger"]["scores:got_d"]
    assert changed["reused"] == 0
    assert all(name.startswith("cat") for name in selected(tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": "nowhere.jsonl"}, "fit.wanted.files: no target documents at nowhere.jsonl"),
        ({"target": "true"}, "fit.wanted: the target is either `target`"),
        ({"pool": "quality > 3"}, "fit.wanted.pool"),
        ({"epsilon": -1}, "fit.wanted.epsilon"),
    ],
)
def test_mistakes_are_told_before_any_work(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        run(parse(recipe(folder, **change)), str(tmp_path / "run"))
    assert message in str(error.value)
    assert not (tmp_path / "run" / "models").exists()
