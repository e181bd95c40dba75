"""The fit of a language model that writes programs: what is planted is learned from nothing, and the folder says so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import pages
from pydantic import ValidationError
from toy_server import ToyServer

from trainers import fits
from trainers.fit_refiner import batch_of
from trainers.fit_refiner_lm import FitRefinerLM, _hidden
from transforms.batch import Batch
from transforms.program_prompts import read_prompts
from transforms.program_writer import ChunkWriter, DocumentJudge
from transforms.programs import Chunks, read_programs

SIZE = {"hidden_size": 64, "intermediate_size": 128}
LESSON = {"vocabulary": 320, "epochs": 5, "train": {"row_length": 160, "lr": 3e-3, "batch_tokens": 512, "model": SIZE}}
PROMPTS = {"system": "", "chunk_tokens": 48, "document_tokens": 24, "output_tokens": 64}
BRIEF = {"vocabulary": 300, "train": {"tokens": 600, "row_length": 256, "model": SIZE}}


def sample(count: int) -> dict[str, pa.Table]:
    """Pages of a few lines, noise before and after text; where there is no text a page should not stay."""
    draw = np.random.default_rng(0)
    texts, programs, stays = [], [], []
    for _ in range(count):
        sizes = draw.integers(0, (3, 4, 3))
        sizes[0] += not sizes.any()
        lines = ["Home"] * sizes[0] + ["tower"] * sizes[1] + ["Home"] * sizes[2]
        texts.append("\n".join(lines))
        calls = [f"remove_lines({i}, {i})" for i, line in enumerate(lines) if line == "Home"]
        programs.append("\n".join(calls) or "keep_chunk()")
        stays.append(bool(sizes[1]))
    group = [str(k) for k in range(count)]
    return {"documents": pa.table({"text": texts, "program": programs, "stays": stays, "group": group})}


def fit(**changes: Any) -> FitRefinerLM:
    return FitRefinerLM.model_validate({"prompts": PROMPTS, "draws": 1, "lesson": BRIEF, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("writer")
    return out, fit(program="p", stays="s", lesson=LESSON).fit(sample(440), out, 0)


def test_what_is_planted_is_learned(model: tuple[Path, dict[str, Any]]) -> None:
    out, card = model
    assert json.loads((out / "card.json").read_text()) == card
    lines, documents = card["holdout"]["lines"], card["holdout"]["documents"]
    assert lines["all"]["line_f1"] > 0.8 and lines["given"] == lines["all"]  # 0.6 by removing every line
    assert lines["malformed"] < 0.05 and lines["pages"] == documents["pages"] == card["documents"]["held out"] > 20
    assert documents["f1"] > 0.9
    assert fits.find("refiner_lm") is FitRefinerLM


def test_the_folder_is_an_engine_with_the_prompts_it_was_taught(model: tuple[Path, dict[str, Any]]) -> None:
    out, _ = model
    assert read_prompts(out).model_dump(include=set(PROMPTS)) == PROMPTS
    batch = Batch(pa.record_batch({"text": ["Home\ntower\ntower\nHome", "tower\ntower\nHome\nHome", "Home\nHome"]}))
    written = ChunkWriter.model_validate({"engine": {"model": out}}).write(batch)
    assert all(re.fullmatch(r"#(\d{3}[+-])+", text.split("\n")[0]) for text in written.programs)
    gone = np.array([True, False, False, True, False, False, True, True, True, True])
    assert (written.edits.gone == gone).sum() >= 8 and not written.failures
    judged = DocumentJudge.model_validate({"engine": {"model": out}}).judge(batch)
    assert judged.drop.tolist() == [False, False, True]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fit(program="p").fit(sample(60), tmp_path / name, 5)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"card.json", "model.safetensors", "program_prompts.yaml"} < set(files)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_programs_that_would_be_cut_off_are_not_taught(tmp_path: Path) -> None:
    cards = [
        fit(program="p", prompts=PROMPTS | {"output_tokens": most}).fit(sample(60), tmp_path / str(most), 5)["taught"]
        for most in (64, 40)
    ]
    assert cards[0]["answers_too_long"] == 0 and 0 < cards[1]["answers_too_long"] < cards[0]["conversations"]
    assert cards[1]["conversations"] == cards[0]["conversations"] - cards[1]["answers_too_long"]


def test_chunks_begin_anywhere_and_numbers_are_the_documents(tmp_path: Path) -> None:
    from trainers.program_labels import by_programs
    from trainers.tokenise import load_tokenizer

    told = [page._replace(text=re.sub("^", f"p{k:02d} ", page.text, flags=re.M)) for k, page in enumerate(pages(30, 4))]
    batch = Batch(pa.record_batch({"text": [page.text for page in told]}))
    programs = ["\n".join(f"remove_lines({i}, {i})" for i in page.noise) for page in told]
    made = fit(program="p", draws=6, hide=0.0, prompts={"chunk_tokens": 120, "line": 30, "output_tokens": 64})
    labels = by_programs(batch, pa.chunked_array([programs]))
    some = np.arange(30) < 20
    folder = made._tokenizer(batch, labels, some, tmp_path)
    tokenizer = load_tokenizer(folder)[0]
    taught = [*made._conversations(batch, labels, [None] * 30, some, tokenizer, 0)]
    shown, starts = {}, set()
    for *_, (_, asked), (role, answer) in taught:
        found = [(int(number), text) for number, text in re.findall(r"^\[(\d+)\](.*)$", asked, re.M)]
        assert role == "assistant" and [n for n, _ in found] == list(range(found[0][0], found[-1][0] + 1))
        (page,) = {int(text[1:3]) for _, text in found}
        assert all(_is(told[page].text.split("\n")[n], text) for n, text in found)
        own = Batch(pa.record_batch({"text": [told[page].text]}))
        chunk = Chunks(*(np.array([n]) for n in (0, found[0][0], found[-1][0])))
        gone = np.flatnonzero(read_programs(own, chunk, [answer]).gone)
        assert gone.tolist() == [n for n, _ in found if n in told[page].noise]
        shown[page] = shown.get(page, 0) + len(found)
        starts.add(found[0][0])
        assert sum(len(tokenizer.encode(f"[{n:03d}]{text}").ids) for n, text in found) <= 120
    assert shown == {k: 6 * (told[k].text.count("\n") + 1) for k in range(20)}, "each page, six times over"
    assert len(starts) > 10


def _is(line: str, shown: str) -> bool:
    parts = re.split(r" …(\d+)… ", shown)
    if len(parts) == 1:
        return line == shown
    head, left_out, tail = parts
    return line.startswith(head) and line.endswith(tail) and len(line) == len(head) + int(left_out) + len(tail)


WORDS = st.lists(st.text("ab[]", max_size=3), min_size=1, max_size=9)


@given(WORDS, st.floats(0, 0.99), st.booleans(), st.integers(0, 99))
def test_words_are_hidden_and_numbers_are_not(words: list[str], share: float, after: bool, seed: int) -> None:
    line = f"{' '.join(words)}[012]" if after else f"[012]{' '.join(words)}"
    shown = _hidden(line, share, after, np.random.default_rng(seed))
    assert shown.endswith("[012]") if after else shown.startswith("[012]")
    left, every = (shown[:-5] if after else shown[5:]).split(" "), iter(words)
    assert all(word in every for word in left)  # in their order
    assert share or left == words


def test_about_the_share_that_is_asked_for_is_hidden() -> None:
    words = [f"w{k}" for k in range(1000)]
    shown = _hidden(f"[003]{' '.join(words)}", 0.25, False, np.random.default_rng(0))
    assert 700 < shown.count(" ") < 800


def test_phrases_and_rules_are_completed_to_programs() -> None:
    told = pages(120, seed=6)
    columns = {name: [getattr(page, name) for page in told] for name in ("text", "keep", "drop")}
    table = pa.table({**columns, "group": [page.host for page in told]})
    batch, held = batch_of(table), np.arange(120) < 12
    noise = np.concatenate([np.isin(np.arange(page.text.count("\n") + 1), page.noise) for page in told])
    for labelled, most, least in (({"keep": "k", "drop": "d"}, 0.5, 0.85), ({"rules": ["c4", "repeated"]}, 0.99, 0.7)):
        labels = fit(**labelled, trees=20, group="host")._of_lines(table, batch, held, 0)
        assert labels is not None and labels.known.all() and np.isfinite(labels.goes).mean() < most
        assert (labels.gone == noise).mean() > least


def test_a_teacher_is_asked_once_whatever_becomes_of_the_fit(tmp_path: Path) -> None:
    def reply(prompt: str) -> tuple[str, str]:
        found = re.findall(r"^\[(\d+)\]Home$", prompt, re.M)
        return "\n".join(f"remove_lines({n}, {n})" for n in found) or "keep_chunk()", "stop"

    tables = {"documents": sample(60)["documents"].select(["text", "group"])}
    with ToyServer(reply=reply) as server:
        engine = {"engine": "openai", "base_url": server.url, "model": "large"}
        teacher = {"engine": engine, "tokenizer": tmp_path / "tokenizer"}
        from trainers.fit_tokenizer import fit_tokenizer

        fit_tokenizer(["[000]Home"], tmp_path / "tokenizer", 300)
        told = {"teacher": {**teacher, "most_removed": 1.0}, "cache": tmp_path / "answers.sqlite"}
        cards = [fit(**told).fit(tables, tmp_path / name, 0) for name in ("one", "two")]
        distinct = {one.prompt for one in server.seen}
        assert len(server.seen) == len(distinct) == len(set(tables["documents"]["text"].to_pylist()))
    assert cards[0] == cards[1] and cards[0]["documents"].keys() == {"learned", "held out"}
    assert "cache" not in cards[0]["parameters"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "given none"), ({"keep": "k"}, "give both"), ({"program": "p", "rules": ["c4"]}, "given .'program"),
        ({"program": "p", "lesson": {"train": {"lr": 0}}}, "train.lr"), ({"teacher": {}}, "engine"),
        ({"program": "p", "prompts": {"chunk_tokens": 900}}, "prompts.chunk_tokens: 900 tokens; .* leaves 720"),
        ({"stays": "s", "prompts": {"document_tokens": 900, "chunk_tokens": 9999}}, "prompts.document_tokens: 900"),
        ({"program": "p", "prompts": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_in_parameters(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitRefinerLM.model_validate(wrong)


def test_samples_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"9 pages to learn from .*expected at least 20.*: widen `where`"):
        fit(program="p").fit({"documents": sample(10)["documents"]}, tmp_path, 0)


def test_what_is_asked_of_the_corpus() -> None:
    wanted = fit(keep="good", drop="bad", stays="edu.score >= 3", where="language = 'en'", group="host").samples()
    assert wanted["documents"].columns == {"keep": "good", "drop": "bad", "group": "host", "stays": "edu.score >= 3"}
    assert wanted["documents"].where == "language = 'en'"
