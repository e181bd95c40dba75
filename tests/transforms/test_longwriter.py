"""LongWriter against a scripted model: what it is asked, every way in which it fails, and runs that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_server import Status, ToyServer
from toy_writer import paragraph, said, wish

from transforms.batch import Batch
from transforms.generation.cache import Cache
from transforms.long_form import count_words, length_score, read_plan, repeated_shares
from transforms.rewriters import find
from transforms.rewriters._prompts import load
from transforms.rewriters.longwriter import LongWriter

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from pathlib import Path
import pyarrow as pa
from transforms.batch import Batch
from transforms.rewriters._prompts import load
from transforms.rewriters.longwriter import LongWriter
url, cache, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
engine = {"engine": "openai", "base_url": url, "model": "toy", "concurrency": 4}
print([piece.text for piece in LongWriter(engine=engine, cache=cache).rewrite(Batch(pa.record_batch(given)))])
"""


@pytest.fixture
def server() -> Iterator[ToyServer]:
    with ToyServer(reply=said) as running:
        yield running


def writer(server: ToyServer, **given_: Any) -> LongWriter:
    return LongWriter(engine={"engine": "openai", "base_url": server.url, "model": "toy"}, **given_)


def broken(server: ToyServer, instruction: str) -> None:
    """Every call for the plan of an instruction fails."""
    ((_, prompt),) = load("longwriter", "plan", ("instruction",)).messages(instruction=instruction)
    server.script[prompt] = [Status(400, said="no")] * 9


def batch(*asked: str) -> Batch:
    return Batch(pa.record_batch({"id": [f"d{n}" for n in range(len(asked))], "text": list(asked)}))


def test_it_plans_and_then_writes_paragraph_after_paragraph(server: ToyServer) -> None:
    asked = [wish("cats", 3), wish("dogs", 1), wish("mice", 4, 25)]
    pieces = writer(server).rewrite(batch(*asked))
    assert [piece.status for piece in pieces] == ["ok"] * 3
    for piece, (topic, steps, words) in zip(pieces, (("cats", 3, 40), ("dogs", 1, 40), ("mice", 4, 25)), strict=True):
        assert piece.text == "\n\n".join(paragraph(topic, n, words) for n in range(1, steps + 1))
        assert piece.extra["plan"] == [f"{n}. Part {n} of {topic} ({words} words)" for n in range(1, steps + 1)]
        told = {name: piece.extra[name] for name in ("prompt", "words_asked", "words_written", "length_score")}
        asked_ = steps * words
        assert told == {
            "prompt": asked[piece.document], "words_asked": asked_, "words_written": asked_, "length_score": 100
        }  # fmt: skip
        assert piece.prompt == "longwriter/plan@1 longwriter/write@1"
        own = [seen.prompt for seen in server.seen if topic in seen.prompt]
        read, wrote = (sum(len(text.split()) for text in texts) for texts in (own, [said(prompt)[0] for prompt in own]))
        assert len(own) == steps + 1 and (piece.prompt_tokens, piece.output_tokens) == (read, wrote)
    assert len(server.seen) == 3 + 3 + 1 + 4
    last = next(s.prompt for s in server.seen if "mice" in s.prompt and "number 4 of the plan" in s.prompt)
    so_far = "\n\n".join(paragraph("mice", n, 25) for n in (1, 2, 3))
    for part in (asked[2], "\n".join(pieces[2].extra["plan"]), so_far, "\nPart 4 of mice (25 words)\n"):
        assert part in last
    before = next(s.prompt for s in server.seen if "mice" in s.prompt and "number 3 of the plan" in s.prompt)
    end = before.index(paragraph("mice", 2, 25)) + len(paragraph("mice", 2, 25))
    assert last.startswith(before[:end]), "the same up to the text so far, for caches of prefixes"
    assert {(s.body["temperature"], s.body["max_tokens"]) for s in server.seen} == {(1.0, 4096)}
    assert len({s.body["seed"] for s in server.seen}) == 11, "each call draws for itself"


def test_documents_go_forward_together(server: ToyServer) -> None:
    server.seconds = 0.02
    writer(server).rewrite(batch(*(wish(f"t{n}x", 2) for n in range(12))))
    stages = [2 if "number 2" in s.prompt else 1 if "number 1" in s.prompt else 0 for s in server.seen]
    assert stages == sorted(stages) and Counter(stages) == {0: 12, 1: 12, 2: 12}
    assert server.most_at_once > 3


FAULTS = {
    "noplan@0": ("failed", "no plan", 1),
    "noplan_empty@0": ("failed", "no plan", 1),
    "nocount@0": ("failed", "no word count", 1),
    "plancut@0": ("rejected", "incomplete", 1),
    "declines@0": ("rejected", "refusal", 1),
    "error@0": ("failed", "HTTP 400", 1),
    "empty@1": ("failed", "empty paragraph", 2),
    "empty@2": ("failed", "empty paragraph", 3),
    "cut@2": ("rejected", "incomplete", 3),
    "refuses@2": ("rejected", "refusal", 3),
    "repeats@2": ("rejected", "repeats itself", 4),
    "ignores@9": ("rejected", "length", 4),
    "thinks@0": ("ok", None, 4),
    "none@0": ("ok", None, 4),
}


def test_what_goes_wrong_is_told_and_costs_no_more_calls(server: ToyServer) -> None:
    broken(server, wish("cats", 3, 20, "error@0"))
    pieces = writer(server, least_length_score=50).rewrite(batch(*(wish("cats", 3, 20, fault) for fault in FAULTS)))
    calls = Counter(re.findall(r"fault=\S+", seen.prompt)[0].removeprefix("fault=") for seen in server.seen)
    found = {fault: (piece.status, piece.reason, calls[fault]) for fault, piece in zip(FAULTS, pieces, strict=True)}
    assert found == FAULTS
    kept = dict(zip(FAULTS, pieces, strict=True))
    assert kept["empty@2"].text == paragraph("cats", 1, 20) and kept["empty@1"].extra["plan"]
    assert kept["noplan@0"].text == "I like it." and kept["error@0"].text is None
    assert kept["cut@2"].finish_reason == "length" and kept["error@0"].finish_reason == "error"


def test_plans_of_more_than_fifty_steps_are_not_written(server: ToyServer) -> None:
    fifty, more = writer(server).rewrite(batch(wish("cats", 50, 1), wish("dogs", 51, 1)))
    assert fifty.status == "ok" and len(fifty.extra["plan"]) == 50
    assert (more.status, more.reason, len(more.extra["plan"])) == ("failed", "too many steps", 51)
    assert len(server.seen) == 52 and sum("dogs" in seen.prompt for seen in server.seen) == 1
    (piece,) = writer(server, most_steps=2).rewrite(batch(wish("mice", 3)))
    assert piece.reason == "too many steps"


@pytest.mark.parametrize(("times", "score"), [(1, 100.0), (2, 200 / 3), (4, 0.0), (7, 0.0)])
def test_the_length_of_all_is_measured_against_the_plan(server: ToyServer, times: int, score: float) -> None:
    (piece,) = writer(server).rewrite(batch(wish("cats", 3, 30, f"ignores@{times}")))
    assert piece.status == "ok", "no score is asked for"
    assert (piece.extra["words_asked"], piece.extra["words_written"]) == (90, 90 * times)
    assert piece.extra["length_score"] == pytest.approx(score)


def test_neither_company_nor_order_counts_and_a_second_run_asks_nothing(server: ToyServer, tmp_path: Path) -> None:
    wishes = {fault: wish("cats", 1 + n % 3, 10 + n, fault) for n, fault in enumerate(FAULTS)}
    broken(server, wishes["error@0"])
    asked = batch(*wishes.values())
    made = writer(server, cache=tmp_path / "answers.sqlite")
    together = made.rewrite(asked)
    sent = len(server.seen)
    for number in reversed(range(len(asked))):
        (alone,) = made.rewrite(Batch(asked.records.slice(number, 1)))
        assert vars(alone) | {"document": number} == vars(together[number])
    assert len(server.seen) == sent + 1, "what failed is asked for again, and nothing else"


def test_a_killed_run_goes_on_and_nothing_is_sent_twice_that_was_answered(server: ToyServer, tmp_path: Path) -> None:
    server.seconds = 0.03
    given_ = {"id": [f"d{n}" for n in range(8)], "text": [wish(f"t{n}x", 2 + n % 4) for n in range(8)]}
    total = 8 + sum(2 + n % 4 for n in range(8))
    path = tmp_path / "answers.sqlite"
    command = [sys.executable, "-c", RUN, server.url, str(path), json.dumps(given_)]
    victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(server.seen) < 17:
        assert victim.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    time.sleep(0.1)
    before = [seen.prompt for seen in server.seen]
    held = Cache(path)
    answered = held._database.execute("SELECT count(*) FROM answers").fetchone()[0]
    held.close()
    assert 8 < answered < total and len(before) - answered <= 4, "in the middle of the writing"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = [seen.prompt for seen in server.seen][len(before) :]
    assert len(after) == total - answered, "what was answered is not sent again"
    assert len(set(before + after)) == total
    texts = [piece.text for piece in writer(server, cache=path).rewrite(Batch(pa.record_batch(given_)))]
    assert done.stdout.strip() == str(texts) and len(server.seen) == len(before) + len(after)


LOOKS = st.fixed_dictionaries(
    {
        "mark": st.sampled_from(["{n}. ", "{n}) ", "**Paragraph {n}** - ", "### Step {n}\n", "- ", "* ", "• ", ""]),
        "count": st.sampled_from(
            [" ({w} words)", " - Word Count: {w}", ": **{w} words**", "\n   - Word count: {w} words"]
        ),
        "between": st.sampled_from(["\n", "\n\n", "\n \n"]),
        "before": st.sampled_from(["", "Here is the plan:\n\n", "# Plan for 5,000 words:\n"]),
        "after": st.sampled_from(["", "\n\nTotal: 12,000 words", "\nTotal word count: 5000"]),
    }
)


@settings(max_examples=150)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), LOOKS)
def test_plans_are_read_however_they_look(words: list[int], looks: dict[str, str]) -> None:
    if not looks["mark"] and looks["count"].startswith("\n"):
        return  # bare lines are an item each
    items = [
        looks["mark"].format(n=n) + f"The matter of the {n}th of many" + looks["count"].format(w=f"{w:,}")
        for n, w in enumerate(words, 1)
    ]
    steps = read_plan(looks["before"] + looks["between"].join(items) + looks["after"])
    assert [step.words for step in steps] == words
    for n, step in enumerate(steps, 1):
        assert step.text.startswith(f"The matter of the {n}th of many") and "\n" not in step.text


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("1. a (200-300 words)\n2. b, about 400 to 500 words", [250, 450]),
        ("1. Of 3 kinds of 500 words each, one. Word count: 40", [40]),
        ("1. a\n   1. b (5 words)\n2. c (20 words)", [5, 20]),
        ("- cats\n  - wild ones\n  - tame ones (90 words)\n- dogs (80 words)", [90, 80]),
        ("第一段：介绍（200字）\n第二段：结论（300字）", [200, 300]),
        ("10. a (20 words)\n\n11. b (30 words)\nGood luck!", [20, 30]),
        ("1. a\n   - b (5 words)\n   - c (20 words)\n2. d\n2.1 e (7 words)\n2.2 f (8 words)", [25, 15]),
        ("1. a (50 words)\n   - b (20 words)\n   - c (30 words)\n\nEach of 9 words or more.", [50]),
        ("### Step 1\na (50 words)\n- b (20 words)\n- c (30 words)\n- Total: 50 words", [50]),
        ("1. 200 words: describe 3 causes\n2. 150-word: 2 effects", [200, 150]),
        ("1. The last words of 3 heroes (400 words)\n2. Word count of 90, words of 2 more", [400, 90]),
    ],
)
def test_plans_of_other_forms(plan: str, words: list[int]) -> None:
    assert [step.words for step in read_plan(plan)] == words


def test_parts_of_an_item_stay_with_it() -> None:
    plan = "Plan:\n1. Cats (90 words)\n   wild ones\n- tame ones\n2. Dogs\n"
    plan += "\ta) small (20 words)\n\tb) large (30 words)\nGood luck!"
    expected = [("Cats (90 words) wild ones tame ones", 90), ("Dogs a) small (20 words) b) large (30 words)", 50)]
    assert read_plan(plan) == expected


@pytest.mark.parametrize(
    ("answer_", "reason"),
    [
        ("", "no plan"),
        ("I cannot help with that.", "no plan"),
        ("1. a\n2. b", "no plan"),
        ("1. a (0 words)", "no plan"),
        ("1. a (20 words)\n2. b", "no word count"),
        ("A plan of 500 words:", "no plan"),
    ],
)
def test_what_is_no_plan(answer_: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_plan(answer_)


@given(
    st.text()
    | st.lists(st.sampled_from(["1. ", "- ", "9" * 30, "words", ":", "\n", "**", "to", "12 ", "字"])).map("".join)
)
def test_any_answer_is_a_plan_or_is_none(answer_: str) -> None:
    try:
        steps = read_plan(answer_)
    except ValueError as error:
        assert str(error) in ("no plan", "no word count")
    else:
        assert steps and all(step.words > 0 and "\n" not in step.text for step in steps)


def test_length_score_is_that_of_the_paper() -> None:
    found = [length_score(1200, written) for written in (1200, 2400, 3600, 4800, 6000, 800, 600, 400, 1, 0)]
    assert found == pytest.approx([100, 200 / 3, 100 / 3, 0, 0, 75, 50, 0, 0, 0])


def test_words_are_counted_and_characters_where_scripts_have_no_spaces() -> None:
    assert count_words(["Well, it's two words - or 4?", "", "长文本，写作", "…"]).tolist() == [7, 0, 5, 0]


@settings(max_examples=80)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join), max_size=6), st.integers(1, 5))
def test_repeated_shares_are_the_slow_reference(paragraphs: list[str], n: int) -> None:
    seen: set[tuple[str, ...]] = set()
    for text, share in zip(paragraphs, repeated_shares(paragraphs, n), strict=True):
        words = text.split()
        size = min(n, len(words))
        grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if words else []
        assert share == pytest.approx(np.mean([gram in seen for gram in grams]) if grams else 0)
        seen |= set(grams)


def test_repeats_are_found_whatever_case_and_punctuation() -> None:
    text = "The ship left the harbour at nine, and nobody saw it go."
    other = "Nobody in the town had known the captain for more than a week."
    shares = repeated_shares([text, other, "Once more: the SHIP left the harbour at nine and nobody saw it go"], 8)
    assert shares[:2].tolist() == [0, 0] and 0.5 < shares[2] < 1


def test_it_is_found_by_name_and_imports_nothing_heavy() -> None:
    assert find("longwriter") is LongWriter
    code = "import sys, transforms.rewriters.longwriter, transforms.rewriters.sieve_and_swap\n"
    code += "print([m for m in ('torch', 'transformers', 'tokenizers', 'numba', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_its_columns_are_arrow(server: ToyServer) -> None:
    made = writer(server)
    pieces = made.rewrite(batch(wish("cats", 2), wish("dogs", 2, 20, "noplan@0")))
    found = {
        field.name: pa.array([p.extra[field.name] for p in pieces], field.type).to_pylist() for field in made.fields()
    }
    assert found["words_asked"] == [80, 0] and [len(plan) for plan in found["plan"]] == [2, 0]
    assert found["length_score"] == [100, 0] and found["prompt"][1] == wish("dogs", 2, 20, "noplan@0")
    held = made.provenance()
    assert held["model"] == "toy" and json.loads(held["sampling"])["temperature"] == 1.0 and held["revision"]
