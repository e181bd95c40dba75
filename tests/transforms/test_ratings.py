"""DataMan's answers read strictly, its prompts, and what of a text the model is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from transforms.head_tail import MARK, head_and_tail, without_leftovers
from transforms.ratings import (
    DIGIT,
    DOMAINS,
    LETTER,
    LETTERS,
    LINES,
    MISSING,
    MODES,
    PROMPTS,
    RATINGS,
    SCORES,
    Mode,
    Prompts,
    Rated,
    letter_of,
    read_prompts,
    whole,
)

GOOD = (5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 5, 4, 3, 2)
ANSWER = "\n".join(["C", *map(str, GOOD)])
ALL, SCORE, DOMAIN, STEPS = (MODES[name] for name in ("all_rating", "score_only", "domain_only", "step_by_step"))


def test_the_label_space_is_the_papers() -> None:
    assert len(RATINGS) == 14 and RATINGS[0] == "accuracy" and RATINGS[-1] == "overall_score"
    assert "".join(DOMAINS) == "ABCDEFGHIJKLMNO" and (DOMAINS["L"], DOMAINS["O"]) == ("Retail E-commerce", "Other")


@pytest.mark.parametrize(
    ("mode", "answer", "failure"),
    [
        (ALL, ANSWER, None),
        (ALL, f"\n  {ANSWER}\n\n", None),
        (ALL, ANSWER[:-2], LINES),  # 14 lines
        (ALL, ANSWER + "\n3", LINES),  # 16 lines
        (ALL, ANSWER.replace("\n", "\n\n"), LINES),
        (ALL, ANSWER.replace("\n", " "), LINES),
        (ALL, "", LINES),
        (ALL, "The ratings are:\n" + ANSWER, LINES),
        (ALL, ANSWER + "\nI hope this helps.", LINES),
        (ALL, ANSWER.replace("5", "6"), DIGIT),
        (ALL, ANSWER.replace("5", "0"), DIGIT),
        (ALL, ANSWER.replace("4", "4.5"), DIGIT),
        (ALL, ANSWER.replace("4", "04"), DIGIT),
        (ALL, ANSWER.replace("4", "٤"), DIGIT),  # a digit to str.isdigit
        (ALL, ANSWER.replace("4", "４"), DIGIT),
        (ALL, ANSWER.replace("4", "4/5"), DIGIT),
        (ALL, ANSWER.replace("4", "Coherence: 4"), DIGIT),
        (ALL, ANSWER.replace("4", "连贯性：4"), DIGIT),  # with the Chinese colon
        (ALL, ANSWER.replace("4", "-4"), DIGIT),
        (ALL, ANSWER.replace("\n", "\r\n"), LETTER),
        (ALL, ANSWER + " because", DIGIT),
        (ALL, ANSWER.lower(), LETTER),
        (ALL, ANSWER.replace("C", "P"), LETTER),
        (ALL, ANSWER.replace("C", "Law"), LETTER),
        (ALL, ANSWER.replace("C", "[C]"), LETTER),
        (ALL, ANSWER.replace("C", "С"), LETTER),  # Cyrillic
        (ALL, "\n".join([*map(str, GOOD), "C"]), LETTER),
        (SCORE, " 4\n", None),
        (SCORE, "4 of 5", DIGIT),
        (SCORE, "4\nA good text.", LINES),
        (SCORE, "C", DIGIT),
        (DOMAIN, "C", None),
        (DOMAIN, "c", LETTER),
        (DOMAIN, "4", LETTER),
    ],
)
def test_answers_are_read_strictly(mode: Mode, answer: str, failure: str | None) -> None:
    found = mode.read(answer)
    assert found.failure == failure
    if failure:
        assert found == Rated(failure=failure), "nothing of a malformed answer is kept"
    else:
        expected = {ALL: Rated(GOOD, "C"), SCORE: Rated((4,)), DOMAIN: Rated(domain="C")}
        assert found == expected[mode]


def reasoned(scores: list[str], domain: str = "Domain: [C]", form: str = "[{}] {}: {}/5") -> str:
    names = [name.title() for name in RATINGS]
    lines = [form.format(k, name, s) for k, (name, s) in enumerate(zip(names, scores, strict=False), 1)]
    return "\n".join(["Let me think: the text is long, say 3/5 of a page.", *lines, domain])


PLAIN = [str(k) for k in GOOD]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (reasoned(PLAIN), None),
        (reasoned(PLAIN, form="[{}]{}：{}/5"), None),
        (reasoned(PLAIN, form="**[{}] {}:** **{}**/5"), None),
        (reasoned(PLAIN, form="[{}] {}: {}/5."), None),
        (reasoned(PLAIN) + "\n" + reasoned(PLAIN), None),
        (reasoned(PLAIN, "Domain: [ C ]\nSo [C]."), None),
        (reasoned(PLAIN) + "\n" + reasoned(PLAIN[::-1]), SCORES),
        (reasoned(PLAIN[:13]), SCORES),
        (reasoned(PLAIN) + "\n[15] Charm: 3/5", SCORES),
        (reasoned(PLAIN, form="{1}: {2}/5"), SCORES),
        (reasoned(PLAIN, form="[{}] {}: {}/50"), SCORES),
        (reasoned(PLAIN, form="[{}] {}: {}/5.5"), SCORES),
        (reasoned(PLAIN).replace("[3]", "[4]"), SCORES),
        (reasoned(["7", *PLAIN[1:]]), DIGIT),
        (reasoned(["0.9", *PLAIN[1:]]), DIGIT),
        (reasoned(["N/A", *PLAIN[1:]]), MISSING),
        (reasoned(PLAIN, "Domain: Law"), LETTERS),
        (reasoned(PLAIN, "Domain: [C] or [D]"), LETTERS),
        (reasoned(PLAIN, "Domain: [Q]"), LETTERS),
    ],
)
def test_a_teacher_is_read_for_14_scores_and_one_domain(answer: str, failure: str | None) -> None:
    assert STEPS.read(answer) == (Rated(failure=failure) if failure else Rated(GOOD, "C"))


def test_fractions_below_3_are_rounded_down_and_others_up() -> None:
    assert STEPS.read(reasoned(["2.9", "1.1", "3.1", "4.5", *PLAIN[4:]])).ratings[:4] == (2, 1, 4, 5)
    found = [whole(x) for x in (1, 2.99, 3.0, 3.01, 5, 5.1, 0.99, float("nan"), float("inf"), None)]
    assert found == [1, 2, 3, 4, 5, None, None, None, None, None]


def test_domains_go_by_letter_or_name() -> None:
    assert [letter_of(x) for x in ("C", "Law", "law", "P", "", None)] == ["C", "C", None, None, None, None]


@given(st.lists(st.integers(1, 5), min_size=14, max_size=14), st.sampled_from([*DOMAINS]))
def test_what_is_written_is_read_and_is_of_the_form_that_guides(ratings: list[int], letter: str) -> None:
    answer = ALL.write(ratings, letter)
    assert ALL.read(answer) == Rated(tuple(ratings), letter) and re.fullmatch(ALL.regex, answer)
    assert len(answer) == 29 < ALL.max_tokens, "an answer that goes on is not cut to one that ends"
    assert SCORE.write(ratings[-1:], None) in (SCORE.choice or ()) and letter in (DOMAIN.choice or ())


@given(st.text(alphabet="ABCOPabc0123456.\n :/5", max_size=40))
def test_what_is_read_is_what_the_form_has(answer: str) -> None:
    for mode in (ALL, SCORE, DOMAIN):
        assert (mode.read(answer).failure is None) == bool(re.fullmatch(mode.regex, answer.strip()))


# Prompts


def test_every_mode_has_a_prompt_in_which_braces_of_a_text_stay() -> None:
    for name in MODES:
        ((role, asked),) = PROMPTS.messages(name, "a {text} and {0} {braces")  # type: ignore[arg-type]
        assert role == "user" and asked.count("a {text} and {0} {braces") == 1
    for k, name in enumerate(RATINGS, 1):
        title = f"[{k}] {name.replace('_', ' ').capitalize()}"
        assert title in PROMPTS.prompts["all_rating"] and title in PROMPTS.prompts["step_by_step"]
        assert (title in PROMPTS.prompts["detprompt_score_only"]) == (k < 14)
    assert all(f"{k} {v}" in PROMPTS.prompts["detprompt_domain_only"] for k, v in DOMAINS.items())


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_prompts_of_a_file_are_used_as_they_stand(tmp_path: Path, suffix: str) -> None:
    template = "  Rate this:\n\nText: {text}\nDomain:_\n[1]Accuracy:_/5 \t\n"
    file = tmp_path / f"prompts.{suffix}"
    file.write_text(json.dumps({"system": "You help.", "prompts": {"all_rating": template}, "most_tokens": 1896}))
    found = read_prompts(file)
    asked = (("system", "You help."), ("user", template.replace("{text}", "x\ny")))
    assert found.messages("all_rating", "x\ny") == asked
    assert (found.most_tokens, found.most_characters) == (1896, 20_000)
    with pytest.raises(ValueError, match="no prompt for the mode score_only; there is one for all_rating"):
        found.messages("score_only", "x")


@settings(max_examples=50)
@given(st.text(), st.text(), st.none() | st.text())
def test_saved_prompts_come_back_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str, system: str | None
) -> None:
    template = before.replace("{text}", "") + "{text}" + after.replace("{text}", "")
    if template.count("{text}") == 1:
        given = Prompts(system=system, prompts={"all_rating": template}, most_tokens=7)
        file = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
        given.save(file)
        assert read_prompts(file) == given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompts: {all_ratings: '{text}'}", "all_ratings"),
        ("prompts: {all_rating: 'no place'}", "all_rating: 0 places"),
        ("prompts: {all_rating: '{text} {text}'}", "2 places"),
        ("prompts: {}", "prompts"),
        ("all_rating: '{text}'", "all_rating: Extra inputs"),
        ("{1: 2}", "keywords must be strings"),
        ("prompts: {all_rating: '{text}'}\nmost_tokens: 1", "most_tokens"),
        ("- x", "holds list"),
        ("a: [", "cannot be read"),
    ],
)
def test_malformed_files_of_prompts_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(tmp_path / "p.yaml")
    assert "expected `prompts: {MODE: TEMPLATE with {text}}`" in str(error.value)


def test_a_missing_file_of_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml cannot be read"):
        read_prompts(tmp_path / "nothing.yaml")


# What is shown


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('"..." He said.', " He said."),
        ("“……” He said.", " He said."),
        ('"...."x', "x"),
        ('".." x', '".." x'),
        ('x "..."', 'x "..."'),
        ("\n“...”", "\n“...”"),
        ("a ![](http://x/y.png)\nb", "a b"),
        ("![](/a(b)\nc", "c"),
        ("![](a)\n![](b)\n\nc", "\nc"),
        ("![](a) b", "![](a) b"),
        ("![]()\nb", "![]()\nb"),
        ("![cat](a)\nb", "![cat](a)\nb"),
        ("![](a", "![](a"),
    ],
)
def test_leftovers_go(text: str, left: str) -> None:
    assert without_leftovers(text) == left


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["![](", "![](a", ")", "\n", ")\n", "a", "(", '"..."', "“…”", "![]", " "])).map("".join)
)
def test_leftovers_go_as_the_regular_expressions_have_it(text: str) -> None:
    slow = re.sub(r'\A["“”]…+["“”]|\A["“”]\.\.\.+["“”]', "", text)
    assert without_leftovers(text) == re.sub(r"!\[\]\(/?[^)]+\)\n", "", slow)


def test_removing_images_takes_linear_time() -> None:
    """The regular expression would take some minutes here."""
    text = "![](" * 250_000
    assert without_leftovers(text) == text and without_leftovers(text + ")x") == text + ")x"


@pytest.fixture(scope="module")
def tokenizer(toy_tokenizer: Path) -> Tokenizer:
    loaded = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


words = st.sampled_from(
    ["boat", "letter,", "the old captain", "日本語", "🎉🚀", "e\u0301", "<|endoftext|>", "\n\n", "x" * 9, "7"]
)
texts = st.lists(words | st.text(max_size=5), max_size=30).map(" ".join)


@settings(max_examples=200)
@given(st.lists(texts, max_size=4), st.integers(2, 24), st.integers(2, 80))
def test_the_beginning_and_the_end_are_shown(
    tokenizer: Tokenizer, given_texts: list[str], most: int, characters: int
) -> None:
    shown, left_out = head_and_tail(given_texts, tokenizer, most, characters)
    for text, found, cut in zip(given_texts, shown, left_out.tolist(), strict=True):
        assert cut == (len(text) > characters or tokens(tokenizer, text) > most)
        if not cut:
            assert found == text.strip()
            continue
        # The text may hold the mark itself: one of the places is the cut, with no more around it than may be shown.
        places = [k for k in range(len(found) + 1) if found.startswith(MARK, k)]
        pairs = [own_ends(text, found[:k], found[k + len(MARK) :]) for k in places]
        sizes = [[tokens(tokenizer, part) for part in pair] for pair in pairs if pair]
        assert any(head <= most // 2 and tail <= most - most // 2 for head, tail in sizes)


def own_ends(text: str, head: str, tail: str) -> tuple[str, str] | None:
    """The parts with the white space that was stripped; null if they are not the text's ends, or overlap."""
    lead, trail = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    begun, left = lead + len(head) if head else 0, trail + len(tail) if tail else 0
    if not (text.lstrip().startswith(head) and text.rstrip().endswith(tail) and begun + left <= len(text)):
        return None
    return text[:begun], text[len(text) - left :]


def test_as_many_tokens_are_kept_as_were_asked_for(tokenizer: Tokenizer) -> None:
    text = " ".join(f"{k} boats" for k in range(2000))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    (shown,), left_out = head_and_tail([text], tokenizer, 1894, 20_000)
    head, tail = shown.split(MARK)
    assert left_out.tolist() == [True] and shown.count(MARK) == 1
    assert tokenizer.encode(head, add_special_tokens=False).ids == ids[:947]
    assert tokenizer.encode(tail, add_special_tokens=False).ids[-946:] == ids[-946:]
    assert tokens(tokenizer, shown) == 1894 + tokens(tokenizer, MARK), "1,895 where the mark is one token"


def test_of_a_long_text_only_the_ends_are_looked_at(tokenizer: Tokenizer) -> None:
    text = "a" * 50 + "b" * 10_000_000 + "c" * 51
    (shown,), left_out = head_and_tail([text], tokenizer, 500, 101)
    assert shown == "a" * 50 + MARK + "c" * 51 and left_out.tolist() == [True], "few tokens, and yet a mark"


def test_no_character_is_cut(tokenizer: Tokenizer) -> None:
    """A byte-level tokenizer has up to four tokens for one of these."""
    for most in range(2, 30):
        (shown,), _ = head_and_tail(["🎉🚀日本" * 20], tokenizer, most, 1000)
        head, tail = shown.split(MARK)
        assert ("🎉🚀日本" * 20).startswith(head) and ("🎉🚀日本" * 20).endswith(tail)
        assert tokens(tokenizer, head) <= most // 2 and tokens(tokenizer, tail) <= most - most // 2
