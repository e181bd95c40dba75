"""The engine for servers, against a server over real sockets that refuses, hangs, drips and breaks off."""

from __future__ import annotations

import email.utils
import logging
import pickle
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from toy_server import CUT, HANG, Body, Status, ToyServer

import transforms.generation.openai as openai
from transforms.generation.engine import Answer, EngineUnavailable, Guided, Request, Sampling, failures

pytest.importorskip("httpx")
SAMPLING = Sampling(max_tokens=50)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE", 0.01)


def engine(server: ToyServer, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, model="toy", **{"timeout": 60.0, "concurrency": 8, **settings})


def prompts(*texts: str) -> list[Request]:
    return [Request(key=text, prompt=text) for text in texts]


def test_answers_come_in_order_and_at_most_so_many_are_asked_at_once() -> None:
    with ToyServer(seconds=0.01) as server:
        asked = prompts(*(f"{k} words in a row" for k in range(60)))
        answers = engine(server, concurrency=4).generate(asked, SAMPLING)
        assert [a.text for a in answers] == [f"row a in words {k}" for k in range(60)]
        assert answers[0] == Answer("row a in words 0", "stop", 5, 5)
        assert 1 < server.most_at_once <= 4
        assert len(server.seen) == 60


def test_what_is_sent_of_prompts_messages_and_sampling() -> None:
    with ToyServer() as server:
        sampling = Sampling(max_tokens=2, temperature=0.5, top_p=0.9, top_k=7, seed=3, stop=("x",))
        talk = Request(key="b", messages=(("system", "be brief"), ("user", "three little words")))
        answers = engine(server).generate([Request(key="a", prompt="one two three"), talk], sampling)
        assert [a.text for a in answers] == ["three two", "words little"]
        assert {a.finish_reason for a in answers} == {"length"}
        plain, chat = sorted(server.seen, key=lambda seen: len(seen.path))
        shared = {"model": "toy", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop": ["x"]}
        assert plain.path == "/v1/completions" and chat.path == "/v1/chat/completions"
        assert plain.body == shared | {"prompt": "one two three", "seed": sampling.request_seed("a")}
        assert chat.body["messages"][0] == {"role": "system", "content": "be brief"}
        assert chat.body["seed"] == sampling.request_seed("b") != plain.body["seed"]
        engine(server).generate(prompts("greedy"), Sampling(max_tokens=1, guided=Guided(regex="[a-z]+")))
        assert server.seen[-1].body == {
            "model": "toy", "max_tokens": 1, "temperature": 0.0, "prompt": "greedy",
            "structured_outputs": {"regex": "[a-z]+"},
        }  # fmt: skip


@pytest.mark.parametrize(
    "action",
    [Status(429), Status(500), Status(503), Status(408), HANG, CUT, Body(b"{]"), Body(b'{"choices": []}'), Body(b"[1]"),
     Body(b'{"choices": [{"text": 3}]}'), Body(b"[" * 100_000), Body(b"", length=10)],
    ids=str,
)  # fmt: skip
def test_what_may_pass_is_tried_again(action: Any) -> None:
    with ToyServer({"twice": [action, action]}) as server:
        answers = engine(server, timeout=2.0 if action == HANG else 60.0).generate(
            prompts("twice", "at once"), SAMPLING
        )
        assert [a.text for a in answers] == ["twice", "once at"]
        assert len(server.times("twice")) == 3 and len(server.times("at once")) == 1


@pytest.mark.parametrize(
    ("action", "reason"),
    [(Status(500, said="oops"), "HTTP 500"), (HANG, "timed out"), (CUT, "connection broken"),
     (Body(b"no"), "broken response")],
    ids=str,
)  # fmt: skip
def test_a_request_that_fails_to_the_last_try_comes_back_with_the_reason(action: Any, reason: str) -> None:
    with ToyServer({"never": [action] * 9}) as server:
        answers = engine(server, timeout=2.0 if action == HANG else 60.0, tries=3).generate(
            prompts("a b", "never", "c d"), SAMPLING
        )
        assert [a.text for a in answers] == ["b a", "", "d c"]
        assert answers[1].finish_reason == "error" and failures(answers) == {reason: 1}
        assert len(server.times("never")) == 3


def test_a_response_that_drips_ends_with_the_time_of_a_try() -> None:
    slow = Body(b" " * 10_000, drip=0.02)  # every byte comes in time, the whole would take minutes
    with ToyServer({"drip": [slow]}) as server:
        begun = time.monotonic()
        (answer,) = engine(server, timeout=2.0).generate(prompts("drip"), SAMPLING)
        assert answer.text == "drip" and time.monotonic() - begun < 30


def test_requests_that_no_try_can_help_are_sent_once() -> None:
    with ToyServer(
        {"long": [Status(400, said="too many tokens")], "dumb": [Body(b'{"choices": [{"text": null}]}')]}
    ) as server:
        answers = engine(server).generate(prompts("long", "dumb"), SAMPLING)
        assert failures(answers) == {"HTTP 400": 1, "no content": 1}
        assert "too many tokens" in str(answers[0].error)
        assert len(server.seen) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_all_threads_leave_a_server_alone_for_as_long_as_it_asks(as_date: bool) -> None:
    told = email.utils.formatdate(time.time() + 3, usegmt=True) if as_date else "1.5"
    with ToyServer({"first": [Status(429, retry_after=told)]}, seconds=0.05) as server:
        stream = engine(server, concurrency=2).stream(prompts("first", *map(str, range(30))), SAMPLING)
        assert sum(len(finished) for finished in stream) == 31
        asked = sorted(seen.when for seen in server.seen)
        quiet = max(b - a for a, b in pairwise(asked))
        assert quiet >= (1.0 if as_date else 1.4)  # a date is in whole seconds
        assert len(server.times("first")) == 2


def test_a_server_that_asks_for_too_much_patience_ends_the_run() -> None:
    with (
        ToyServer({"x": [Status(429, retry_after="7200")]}) as server,
        pytest.raises(EngineUnavailable, match="7200 s"),
    ):
        engine(server).generate(prompts("x"), SAMPLING)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_concerns_every_request_ends_the_run(code: int) -> None:
    expected = pytest.raises(EngineUnavailable, match=f"{code} for 'toy'.*no such thing")
    with ToyServer({"x": [Status(code, said="no such thing")]}) as server, expected:
        engine(server).generate(prompts("x"), SAMPLING)


def test_no_server_is_an_error_and_no_million_of_failed_requests() -> None:
    with ToyServer() as server:
        gone = engine(server, tries=2)
    with pytest.raises(EngineUnavailable, match="no connection"):
        gone.generate(prompts(*map(str, range(100))), SAMPLING)


def test_the_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-very-secret"
    monkeypatch.setenv("TOY_KEY", secret)
    caplog.set_level(logging.DEBUG)
    with ToyServer({"bad": [Status(400, said=f"is {secret} yours?")]}) as server:
        made = engine(server, key_variable="TOY_KEY")
        answers = made.generate(prompts("good", "bad"), SAMPLING)
        assert {seen.headers["Authorization"] for seen in server.seen} == {f"Bearer {secret}"}
        kept = [*map(str, answers), made.model_dump_json(), repr(made), made.identity, caplog.text]
        assert not any(secret in text for text in kept)
        assert secret.encode() not in pickle.dumps(made)
    monkeypatch.setenv("TOY_KEY", "")
    with pytest.raises(ValueError, match="TOY_KEY holds no key"):
        made.check(SAMPLING)


def test_redirects_are_not_followed() -> None:
    with ToyServer({"x": [Status(307)]}) as server:
        assert failures(engine(server).generate(prompts("x"), SAMPLING)) == {"HTTP 307": 1}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://me:word@host/v1", "http://host/v1?key=1"])
def test_addresses_that_are_none_or_hold_secrets_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="expected an address"):
        openai.OpenAI(base_url=url, model="toy")


def test_a_choice_that_the_server_did_not_keep_to_is_a_failure() -> None:
    with ToyServer() as server:
        sampling = Sampling(max_tokens=9, guided=Guided(choice=("yes", "no")))
        answers = engine(server).generate(prompts("yes", "perhaps"), sampling)
        assert answers[0].text == "yes" and failures(answers) == {"not one of the choices": 1}


def test_lone_surrogates_do_not_get_through() -> None:
    with ToyServer({"x": [Body(b'{"choices": [{"text": "a\\ud800b\\u0000", "finish_reason": "stop"}]}')]}) as server:
        (answer,) = engine(server).generate(prompts("x"), SAMPLING)
        assert answer.text == "a?b\0"


def test_a_stream_that_is_dropped_sends_nothing_more() -> None:
    with ToyServer(seconds=0.05) as server:
        stream: Iterator[Any] = engine(server, concurrency=2).stream(prompts(*map(str, range(200))), SAMPLING)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        time.sleep(0.5)
        assert len(server.seen) <= 6
