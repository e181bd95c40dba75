"""Each check on rewrites that pass and rewrites that fail it; what is taken off; kernels against slow references."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from transforms.acceptance import MEASURES, REASONS, Acceptance
from transforms.acceptance_cleaning import announced, clean, refused
from transforms.acceptance_measures import batch_of, ended, facts, folded_words, formed, shared_grams

SOURCE = (
    "In 1887 the engineer Clara Holm built a mill on the river Asker, which ground 40 sacks a day. Her brother Nils "
    "kept the books until the flood of 1903 carried the wheel away."
)
GOOD = (
    "The mill on the Asker was the work of Clara Holm, an engineer, and dates from 1887; it could grind 40 sacks "
    "daily. Accounts were held by Nils, her brother, up to 1903, when high water took the wheel."
)
GERMAN = (
    "Die Mühle am Asker war das Werk von Clara Holm, einer Ingenieurin, und stammt aus dem Jahr 1887; sie konnte "
    "täglich 40 Säcke mahlen. Die Bücher führte ihr Bruder Nils bis 1903, als das Hochwasser das Rad mit sich nahm."
)
QA = (
    "Question: Who built the mill on the Asker in 1887, and how much did it grind?\nAnswer: Clara Holm built it, and "
    "it ground 40 sacks a day.\nQuestion: What did Nils do until 1903?\nAnswer: He kept the books until a flood came."
)
PROMPT = "Say the passage below again in other words, with every fact, number and name that it has, and nothing else."


def judged(output: str, source: str = SOURCE, cut: bool = False, **bounds: Any) -> str | None:
    """The reason for which a cleaned output is refused, lengths counted in words."""
    acceptance = Acceptance(**bounds)
    (text,) = acceptance.clean([output], [source])
    tokens = np.array([len(source.split())]), np.array([len(text.split())])
    return acceptance.judge([source], [text], tokens, np.array([cut]), PROMPT).reasons[0]


FAILING = {
    "empty": [" \n", "```\n\n```", "Sure! Here is a paraphrase of the text:\n"],
    "incomplete": ["<think>Let me see. " + GOOD, GOOD[:-30]],
    "refusal": [
        "I'm sorry, but I can't help with that request.", "As an AI language model, I have no opinion on mills.",
        "I cannot rewrite this passage.", "Unfortunately, I am unable to process the text.",
        "Could you please provide the passage you would like me to rewrite?", "I don’t see any text in your message.",
    ],
    "preamble": [
        "I have rewritten the passage for you. " + GOOD, "Certainly! " + GOOD, "Here is a simpler paraphrase. " + GOOD,
        "The passage is a detailed account of a mill. " + GOOD, "This text describes how Clara built a mill. " + GOOD,
    ],
    "prompt recited": [PROMPT + " " + GOOD, GOOD + " Say it with every fact, number and name that it has."],
    "too short": ["Clara Holm built a mill."],
    "too long": [GOOD + " " + " ".join(f"More was said of thing{chr(97 + k)} by the neighbours." for k in range(26))],
    "repetitive": [GOOD + " The wheel went round and round." * 5],
    "source copied": [SOURCE, SOURCE + " That was all.", SOURCE.replace("the engineer ", "")],
    "other language": [GERMAN],
    "numbers lost": [GOOD.replace("1887", "the past").replace("40 sacks", "much"), GOOD.replace("1887", "1878")],
    "names lost": [GOOD.replace("Clara Holm", "a woman").replace("Nils", "him")],
    "invented": [
        GOOD.replace("took the wheel.", "of 12 feet took the wheel to Bergen, Oslo, Molde, Alta and Narvik in 4 days.")
    ],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "output"), [(r, text) for r, some in FAILING.items() for text in some])
def test_what_fails_a_check_is_refused_by_its_name(reason: str, output: str) -> None:
    assert judged(output) == reason


@pytest.mark.parametrize(
    "output",
    [
        GOOD,
        f"Sure! Here is a paraphrase of the text:\n\n{GOOD}",
        f"Here's the rewritten passage: {GOOD}",
        f"**Paraphrased version:**\n{GOOD}",
        f"Certainly, I can do that.\n{GOOD}\n\nLet me know if you want it shorter.",
        f"<think>A mill.</think>\n\n“{GOOD}”",
        f"```text\n{GOOD}\n```",
        GOOD.replace("Clara Holm", "**Clara Holm**").replace("river", "*river*"),
        f"{GOOD}\n\n(Note: I have kept all facts of the passage.)",
    ],
)
def test_what_is_whole_passes(output: str) -> None:
    assert judged(output) is None


def test_cut_outputs_are_incomplete_whatever_they_look_like() -> None:
    assert judged(GOOD, cut=True) == "incomplete"
    assert judged("Menu\n- Home", source="Menu Home About", language=False) is None, "the source ends no sentence"


def test_answers_to_questions_need_no_stop() -> None:
    short = QA + "\nQuestion: Was Clara an engineer?\nAnswer: Yes"
    assert judged(short, format="qa") is None and judged(short) == "incomplete"


@pytest.mark.parametrize("stop", [*".?!…。।؟۔።။։", "‼\ufe0f", ".”)", ".**"])
def test_stops_of_all_scripts_end_a_text(stop: str) -> None:
    texts = pl.Series([f"So{stop}", f"Menu\nSo{stop} \nMenu", f"Menu\nSo{stop}\r\nMenu", f"S{stop}o", ""])
    assert ended(texts).tolist() == [True, False, False, False, False]
    assert ended(texts, any_line=True).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("bounds", "output", "reason"),
    [
        ({"length": None}, "Clara Holm built it in 1887 with Nils on the Asker; 40 sacks, 1903.", None),
        ({"least_tokens": 50}, GOOD, "too short"),
        ({"length": (0.1, 0.5)}, GOOD, "too long"),
        ({"copied": None}, SOURCE, None),
        ({"language": False}, GERMAN, None),
        ({"numbers": None}, FAILING["numbers lost"][0], None),
        ({"numbers": 1.0}, GOOD, None),
        ({"numbers": 1.0}, GOOD.replace("40", "many"), "numbers lost"),
        ({"names": None}, FAILING["names lost"][0], None),
        ({"names": 1.0}, GOOD.replace("Nils", "him"), "names lost"),
        ({"invented": None}, FAILING["invented"][0], None),
        ({"invented": 0.0}, GOOD.replace("Nils", "Nils Olsen"), "invented"),
        ({"repeated": None}, FAILING["repetitive"][0], None),
    ],
)
def test_bounds_can_be_moved_and_checks_left_out(bounds: dict[str, Any], output: str, reason: str | None) -> None:
    assert judged(output, **bounds) == reason


CHOICE = "Question: Where did Clara build it?\nA{0} Paris\nB{0} Asker\nC{0} Oslo\nD{0} Alta\nAnswer: B{0} Asker"
QA_FORMS = {
    CHOICE.format(")"): True, CHOICE.format("."): True, CHOICE.format(":"): True,
    CHOICE.format(")").partition("\nAnswer")[0]: False, "Q: Who?\nA: Clara.\n\nQ2) Where?\nA2) There.": True,
    QA: True, QA.replace("Question:", "Q1:").replace("Answer:", "A1:"): True, QA.replace("\nAnswer:", " Answer:"): True,
    GOOD: False, QA.rpartition("\n")[0]: False, "Listen.\n" + QA: False, QA.replace("Answer: C", "Note: C"): False,
    "Question: Who?\nAnswer:\nQuestion: Why?\nAnswer: So.": False, "Answer: So.\nQuestion: Why?": False,
}  # fmt: skip
LIST_FORMS = {
    "- Clara built a mill.\n- It ground 40 sacks.": True, "Facts\n1. One thing.\n2) Another.": True, "• a\n* b": True,
    GOOD: False, "- one item": False, "- a\nThis is\nprose with\n- b\na dash": False, "-5\n-6": False,
}  # fmt: skip
TABLE_FORMS = {
    "| Year | What |\n|---|:-:|\n| 1887 | mill |\n\nIt shows the mill.": True, "Year | X\n--- | ---\n1887 | mill": True,
    "| Year | What |\n|---|---|": False, "Year, what\n1887, mill": False, GOOD: False, "a | b\nc | d\ne | f": False,
}  # fmt: skip


@pytest.mark.parametrize(("form", "texts"), [("qa", QA_FORMS), ("list", LIST_FORMS), ("table", TABLE_FORMS)])
def test_formats(form: Any, texts: dict[str, bool]) -> None:
    assert formed(pl.Series([*texts]), form).tolist() == [*texts.values()]


def test_a_wrong_format_is_a_reason_and_a_right_one_is_not() -> None:
    assert judged(QA, format="qa") is None
    assert judged(GOOD, format="qa") == "wrong format"
    assert judged(f"{QA}\n{CHOICE.format(')')}", format="qa") is None


@pytest.mark.parametrize("label", ["The passage is:\n\n", "Passage: ", "Text:\n", "Output: ", "The text: "])
def test_the_prompts_own_label_is_taken_off(label: str) -> None:
    assert clean(pl.Series([label + GOOD]), pl.Series([SOURCE])).to_list() == [GOOD]


def test_words_of_the_source_are_never_taken_for_the_models_own() -> None:
    said = "Sure! Here is a version of the recipe:\nBoil the eggs."
    sorry = "I'm sorry, but I can't help you, said the miller."
    quoted = "“Boil the eggs.”"
    series = pl.Series([said, sorry, quoted])
    assert clean(series, series).to_list() == [said, sorry, quoted]
    assert not refused(series, series).any() and not announced(series, series).any()
    other = pl.Series(["x"] * 3)
    assert clean(series, other).to_list() == ["Boil the eggs.", sorry, "Boil the eggs."]
    assert refused(series, other).to_list() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "Of course the mill was old.", "Here is the mill: it stands on the Asker.", "2 * 3 * 4 = 24 and a*b*c",
        "* one\n* two", "Sure enough, she came.", "I am sorry to say that the mill burned down.",
        "This is the latest version of the mill.", "\"One,\" she said, \"and two.\"", "Note that the mill is old.",
        "Of course, the mill was built in 1887.\nIt is old.", "Great, she said.\nThen she left.",
        "Please note the opening hours.", "The following year she left.", "I cannot say who built it.",
    ],
)  # fmt: skip
def test_ordinary_beginnings_stay_and_are_not_refused(text: str) -> None:
    series, source = pl.Series([text]), pl.Series(["x"])
    assert clean(series, source).to_list() == [text]
    assert not refused(series, source)[0] and not announced(series, source)[0]


POWERS = "2**10 is 1,024, and 2**20 is *much* more."
BLOCKS = "```\nx = 1\n```\nThen **more** follows.\n```\ny = 2\n```"


@pytest.mark.parametrize(
    ("text", "source", "left"),
    [
        (POWERS, "Say 2**10 in other words.", POWERS),
        (POWERS, "x", "2**10 is 1,024, and 2**20 is much more."),
        ("(x+1)**2 or a[0]**2 or y**2, and **so on**.", "x", "(x+1)**2 or a[0]**2 or y**2, and so on."),
        ("**Wer?** Das ist **wichtig**, *sehr*.", "x", "Wer? Das ist wichtig, sehr."),
        (BLOCKS, "x", BLOCKS.replace("**", "")),
        (BLOCKS, "a * b", BLOCKS),
        ("```\nx = 1\n```", "x", "x = 1"),
        ("```\nx = 1\n```", "As code:\n```\nx = 2\n```", "```\nx = 1\n```"),
    ],
)
def test_emphasis_and_fences_of_the_text_itself_stay(text: str, source: str, left: str) -> None:
    assert clean(pl.Series([text]), pl.Series([source])).to_list() == [left]


@pytest.mark.parametrize(
    "opening",
    ["Certainly!", "Sure, I can do that.", "Of course, I'd be happy to help!", "Okay, here you go:",
     "Sure! Let me help.", "Absolutely. The paraphrase follows.", "Great, here's the text."],
)  # fmt: skip
def test_assent_goes_with_what_speaks_of_the_task(opening: str) -> None:
    assert clean(pl.Series([f"{opening}\n\n{GOOD}"]), pl.Series([SOURCE])).to_list() == [GOOD]


@given(st.lists(st.text(max_size=60), max_size=5))
def test_cleaning_only_takes_away(texts: list[str]) -> None:
    series = pl.Series(texts, dtype=pl.String)
    for before, after in zip(texts, clean(series, pl.Series(["x"] * len(texts), dtype=pl.String)), strict=True):
        rest = iter(before)
        assert all(character in rest for character in after), "a subsequence"


def test_facts_are_those_of_running_text() -> None:
    source = "Home 99 Login Zebra\n" + SOURCE + "\nShare on Facebook"
    found = facts(pl.Series([source] * 4), pl.Series([GOOD, "1. 1887\n2. 1903", GOOD + " It cost 77 pounds.", ""]))
    assert found["numbers_kept"].tolist() == [1, 2 / 3, 1, 0]
    assert found["names_kept"].tolist() == [1, 0, 1, 0]
    assert found["invented"][:2].tolist() == [0, 0] and found["invented"][2] == pytest.approx(1 / 8)
    assert math.isnan(found["invented"][3])


def test_numbers_of_lists_are_no_facts_on_either_side() -> None:
    source = "The mill ground 40 sacks.\n" + "\n".join(f"{k}. It did so in {1800 + k}." for k in range(3, 9))
    output = "It ground 40 sacks, and did so in " + ", ".join(f"{1800 + k}" for k in range(3, 9)) + "."
    found = facts(pl.Series([source, source]), pl.Series([output, output + "\n6. It stopped."]))
    assert found["numbers_kept"].tolist() == [1, 1] and found["invented"].tolist() == [0, 0]


def test_words_without_end_cost_no_more_than_their_length() -> None:
    source, output = "We saw old Margaret there.", "We saw Margarete and " + "x" * 20_000 + " there."
    facts(pl.Series([source]), pl.Series([output]))
    tracemalloc.start()
    found = facts(pl.Series([source]), pl.Series([output]))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000 and found["names_kept"][0] == 1
    tracemalloc.stop()


def test_names_are_not_compared_where_all_nouns_have_capitals_and_may_be_inflected() -> None:
    german = "Im Sommer fuhr die Familie mit dem Wagen an den See und aß dort Brot, Käse und Äpfel."
    russian = "Вчера мы с друзьями видели Москву и нашу старую Анну, но никто не знал дороги."
    inflected = facts(pl.Series([russian]), pl.Series(["Мы были в Москве с Анной."]))
    assert math.isnan(facts(pl.Series([german]), pl.Series(["Es war schön."]))["names_kept"][0])
    assert inflected["names_kept"][0] == 0.5, "Москву, of six letters; Анну, of four, has to be the same"


def test_the_meaning_is_compared_by_an_encoder(toy_encoder: Path) -> None:
    bounds = {"encoder": toy_encoder, "length": None, "copied": None, "numbers": None, "invented": None}
    bounds |= {"similarity": 0.999}
    assert judged("one two three.", "one two three.", **bounds) is None
    assert judged("six six six.", "one two three.", **bounds) == "other meaning"
    with pytest.raises(ValidationError, match="nowhere"):
        Acceptance(encoder=Path("nowhere"))


@pytest.mark.parametrize(
    "bounds", [{"length": (2, 1)}, {"length": (-1, 1)}, {"numbers": 2}, {"format": "poem"}, {"nam": 1}]
)
def test_impossible_bounds_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Acceptance(**bounds)


TEXTS = st.text(max_size=30) | st.sampled_from([SOURCE, GOOD, QA, "", "a b a b a b a b", *FAILING["refusal"]])


@settings(max_examples=30)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4), st.sampled_from([None, "qa", "list", "table"]))
def test_any_text_gets_a_verdict_that_does_not_depend_on_its_neighbours(
    pairs: list[tuple[str, str]], form: Any
) -> None:
    acceptance = Acceptance(format=form)
    sources, outputs = [s for s, _ in pairs], acceptance.clean([o for _, o in pairs], [s for s, _ in pairs])
    tokens = tuple(np.array([len(t) for t in some], np.int64) for some in (sources, outputs))
    cut = np.zeros(len(pairs), bool)
    found = acceptance.judge(sources, outputs, tokens, cut, PROMPT)  # type: ignore[arg-type]
    assert sorted(found.measures) == sorted(MEASURES)
    for i, reason in enumerate(found.reasons):
        assert reason is None or reason in REASONS
        alone = tokens[0][i : i + 1], tokens[1][i : i + 1]
        one = acceptance.judge(sources[i : i + 1], outputs[i : i + 1], alone, cut[i : i + 1], PROMPT)
        assert one.reasons == [reason]
        for name in MEASURES:
            np.testing.assert_equal(one.measures[name][0], found.measures[name][i])


WORDS = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=4), st.integers(1, 4))
def test_shared_grams_equal_a_slow_reference(pairs: list[tuple[str, str]], n: int) -> None:
    own, other = (folded_words(batch_of(texts)) for texts in ([a for a, _ in pairs], [b for _, b in pairs]))
    shared, count = shared_grams(own.hash, own.offsets, other.hash, other.offsets, n)
    for i, (mine, theirs) in enumerate(pairs):
        grams, known = (
            [tuple(text.split()[k : k + n]) for k in range(len(text.split()) - n + 1)] for text in (mine, theirs)
        )
        assert (shared[i], count[i]) == (sum(gram in known for gram in grams), len(grams))
