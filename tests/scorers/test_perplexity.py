"""Perplexity: fields follow from the tokens' losses, bad models are refused at construction, scoring resumes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from scorers import make
from scorers.perplexity import Perplexity
from transforms.batch import Batch

TEXTS = ["the mayor sold seven lamps", "日本語", "x", "", "🎉 lamp " * 90]


def batch(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def test_fields_follow_from_the_losses_of_the_tokens(toy_causal: Path) -> None:
    scorer = Perplexity(model=toy_causal, window=256, stride=128)
    model = AutoModelForCausalLM.from_pretrained(toy_causal, attn_implementation="eager").eval()
    for text, row in zip(TEXTS[:3], scorer.score(batch(TEXTS)).to_pylist(), strict=False):
        ids = scorer._loaded.tokenizer.encode(text, add_special_tokens=False).ids
        inputs = torch.tensor([[scorer._loaded.begin, *ids]])
        with torch.inference_mode():
            loss = float(model(input_ids=inputs, labels=inputs).loss)  # transformers' own mean over all but the first
        assert row["tokens"] == len(ids)
        assert row["loss"] == pytest.approx(loss, abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        total = row["loss"] * len(ids) / math.log(2)
        assert row["bits_per_byte"] == pytest.approx(total / len(text.encode()))
        assert row["bits_per_character"] == pytest.approx(total / len(text))


def test_documents_without_a_scored_token_have_nulls(toy_causal: Path, tmp_path: Path) -> None:
    scorer = Perplexity(model=toy_causal, window=64, stride=32)
    empty = dict.fromkeys(("loss", "perplexity", "bits_per_byte", "bits_per_character")) | {"tokens": 0}
    assert scorer.score(batch(TEXTS)).to_pylist()[3] == empty
    folder = Path(shutil.copytree(toy_causal, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": null}')
    found = Perplexity(model=folder, window=64, stride=32).score(batch(TEXTS)).to_pylist()
    assert found[2] == empty, "of one token, and no token begins texts"
    assert found[0]["tokens"] == scorer.score(batch(TEXTS)).to_pylist()[0]["tokens"] - 1


def test_perplexity_may_be_infinite(toy_causal: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_causal, tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data *= 10_000
    model.save_pretrained(folder)
    row = Perplexity(model=folder, window=64, stride=32).score(batch(TEXTS)).to_pylist()[0]
    assert row["perplexity"] == math.inf and math.isfinite(row["loss"]) and row["loss"] > 709


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stride": 64}, "stride 64 must be less than the window of 64 tokens"),
        ({"window": 257}, r"a window of 257 tokens; .* allows 256"),
        ({"window": 1}, "greater than or equal to 2"),
        ({"model": Path("nowhere")}, "no model folder at nowhere"),
    ],
)
def test_mistakes_are_found_at_construction(given: dict[str, Any], message: str, toy_causal: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        make("perplexity", {"model": toy_causal, "window": 64, "stride": 32} | given)


def test_a_damaged_model_ends_a_run_before_any_work(toy_causal: Path, tmp_path: Path) -> None:
    from pipelines.recipe import RecipeError, parse
    from pipelines.run import run

    folder = Path(shutil.copytree(toy_causal, tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shard = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), shard)
    score = {"perplexity": {"model": str(folder), "window": 64, "stride": 32}}
    recipe = parse({"name": "t", "sources": {"a": str(shard)}, "score": score})
    with pytest.raises(RecipeError, match=r"score.perplexity: .*its header promises"):
        run(recipe, str(tmp_path / "run"), until="score")
    assert not (tmp_path / "run" / "scores").exists()


def test_losses_of_a_model_that_was_replaced_are_computed_again(toy_causal: Path, tmp_path: Path) -> None:
    """In one process: the model held in memory is not taken for the new one."""
    folder = Path(shutil.copytree(toy_causal, tmp_path / "model"))
    first = Perplexity(model=folder, window=64, stride=32)
    before = first.score(batch(TEXTS)).to_pylist()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(folder)
    after = Perplexity(model=folder, window=64, stride=32).score(batch(TEXTS)).to_pylist()
    assert after[0]["loss"] == pytest.approx(math.log(400)) != before[0]["loss"]
    assert json.dumps(first.score(batch(TEXTS)).to_pylist()) == json.dumps(before)
