"""What models are asked for programs: golden conversations, files of prompts, closing instructions that stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from transforms.batch import Batch
from transforms.program_prompts import FILE, SEED, ProgramPrompts, read_prompts
from transforms.program_writer import first_tokens
from transforms.programs import CALLS, chunk_lines, has_call, numbered, numbered_lines

SYSTEM = ("system", "You are a helpful, respectful and honest assistant.")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=[]) | st.sampled_from("a \n日🙂e\u0301"), max_size=200)


def batch_of(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def test_published_refiners_are_asked_as_they_were_taught() -> None:
    lines = numbered_lines(batch_of("Home\n\nA tower {stands} here.", "é\nb"), 0)
    asked = ProgramPrompts()
    chunk = "[doc]\n[000]Home\n[001]\n[002]A tower {stands} here.\n[/doc]"
    assert asked.of_chunk(numbered(lines)) == (SYSTEM, ("user", chunk))
    assert asked.of_document("Home\n\nA {text}.") == (SYSTEM, ("user", "Home\n\nA {text}."))
    assert (asked.chunk_tokens, asked.document_tokens, asked.output_tokens) == (1500, 2000, 256)


def test_models_that_know_nothing_are_told_the_language() -> None:
    (_, system), (role, said) = SEED.of_chunk("[doc]\n[000]Home\n[/doc]")
    assert system and role == "user" and "[doc]\n[000]Home\n[/doc]" in said and has_call(said)
    assert {call for call in CALLS if f"{call}(" in said} == {"remove_lines", "normalize", "keep_chunk"}
    (_, said) = SEED.of_document("A page.")[-1]
    assert said.startswith("A page.") and {call for call in CALLS if f"{call}(" in said} == {"keep_doc", "drop_doc"}


def test_long_lines_show_their_ends_and_keep_their_numbers() -> None:
    text = "\n".join(["0123456789" * 3, "short", "日本語" * 20, "x" * 12])
    assert numbered_lines(batch_of("first", text), 1, 12) == [
        "[000]01234567 …18… 6789", "[001]short", f"[002]{'日本語日本語日本'} …48… {'語日本語'}", f"[003]{'x' * 12}",
    ]  # fmt: skip


def test_numbers_may_stand_after_their_lines() -> None:
    batch = batch_of("first", "Home\n\n[1] a tower stands here")
    assert ProgramPrompts(numbers="after").lines(batch, 1) == ["Home[000]", "[001]", "[1] a tower stands here[002]"]
    short = ProgramPrompts(numbers="after", line=8)
    assert short.lines(batch, 1) == ["Home[000]", "[001]", "[1] a  …15… re[002]"]
    assert ProgramPrompts(line=8).lines(batch, 1) == numbered_lines(batch, 1, 8) == [
        "[000]Home", "[001]", "[002][1] a  …15… re",
    ]  # fmt: skip


@given(st.lists(st.text("ab ", max_size=9), min_size=1, max_size=1200), st.integers(9, 40))
def test_numbers_go_through_the_document_whatever_the_chunks(lines: list[str], most: int) -> None:
    batch = batch_of("x", "\n".join(lines))
    shown = numbered_lines(batch, 1)
    chunks = chunk_lines(np.array([1, *map(len, lines)]), batch.lines.offsets, most)
    told = [numbered(shown[a : b + 1]) for d, a, b in zip(*chunks, strict=True) if d == 1]
    found = [line for text in told for line in text.split("\n")[1:-1]]
    assert found == [f"[{i:03d}]{line}" for i, line in enumerate(lines)]


@given(TEXT, st.integers(16, 40))
def test_the_closing_instruction_stays_whatever_the_length(toy_tokenizer: Path, text: str, most: int) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer / "tokenizer.json"))
    asked = ProgramPrompts(document="Read: {text}\nAnswer keep_doc() or drop_doc().", document_tokens=most)
    shown = first_tokens(text, tokenizer, asked.document_tokens)
    assert text.startswith(shown)
    assert asked.of_document(shown)[-1] == ("user", f"Read: {shown}\nAnswer keep_doc() or drop_doc().")
    count = len(tokenizer.encode(text, add_special_tokens=False).ids)
    if count <= most:
        assert shown == text
    else:  # a character of several tokens may be shown whole
        assert most <= len(tokenizer.encode(shown + "\u0000", add_special_tokens=False).ids) + 3
        assert len(shown) < len(text) or most >= count - 3


def test_files_of_prompts(tmp_path: Path) -> None:
    own = ProgramPrompts(version=3, system="", chunk="Clean: {text}", line=40, chunk_tokens=300)
    own.save(tmp_path)
    assert read_prompts(tmp_path) == read_prompts(tmp_path / FILE) == own
    assert own.of_chunk("x") == (("user", "Clean: x"),)
    (tmp_path / "short.yaml").write_text("chunk_tokens: 800\n")
    assert read_prompts(tmp_path / "short.yaml") == ProgramPrompts(chunk_tokens=800)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as prompts"), ("chunk: [", "cannot be read as prompts"), ("- 1", "it: "),
        ("chonk: '{text}'", "chonk: Extra inputs .*; there are version, system, chunk"),
        ("chunk: no place", "chunk: .* has {text} 0 times"), ("document: '{text} {text}'", "has {text} 2 times"),
        ("chunk_tokens: 0", "chunk_tokens"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "prompts.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(file)
    with pytest.raises(ValidationError):
        ProgramPrompts(line=2)
