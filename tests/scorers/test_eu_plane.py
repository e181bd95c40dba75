"""Error and uncertainty: of texts and of completions, with series of tokens, and selected by SQL as by the function."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from pipelines.recipe import RecipeError, parse
from pipelines.run import run
from scorers.eu_plane import EuPlane
from scorers.perplexity import Perplexity
from transforms import quadrants
from transforms.batch import Batch

PAIRS = [("Name a lamp.", " the seven"), ("", "x"), (None, " mayor"), ("Count:", None), ("a " * 90, "b " * 40)]


def pairs_batch() -> Batch:
    prompts, completions = zip(*PAIRS, strict=True)
    columns = {"text": ["unused"] * len(PAIRS), "question": prompts, "answer": completions}
    return Batch(pa.record_batch(columns))


def test_means_over_the_completion_alone(toy_causal: Path) -> None:
    """Against transformers on prompt and completion together, with the prompt's tokens left out of the mean."""
    scorer = EuPlane(model=toy_causal, window=256, stride=128, prompt="question", completion="answer", tokens=True)
    assert scorer.needs == ("question", "answer")
    model = AutoModelForCausalLM.from_pretrained(toy_causal, attn_implementation="eager").eval()
    tokenizer, begin = scorer._loaded.tokenizer, scorer._loaded.begin
    assert begin is not None
    for (prompt, completion), row in zip(PAIRS, scorer.score(pairs_batch()).to_pylist(), strict=True):
        before, after = (tokenizer.encode(t or "", add_special_tokens=False).ids for t in (prompt, completion))
        assert row["scored"] == len(after) == len(row["losses"]) == len(row["entropies"])
        if not after:
            assert row["error"] is row["uncertainty"] is None
            continue
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[begin, *before, *after]])).logits[0, len(before) : -1]
        log_p = logits.log_softmax(-1)
        losses, entropies = -log_p[range(len(after)), after], -(log_p.exp() * log_p).sum(-1)
        np.testing.assert_allclose(row["losses"], losses, atol=1e-4)
        np.testing.assert_allclose(row["entropies"], entropies, atol=1e-4)
        assert row["error"] == pytest.approx(float(losses.mean()), abs=1e-4)
        assert row["uncertainty"] == pytest.approx(float(entropies.mean()), abs=1e-4)


def test_of_texts_the_error_is_the_loss(toy_causal: Path, toy_texts: dict[str, list[str]]) -> None:
    batch = Batch(pa.record_batch({"text": [*toy_texts["books"][:20], ""]}))
    size = {"window": 128, "stride": 64}
    found = EuPlane(model=toy_causal, **size).score(batch)
    perplexity = Perplexity(model=toy_causal, **size).score(batch)
    assert [f.name for f in found.type] == ["error", "uncertainty", "scored"]
    assert found.field("error").equals(perplexity.field("loss")) and found.field("scored").equals(
        perplexity.field("tokens")
    )
    entropy = np.array(found.field("uncertainty").to_pylist()[:-1])
    assert (entropy > 0).all() and (entropy < math.log(400)).all()


def test_series_are_tied_to_their_tokenizer(toy_causal: Path) -> None:
    digest = xxhash.xxh3_128_hexdigest((toy_causal / "tokenizer.json").read_bytes())
    fields = EuPlane(model=toy_causal, window=64, stride=32, tokens=True).fields()
    for name in ("losses", "entropies"):
        assert fields.field(name).metadata[b"tokenizer"] == digest.encode()
        assert fields.field(name).type == pa.list_(pa.float32())


def test_mistakes_in_naming_columns(toy_causal: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give both, or neither"):
        EuPlane(model=toy_causal, window=64, stride=32, prompt="question")
    pq.write_table(pa.table({"text": ["x"], "answer": ["y"]}), tmp_path / "a.parquet")
    model = {"model": str(toy_causal), "window": 128, "stride": 64, "prompt": "question", "completion": "answer"}
    given = {"name": "t", "sources": {"a": f"{tmp_path}/a.parquet"}, "score": {"eu_plane": model}}
    with pytest.raises(RecipeError, match="question"):
        run(parse(given), str(tmp_path / "run"), until="score")
    assert not (tmp_path / "run" / "scores").exists()


def test_a_column_that_one_shard_lacks_is_empty_there(toy_causal: Path) -> None:
    scorer = EuPlane(model=toy_causal, window=64, stride=32, prompt="question", completion="reply")
    assert scorer.score(pairs_batch()).field("scored").to_pylist() == [0] * len(PAIRS)


def scored_run(folder: Path, toy_causal: Path, texts: list[str], **changes: object) -> dict[str, Any]:
    """The ledger of a run of three shards scored by both scorers, in `folder/run`."""
    for shard in range(3):
        part = [f"{text} {shard}" for text in texts[shard::3]]
        (folder / "in").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": part, "id": [f"{shard}-{i}" for i in range(len(part))]}),
                       folder / "in" / f"{shard}.parquet")  # fmt: skip
    model = {"model": str(toy_causal), "window": 128, "stride": 64}
    score = {"eu_plane": model | {"tokens": True}, "perplexity": model}
    given = {"name": "t", "sources": {"a": f"{folder}/in/*.parquet"}, "score": score, **changes}
    ledger: dict[str, Any] = run(parse(given), str(folder / "run"), until="select")["ledger"]
    return ledger


def test_selected_by_sql_as_by_the_function(toy_causal: Path, toy_texts: dict[str, list[str]], tmp_path: Path) -> None:
    a = 0.27
    texts = [*toy_texts["books"][:40], *toy_texts["junk"][:40]]
    scored_run(tmp_path, toy_causal, texts, select={"corners": quadrants.condition(a)})
    out = tmp_path / "run"
    struct = pq.read_table(out / "scores" / "eu_plane").column("eu_plane").combine_chunks()
    error, uncertainty = (struct.field(name).to_numpy() for name in ("error", "uncertainty"))
    corner = quadrants.quadrants(error, uncertainty, a)
    kept = pq.read_table(out / "selection").column("selection").combine_chunks().field("keep").to_numpy(False)
    assert np.array_equal(kept, (corner == quadrants.MISTAKE) | (corner == quadrants.HESITANT)) and 0 < kept.sum() < 40


def test_scoring_goes_on_where_it_was_killed(toy_causal: Path, toy_texts: dict[str, list[str]], tmp_path: Path) -> None:
    """A run that lost some sidecars, and has a half-written one, computes those alone, and to the same bytes."""
    texts = toy_texts["books"][:30]
    scored_run(tmp_path, toy_causal, texts)
    sidecars = sorted((tmp_path / "run" / "scores").rglob("*.parquet"))
    assert len(sidecars) == 6
    before = {path: path.read_bytes() for path in sidecars}
    sidecars[0].unlink()
    sidecars[4].write_bytes(before[sidecars[4]][:200])
    kept = {path: path.stat().st_mtime_ns for i, path in enumerate(sidecars) if i not in (0, 4)}
    ledger = scored_run(tmp_path, toy_causal, texts)
    assert {path: path.read_bytes() for path in sidecars} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [ledger[f"scores:{name}"]["reused"] for name in ("eu_plane", "perplexity")] == [2, 2]


def test_scores_do_not_depend_on_the_cut_into_shards(
    toy_causal: Path, toy_texts: dict[str, list[str]], tmp_path: Path
) -> None:
    """Bit by bit, however documents are dealt to batches."""
    texts = [*toy_texts["books"][:30], *toy_texts["junk"][:30], "lamp " * 400]
    scorer = EuPlane(model=toy_causal, window=128, stride=64, tokens=True)
    whole = scorer.score(Batch(pa.record_batch({"text": texts}))).to_pylist()
    order = np.random.default_rng(0).permutation(len(texts))
    for part in np.array_split(order, 4):
        found = scorer.score(Batch(pa.record_batch({"text": [texts[i] for i in part]}))).to_pylist()
        assert json.dumps(found) == json.dumps([whole[i] for i in part])


def test_a_folder_that_a_fit_will_make_has_fields_already(toy_causal: Path, tmp_path: Path) -> None:
    """The plan of a recipe asks for fields before the model is there."""
    later = EuPlane.model_construct(model=tmp_path / "later", tokens=True)
    shutil.copytree(toy_causal, tmp_path / "later")
    assert later.fields() == EuPlane(model=tmp_path / "later", window=64, stride=32, tokens=True).fields()
