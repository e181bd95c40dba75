"""Ablation end to end: junk is found, another draw of the same corpus is not, and table, pairs and words agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_corpus import noise, prose, write
from typer.testing import CliRunner

from pipelines import store
from pipelines.ablate import _told, ablate, asked, candidates, compared, equalised
from pipelines.cli import app
from pipelines.recipe import Recipe, RecipeError, Training, load, parse

MODEL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "num_key_value_heads": 2}
CONFIG = {"model": MODEL, "row_length": 64, "batch_tokens": 512, "lr": 5e-3, "threads": 1, "precision": "fp32"}


def corpus(folder: Path) -> Path:
    """Two sources of the same prose, one of junk; and a cloze of the prose's words."""
    draw = np.random.default_rng(0)
    for name, count in (("one", 240), ("two", 200)):
        write(folder / name / "0.parquet", [prose(draw, int(draw.integers(6, 14))) for _ in range(count)])
    write(folder / "junk" / "0.parquet", [noise(draw, int(draw.integers(20, 60))) for _ in range(150)])
    items = {"context": ["The river carries the weight of"] * 2, "continuation": [" stones", " harbour"]}
    pq.write_table(pa.table(items), folder / "words.parquet")
    return folder


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "candidates",
        "sources": {name: f"{folder}/{name}/*.parquet" for name in ("one", "two", "junk")},
        "dedupe": {"exact": {}},
        "holdout": {"share": 0.1, "where": "source <> 'junk'"},
        "fit": {"tokenizer": {"method": "tokenizer", "vocabulary": 350}},
        "tokenizer": "fit:tokenizer",
        "mix": {
            "one": {"where": "source = 'one'"},
            "two": {"where": "source = 'two'"},
            "spoiled": {"where": "source <> 'two'", "weights": {"one": 0.15, "junk": 0.85}, "tokens": 20_000},
        },
        "train": {
            "mixtures": ["one"],
            "seeds": [0, 1],
            "config": CONFIG,
            "tasks": {"words": {"kind": "cloze", "path": f"{folder}/words.parquet"}},
        },
        **changes,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    pytest.importorskip("plotly")
    folder = corpus(tmp_path_factory.mktemp("ablate"))
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe(folder), sort_keys=False))
    return folder, CliRunner().invoke(app, ["ablate", f"{folder}/r.yaml", "--run", f"{folder}/run", "--json"])


def test_junk_is_worse_and_another_draw_is_not(made: tuple[Path, Any]) -> None:
    folder, process = made
    assert process.exit_code == 0, process.output
    found = json.loads(process.stdout.splitlines()[-1])["ablation"]
    assert found == store.read_json(f"{folder}/run/ablation.json")
    real = {(p["first"], p["second"]): p for p in found["pairs"]["held-out loss"]}
    assert not real["one", "two"]["real"] and abs(real["one", "two"]["mean"]) < 0.05
    assert real["one", "spoiled"]["real"] and real["one", "spoiled"]["mean"] < -0.1
    assert real["two", "spoiled"]["real"] and real["two", "spoiled"]["p_holm"] < 0.05
    assert found["ranking"]["order"][-1] == "spoiled"
    assert "really better than spoiled; no real difference from" in found["summary"][0]
    assert found["summary"][1].startswith("tasks.words.")


def test_budgets_are_equal_and_the_table_says_what_was_measured(made: tuple[Path, Any]) -> None:
    folder, process = made
    found = store.read_json(f"{folder}/run/ablation.json")
    manifests = {m: store.read_json(f"{folder}/run/mixtures/{m}/manifest.json") for m in ("one", "two", "spoiled")}
    passes = {m: sum(s["asked"] for s in v["sources"].values()) for m, v in manifests.items()}
    assert found["budget"] == min(passes.values()) == passes["spoiled"] < passes["two"] < passes["one"]
    for mixture, row in found["mixtures"].items():
        for seed in (0, 1):
            out = folder / "run" / "ablation" / mixture / f"seed{seed}"
            result = store.read_json(f"{out}/result.json")
            assert found["budget"] <= result["tokens"] < found["budget"] + 512
            assert store.read_json(f"{out}/job.json")["config"]["tokens"] == found["budget"]
        losses = [
            pq.read_table(folder / "run" / "ablation" / mixture / f"seed{s}" / "evaluation.parquet") for s in (0, 1)
        ]
        mean = np.mean([np.sum(t["nats"]) / np.sum(t["tokens"]) for t in losses])
        entry = row["measures"]["held-out loss"]
        assert entry["mean"] == pytest.approx(mean) and entry["low"] < mean < entry["high"]
        assert f"{entry['mean']:.4f}" in process.stdout and f"{row['tokens']:,}" in process.stdout
        assert row["passes"] == pytest.approx(found["budget"] / passes[mixture], rel=0.05)
        assert set(row["measures"]) == {"held-out loss", "held-out loss.one", "held-out loss.two"} | {
            "tasks.words.accuracy",
            "tasks.words.log_probability",
        }
    means = {m: row["measures"]["held-out loss"]["mean"] for m, row in found["mixtures"].items()}
    for pair in found["pairs"]["held-out loss"]:
        assert pair["mean"] == pytest.approx(means[pair["first"]] - means[pair["second"]])
        assert f"{pair['mean']:+.4f}" in process.stdout
    assert not (folder / "run" / "training").exists()
    page = (folder / "run" / "report.html").read_text()
    assert 'id="ablation"' in page and all(line.split(";")[-1] in page for line in found["summary"])


def test_what_is_done_is_not_done_again_and_runs_are_left_alone(made: tuple[Path, Any]) -> None:
    """The same ablation trains nothing; a run of the recipe and an ablation of it do not overwrite each other."""
    from pipelines.run import run

    folder, _ = made
    before = written(folder)
    first = store.read_json(f"{folder}/run/ablation.json")
    spec = load(f"{folder}/r.yaml")
    one = parse(recipe(folder, train={**recipe(folder)["train"], "seeds": [1], "config": {**CONFIG, "tokens": 20_000}}))
    run(one, f"{folder}/run", until="train")
    kept = folder / "run" / "training" / "one" / "seed1" / "result.json"
    assert kept.exists()
    again = ablate(spec, f"{folder}/run")[1]
    assert again == first
    assert before == written(folder)
    same = parse({**one.model_dump(mode="json")})
    wall = kept.stat().st_mtime_ns
    found = ablate(same, f"{folder}/run", mixtures=["one", "two"])[1]
    assert kept.stat().st_mtime_ns == wall and found is not None and found["budget"] == 20_000
    assert "With one seed, nothing is known of other seeds." in found["method"]


def written(folder: Path) -> dict[Path, int]:
    """When results and answers to tasks were written."""
    found = (folder / "run" / "ablation").rglob("*.json")
    return {p: p.stat().st_mtime_ns for p in found if p.name in ("result.json", "tasks.json")}


def test_candidates(tmp_path: Path) -> None:
    spec = parse(recipe(corpus(tmp_path)))
    assert candidates(spec, None, None, None).mixtures == ["one", "two", "spoiled"]
    made = candidates(spec, ["two", "one", "two"], 5000, [7])
    assert (made.mixtures, made.seeds, made.config["tokens"]) == (["two", "one"], [7], 5000)
    assert equalised(made, {}).config["tokens"] == 5000
    asks = {m: {"sources": {"a": {"asked": n}, "b": {"asked": 1}}} for m, n in (("two", 9), ("one", 5))}
    assert equalised(candidates(spec, ["two", "one"], None, None), asks).config["tokens"] == 6
    with pytest.raises(RecipeError, match=r"--mixtures: 'tow' is not under mix; did you mean 'two'\?"):
        candidates(spec, ["one", "tow"], None, None)
    with pytest.raises(RecipeError, match="there is one: give two or more"):
        candidates(spec, ["one"], None, None)
    blind = recipe(tmp_path, holdout=None, train=None)
    with pytest.raises(RecipeError, match=r"give `holdout` or `train\.tasks`"):
        candidates(Recipe.model_validate(blind), None, None, None)


def test_the_summary_tells_one_measure_of_each_task_whatever_its_name() -> None:
    measures = dict.fromkeys(
        f"tasks.{name}" for name in ("arc.easy.accuracy", "arc.easy.accuracy_per_byte", "arc.hard.accuracy")
    )
    told = ["tasks.arc.easy.accuracy", "tasks.arc.hard.accuracy"]
    assert _told({"held-out loss": None, "held-out loss.web": None, **measures}) == ["held-out loss", *told]


def test_options_are_read() -> None:
    assert asked("a, b", "300k", "0,12") == (["a", "b"], 300_000, [0, 12])
    assert asked(None, None, None) == (None, None, None)
    with pytest.raises(RecipeError, match="--tokens: 'many' is no number of tokens"):
        asked(None, "many", None)
    with pytest.raises(RecipeError, match="--seeds: '0;1' are no whole numbers"):
        asked(None, None, "0;1")


def test_tasks_alone_and_higher_is_better(tmp_path: Path) -> None:
    """Without held-out documents mixtures are ranked by the first measure of the tasks; there, more is better."""
    generator = np.random.default_rng(0)
    folders: dict[str, list[Path]] = {"good": [], "bad": []}
    for mixture, share in (("good", 0.8), ("bad", 0.4)):
        for seed in range(3):
            out = tmp_path / mixture / f"seed{seed}"
            (out / "tasks").mkdir(parents=True)
            right = (generator.random(300) < share).astype(np.int8)
            table = {"item": np.arange(300), "accuracy": right, "accuracy_per_byte": 1 - right}
            pq.write_table(pa.table(table), out / "tasks" / "quiz.parquet")
            data = {"passes": 2.0, "sources": {"s": {"epochs": 1.5, "documents": 7}}}
            store.write_json(f"{out}/data.json", data)
            folders[mixture].append(out)
    spec = Training(mixtures=["bad", "good"], seeds=[0, 1, 2], config={"tokens": 10}, tasks={"quiz": {}})
    found = compared(folders, spec, {"good": [10, 12, 14], "bad": [10, 10, 10]})
    assert found["ranking"] == {"by": "tasks.quiz.accuracy", "order": ["good", "bad"]}
    mean = found["mixtures"]["good"]["measures"]["tasks.quiz.accuracy"]["mean"]
    assert found["summary"] == [f"tasks.quiz.accuracy: good is highest ({mean:.4g}); really better than bad"]
    assert found["mixtures"]["good"] == {
        **found["mixtures"]["good"],
        "tokens": 12,
        "epochs": {"s": 3.0},
        "documents": 7,
    }
    (pair,) = found["pairs"]["tasks.quiz.accuracy_per_byte"]
    assert (pair["first"], pair["second"], pair["real"]) == ("good", "bad", True)
    assert pair["mean"] == pytest.approx(-0.4, abs=0.1)
    assert np.mean(found["by_seed"]["good"]) == pytest.approx(0.8, abs=0.1)
