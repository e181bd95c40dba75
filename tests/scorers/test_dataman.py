"""The rater: what it asks, what it makes of answers, and what it says where there is none."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer
from toy_chat import build_chat_model
from toy_server import Status, ToyServer

import transforms.generation.openai as openai
from scorers.dataman import DataMan
from transforms.batch import Batch
from transforms.ratings import DOMAINS, PROMPTS, RATINGS

pytest.importorskip("httpx")


def batch_of(texts: list[str]) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def reply(prompt: str) -> tuple[str, str]:
    """A rater that reads its answer in the text: `C 3` is of the domain C and has 3 throughout, but for the first."""
    letter, digit = re.findall(r"^(?:Text: )?([A-Z]) (\d)", prompt, re.M)[0]
    if "14 criteria" in prompt:
        scores = [f"[{k}] {name}: {digit}/5" for k, name in enumerate(RATINGS, 1)]
        return "\n".join(["I think so.", *scores, f"Domain: [{letter}]"]), "stop"
    if "as a whole" in prompt:
        return digit, "stop"
    if "Which domain" in prompt:
        return letter, "stop"
    return "\n".join([letter, "5", *[digit] * 13]), "stop"


@pytest.fixture
def server() -> Iterator[ToyServer]:
    with ToyServer(reply=reply) as running:
        yield running


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def rater(server: ToyServer, toy_tokenizer: Path) -> Any:
    def made(**parameters: Any) -> DataMan:
        engine = {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1}
        return DataMan(**{"engine": engine, "tokenizer": toy_tokenizer, **parameters})

    return made


def test_ratings_and_domain_are_those_of_the_answers(server: ToyServer, rater: Any) -> None:
    found = rater().score(batch_of(["C 3 a law", "H 1 some code", "O 5 other"])).to_pylist()
    for row, domain, digit in zip(found, ("Law", "Coding", "Other"), (3, 1, 5), strict=True):
        assert [row[name] for name in RATINGS] == [5, *[digit] * 13]
        assert (row["domain"], row["status"], row["truncated"]) == (domain, "ok", False) and row["tokens"] > 10
    asked = {seen.prompt: seen.body for seen in server.seen}
    prompt = PROMPTS.prompts["all_rating"].replace("{text}", "C 3 a law")
    assert asked[prompt]["messages"] == [{"role": "user", "content": prompt}]
    assert (asked[prompt]["temperature"], asked[prompt]["max_tokens"]) == (0, 32)
    assert "structured_outputs" not in asked[prompt]


@pytest.mark.parametrize(
    ("mode", "rated", "domain", "most", "form"),
    [
        ("all_rating", RATINGS, True, 32, {"regex": r"[A-O]\n" + r"\n".join(["[1-5]"] * 14)}),
        ("score_only", RATINGS[-1:], False, 4, {"choice": list("12345")}),
        ("detprompt_score_only", RATINGS[-1:], False, 4, {"choice": list("12345")}),
        ("domain_only", (), True, 4, {"choice": list(DOMAINS)}),
        ("detprompt_domain_only", (), True, 4, {"choice": list(DOMAINS)}),
        ("step_by_step", RATINGS, True, 4096, None),
    ],
)
def test_what_is_not_asked_for_is_null(
    server: ToyServer, rater: Any, mode: str, rated: tuple[str, ...], domain: bool, most: int, form: Any
) -> None:
    scorer = rater(mode=mode, guided=form is not None)
    (row,) = scorer.score(batch_of(["C 4"])).to_pylist()
    assert row["status"] == "ok" and {name for name in RATINGS if row[name] is not None} == {*rated}
    assert row["overall_score"] == (4 if rated else None) and row["domain"] == ("Law" if domain else None)
    assert server.seen[0].body["max_tokens"] == most and server.seen[0].body.get("structured_outputs") == form


def test_what_is_no_rating_says_why(server: ToyServer, rater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE", 0.01)
    texts = ["C 3", "C 9", "Z 3", "D 4", '"..."![](a.png)\n', "E 5"]
    prompts = [PROMPTS.prompts["all_rating"].replace("{text}", text) for text in texts]
    server.script = {prompts[3]: [Status(400)], prompts[5]: [Status(503)]}
    found = rater().score(batch_of(texts)).to_pylist()
    assert [row["status"] for row in found] == [
        "ok", "no digit from 1 to 5", "no letter of a domain", "HTTP 400", "nothing to rate", "HTTP 503"
    ]  # fmt: skip
    for row in found[1:]:
        assert row["domain"] is None and all(row[name] is None for name in RATINGS)
    assert len(server.seen) == 5, "about nothing nobody is asked"
    assert [row["tokens"] is None for row in found] == [False, False, False, True, True, True]


def test_the_model_is_shown_the_beginning_and_the_end(server: ToyServer, rater: Any, toy_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    long = "C 3 " + "the old captain carried seven lamps. " * 200 + "The end."
    batch = batch_of([long, "  D 2 short \n"])
    found = rater(most_tokens=40).score(batch).to_pylist()
    assert [row["truncated"] for row in found] == [True, False] and batch.text.to_pylist()[0] == long
    asked = {text.partition("Text: ")[2].partition("\nDomain:")[0] for text in (seen.prompt for seen in server.seen)}
    (shown,) = asked - {"D 2 short"}
    head, tail = shown.split("...")
    assert long.startswith(head) and long.endswith(tail) and tail.endswith("lamps. The end.")
    assert 35 < len(tokenizer.encode(head).ids) + len(tokenizer.encode(tail).ids) <= 40
    assert rater(most_characters=1000).score(batch).field("truncated").to_pylist() == [True, False]
    assert max(len(seen.prompt) for seen in server.seen[2:]) < 1000 + len(PROMPTS.prompts["all_rating"])


def test_equal_texts_are_asked_about_once(server: ToyServer, rater: Any, tmp_path: Path) -> None:
    scorer = rater(cache=tmp_path / "answers.sqlite")
    first = scorer.score(batch_of(["C 3", "D 4", "C 3", " C 3\n"]))
    assert len(server.seen) == 2 and first.field("accuracy").to_pylist() == [5] * 4
    again = rater(cache=tmp_path / "answers.sqlite").score(batch_of(["D 4", "C 3", "E 1"]))
    assert len(server.seen) == 3 and again.field("overall_score").to_pylist() == [4, 3, 1]


def test_choices_of_the_model_in_this_process(chat: Path) -> None:
    """A model with random weights can say nothing but what it may choose, in whatever company it is asked."""
    texts = ["the quick brown fox", "pack my box", "yes or no", "five dozen jugs of something", "perhaps " * 300]
    for mode, values in (("score_only", range(1, 6)), ("domain_only", DOMAINS.values())):
        scorer = DataMan(engine={"model": chat}, mode=mode, guided=True, most_tokens=60)
        found = scorer.score(batch_of(texts))
        said = found.field("overall_score" if mode == "score_only" else "domain").to_pylist()
        assert found.field("status").to_pylist() == ["ok"] * 5 and {*said} <= {*values}
        copy = pickle.loads(pickle.dumps(scorer))
        assert [copy.score(batch_of([text])).to_pylist()[0] for text in texts] == found.to_pylist()
    free = DataMan(engine={"model": chat}, most_tokens=40).score(batch_of(texts))
    assert free.field("status").to_pylist() == ["prompt too long"] * 5, "of 256 tokens the prompt takes more"


def test_a_model_folder_says_how_it_wants_to_be_asked(chat: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text("prompts: {score_only: 'Rate: {text}'}\nmost_tokens: 8")
    for file in chat.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scorer = DataMan(engine={"model": tmp_path}, mode="score_only")
    assert scorer.shown(["a b c d e f g h i j k l"])[1].tolist() == [True]
    assert scorer.model_copy(update={"most_tokens": 50}).shown(["a b c d e f g h i j k l"])[1].tolist() == [False]
    (row,) = scorer.score(batch_of(["yes or no"])).to_pylist()
    assert row["tokens"] < 40
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"system": "You rate.", "prompts": {"score_only": "Say how good it is: {text}"}}))
    (longer,) = (
        DataMan(engine={"model": tmp_path}, mode="score_only", prompts=own).score(batch_of(["yes or no"])).to_pylist()
    )
    assert longer["tokens"] > row["tokens"]
    with pytest.raises(ValidationError, match="no prompt for the mode all_rating; there is one for score_only"):
        DataMan(engine={"model": tmp_path})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "all_ratings"}, "mode"),
        ({"prompts": "nowhere.yaml"}, r"nowhere\.yaml cannot be read"),
        ({"tokenizer": None}, "tokenizer: must be given"),
        ({"mode": "step_by_step", "guided": True}, "reasons first"),
        ({"most_tokens": 1}, "most_tokens"),
        ({"engine": {"model": "models/nowhere"}}, "no model folder at models/nowhere"),
    ],
)
def test_mistakes_are_found_before_any_work(rater: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rater(**given)


def test_an_engine_that_cannot_guide_is_refused(chat: Path) -> None:
    with pytest.raises(ValidationError, match=r"guided\.regex: the engine transformers knows choice alone"):
        DataMan(engine={"model": chat}, guided=True)
