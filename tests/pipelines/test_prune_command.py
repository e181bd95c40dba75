"""`corpusmill prune` on the mixture of a run, and the mistakes it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from trainers.formats import Format
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, new_model, save_model

TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


def corpusmill(*arguments: str) -> tuple[int, Any, str]:
    """Exit code, last line as JSON if asked for, and all that was printed."""
    result = CliRunner().invoke(app, list(arguments))
    last = json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else None
    return result.exit_code, last, " ".join(result.output.split())


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Path:
    """Of 80 calls with the names that they chose from, made by the command line; a model stands beside the run."""
    folder = tmp_path_factory.mktemp("prune")
    texts = [f"the answer is get_{'user' if i % 2 else 'usage'}({i}) and no other one" for i in range(80)]
    tools = [["get_user", "get_usage", "stop"]] * 80
    (folder / "calls").mkdir()
    pq.write_table(
        pa.table({"id": [str(i) for i in range(80)], "text": texts, "tools": tools}), folder / "calls/a.parquet"
    )
    run = str(folder / "run")
    code, _, said = corpusmill("mix", f"{folder}/calls/*.parquet", "--run", run, "--tokenizer", str(toy_tokenizer))
    assert code == 0, said
    made = folder / "run" / "mixtures" / "mixture"
    corpus = open_mixture(made, folder / "cache")
    (folder / "model").mkdir()
    save_model(new_model(TINY, corpus, 2048, 0), corpus.tokenizer, folder / "model")
    return made


def test_key_tokens_weigh_more(mixture: Path, tmp_path: Path) -> None:
    code, card, said = corpusmill("prune", "key_tokens", str(mixture), "--set", "most=5", "--json")
    assert code == 0 and "to train with it" in said
    folder = Path(card["weights"])
    assert folder == mixture / "weights" / "key_tokens" and card["parameters"]["most"] == 5
    corpus = open_mixture(mixture, tmp_path, Format(weights=folder))
    assert corpus.weights is not None
    assert corpus.weights.max() == 5 and set(corpus.weights[1:].tolist()) == {1.0, 5.0}
    per_document = [(corpus.weights[a:b] == 5).sum() for a, b in zip(corpus.start, corpus.end, strict=True)]
    assert set(per_document) == {2}, "the first token, and the one at which user and usage go apart"


def test_pruning_by_a_model_and_once_only(mixture: Path) -> None:
    model = str(mixture.parents[2] / "model")
    command = ("prune", "q_tuning", str(mixture), "--set", f"model={model}", "--set", "samples=0.5", "--name", "half")
    code, card, said = corpusmill(*command, "--json")
    assert code == 0, said
    assert 0.2 < card["kept"] <= 0.6 and not card["reused"] and (mixture / "weights/half/weights.parquet").is_file()
    code, again, said = corpusmill(*command, "--json")
    assert code == 0 and again["reused"] and "(as it was)" in said and again["key"] == card["key"]
    assert sorted(p.name for p in mixture.glob(".tokens-*")) == [], "nothing is left lying about"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q_tunning", "MIXTURE"), "no method 'q_tunning'; did you mean 'q_tuning'"),
        (("q_tuning", "MIXTURE"), "--set model: must be given"),
        (("q_tuning", "MIXTURE", "--set", "model=nowhere"), "no model folder at nowhere"),
        (("key_tokens", "MIXTURE", "--set", "tols=x"), "--set tols: no such key"),
        (("key_tokens", "MIXTURE", "--set", "names=toolz"), "has no column 'toolz'"),
        (("adverse_turns", "MIXTURE", "--set", "errors=[failed, 'no such']"), "no column 'messages'"),
        (("adverse_turns", "MIXTURE", "--set", "errors=failed"), "--set errors: "),
        (("key_tokens", "MIXTURE", "--set", "format.weights=x"), "format.weights"),
        (("key_tokens", "MIXTURE", "--set", "format.kind=mesages"), "--set format.kind"),
        (("key_tokens", "MIXTURE", "--name", "../x"), "give the name of a folder"),
        (("key_tokens", "nowhere"), "nowhere is no mixture"),
    ],
)
def test_mistakes_are_named(mixture: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, said = corpusmill("prune", *(str(mixture) if a == "MIXTURE" else a for a in arguments))
    assert code == 2 and message in said, said
