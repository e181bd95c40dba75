"""Prompts are tokenised as transformers does it, except that contents of messages write no special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chat import END, TEMPLATE, TURN, build_chat_model

from transforms.generation.engine import Request
from transforms.generation.prompts import Prompts
from transforms.model_folder import CAUSAL, check_model_folder


def load(folder: Path) -> Prompts:
    return Prompts(check_model_folder(folder, CAUSAL))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return load(build_chat_model(tmp_path_factory.mktemp("chat")))


def talk(*contents: str) -> Request:
    roles = ["system", "user", "assistant", "user"]
    return Request(key="k", messages=tuple(zip(roles, contents, strict=False)))


PIECES = st.sampled_from(
    [TURN, END, "<|begin|>", "<|", "end|>", "\ufdd0", "\ufdd13c\ufdd1", " ", "\n", "fox", "é", "🦊"]
)


@settings(max_examples=200)
@given(st.lists(st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=20), min_size=1, max_size=4))
def test_only_the_template_writes_special_tokens_and_no_text_is_lost(prompts: Prompts, contents: list[str]) -> None:
    (ids,) = prompts.tokens([talk(*contents)])
    assert ids.count(prompts.tokenizer.token_to_id(TURN)) == len(contents) + 1
    assert ids.count(prompts.tokenizer.token_to_id(END)) == len(contents)
    assert prompts.tokenizer.token_to_id("<|begin|>") not in ids
    messages = [{"role": role, "content": content} for role, content in talk(*contents).messages]
    rendered = prompts.template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not any("\ud800" <= c <= "\udfff" for content in contents for c in content):
        assert prompts.tokenizer.decode(ids, skip_special_tokens=False) == rendered
    if not any(mark in content for content in contents for mark in (TURN, END, "<|begin|>", "\ufdd0", "\ufdd1")):
        assert ids == prompts.template(rendered, add_special_tokens=False).input_ids


def test_the_first_token_is_put_before_prompts_once(prompts: Prompts) -> None:
    begin = prompts.tokenizer.token_to_id("<|begin|>")
    plain, begun, empty = prompts.tokens([Request("a", "the fox"), Request("b", "<|begin|>the fox"), Request("c", "")])
    assert plain == begun == [begin, *prompts.text_tokens("the fox")]
    assert empty == [begin]
    marks, surrogate = prompts.tokens([Request("d", "\ufdd0"), Request("e", "\ud800")])
    assert prompts.tokenizer.decode(marks) == "\ufdd0" and prompts.tokenizer.decode(surrogate) == "\ufffd"


def test_without_a_template_messages_are_refused_and_prompts_are_not(tmp_path: Path) -> None:
    bare = load(build_chat_model(tmp_path, template=None))
    assert bare.tokens([Request("a", "the fox")])
    with pytest.raises(ValueError, match="has no chat template"):
        bare.tokens([talk("be brief")])


def test_a_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = build_chat_model(tmp_path, template=None)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (ids,) = load(folder).tokens([talk("be brief")])
    assert load(folder).tokenizer.decode(ids, skip_special_tokens=False).startswith("<|turn|>system\nbe brief<|end|>")


def test_a_template_that_writes_the_date_writes_the_same_on_every_day(tmp_path: Path) -> None:
    dated = load(build_chat_model(tmp_path, template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE))
    assert dated.tokenizer.decode(dated.tokens([talk("a")])[0]).startswith("26 Jul 2024")


def test_a_template_that_refuses_names_the_request(tmp_path: Path) -> None:
    strict = load(build_chat_model(tmp_path, template="{{ raise_exception('no system turns') }}"))
    with pytest.raises(ValueError, match="fails on 'k': no system turns"):
        strict.tokens([talk("a")])
