"""Divergences equal those of plain models on each document, are those of the definition, and know no neighbours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from transforms import losses
from transforms.causal_model import CausalModel, load
from transforms.divergence import jensen_shannon, token_divergences

TEXTS = ["", "a", "The river carries stones.", "日本語の文章", "the mayor sold lamps " * 40, "Q" * 300, " ", "x y", ""]


@pytest.fixture(scope="module")
def model_of(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def made(config: Any, begin: bool = True, seed: int = 1) -> Path:
        out = tmp_path_factory.mktemp("model")
        config.vocab_size, config.initializer_range, config.bos_token_id = 400, 0.3, 0
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(out)
        (out / "tokenizer.json").write_bytes((toy_tokenizer / "tokenizer.json").read_bytes())
        (out / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>" if begin else None}))
        return out

    return made


def llama(**size: int) -> LlamaConfig:
    given = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **size}
    return LlamaConfig(**given)  # type: ignore[arg-type]


def found(one: CausalModel, other: CausalModel, texts: list[str], window: int = 90, stride: int = 40) -> list[Any]:
    """float32 [scored tokens] of each document."""
    parts = list(token_divergences(one, other, pa.array(texts, pa.large_string()), window, stride))
    document, jsd = (np.concatenate(column) for column in zip(*parts, strict=True))
    return [jsd[document == number] for number in range(len(texts))]


def by_definition(p: np.ndarray, q: np.ndarray) -> float:
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return sum(sum(x * math.log(x / z) for x, z in zip(side, m, strict=True) if x > 1e-300) for side in (p, q)) / 2


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1e-3, 1.0, 30.0, 2000.0]))
def test_divergence_equals_its_definition(seed: int, words: int, scale: float) -> None:
    """Symmetric, 0 for equals, at most log 2, a number even where probabilities underflow."""
    draw = np.random.default_rng(seed)
    p, q = (torch.softmax(torch.from_numpy(scale * draw.normal(size=(5, words))), dim=1) for _ in range(2))
    own = jensen_shannon(p, q)
    for row, a, b in zip(own.tolist(), p.numpy(), q.numpy(), strict=True):
        assert row == pytest.approx(by_definition(a, b), abs=1e-12)
    assert torch.equal(own, jensen_shannon(q, p)), "the same bits"
    assert (jensen_shannon(p, p) == 0).all() and (own >= 0).all() and (own <= math.log(2)).all()


def test_small_differences_in_float32() -> None:
    p = torch.full((1, 1000), 1e-3)
    q = p * (1 + 0.01 * torch.where(torch.arange(1000) % 2 == 0, 1.0, -1.0))
    expected = by_definition(p[0].double().numpy(), q[0].double().numpy())
    assert float(jensen_shannon(p, q)) == pytest.approx(expected, abs=1e-7) and expected > 1e-5


def test_disjoint_and_broken_distributions() -> None:
    one, other = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert float(jensen_shannon(one, other)) == pytest.approx(math.log(2))
    assert torch.isnan(jensen_shannon(one, other * float("nan"))).all()


@pytest.mark.parametrize("begin", [True, False])
def test_packed_equals_plain_models_on_each_document(begin: bool, model_of: Callable[..., Path]) -> None:
    """Of different architectures and widths; every position in the first window that holds it and the token before."""
    small = Qwen2Config(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    folders = [model_of(llama(), begin), model_of(small, begin)]
    plain = [AutoModelForCausalLM.from_pretrained(f, attn_implementation="eager").double().eval() for f in folders]
    one, other = map(load, folders)
    window, stride = 90, 40
    for text, own in zip(TEXTS, found(one, other, TEXTS, window, stride), strict=True):
        ids = ([one.begin] if begin else []) + one.tokenizer.encode(text, add_special_tokens=False).ids
        expected: list[float] = []
        for start in range(0, max(len(ids) - 1, 0), stride):
            some = torch.tensor([ids[start : start + window]])
            with torch.inference_mode():
                p, q = (model(input_ids=some).logits[0].softmax(-1).numpy() for model in plain)
            inner = range(0 if start == 0 else window - stride, min(window, len(ids) - start - 1))
            expected += [by_definition(p[i], q[i]) for i in inner]
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_document_has_the_same_bits_in_any_company(
    model_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = load(model_of(llama())), load(model_of(llama(), seed=2))
    alone = [found(one, other, [text])[0].tobytes() for text in TEXTS]
    assert [x.tobytes() for x in found(other, one, TEXTS)] == alone, "either way round"
    assert all(not x.any() for x in found(one, one, TEXTS))
    for lot in (1 << 18, 60):
        monkeypatch.setattr(losses, "LOT", lot)
        order = np.random.default_rng(lot).permutation(len(TEXTS))
        company = found(one, other, [TEXTS[i] for i in order] + ["noise " * 70])
        assert [company[list(order).index(i)].tobytes() for i in range(len(TEXTS))] == alone
