"""Refiners that are language models: every line is asked about once, failures change nothing and are counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from toy_chat import build_chat_model
from toy_server import HANG, ToyServer

from transforms.batch import Batch
from transforms.program_prompts import ProgramPrompts
from transforms.program_writer import ChunkWriter, DocumentJudge

PAGES = ["Home\nAbout\nThe tower stands on a hill.\nIt is old.\nContact", "A page of one line.", "Home\nHome"]


def batch_of(*texts: str) -> Batch:
    return Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def noise(prompt: str) -> tuple[str, str]:
    """The program that removes every line of one word."""
    found = re.findall(r"^\[(\d+)\]\w+$", prompt, re.M)
    return "\n".join(f"remove_lines({n}, {n})" for n in found) or "keep_chunk()", "stop"


def asking(server: ToyServer, tokenizer: Path, **more: Any) -> dict[str, Any]:
    engine = {"engine": "openai", "base_url": server.url, "model": "toy", "tries": 1, "timeout": 0.5}
    return {"engine": engine, "tokenizer": tokenizer, **more}


def test_each_line_is_asked_about_once_and_goes_if_the_model_says_so(toy_tokenizer: Path) -> None:
    prompts = {"system": "S", "chunk_tokens": 24}
    with ToyServer(reply=noise) as server:
        writer = ChunkWriter.model_validate(asking(server, toy_tokenizer, prompts=prompts))
        written = writer.write(batch_of(*PAGES))
    seen = [line for one in server.seen for line in one.prompt.split("\n")[1:-1]]
    told = [f"[{i:03d}]{line}" for page in PAGES for i, line in enumerate(page.split("\n"))]
    assert sorted(seen) == sorted(told) and len(server.seen) > len(PAGES)
    assert all(one.body["messages"][0] == {"role": "system", "content": "S"} for one in server.seen)
    assert all(one.body["max_tokens"] == 256 and one.body["temperature"] == 0 for one in server.seen)
    for one in server.seen:
        assert writer.lengths(one.prompt.split("\n")[1:-1]).sum() <= 24
    assert written.edits.gone.tolist() == [True, True, False, False, True, False, True, True]
    assert not written.failures and not written.edits.errors.any()


def test_some_documents_alone(toy_tokenizer: Path) -> None:
    with ToyServer(reply=noise) as server:
        writer = ChunkWriter.model_validate(asking(server, toy_tokenizer))
        written = writer.write(batch_of(*PAGES), np.array([False, True, True]))
        nothing = writer.write(batch_of(*PAGES), np.zeros(3, bool))
    assert written.chunks.document.tolist() == [1, 2] and np.flatnonzero(written.edits.gone).tolist() == [6, 7]
    assert not nothing.programs and not nothing.edits.gone.any() and len(server.seen) == 2


def test_what_fails_changes_nothing_and_is_counted(toy_tokenizer: Path) -> None:
    pages = ["Home\n" + "a long line without end " * 9 + "\nHome", "Hang\nup", "Say\nnothing", "Be\ncut"]
    script: dict[str, list[Any]] = {"[doc]\n[000]Hang\n[001]up\n[/doc]": [HANG]}

    def reply(prompt: str) -> tuple[str, str]:
        if "nothing" in prompt:
            return "I would rather not.", "stop"
        return ("remove_lines(0,0)\nremove_li", "length") if "cut" in prompt else noise(prompt)

    with ToyServer(script, reply=reply) as server:
        writer = ChunkWriter.model_validate(asking(server, toy_tokenizer, prompts={"chunk_tokens": 40}))
        written = writer.write(batch_of(*pages))
    assert sorted(written.failures) == [(0, "line too long"), (1, "timed out"), (2, "no program"), (3, "cut off")]
    assert np.flatnonzero(written.edits.gone).tolist() == [0, 2, 7]
    assert written.edits.errors.tolist() == [0, 0, 0, 0]  # what was cut within its name is no call


def test_a_line_of_any_length_has_its_ends_shown(toy_tokenizer: Path) -> None:
    with ToyServer(reply=noise) as server:
        prompts = ProgramPrompts(chunk_tokens=80, line=12)
        writer = ChunkWriter.model_validate(asking(server, toy_tokenizer, prompts=prompts))
        written = writer.write(batch_of("Home\n" + "x y " * 1_000_000))
    assert [one.prompt for one in server.seen] == ["[doc]\n[000]Home\n[001]x y x y  …3999988… x y \n[/doc]"]
    assert not written.failures and written.edits.gone.tolist() == [True, False]


def test_documents_go_only_if_the_model_says_so(toy_tokenizer: Path) -> None:
    answers = {"a": "drop_doc()", "b": "keep_doc()", "c": "Perhaps drop it?", "d": "", "e": "# why\ndrop_doc()"}
    answers |= {"g": "drop_doc()\nsince it is one of those", "h": "It is a page of the kind that"}
    prompts = {"document": "{text}\nDecide.", "document_tokens": 16}
    with ToyServer(reply=lambda prompt: (answers[prompt[0]], "length" if prompt[0] in "gh" else "stop")) as server:
        server.script["f\nDecide."] = [HANG]
        judge = DocumentJudge.model_validate(asking(server, toy_tokenizer, prompts=prompts))
        judged = judge.judge(batch_of("a" + " b" * 5000, "b", "c", "d", "e", "f", "g", "h"))
    assert judged.drop.tolist() == [True, False, False, False, True, False, True, False]
    assert judged.failures == [(2, "no program"), (3, "no program"), (5, "timed out"), (7, "cut off")]
    long = next(one.prompt for one in server.seen if one.prompt.startswith("a"))
    assert long.endswith("\nDecide.") and judge.lengths([long.removesuffix("\nDecide.")])[0] == 16


def test_a_model_folder_has_its_own_prompts(tmp_path: Path) -> None:
    model = build_chat_model(tmp_path)
    assert ChunkWriter.model_validate({"engine": {"model": model}}).asked == ProgramPrompts()
    own = ProgramPrompts(system="", line=30)
    own.save(tmp_path)
    assert ChunkWriter.model_validate({"engine": {"model": model}}).asked == own
    other = tmp_path / "other.yaml"
    other.write_text("line: 50")
    assert ChunkWriter.model_validate({"engine": {"model": model}, "prompts": other}).asked.line == 50
    few = ChunkWriter.model_validate({"engine": {"model": model}, "prompts": {"output_tokens": 8}})
    written = few.write(batch_of("one\ntwo"))
    assert len(written.programs) == 1  # whatever a model of random weights says


def test_mistakes_are_told_when_it_is_made(tmp_path: Path) -> None:
    server = {"engine": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
    with pytest.raises(ValidationError, match="tokenizer: must be given"):
        ChunkWriter.model_validate({"engine": server})
    with pytest.raises(ValidationError, match="cannot be read as prompts"):
        ChunkWriter.model_validate({"engine": {"model": build_chat_model(tmp_path)}, "prompts": tmp_path / "no.yaml"})
