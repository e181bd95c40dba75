"""The mixtures of docs/mixtures.md, at a thousandth of their size, through a run, the trainer, SQL and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.recipe import parse
from pipelines.report import write_report
from pipelines.run import run
from sql.views import query
from trainers.data import Batches
from trainers.mixture import open_mixture
from trainers.phases import Phase

pytest.importorskip("torch")
PAGE = Path(__file__).parents[2] / "docs" / "mixtures.md"
SIZES = {"web": 150, "code": 40, "special": 150, "general": 60, "old": 40, "new": 150, "domain": 120, "books": 40}
MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def examples() -> dict[str, Any]:
    """The mixtures in the page, with tokens divided by 1,000."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    mixtures = {name: spec for block in blocks for name, spec in yaml.safe_load(block)["mix"].items()}
    for spec in mixtures.values():
        for part in [spec, *spec.get("phases", [])]:
            if "tokens" in part:
                part["tokens"] = round(float(str(part["tokens"]).replace("M", "e6")) / 1000)
    return mixtures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for source, documents in SIZES.items():
        words = ["word " * int(n) + f"{source} {i}" for i, n in enumerate(generator.integers(5, 60, documents))]
        (folder / source).mkdir()
        for k in range(2):
            ids = [f"{source} {i}" for i in range(k, documents, 2)]
            pq.write_table(pa.table({"text": words[k::2], "id": ids}), folder / source / f"{k}.parquet")
    config = {"model": MODEL, "row_length": 32, "batch_tokens": 512, "tokens": 5000, "threads": 1}
    recipe = {
        "name": "examples",
        "sources": {source: f"{folder}/{source}/*.parquet" for source in SIZES},
        "tokenizer": str(toy_tokenizer),
        "mix": examples(),
        "train": {"mixtures": ["upsampled"], "seeds": [0], "config": config},
    }
    run(parse(recipe), f"{folder}/run")
    return folder / "run"


@pytest.mark.parametrize("name", sorted(examples()))
def test_the_trainer_reads_what_the_page_says(finished: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((finished / "mixtures" / name / "manifest.json").read_text())
    corpus = open_mixture(finished / "mixtures" / name, tmp_path)
    for phase, wanted in zip(corpus.phases, manifest["phases"], strict=True):
        assert read(corpus.length, corpus.source, phase, len(corpus.sources)) == [
            wanted["sources"].get(source, {"asked": 0})["asked"] for source in corpus.sources
        ]


def read(length: np.ndarray, source: np.ndarray, phase: Phase, sources: int) -> list[int]:
    tokens = phase.copies * length
    tokens[phase.cut] -= length[phase.cut] - phase.kept
    return np.bincount(source, tokens, minlength=sources).astype(int).tolist()


def test_rehearsal_of_two_stage_tuning(finished: Path, tmp_path: Path) -> None:
    by_tokens = json.loads((finished / "mixtures" / "dmt" / "manifest.json").read_text())
    first, second = by_tokens["phases"]
    assert first["sources"]["special"]["asked"] == first["tokens"] == 3000
    assert second["sources"]["special"]["asked"] == 3000 // 256 + 1 == second["tokens"] - 1000, "of 1,012 tokens"
    corpus = open_mixture(finished / "mixtures" / "dmt_documents", tmp_path)
    before, after = (phase.copies for phase in corpus.phases)
    special = np.array([corpus.sources[s] == "special" for s in corpus.source])
    assert before.tolist() == special.astype(int).tolist(), "every special document once, then every general one"
    low = corpus.documents["draw"].to_numpy() < 2**64 // 256
    assert after.tolist() == (~special | low).astype(int).tolist()


def test_a_domain_is_drawn_anew_in_each_phase_while_there_is_more(finished: Path, tmp_path: Path) -> None:
    corpus = open_mixture(finished / "mixtures" / "stable", tmp_path)
    domain = corpus.source == corpus.sources.index("domain")
    assert len(corpus.phases) == 4 and np.ptp(corpus.copies[domain]) <= 1
    once = corpus.phases[0].copies[domain] > 0
    assert not (once & (corpus.phases[1].copies[domain] > 0)).any()


def test_asked_and_realised_are_shown(finished: Path) -> None:
    training = finished / "training" / "upsampled" / "seed0"
    report = json.loads((training / "data.json").read_text())
    assert [phase["tokens"] for phase in report["phases"]] == [4000, 1000] and report["passes"] == 1
    rows = query(str(finished), "FROM phases WHERE mixture = 'upsampled' ORDER BY phase, source").to_pylist()
    assert [(r["phase"], r["source"], r["asked"], r["realised"]) for r in rows] == [
        (0, "code", 400, 400),
        (0, "web", 3600, 3600),
        (1, "code", 500, 500),
        (1, "web", 500, 500),
    ]
    whole = query(str(finished), "FROM mixtures WHERE mixture = 'upsampled' ORDER BY source").to_pylist()
    assert [(r["asked"], r["realised"]) for r in whole] == [(900, 900), (4100, 4100)]
    untrained = query(str(finished), "SELECT DISTINCT realised FROM mixtures WHERE mixture = 'dmt'").to_pylist()
    assert untrained == [{"realised": None}]
    result = json.loads((training / "result.json").read_text())
    batches = Batches(open_mixture(finished / "mixtures" / "upsampled", training.parent), 32, 16, seed=0)
    told = batches.realised(5000)
    read = {s: sum(phase["sources"][s]["tokens"] for phase in told) for s in ("code", "web")}
    assert result["tokens_by_source"] == read == {"code": 900, "web": 4100}
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["mixtures"]["upsampled"]) >= {"epochs", "effective_tokens", "marginal"}
    page = Path(write_report(str(finished))).read_text()
    assert "Phases of a pass" in page and "worth in new tokens" in page and "read by the trainer" in page
