"""Teaching: a task that can be learned is learned, what is written runs in the engines, mistakes are told before any
work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from toy_chat import build_chat_model

from trainers.fit_tokenizer import fit_tokenizer
from trainers.teach import Lesson, teach
from transforms.generation.engine import Request, Sampling
from transforms.generation.transformers import Transformers

OPPOSITES = {"red": "blue", "old": "new", "cat": "dog", "near": "far", "up": "down", "hot": "cold"}
# Its first turn begins with the token of `bos_token`, which no trained folder may call otherwise.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SMALL = {"hidden_size": 64, "intermediate_size": 96}


def opposites(count: int) -> list[list[tuple[str, str]]]:
    """A word, the answer is its opposite. An earlier answer of each is wrong, and not to be learned."""
    pairs = [pair for a, b in OPPOSITES.items() for pair in ((a, b), (b, a))]
    turns = [[("user", a), ("assistant", "?"), ("user", f"the {a}"), ("assistant", f"the {b}")] for a, b in pairs]
    return [turns[k % len(turns)] for k in range(count)]


def right(folder: Path, asked: list[list[tuple[str, str]]]) -> float:
    """Share of the last answers that the model gives."""
    requests = [Request(key=str(k), messages=tuple(turns[:-1])) for k, turns in enumerate(asked)]
    answers = Transformers(model=folder).generate(requests, Sampling(max_tokens=12))
    return float(np.mean([answer.text == turns[-1][1] for answer, turns in zip(answers, asked, strict=True)]))


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return Lesson(vocabulary=320, epochs=7, train={"model": SMALL, "row_length": 64, "lr": 3e-3, "batch_tokens": 256})


@pytest.fixture(scope="module")
def taught(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("taught")
    return out, teach(lesson, [*opposites(180), [("user", "red " * 200), ("assistant", "x")]], out, 3)


def test_what_is_taught_is_said(taught: tuple[Path, dict[str, Any]]) -> None:
    out, card = taught
    assert right(out, opposites(12)) > 0.95
    assert card["conversations"] == 181 and card["left_out"] == 1  # longer than a row
    assert card["passes"] == pytest.approx(7) and card["loss"] < 0.1
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64


def test_equal_work_gives_equal_bytes(lesson: Lesson, taught: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    short = lesson.model_copy(update={"train": {**lesson.train, "tokens": 4000}})
    cards = [teach(short, opposites(50), tmp_path / name, 3) for name in ("one", "two")]
    assert cards[0] == cards[1]
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in taught[0].iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_new_model_that_has_read_is_taught_sooner(lesson: Lesson, tmp_path: Path) -> None:
    short = lesson.model_copy(update={"epochs": 0.5})
    plain = teach(short, opposites(100), tmp_path / "plain", 0)
    read = teach(short.model_copy(update={"reading": 8.0}), opposites(100), tmp_path / "read", 0)
    assert read["loss"] < 0.8 * plain["loss"]
    assert {**read, "loss": 0} == {**plain, "loss": 0}  # the lesson is as long
    tokens = {**short.train, "tokens": 3000}
    assert short.model_copy(update={"reading": 1.5, "train": tokens}).first(0).tokens == 4500


def test_a_model_goes_on_with_its_own_template_and_tokens(tmp_path: Path) -> None:
    start = build_chat_model(tmp_path / "start", TEMPLATE, scale=0.02)
    going = Lesson(start=start, train={"tokens": 70_000, "lr": 3e-3, "batch_tokens": 256})
    assert going.row_length == 256  # what it reads at once
    teach(going, opposites(180), tmp_path / "out", 0)
    assert right(tmp_path / "out", opposites(12)) > 0.95
    engines = [Transformers(model=folder) for folder in (start, tmp_path / "out")]
    prompts = [engine._decoder.prompts.tokens([Request("", messages=(("user", "a"),))]) for engine in engines]
    assert prompts[0] == prompts[1] and prompts[0][0][0] == 0  # <|begin|>


def test_a_tokenizer_that_was_made_before_is_used(lesson: Lesson, tmp_path: Path) -> None:
    made = fit_tokenizer(["cats and dogs " * 9], tmp_path / "tokenizer", 270)
    short = lesson.model_copy(update={"train": {**lesson.train, "tokens": 1000}})
    teach(short, opposites(20), tmp_path / "out", 0, made)
    vocabularies = [json.loads((f / "tokenizer.json").read_text())["model"]["vocab"] for f in (tmp_path / "out", made)]
    assert vocabularies[0] == vocabularies[1]


def test_nothing_to_learn_is_refused(lesson: Lesson, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to teach"):
        teach(lesson, [], tmp_path, 0)
    with pytest.raises(ValueError, match="conversation 1 does not end"):
        teach(lesson, [*opposites(1), [("user", "a")]], tmp_path, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": {"leraning_rate": 1}}, "train.leraning_rate: Extra inputs"),
        ({"train": {"lr": -1}}, "train.lr: "), ({"train": {"seed": 1}}, "train.seed: is decided by the lesson"),
        ({"train": {"format": {}}}, "train.format: is decided"), ({"train": {"row_length": "long"}}, "row_length"),
        ({"train": {"model": {"hidden_size": 64, "num_attention_heads": 4}}}, "heads are 16 wide"),
        ({"start": "nowhere"}, "no model folder at nowhere"), ({"vocabulary": 100}, "vocabulary"),
        ({"steps": 5}, "steps"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Lesson.model_validate(given)


def test_mistakes_about_a_model_to_start_from(tmp_path: Path) -> None:
    start = build_chat_model(tmp_path)
    with pytest.raises(ValidationError, match=r"reading: 1\.0 is for new models"):
        Lesson(start=start, reading=1)
    with pytest.raises(ValidationError, match="has a size of its own"):
        Lesson(start=start, train={"model": {}})
    with pytest.raises(ValidationError, match=r"a window of 512 tokens; .* allows 256"):
        Lesson(start=start, train={"row_length": 512})


def test_the_module_needs_no_torch() -> None:
    code = (
        "import sys, trainers.teach as t; t.Lesson(); sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
