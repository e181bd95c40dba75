"""`corpusmill merge`: both forms of the command, and mistakes with exit code 2."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from pipelines.cli import app


def corpusmill(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.fixture(scope="module")
def models(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("merge")
    tokenizer = (toy_tokenizer / "tokenizer.json" if toy_tokenizer.is_dir() else toy_tokenizer).read_text()
    size = max(json.loads(tokenizer)["model"]["vocab"].values()) + 10
    for seed in range(3):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=size
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(root / str(seed))
        (root / str(seed) / "tokenizer.json").write_text(tokenizer)
    return [root / str(seed) for seed in range(3)]


def test_average_with_weights(models, tmp_path):
    done = corpusmill(tmp_path / "out", "--average", *models, "--weights", "2,1,1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])["merge"]
    assert [model["factor"] for model in told["models"]] == [0.25, 0.25]
    assert f"0.5 of {models[0]}\n0.25 of {models[1]}" in done.stdout and "/out: average\n" in done.stdout
    read = [load_file(folder / "model.safetensors") for folder in (*models, tmp_path / "out")]
    for name, merged in read[-1].items():
        assert torch.allclose(merged, 0.5 * read[0][name] + 0.25 * read[1][name] + 0.25 * read[2][name], atol=1e-6)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_base_and_task_vectors(models, tmp_path):
    done = corpusmill(tmp_path / "out", "--base", models[0], "--add", f"{models[1]}:0.5", f"{models[2]}:-1")
    assert done.exit_code == 0, done.output
    assert "+0.5 of" in done.stdout and "-1 of" in done.stdout and "task arithmetic" in done.stdout
    read = [load_file(folder / "model.safetensors") for folder in (*models, tmp_path / "out")]
    for name, merged in read[-1].items():
        base = read[0][name]
        assert torch.allclose(merged, base + 0.5 * (read[1][name] - base) - (read[2][name] - base), atol=1e-6)


def test_ties_and_dare_say_what_they_did(models, tmp_path):
    for name, option in (("ties", "--density"), ("dare", "--drop")):
        arguments = ("--base", models[0], "--add", f"{models[1]}:1", option, "0.5", "--seed", 3)
        assert corpusmill(tmp_path / name, *arguments).exit_code == 0
        told = json.loads((tmp_path / name / "merge.json").read_text())
        assert told["method"] == name and told[option.removeprefix("--")] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("M0", "M1"), "one of --average"),
        (("--average", "--add", "M0"), "one of --average"),
        (("--average", "M0", "M1", "--weights", "1"), "one weight per model"),
        (("--average", "M0", "M1", "--weights", "1,x"), "'x' is no number"),
        (("--average", "M0", "--base", "M1"), "go with --add"),
        (("--add", "M0:1"), "--add wants --base"),
        (("--base", "M0", "--add", "M1"), "give MODEL:LAMBDA"),
        (("--base", "M0", "--add", "M1:much"), "'much' is no number"),
        (("--base", "M0", "--add", "M1:1", "--density", "2"), "density 2.0"),
        (("--average", "nowhere"), "no model folder at nowhere"),
    ],
)
def test_mistakes_have_exit_code_2(models, tmp_path, arguments, message):
    given = [text.replace("M0", str(models[0])).replace("M1", str(models[1])) for text in arguments]
    done = corpusmill(tmp_path / "out", *given)
    assert done.exit_code == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(models):
    done = corpusmill(models[2], "--average", models[0])
    assert done.exit_code == 2 and "choose another folder" in done.stderr
