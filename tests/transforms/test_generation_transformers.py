"""The transformers engine: every answer equals decoding by hand, alone; draws follow the model's probabilities."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from toy_chat import build_chat_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from transforms.generation.engine import Answer, Guided, Request, Sampling, failures
from transforms.generation.transformers import Transformers

TEXTS = ["the quick", "fox", "jumps over the lazy dog " * 5, "", "yes or no", "5 dozen jugs and a box " * 3]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of tiny products: on a busy machine several wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Transformers:
    return Transformers(model=build_chat_model(tmp_path_factory.mktemp("chat")), batch_tokens=400)


@pytest.fixture(scope="module")
def model(engine: Transformers) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(engine.model).eval()


def requests(*texts: str) -> list[Request]:
    return [Request(key=f"{k}", prompt=text) for k, text in enumerate(texts)]


@torch.inference_mode()
def by_hand(engine: Transformers, model: PreTrainedModel, request: Request, tokens: int) -> Answer:
    """Greedy decoding of one prompt, one whole pass for each token."""
    (prompt,) = engine._decoder.prompts.tokens([request])
    ids, reason = list(prompt), "length"
    while len(ids) < len(prompt) + tokens and reason == "length":
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        reason = "stop" if ids[-1] == 2 else "length"
    made = ids[len(prompt) :]
    text = engine._decoder.tokenizer.decode(made, skip_special_tokens=True)
    text = text.rstrip("\ufffd") if reason == "length" else text  # half a character
    return Answer(text, reason, len(prompt), len(made))


def test_greedy_answers_equal_those_by_hand_whatever_the_neighbours(
    engine: Transformers, model: PreTrainedModel
) -> None:
    asked = [*requests(*TEXTS), Request("talk", messages=(("system", "be brief"), ("user", "yes or no?")))]
    answers = engine.generate(asked, Sampling(max_tokens=40))
    assert answers == [by_hand(engine, model, request, 40) for request in asked]
    assert len({answer.text for answer in answers}) > 3
    assert engine.generate(asked[::-1], Sampling(max_tokens=40)) == answers[::-1]


def test_an_output_ends_at_an_end_token(tmp_path: Path) -> None:
    ending = Transformers(model=build_chat_model(tmp_path, scale=1.0))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    asked = requests(*(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"))
    answers = ending.generate(asked, Sampling(max_tokens=60))
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert answers == [by_hand(ending, reference, request, 60) for request in asked]


def test_draws_follow_the_probabilities(engine: Transformers, model: PreTrainedModel) -> None:
    (prompt,) = engine._decoder.prompts.tokens(requests("the quick"))
    with torch.inference_mode():
        odds = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.7, -1)
    keys = [Request(key=f"draw {k}", prompt="the quick") for k in range(3000)]
    drawn = engine.generate(keys, Sampling(max_tokens=1, temperature=0.7))
    decode = engine._decoder.tokenizer.decode
    texts = [decode([token]) for token in range(len(odds))]
    likely = [
        t for t in odds.topk(60).indices.tolist() if texts.count(texts[t]) == 1
    ]  # halves of characters look alike
    for token in likely[:5]:
        share = sum(answer.text == decode([token]) for answer in drawn) / len(drawn)
        assert abs(share - float(odds[token])) < 5 * (float(odds[token]) / len(drawn)) ** 0.5
    for cut in (Sampling(max_tokens=1, temperature=0.7, top_k=2), Sampling(max_tokens=1, temperature=0.7, top_p=0.01)):
        kept = {decode([token]) for token in odds.topk(cut.top_k or 1).indices.tolist()}
        assert {answer.text for answer in engine.generate(keys[:200], cut)} == kept


def test_a_draw_depends_on_seed_and_key_alone(engine: Transformers) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0)
    asked = [Request(key=f"{text} {k}", prompt=text) for text in TEXTS for k in range(4)]
    answers = engine.generate(asked, sampling)
    assert len({answer.text for answer in answers}) > len(asked) // 2
    assert engine.generate(asked[5:9], sampling) == answers[5:9]
    assert Transformers(model=engine.model, batch_tokens=1).generate(asked, sampling) == answers
    other = engine.generate(asked, sampling.model_copy(update={"seed": 1}))
    assert sum(a != b for a, b in zip(answers, other, strict=True)) > len(asked) // 2


def test_stop_texts_end_an_output_and_are_no_part_of_it(engine: Transformers) -> None:
    free = engine.generate(requests(*TEXTS), Sampling(max_tokens=40))
    stop = (free[0].text[7:9], free[1].text[20:21])
    stopped = engine.generate(requests(*TEXTS), Sampling(max_tokens=40, stop=stop))
    for whole, cut in zip(free, stopped, strict=True):
        at = min((found for s in stop if (found := whole.text.find(s)) >= 0), default=None)
        assert cut.text == whole.text[:at]
        assert cut.finish_reason == ("stop" if at is not None else whole.finish_reason)
        assert cut.output_tokens < whole.output_tokens or at is None
    assert stopped[0].finish_reason == stopped[1].finish_reason == "stop"


def test_choices_are_kept_to_and_all_can_be_drawn(engine: Transformers) -> None:
    choice = ("yes", "yes or no", "no", "perhaps, dog")
    asked = [Request(key=f"{k}", prompt=TEXTS[k % len(TEXTS)]) for k in range(200)]
    sampling = Sampling(max_tokens=20, temperature=2.0, guided=Guided(choice=choice))
    assert {answer.text for answer in engine.generate(asked, sampling)} == set(choice)
    assert {a.finish_reason for a in engine.generate(asked, sampling)} == {"stop"}
    short = engine.generate(asked[:3], Sampling(max_tokens=1, guided=Guided(choice=("perhaps, dog",))))
    assert failures(short) == {"not one of the choices": 3}


@pytest.mark.parametrize("guided", [Guided(regex="a+"), Guided(grammar='root ::= "a"')])
def test_what_it_cannot_guide_is_refused(engine: Transformers, guided: Guided) -> None:
    with pytest.raises(ValueError, match="knows choice alone"):
        engine.generate(requests("a"), Sampling(max_tokens=1, guided=guided))


def test_the_window_bounds_prompt_and_output(engine: Transformers, model: PreTrainedModel) -> None:
    long, longer = "fox " * 60, "fox " * 70
    asked = requests("the quick", long, longer * 4)
    answers = engine.generate(asked, Sampling(max_tokens=300))
    assert failures(answers) == {"prompt too long": 1} and answers[2].error
    assert [answer.prompt_tokens + answer.output_tokens for answer in answers[:2]] == [256, 256]
    fitting = zip(asked[:2], answers[:2], strict=True)
    assert answers[:2] == [by_hand(engine, model, r, 256 - a.prompt_tokens) for r, a in fitting]


def test_threads_share_it_and_pickles_leave_the_model_behind(engine: Transformers) -> None:
    sampling = Sampling(max_tokens=10)
    expected = engine.generate(requests(*TEXTS), sampling)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: engine.generate(requests(*TEXTS), sampling), range(3))) == [expected] * 3
    packed = pickle.dumps(engine)
    assert len(packed) < 2000 and pickle.loads(packed).generate(requests(*TEXTS), sampling) == expected


def test_settings_in_the_folder_change_nothing(engine: Transformers, tmp_path: Path) -> None:
    folder = build_chat_model(tmp_path)
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [2], "repetition_penalty": 9.0, "max_length": 3, "top_k": 1, "do_sample": true}'
    )
    sampling = Sampling(max_tokens=20, temperature=1.0)
    assert Transformers(model=folder).generate(requests(*TEXTS), sampling) == engine.generate(
        requests(*TEXTS), sampling
    )
    assert Transformers(model=folder).identity != engine.identity
