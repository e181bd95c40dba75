"""Tasks: equal to each pair alone through the model's own head, and to counts by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS
from pydantic import ValidationError

from trainers.config import TrainConfig
from trainers.likelihood import likelihood
from trainers.model import ModelConfig, load_model
from trainers.tasks import Cloze, MultipleChoice, TaskJob, Tasks, begin_token, encode, main, of_file, run_tasks, wilson
from trainers.tokenise import load_tokenizer
from trainers.train import train

TINY = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


@pytest.fixture(scope="module")
def folder(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the toy words, hardly trained; its folder."""
    out = tmp_path_factory.mktemp("tasks") / "mixture" / "seed0"
    config = TrainConfig(model=TINY, tokens=20_000, lr=1e-2, row_length=48, threads=1, precision="fp32")
    train(config, toy / "mixture", out)
    return out / "model"


def alone(folder: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-probability of the continuation by transformers' attention, and whether it is greedy."""
    model = load_model(folder)
    model.set_attn_implementation("eager")
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids[:, :-1]).logits[0], dim=-1)[len(context) - 1 :]
    right = torch.tensor(continuation)
    return float(log_p.gather(1, right[:, None]).sum()), bool((log_p.argmax(dim=-1) == right).all())


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_pairs_in_rows_equal_each_alone(folder: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 24, size=(60, 2))
    contexts, continuations = ([generator.integers(0, 300, n).tolist() for n in sizes[:, k]] for k in (0, 1))
    model = load_model(folder)
    found = likelihood(model, contexts, continuations, 48)
    for i in range(60):
        log_p, greedy = alone(folder, contexts[i], continuations[i])
        assert found.log_probability[i] == pytest.approx(log_p, rel=1e-4)
        assert found.greedy[i] == greedy
    best = [[int(np.argmax(row))] for row in _next(model, contexts)]
    assert likelihood(model, contexts, best, 48).greedy.all()
    assert not likelihood(model, contexts, [[(t[0] + 1) % 300] for t in best], 48).greedy.any()
    empty = likelihood(model, contexts, [[]] * 60, 48)
    assert empty.greedy.all() and not empty.log_probability.any() and not empty.cut.any()


def _next(model: Any, contexts: list[list[int]]) -> list[np.ndarray]:
    """Log-probabilities of every token after each context."""
    each = [likelihood(model, [context] * 300, [[t] for t in range(300)], 48).log_probability for context in contexts]
    assert all(np.exp(row).sum() == pytest.approx(1, abs=1e-4) for row in each)
    return each


def test_what_is_longer_than_a_row(folder: Path) -> None:
    """The context loses its beginning; a long continuation goes row by row, the last one as full as the others."""
    model, tokens = load_model(folder), (np.arange(100) * 7 % 300).tolist()
    cut = likelihood(model, [tokens[:60], tokens[:5]], [tokens[60:70], tokens[5:10]], 48)
    assert cut.cut.tolist() == [True, False]
    assert cut.log_probability[0] == pytest.approx(alone(folder, tokens[21:60], tokens[60:70])[0], rel=1e-4)
    long = likelihood(model, [tokens[:1]], [tokens[1:]], 48).log_probability[0]
    windows = [(0, 1, 49), (48, 49, 97), (51, 97, 100)]
    expected = sum(alone(folder, tokens[a:b], tokens[b:c])[0] for a, b, c in windows)
    assert long == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="context 1 is empty"):
        likelihood(model, [[1], []], [[1], [1]], 48)


def test_a_cloze_counts_greedy_continuations(folder: Path, tmp_path: Path) -> None:
    tokenizer, end = load_tokenizer(folder)
    contexts = [" ".join(WORDS[i : i + 4]) for i in range(12)]
    before, _ = encode(
        tokenizer, end, Cloze(path=write(tmp_path / "a", context=contexts, continuation=contexts)).pairs()
    )
    best = [int(np.argmax(row)) for row in _next(load_model(folder), before)]
    words = [tokenizer.decode([t]) for t in best]
    planted = [w if i % 3 else " zebra" for i, w in enumerate(words)]
    task = Cloze(path=write(tmp_path / "b.parquet", context=contexts, continuation=planted))
    results, tables = run_tasks(load_model(folder), folder, {"next": task}, 48)
    found, table = results["next"], tables["next"]
    assert table["accuracy"].to_pylist() == [int(i % 3 > 0) for i in range(12)]
    assert found["accuracy"] == 8 / 12 and found["items"] == 12 and found["contexts_cut"] == 0
    low, high = found["accuracy_interval"]
    assert 0.3 < low < 8 / 12 < high < 0.9
    logs = table["log_probability"].to_numpy()
    assert found["log_probability"] == pytest.approx(logs.mean())
    assert found["log_probability_interval"][0] < logs.mean() < found["log_probability_interval"][1]


def test_multiple_choice_by_sum_length_and_surprise(folder: Path, tmp_path: Path) -> None:
    """Every accuracy is that of log-probabilities computed one by one."""
    generator = np.random.default_rng(1)
    questions = [" ".join(generator.choice(WORDS, 5)) for _ in range(30)]
    choices = [
        [" ".join(generator.choice([*WORDS, "Ä", "漢字"], n)) for n in generator.integers(1, 6, 3)] for _ in questions
    ]
    answer = generator.integers(0, 3, 30)
    path = write(tmp_path / "mc.parquet", prompt=questions, choices=choices, answer=answer)
    task = MultipleChoice(path=path, unconditional=True)
    results, tables = run_tasks(load_model(folder), folder, {"mc": task}, 48)
    tokenizer, end = load_tokenizer(folder)

    def log_p(context: str, choice: str) -> float:
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in (context, " " + choice)]
        return alone(folder, [end, *ids[0]], ids[1])[0]

    expected: dict[str, list[int]] = {
        name: [] for name in results["mc"] if name.startswith("accuracy") and "_int" not in name
    }
    for question, options, right in zip(questions, choices, answer, strict=True):
        logs = np.array([log_p(question, option) for option in options])
        by = {
            "accuracy": logs,
            "accuracy_per_character": logs / [len(option) for option in options],
            "accuracy_per_byte": logs / [len(option.encode()) for option in options],
            "accuracy_unconditional": logs - [log_p("", option) for option in options],
        }
        for name, values in by.items():
            expected[name].append(int(np.argmax(values) == right))
    assert set(expected) == set(by) and len({str(v) for v in expected.values()}) > 1
    for name, values in expected.items():
        assert tables["mc"][name].to_pylist() == values
        assert results["mc"][name] == pytest.approx(np.mean(values))
    assert results["mc"]["chance"] == pytest.approx(1 / 3)
    plain, _ = run_tasks(load_model(folder), folder, {"mc": MultipleChoice(path=path)}, 48)
    assert plain["mc"] == {k: v for k, v in results["mc"].items() if "unconditional" not in k}


@pytest.mark.parametrize(
    ("kind", "columns", "words"),
    [
        ("cloze", {"contxt": ["a"], "continuation": ["b"]}, "no column 'context'; did you mean 'contxt'?"),
        ("cloze", {"context": ["a"], "x": ["b"]}, "no column 'continuation'; there is context, x"),
        ("cloze", {"context": ["a", "b"], "continuation": ["b", ""]}, "row 1 has an empty continuation"),
        ("cloze", {"context": ["a", None], "continuation": ["b", "c"]}, "row 1 has no context"),
        ("cloze", {"context": [["a"]], "continuation": ["b"]}, "column 'context' is list<.*>, expected text"),
        ("cloze", {"context": pa.array([], pa.string()), "continuation": pa.array([], pa.string())}, "holds no items"),
        ("multiple_choice", {"x": ["a"], "choices": [["b"]], "answer": [0]}, r"no column 'question' \(or 'prompt'\)"),
        ("multiple_choice", {"prompt": ["a"], "choices": [["b"]], "answer": [0]}, "fewer than two choices"),
        ("multiple_choice", {"prompt": ["a"], "choices": [["b", ""]], "answer": [0]}, "row 0 has an empty choice"),
        (
            "multiple_choice",
            {"prompt": ["a"] * 3, "choices": [["b", "c"]] * 3, "answer": [0, 2, -1]},
            "row 1 has an answer that .*, and 1 more",
        ),
        (
            "multiple_choice",
            {"prompt": ["a"], "choices": [["b", "c"]], "answer": ["A"]},
            "'answer' is string, expected whole number",
        ),
        (
            "multiple_choice",
            {"prompt": ["a"], "choices": ["bc"], "answer": [0]},
            "'choices' is string, expected list of texts",
        ),
    ],
)
def test_files_are_checked_first(kind: str, columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", **columns)
    with pytest.raises(ValidationError, match=words):
        Tasks(tasks={"t": {"kind": kind, "path": path}})


def test_what_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("words")
    for path, words in [(tmp_path / "none", "no file at"), (tmp_path / "text", "cannot be read as Parquet")]:
        with pytest.raises(ValidationError, match=words):
            Cloze(path=path)
    with pytest.raises(ValueError, match="is no Parquet file"):
        of_file(tmp_path / "text")
    with pytest.raises(ValidationError, match="cannot name a file"):
        Tasks(tasks={"../x": {"kind": "cloze", "path": tmp_path / "text"}})
    assert of_file(write(tmp_path / "c", context=["a"], continuation=["b"])) == Cloze(path=tmp_path / "c")
    mc = write(tmp_path / "m", question=["a"], choices=[["a", "b"]], answer=[1])
    assert of_file(mc) == MultipleChoice(path=mc)


def test_white_space_before_the_boundary_goes_to_the_continuation(folder: Path, tmp_path: Path) -> None:
    tokenizer, end = load_tokenizer(folder)
    paths = [
        write(tmp_path / str(k), context=[c], continuation=[d])
        for k, (c, d) in enumerate([("the ", "cat"), ("the", " cat")])
    ]
    first, second = (encode(tokenizer, end, Cloze(path=path).pairs()) for path in paths)
    assert first == second and first[0][0][0] == end
    assert tokenizer.decode(first[1][0]) == " cat"


def test_the_token_that_begins_a_text(tmp_path: Path, folder: Path) -> None:
    tokenizer, end = load_tokenizer(folder)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert begin_token(tmp_path, tokenizer, end) == end == begin_token(folder, tokenizer, end)
    for bos in ("Ġcat", {"content": "Ġcat"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
        assert begin_token(tmp_path, tokenizer, end) == tokenizer.token_to_id("Ġcat") != end


def test_wilson_against_published_values() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for r, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(r, n) == pytest.approx([low, high], abs=6e-5)


def test_a_job_as_a_process_runs_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.parquet", context=["the", "old cat"], continuation=[" cat", " sees the"])
    config = {"row_length": 48, "threads": 1, "precision": "fp32"}
    job = TaskJob(tasks={"next": Cloze(path=path)}, model=folder, out=tmp_path / "out", key="k", config=config)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert main([str(tmp_path / "job.json")]) == 0
    written = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert written["key"] == "k" and written["tasks"] == json.loads(capsys.readouterr().out)
    table = pq.read_table(tmp_path / "out" / "tasks" / "next.parquet")
    assert written["tasks"]["next"]["log_probability"] == pytest.approx(np.mean(table["log_probability"].to_pylist()))
    assert all(v < 0 and math.isfinite(v) for v in table["log_probability"].to_pylist())
    (tmp_path / "c.parquet").unlink()
    assert main([str(tmp_path / "job.json")]) == 2 and "no file at" in capsys.readouterr().err
