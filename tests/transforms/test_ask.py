"""What steps that ask a language model have in common: the engine's parameters, the cache, lengths in tokens."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError
from toy_chat import build_chat_model
from toy_server import ToyServer

from pipelines import store
from transforms.generation.ask import Asks
from transforms.generation.engine import Request, Sampling


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat_model(tmp_path_factory.mktemp("chat"))


def asked(*prompts: str) -> list[Request]:
    return [Request(key=prompt, prompt=prompt) for prompt in prompts]


def test_answers_are_kept_between_processes_and_asked_for_once(tmp_path: Path) -> None:
    with ToyServer() as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "toy"}
        asks = Asks.model_validate({"engine": engine, "cache": tmp_path / "answers.sqlite"})
        assert asks.ask([], Sampling(max_tokens=9)) == []
        first = asks.ask(asked("one two", "three"), Sampling(max_tokens=9))
        other = pickle.loads(pickle.dumps(asks))  # the open cache stays behind
        assert other.ask(asked("three", "one two"), Sampling(max_tokens=9)) == first[::-1]
        assert [answer.text for answer in first] == ["two one", "three"] and len(server.seen) == 2
        Asks.model_validate({"engine": engine}).ask(asked("three"), Sampling(max_tokens=9))
        assert len(server.seen) == 3, "without a cache it is asked again"


def test_keys_hold_what_decides_an_answer_and_not_how_it_is_come_by(tmp_path: Path) -> None:
    model = build_chat_model(tmp_path / "model")

    def key(cache: str = "a.sqlite", **engine: object) -> str:
        asks = Asks.model_validate({"engine": {"model": str(model), **engine}, "cache": tmp_path / cache})
        return store.digest(store.content(asks))

    before = key()
    assert before == key("b.sqlite", engine="transformers", batch_tokens=64)
    build_chat_model(model, scale=0.3)  # other weights in the same folder
    assert key() != before


def test_lengths_are_those_of_the_model_or_of_the_tokenizer_that_is_given(chat: Path, toy_tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    texts = ["the quick brown fox", "", "<|end|> spelled out", "日本語 🙂"]
    for folder, asks in (
        (chat, Asks.model_validate({"engine": {"model": str(chat)}})),
        (toy_tokenizer, Asks.model_validate({"engine": {"model": str(chat)}, "tokenizer": toy_tokenizer})),
    ):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        assert asks.lengths(texts).tolist() == [len(tokenizer.encode(text).ids) for text in texts]
    assert asks.lengths([]).tolist() == []


def test_a_server_has_no_tokenizer_of_its_own() -> None:
    asks = Asks.model_validate({"engine": {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "x"}})
    with pytest.raises(ValueError, match=r"tokenizer: must be given, a folder with tokenizer.json"):
        _ = asks.counts_with
    with pytest.raises(ValueError, match=r"tokenizer: no tokenizer.json in gone"):
        _ = asks.model_copy(update={"tokenizer": Path("gone")}).counts_with


@pytest.mark.parametrize("engine", [{"engine": "vlm", "model": "x"}, "vllm", {"model": "gone"}, {"engine": "openai"}])
def test_an_engine_that_cannot_be_is_refused(engine: object) -> None:
    with pytest.raises(ValidationError):
        Asks.model_validate({"engine": engine})
