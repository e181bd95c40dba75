"""What every scorer keeps to: one struct per document, of the declared type, whatever is in the text and the batch."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy_chat import build_chat_model

import scorers
from scorers import Scorer
from transforms.batch import Batch

TEXTS = [
    "A plain sentence that ends. And another one, with more words in it.\nA second line.",
    "x",
    "no white space at all" * 3,
    " ",
    "",
    "\n\n\n",
    "🎉🚀💾" * 50,
    "שלום עולם، مرحبا بالعالم. ",
    "same line\n" * 200,
    "a\u2028b\x85c\x1cd",
    "\ufffd\ufffd",
    "日本語の文章です。" * 20,
    "x" * 100_000,
    "<|endoftext|> __label__good </s>",
    "e\u0301 \u200b ﬁ",
    "\t".join("tabs"),
]


@pytest.fixture(scope="module", params=scorers.names())
def scorer(
    request: pytest.FixtureRequest, toy_tokenizer: Path, toy_fasttext: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scorer:
    """Each scorer there is; those that need a model or other files get them made on the spot."""
    items = tmp_path_factory.mktemp("items") / "items.jsonl"
    items.write_text('{"id": "x", "text": "A plain sentence that ends. And another one, with more words in it."}')
    models: dict[str, dict[str, Any]] = {"tokens": {"tokenizer": toy_tokenizer}, "fasttext": {"model": toy_fasttext}}
    models["decontaminate"] = {"items": items}
    for name in ("got_d", "dp4tl", "influence", "paser"):
        models[name] = {"model": request.getfixturevalue(f"toy_{name}")}
    causal = {"model": request.getfixturevalue("toy_causal"), "window": 256, "stride": 192}
    models["divergence"] = causal | {"damaged": request.getfixturevalue("toy_damaged")}
    models |= {"perplexity": causal, "salt": causal, "eu_plane": causal | {"tokens": True}}
    chat = build_chat_model(tmp_path_factory.mktemp("chat"))
    (chat / "prompts.yaml").write_text("{prompts: {score_only: '{text}'}, most_tokens: 30}")
    models["dataman"] = {"engine": {"model": chat}, "mode": "score_only", "guided": True}
    classifier = {"model": request.getfixturevalue("toy_classifier"), "label": 1}
    (items.parent / "terms.txt").write_text("sentence\nwords\t0.5\nx\n日本語\t2\n")
    models["classifier"] = classifier
    models["safety"] = classifier | {"terms": items.parent, "boundaries": "substring", "threshold": 0.5}
    made = scorers.make(request.param, models.get(request.param))
    made.setup()
    return made


def batch_of(texts: list[str], offset: int = 0) -> Batch:
    records = pa.record_batch({"id": [str(i) for i in range(len(texts))], "text": pa.array(texts, pa.large_string())})
    return Batch(records.slice(offset))


def test_one_struct_per_document_in_order(scorer: Scorer) -> None:
    found = scorer.score(batch_of(TEXTS))
    found.validate(full=True)
    assert found.type == scorer.fields() and len(found) == len(TEXTS) and found.null_count == 0
    alone = [scorer.score(batch_of([text])).to_pylist()[0] for text in TEXTS]
    assert repr(found.to_pylist()) == repr(alone), "a document's scores do not depend on its neighbours"


@pytest.mark.parametrize("offset", [1, 7, len(TEXTS) - 1, len(TEXTS)])
def test_slices_score_as_the_whole(scorer: Scorer, offset: int) -> None:
    whole = scorer.score(batch_of(TEXTS)).to_pylist()
    found = scorer.score(batch_of(TEXTS, offset))
    assert found.type == scorer.fields() and repr(found.to_pylist()) == repr(whole[offset:])


def test_an_empty_batch_gives_an_empty_struct(scorer: Scorer) -> None:
    found = scorer.score(batch_of([]))
    assert found.type == scorer.fields() and len(found) == 0


@settings(max_examples=25)
@given(texts=st.lists(st.text(max_size=200), max_size=6))
def test_no_text_is_an_exception(scorer: Scorer, texts: list[str]) -> None:
    found = scorer.score(batch_of(texts))
    assert len(found) == len(texts) and found.type == scorer.fields()


@pytest.mark.parametrize("character", ["a", "0", " ", "\n", ".", "@", "-", "(", "<", "{", "'", "é", "漢", "🎉"])
def test_a_megabyte_of_one_character_takes_linear_time(scorer: Scorer, character: str) -> None:
    """What takes the square of the length would not come back; models, whose cost per character is known, have less."""
    size = 20_000 if scorer.package == "torch" else 1_000_000
    found = scorer.score(batch_of([character * (size // len(character.encode()))]))
    assert len(found) == 1 and found.type == scorer.fields()


def test_reason_is_null_where_passed(scorer: Scorer) -> None:
    names = [field.name for field in scorer.fields()]
    if "passed" in names:
        for row in scorer.score(batch_of(TEXTS)).to_pylist():
            assert (row["reason"] is None) == row["passed"]
    else:
        assert "reason" not in names


def test_it_travels_to_workers(scorer: Scorer) -> None:
    scorer.score(batch_of(TEXTS))
    assert scorer.__getstate__()["__dict__"].keys() == type(scorer).model_fields.keys()
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer and len(pickle.dumps(scorer)) < 5000, "models stay behind"
    assert repr(copy.score(batch_of(TEXTS)).to_pylist()) == repr(scorer.score(batch_of(TEXTS)).to_pylist())


def test_it_is_named_as_its_module_and_refuses_unknown_parameters(scorer: Scorer) -> None:
    assert type(scorer).name == type(scorer).__module__.removeprefix("scorers.")
    assert scorers.find(scorer.name) is type(scorer) and type(scorer).__doc__
    given: dict[str, Any] = {**scorer.model_dump(), "no_such_parameter": 1}
    with pytest.raises(ValidationError, match="no_such_parameter"):
        scorers.make(scorer.name, given)
    with pytest.raises(ValidationError, match="frozen"):
        scorer.name_of_nothing = 1  # type: ignore[attr-defined]


def test_struct_names_can_be_written_in_sql(scorer: Scorer) -> None:
    for field in scorer.fields():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)


def test_unknown_scorers() -> None:
    with pytest.raises(LookupError, match="no scorer named 'finweb'; did you mean 'fineweb'"):
        scorers.find("finweb")
    with pytest.raises(LookupError, match="there are c4, "):
        scorers.make("zzzzzz")
    with pytest.raises(LookupError):
        scorers.find("_rules")
