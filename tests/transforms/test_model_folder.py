"""Folders that are no safe, whole causal model are refused before any work, each with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from transforms.causal_model import load
from transforms.model_folder import CAUSAL, CLASSIFIER, check_model_folder, check_window


@pytest.fixture
def folder(toy_causal: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_causal, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}})
    )


def header(folder: Path, text: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def large_token(folder: Path) -> None:
    added = [{"id": 400, "content": "<|new|>"}]
    change(folder / "tokenizer.json", added_tokens=added)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no model folder at"),
    "no config": (lambda f: (f / "config.json").unlink(), "no model folder at"),
    "config is no object": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "config is cut": (lambda f: (f / "config.json").write_text('{"archi'), "cannot be read as JSON"),
    "remote code": (lambda f: change(f / "config.json", auto_map={"AutoModelForCausalLM": "x.Y"}), "auto_map"),
    "a classifier": (
        lambda f: change(f / "config.json", architectures=["BertForSequenceClassification"]),
        "architecture BertForSequenceClassification, expected …ForCausalLM or …LMHeadModel",
    ),
    "no architecture": (lambda f: change(f / "config.json", architectures=None), "architecture none"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "pickled weights": (pickled, "pytorch_model.bin is pickled and not opened"),
    "cut weights": (lambda f: cut(f, -100), r"its header promises \d+; copy it anew"),
    "cut header": (lambda f: cut(f, 500), "no whole safetensors file"),
    "empty weights": (lambda f: cut(f, 0), "of 0 bytes is no whole safetensors file"),
    "header of garbage": (lambda f: header(f, b"not json"), "its header cannot be read"),
    "header of another kind": (lambda f: header(f, b'{"a": [1]}'), "its header cannot be read"),
    "missing part": (
        lambda f: index(f, "other.safetensors"),
        r"names other.safetensors, expected files of this folder",
    ),
    "part elsewhere": (
        lambda f: index(f, "../x.safetensors"),
        r"names ../x.safetensors, expected files of this folder",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "tokenizer of another kind": (lambda f: (f / "tokenizer.json").write_text("{}"), "is no tokenizer of"),
    "tokenizer of another model": (large_token, "token ids up to 400, the model's embedding has 400 rows"),
    "begin that is no token": (
        lambda f: change(f / "tokenizer_config.json", bos_token="<s>"),
        "names '<s>' as bos_token",
    ),
    "another vocabulary": (lambda f: change(f / "config.json", vocab_size=500), "has 400 rows, config.json says vocab"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case: str, folder: Path) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        check_model_folder(folder, CAUSAL)


def test_what_a_good_folder_tells(folder: Path) -> None:
    found = check_model_folder(folder, CAUSAL)
    assert found.vocabulary == 400 and found.shapes["model.embed_tokens.weight"] == (400, 32)
    token = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][0]
    assert found.begin == token["id"] and token["content"] == "<|endoftext|>"
    change(folder / "tokenizer_config.json", bos_token={"content": "<|endoftext|>"})
    assert check_model_folder(folder, CAUSAL).begin == found.begin
    change(folder / "tokenizer_config.json", bos_token=None)
    assert check_model_folder(folder, CAUSAL).begin is None, "the tokenizer's word counts"
    (folder / "tokenizer_config.json").unlink()
    change(folder / "config.json", bos_token_id=7)
    assert check_model_folder(folder, CAUSAL).begin == 7, "else the model's"
    with pytest.raises(ValueError, match="LlamaForCausalLM, expected …ForSequenceClassification"):
        check_model_folder(folder, CLASSIFIER)


def test_weights_in_parts(folder: Path) -> None:
    whole = check_model_folder(folder, CAUSAL).shapes
    index(folder, "part.safetensors")
    assert check_model_folder(folder, CAUSAL).shapes == whole
    assert load(folder).model.dtype.is_floating_point


def test_windows_longer_than_the_model_reads(folder: Path) -> None:
    check_window(check_model_folder(folder, CAUSAL), 256)
    with pytest.raises(ValueError, match=r"a window of 257 tokens; .* allows 256 \(max_position_embeddings\)"):
        check_window(check_model_folder(folder, CAUSAL), 257)
    change(folder / "config.json", sliding_window=64)
    with pytest.raises(ValueError, match=r"allows 64 \(sliding_window\)"):
        check_window(check_model_folder(folder, CAUSAL), 128)
    change(folder / "config.json", use_sliding_window=False)
    check_window(check_model_folder(folder, CAUSAL), 128)


def test_tensors_that_are_not_there_are_not_made_up(folder: Path) -> None:
    """transformers would fill them with random numbers."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors of the model are missing or misshapen: .*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_tensors_of_another_shape(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=80)
    with pytest.raises(ValueError, match=r"6 tensors of the model are missing or misshapen: .*mlp"):
        load(folder)


def test_an_architecture_that_transformers_does_not_have(folder: Path) -> None:
    change(folder / "config.json", model_type="nonesuch")
    with pytest.raises(ValueError, match="nonesuch"):
        load(folder)


def test_models_that_cannot_be_packed_are_refused(toy_causal: Path, tmp_path: Path) -> None:
    """Bloom's positions stand in the mask, which packed rows do not have; Gemma 2 caps its logits after the head."""
    import torch
    from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config

    capped = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, vocab_size=400, final_logit_softcapping=2.0, initializer_range=0.3,
    )  # fmt: skip
    bloom = BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=400, initializer_range=0.3)
    for config in (bloom, capped):
        out = Path(shutil.copytree(toy_causal, tmp_path / config.model_type))
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(out)
        with pytest.raises(ValueError, match="cannot be"):
            load(out)
