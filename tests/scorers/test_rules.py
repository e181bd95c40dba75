"""The rule sets: for every rule a document that fails it alone, edge documents, slices and order."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import scorers
from transforms.batch import Batch

RULE_SETS = ("fineweb", "gopher_quality", "gopher_repetition", "c4")
SUBJECTS = ("The old fisherman", "Her youngest sister", "A travelling doctor", "The village council", "My neighbour")
VERBS = ("mended", "remembered", "described", "abandoned", "painted", "measured", "borrowed")
OBJECTS = (
    "the broken lantern",
    "a letter from Lisbon",
    "several maps of the coast",
    "that wooden bridge",
    "an unusual melody",
    "the harvest of apples",
    "a clock with no hands",
    "two barrels of salt",
)
PLACES = (
    "near the harbour",
    "before the storm",
    "with great patience",
    "on a cold morning",
    "behind the mill",
    "while others slept",
    "to everyone's surprise",
    "at the end of summer",
    "along the river",
)
SENTENCES = [f"{SUBJECTS[i % 5]} {VERBS[i % 7]} {OBJECTS[i % 8]} {PLACES[i % 9]}." for i in range(30)]
GOOD = "\n".join(SENTENCES)
BASE = SENTENCES[0]

# rule set -> rule -> (a document that fails this rule alone, parameters under which it passes)
PLANTED: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "fineweb": {
        "line_punct_ratio": (GOOD.replace(".", ","), {"min_line_punct_ratio": 0}),
        "short_line_ratio": ("\n".join(f"Brief line {i} is so." for i in range(30)), {"short_line_length": 10}),
        "char_dup_ratio": (f"{GOOD}\n{BASE}", {"max_char_dup_ratio": 0.1}),
        "list_ratio": (GOOD.replace("\n", "\n" * 12), {"max_list_ratio": 2}),
    },
    "gopher_quality": {
        "too_few_words": (" ".join(SENTENCES[:4]), {"min_words": 10}),
        "too_many_words": (GOOD, {"max_words": 1000}),
        "short_words": ("the be to of it is we at no on " * 10, {"min_mean_word_length": 1}),
        "long_words": (GOOD.replace(" the ", " of ").replace("a", "a" * 40), {"max_mean_word_length": 100}),
        "hashes": (GOOD.replace("an", "a#n").replace("e", "e#", 40), {"max_hash_ratio": 1}),
        "ellipses": (GOOD.replace(" the", " ... … the"), {"max_ellipsis_ratio": 1}),
        "bullet_lines": ("- " + GOOD.replace("\n", "\n  • "), {"max_bullet_lines": 1}),
        "ellipsis_lines": (GOOD.replace(".", "..."), {"max_ellipsis_lines": 1}),
        "alpha_words": (GOOD.replace(" the ", " the 1 2 3 4 5 6 "), {"min_alpha_words": 0.3}),
        "stop_words": ("alpine bread castle dream engine forest garden house " * 10, {"min_stop_words": 0}),
    },
    "gopher_repetition": {
        "dup_line_frac": (GOOD + "\nNo." * 15, {"max_dup_line_frac": 1}),
        "dup_para_frac": (GOOD + "\n\nNo." * 3, {"max_dup_para_frac": 1}),
        "dup_line_char_frac": ("\n".join([*SENTENCES, *SENTENCES[:12]]), {"max_dup_line_char_frac": 1}),
        "dup_para_char_frac": (
            "\n\n".join([*(f"{s} {s[::-1]}" for s in SENTENCES[:8]), *[SENTENCES[0] * 3] * 3]),
            {"max_dup_para_char_frac": 1},
        ),
    },
    "c4": {
        "lorem_ipsum": (GOOD + "\nThey wrote Lorem Ipsum there.", {}),
        "curly_bracket": (GOOD + "\nThey wrote { in code.", {}),
        "too_few_sentences": ("\n".join(SENTENCES[:4]), {"min_sentences": 4}),
    },
}
# Documents that other limits refuse too have those limits lifted.
LIFTED: dict[tuple[str, str], dict[str, Any]] = {
    ("gopher_quality", "ellipses"): {"min_alpha_words": 0.5},
    ("gopher_repetition", "dup_line_char_frac"): {"max_dup_gram": {}, "max_top_gram": {}},
    ("gopher_repetition", "dup_para_char_frac"): {"max_dup_gram": {}, "max_top_gram": {}, "max_dup_line_char_frac": 1},
}


def score(name: str, texts: list[str], **parameters: Any) -> list[dict[str, Any]]:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.string())}))
    scorer = scorers.make(name, parameters)
    scorer.setup()
    column = scorer.score(batch)
    column.validate(full=True)
    assert column.type == scorer.fields()
    assert len(column) == len(texts)
    return column.to_pylist()


@pytest.mark.parametrize("name", RULE_SETS)
def test_good_document_passes(name: str) -> None:
    found = score(name, [GOOD], **({"max_dup_gram": {}} if name == "gopher_repetition" else {}))[0]
    assert found["passed"], found
    assert found["reason"] is None


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, rules in PLANTED.items() for rule in rules])
def test_planted_document_fails_its_rule_alone(name: str, rule: str) -> None:
    text, loose = PLANTED[name][rule]
    lifted = LIFTED.get((name, rule), {"max_dup_gram": {}, "max_top_gram": {}} if name == "gopher_repetition" else {})
    strict = {"max_words": 100} if rule == "too_many_words" else {}
    found = score(name, ["", text], **{**lifted, **strict})[1]
    assert (found["passed"], found["reason"]) == (False, rule), found
    if loose:
        assert score(name, [text], **{**lifted, **loose})[0]["passed"]


WORDS = [
    f"{a}{b}"
    for a in ("bar", "cel", "dor", "fin", "gal", "hol", "jun", "kip", "lam", "mer")
    for b in (
        "ba",
        "co",
        "di",
        "fu",
        "ge",
        "hi",
        "jo",
        "ku",
        "la",
        "mi",
        "no",
        "pe",
        "ra",
        "so",
        "tu",
        "vi",
        "wa",
        "xe",
        "yo",
        "zu",
    )
]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_top_gram(n: int) -> None:
    """The same n words every 2n words, and different words between."""
    phrase = WORDS[:n]
    fresh = iter(WORDS[n:])
    words = [w for _ in range(12) for w in [*phrase, *(next(fresh) for _ in range(n))]]
    text = " ".join(words)
    limits = {2: 1.0, 3: 1.0, 4: 1.0}
    found = score("gopher_repetition", [text], max_top_gram={**limits, n: 0.2}, max_dup_gram={})[0]
    assert found["reason"] == f"top_{n}_gram"
    assert math.isclose(found[f"top_{n}_gram"], 12 * len(" ".join(phrase)) / len(text))


@pytest.mark.parametrize("n", range(5, 11))
def test_dup_gram(n: int) -> None:
    """A run of exactly n words that stands twice fails the n-gram rule and none above it."""
    words = WORDS[:30] + WORDS[5 : 5 + n]
    text = " ".join(words)
    limits = dict.fromkeys(range(n, 11), 0.0)
    found = score("gopher_repetition", [text], max_dup_gram=limits, max_top_gram={})[0]
    assert found["reason"] == f"dup_{n}_gram"
    assert math.isclose(found[f"dup_{n}_gram"], len("".join(words[30:])) / len(text))
    assert all(found[f"dup_{k}_gram"] == 0 for k in range(n + 1, 11))
    assert score("gopher_repetition", [text], max_dup_gram=dict.fromkeys(range(n + 1, 11), 0), max_top_gram={})[0][
        "passed"
    ]


def test_first_failing_rule_is_the_reason() -> None:
    found = score("fineweb", ["one\none\none\none"])[0]
    assert found["reason"] == "line_punct_ratio"
    assert found == {
        "passed": False,
        "reason": "line_punct_ratio",
        "line_punct_ratio": 0,
        "short_line_ratio": 1,
        "char_dup_ratio": 0.75,
        "list_ratio": 0.75,
    }


def test_fineweb_features() -> None:
    text = "A line that ends and has more than thirty characters.\n \nshort\nshort\nIs it? yes"
    found = score("fineweb", [text])[0]
    assert found["line_punct_ratio"] == 1 / 4
    assert found["short_line_ratio"] == 3 / 4
    assert found["char_dup_ratio"] == 5 / len(text.replace("\n", ""))
    assert found["list_ratio"] == 4 / (11 + 1 + 1 + 4)


def test_gopher_quality_features() -> None:
    found = score("gopher_quality", ["• the cat # sat ...\n- of 12 … 水\nWith me."])[0]
    assert found == {
        "passed": False,
        "reason": "too_few_words",
        "words": 8,
        "mean_word_length": (3 * 3 + 2 + 2 + 1 + 4 + 2) / 8,
        "hash_ratio": 1 / 14,
        "ellipsis_ratio": 2 / 14,
        "bullet_lines": 2 / 3,
        "ellipsis_lines": 1 / 3,
        "alpha_words": 7 / 14,
        "stop_words": 2,
    }


def test_gopher_quality_stop_words_are_a_parameter() -> None:
    assert score("gopher_quality", ["der und die und"], stop_words=("der", "und", "das"))[0]["stop_words"] == 2


def test_gopher_repetition_counts_lines_and_paragraphs() -> None:
    text = "\none\n\ntwo two\none\n\none\n"
    found = score("gopher_repetition", [text])[0]
    lines, paragraphs = ["", "one", "two two", "one", "one", ""], ["one", "two two\none", "one"]
    assert found["dup_line_frac"] == 3 / len(lines)
    assert found["dup_line_char_frac"] == 6 / len(text)
    assert found["dup_para_frac"] == 1 / len(paragraphs)
    assert found["dup_para_char_frac"] == 3 / len(text)


def test_c4_counts() -> None:
    text = "\n".join(
        [
            *SENTENCES[:6],
            "Menu",
            "Go on.",
            "Enable Javascript to see this.",
            "This site uses cookies, sorry.",
            "x" * 1001 + " is long.",
        ]
    )
    found = score("c4", [text])[0]
    assert found == {
        "passed": True,
        "reason": None,
        "lorem_ipsum": False,
        "curly_bracket": False,
        "sentences": 6,
        "lines": 11,
        "kept_lines": 6,
        "long_word": 1,
        "no_terminal": 1,
        "few_words": 1,
        "javascript": 1,
        "policy": 1,
    }
    assert score("c4", ["They said { here\nLorem ipsum menu"])[0]["curly_bracket"] is False


@pytest.mark.parametrize("name", RULE_SETS)
@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "\u3000\t\r\n", "\u2028"])
def test_empty_documents(name: str, text: str) -> None:
    found = score(name, [GOOD, text, GOOD])
    features = {k: v for k, v in found[1].items() if k not in ("passed", "reason")}
    assert (found[1]["passed"], found[1]["reason"]) == (False, "empty")
    assert set(features.values()) == {None}
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("name", RULE_SETS)
@pytest.mark.parametrize(
    "text",
    [
        "word " * 1_000_000,
        "x" * 1_000_000,
        "😀" * 100_000,
        "שלום עולם. " * 50_000,
        "\n" * 500_000 + "a",
        "word. " * 3_400_000,
        ".",
        "\x00",
        "a\x00b",
        "\ufeff",
        "\u200b",
    ],
    ids=[
        "one word",
        "no white space",
        "emoji",
        "right to left",
        "line breaks",
        "20 MB line",
        ".",
        "nul",
        "nul within",
        "bom",
        "zwsp",
    ],
)
def test_edge_documents(name: str, text: str) -> None:
    found = score(name, [GOOD, text, GOOD])
    assert found[0] == found[2]
    assert found[1]["passed"] == (found[1]["reason"] is None)
    assert not found[1]["passed"] or name != "gopher_quality"
    for feature, value in found[1].items():
        assert value is None or isinstance(value, (bool, str)) or math.isfinite(value), feature


@pytest.mark.parametrize("name", RULE_SETS)
def test_order_slices_and_neighbours_do_not_matter(name: str) -> None:
    texts = [GOOD, "", *(text for text, _ in PLANTED[name].values()), "水の流れ。" * 20, "a [1] b. Is it?\n" * 4]
    alone = [score(name, [text])[0] for text in texts]
    assert score(name, texts) == alone
    assert score(name, texts[::-1]) == alone[::-1]
    records = pa.record_batch({"text": ["before", *texts, "after"]}).slice(1, len(texts))
    assert scorers.make(name).score(Batch(records)).to_pylist() == alone
    assert score(name, []) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=5))
def test_any_text_gives_finite_features(texts: list[str]) -> None:
    for name in RULE_SETS:
        for text, found in zip(texts, score(name, texts), strict=True):
            assert (found["reason"] == "empty") == (not text.strip())
            assert found["passed"] == (found["reason"] is None)
            assert all(v is None or isinstance(v, str) or math.isfinite(v) for v in found.values())


def test_parameters_are_checked() -> None:
    for name, parameters in (
        ("fineweb", {"min_line_punct_ratio": 2}),
        ("fineweb", {"line_punct": 0.1}),
        ("gopher_quality", {"min_words": -1}),
        ("gopher_repetition", {"max_top_gram": {5: 0.1}}),
        ("c4", {"max_word_length": 0}),
    ):
        with pytest.raises(ValidationError):
            scorers.make(name, parameters)
    with pytest.raises(LookupError, match="did you mean 'fineweb'"):
        scorers.find("finweb")


@pytest.mark.parametrize("name", RULE_SETS)
def test_every_field_states_its_unit(name: str) -> None:
    assert all(field.metadata and field.metadata[b"unit"] for field in scorers.make(name).fields())
