"""Losses of packed windows equal those of a plain model run on each document, and do not depend on the company."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from transforms import losses
from transforms.causal_model import CausalModel, load
from transforms.losses import Lot, document_sums, plan_windows, token_losses

SCRIPTS = [
    "The river carries stones.",
    "שלום עולם",
    "مرحبا بالعالم",
    "日本語の文章",
    "Привет, мир",
    "नमस्ते दुनिया",
    "🎉🚀 e\u0301",
]
SIZES: dict[str, Any] = {
    "llama": LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
    "grouped": Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
    "gpt2": GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=512),
    "neox": GPTNeoXConfig(hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=5),
}


@pytest.fixture(scope="session")
def folder_of(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model folder: random weights, the toy tokenizer, with or without a begin-of-text token."""

    def made(config: Any, begin: bool = True, edit: Callable[[Any], None] | None = None) -> Path:
        out = tmp_path_factory.mktemp("model")
        config.vocab_size, config.initializer_range = 400, 0.3
        config.bos_token_id = config.eos_token_id = 0
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        if edit:
            edit(model)
        model.save_pretrained(out)
        (out / "tokenizer.json").write_bytes((toy_tokenizer / "tokenizer.json").read_bytes())
        (out / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>" if begin else None}))
        return out

    return made


@pytest.fixture(scope="session")
def llama(folder_of: Callable[..., Path]) -> CausalModel:
    return load(folder_of(SIZES["llama"]))


def strings(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def found(model: CausalModel, texts: list[str], window: int = 256, stride: int = 128, **more: Any) -> list[np.ndarray]:
    """float32 [2, scored tokens] of each document: losses and entropies."""
    parts = list(token_losses(model, strings(texts), window, stride, **more))
    document = np.concatenate([part.document for part in parts])
    both = np.stack([np.concatenate([getattr(part, name) for part in parts]) for name in ("loss", "entropy")])
    assert (np.diff(document) >= 0).all() and both.dtype == np.float32
    return [both[:, document == number] for number in range(len(texts))]


def tokens_of(model: CausalModel, text: str) -> list[int]:
    begin = [] if model.begin is None else [model.begin]
    return begin + model.tokenizer.encode(text, add_special_tokens=False).ids


def expected(folder: Path, tokens: list[int], window: int, stride: int) -> np.ndarray:
    """The same by transformers alone: every target in the first window that holds it and the token before it."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    results = []
    with torch.inference_mode():
        for start in range(0, max(len(tokens) - 1, 0), stride):
            inputs = torch.tensor(tokens[start : start + window])
            done = 0 if start == 0 else window - stride
            targets = torch.tensor(tokens[start + 1 : start + window + 1])
            log_p = plain(input_ids=inputs[None], use_cache=False).logits[0, : len(targets)].log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            results.append(torch.stack([-log_p[range(len(targets)), targets], entropy])[:, done:].numpy())
    return np.concatenate(results, axis=1) if results else np.zeros((2, 0))


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("kind", SIZES)
def test_packed_equals_one_at_a_time(kind: str, begin: bool, folder_of: Callable[..., Path]) -> None:
    """All scripts, empty and one-token documents, documents shorter and longer than attention's blocks and windows."""
    folder = folder_of(SIZES[kind], begin)
    model = load(folder)
    texts = ["", "a", *SCRIPTS, "the mayor sold seven lamps " * 12, "Q" * 700, " ", "ab " * 100, ""]
    assert (model.begin is not None) == begin
    for text, own in zip(texts, found(model, texts, 300, 200), strict=True):
        reference = expected(folder, tokens_of(model, text), 300, 200)
        assert own.shape == reference.shape and len(tokens_of(model, text)) - 1 in (own.shape[1], -1)
        np.testing.assert_allclose(own, reference, atol=1e-4)


@settings(max_examples=12)
@given(text=st.text(min_size=0, max_size=400), window=st.integers(2, 90), data=st.data())
def test_windows_equal_a_slow_reference(
    text: str, window: int, data: st.DataObject, folder_of: Callable[..., Path], toy_causal: Path
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    model = load(toy_causal)
    own = found(model, [text, "x"], window, stride)[0]
    np.testing.assert_allclose(own, expected(toy_causal, tokens_of(model, text), window, stride), atol=1e-4)


def test_losses_have_the_same_bits_in_any_company(
    llama: CausalModel, toy_texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, among others in any order, in small lots, with one thread or three."""
    draw = np.random.default_rng(0)
    texts = [*toy_texts["books"][:20], *SCRIPTS, "", "z", "lamp " * 900, "\n".join(toy_texts["junk"][:30])]
    alone = {text: found(llama, [text])[0].tobytes() for text in texts}
    threads = torch.get_num_threads()
    for lot, count in ((1 << 18, 1), (1 << 18, 3), (500, 2), (1, 1)):
        monkeypatch.setattr(losses, "LOT", lot)
        torch.set_num_threads(count)
        company = [*texts, *("noise " * int(n) for n in draw.integers(1, 300, 20))]
        order = draw.permutation(len(company))
        results = found(llama, [company[i] for i in order])
        assert torch.get_num_threads() == count
        for i, own in zip(order, results, strict=True):
            assert i >= len(texts) or own.tobytes() == alone[texts[i]], (lot, count, texts[i][:40])
    torch.set_num_threads(threads)


def test_sums_do_not_depend_on_lots(llama: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = strings(["lamp " * 900, "", "river " * 100])
    whole = document_sums(3, token_losses(llama, texts, 64, 32))
    monkeypatch.setattr(losses, "LOT", 100)
    for a, b in zip(whole, document_sums(3, token_losses(llama, texts, 64, 32)), strict=True):
        assert a.tobytes() == b.tobytes()
    assert whole[0].tolist() == [len(tokens_of(llama, t)) - 1 for t in texts.to_pylist()]


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    window=st.integers(2, 20),
    lot=st.integers(1, 80),
    data=st.data(),
)
def test_every_token_is_scored_once_with_enough_context(
    lengths: list[int], window: int, lot: int, data: st.DataObject
) -> None:
    """However the documents' tokens come in lots. Tokens are numbers of their own, so that a window can be told."""
    stride = data.draw(st.integers(1, window - 1))
    document = np.repeat(np.arange(len(lengths)), lengths)
    within = np.concatenate([np.arange(n) for n in lengths])
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(within), max_size=len(within))))
    scored: list[tuple[int, int]] = []
    held, begun = Lot.nothing(), False
    for a in range(0, len(within) + lot, lot):
        held = held.joined(Lot(within[a : a + lot], document[a : a + lot], wanted[a : a + lot]))
        windows, rest, after = plan_windows(held, window, stride, begun, ended=a >= len(within))
        for start, length, context in zip(windows.start, windows.length, windows.context, strict=True):
            assert 1 <= length <= window
            for i in range(start + context, start + length):
                target = held.tokens[i + 1]
                assert held.document[start] == held.document[i + 1]
                assert i + 1 - start > min(target - 1, window - stride), "context"
                assert held.tokens[start] % stride == 0, "windows lie where they lie in the document alone"
                if held.wanted[i + 1]:
                    scored.append((int(held.document[i + 1]), int(target)))
        held, begun = held.after(rest), after
    asked = [(d, t) for d, t, w in zip(document.tolist(), within.tolist(), wanted.tolist(), strict=True) if w and t > 0]
    assert scored == sorted(asked)


def test_prompts_are_context_and_nothing_else(llama: CausalModel, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(SIZES["llama"])
    pairs = [("Name a fish.", " cod"), ("", "cod"), ("Count: ", ""), ("word " * 200, "end"), ("x", "y " * 300)]
    results = found(llama, [c for _, c in pairs], 128, 64, prompts=strings([p for p, _ in pairs]))
    for (prompt, completion), own in zip(pairs, results, strict=True):
        answer = llama.tokenizer.encode(completion, add_special_tokens=False).ids
        reference = expected(folder, tokens_of(llama, prompt) + answer, 128, 64)
        np.testing.assert_allclose(own, reference[:, reference.shape[1] - len(answer) :], atol=1e-4)


def test_a_uniform_model_gives_log_v(folder_of: Callable[..., Path]) -> None:
    def flat(model: Any) -> None:
        torch.nn.init.zeros_(model.lm_head.weight)

    model = load(folder_of(SIZES["llama"], edit=flat))
    for own in found(model, [*SCRIPTS, "word " * 500]):
        np.testing.assert_allclose(own, np.log(400), atol=1e-6)


def test_a_table_of_bigrams_has_losses_known_in_closed_form(folder_of: Callable[..., Path]) -> None:
    """Embeddings of unit vectors, layers that add nothing, and a head of log-probabilities; one follower is impossible
    with a given probability of 0 (a logit of minus infinity)."""
    table = np.random.default_rng(3).dirichlet(np.full(400, 0.1), 400)
    table[:, 7], table[7, 8] = 0, 0
    table /= table.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_p = np.log(table)

    def edit(model: Any) -> None:
        torch.nn.init.eye_(model.model.embed_tokens.weight)
        model.lm_head.weight.data = torch.tensor(np.maximum(log_p, -3e4).T / 20, dtype=torch.float32)
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)

    size = {"hidden_size": 400, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = load(folder_of(LlamaConfig(**size, rms_norm_eps=1e-12, tie_word_embeddings=False), edit=edit))
    for text, own in zip(SCRIPTS, found(model, SCRIPTS), strict=True):
        tokens = tokens_of(model, text)
        certain = -np.maximum(log_p, -3e4)[tokens[:-1], tokens[1:]]
        np.testing.assert_allclose(own[0], certain, rtol=1e-4, atol=1e-4)
        plogp = np.where(table > 0, table * np.maximum(log_p, -3e4), 0)
        np.testing.assert_allclose(own[1], -plogp.sum(axis=1)[tokens[:-1]], atol=1e-3)


def test_impossible_tokens_have_infinite_loss_and_a_finite_entropy(llama: CausalModel) -> None:
    class Masked:
        model = llama.model

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(400) < 4, 0.0, float("-inf")).expand(len(hidden), 400).clone()

    loss, entropy, rank = losses.head_losses(Masked(), torch.zeros(3, 32), torch.tensor([0, 3, 200]))  # type: ignore[arg-type]
    np.testing.assert_allclose(loss, [np.log(4), np.log(4), np.inf], rtol=1e-6)
    np.testing.assert_allclose(entropy, np.log(4), rtol=1e-6)
    assert rank.tolist() == [0, 0, 4] and rank.dtype == np.int32


def test_ranks_count_the_tokens_that_are_likelier(llama: CausalModel) -> None:
    """Up to logits that differ in the last digits alone."""
    hidden = torch.randn(700, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(700) % 400
    logits = llama.model.get_output_embeddings()(hidden).double()
    own = logits.gather(1, targets[:, None])
    rank = torch.from_numpy(losses.head_losses(llama, hidden, targets)[2])
    assert ((logits > own + 1e-4).sum(1) <= rank).all() and (rank <= (logits > own - 1e-4).sum(1) - 1).all()
    assert rank.min() < 5 and rank.max() > 390


def test_a_document_of_a_hundred_thousand_tokens(llama: CausalModel) -> None:
    """Periodic text: windows a period apart read the same tokens, so their losses are equal, bit by bit."""
    own = found(llama, ["the mayor sold seven lamps " * 20_000], 256, 128)[0]
    assert own.shape[1] > 100_000 and np.isfinite(own).all()
    period = len(tokens_of(llama, "the mayor sold seven lamps " * 2)) - len(
        tokens_of(llama, "the mayor sold seven lamps ")
    )
    shift = period * 128  # a whole number of strides
    assert np.array_equal(own[:, 1000:50_000], own[:, 1000 + shift : 50_000 + shift])


def test_strides_are_checked(llama: CausalModel) -> None:
    for stride in (0, 64, 100):
        with pytest.raises(ValueError, match=f"stride {stride} with a window of 64"):
            list(token_losses(llama, strings(["x"]), 64, stride))


def test_broken_weights_are_an_error(folder_of: Callable[..., Path]) -> None:
    def broken(model: Any) -> None:
        model.lm_head.weight.data[5, 5] = float("nan")

    with pytest.raises(ValueError, match="nan nats"):
        load(folder_of(SIZES["llama"], edit=broken))


def test_threads_of_a_process_share_one_model(toy_causal: Path) -> None:
    held: list[CausalModel] = []
    threads = [threading.Thread(target=lambda: held.append(load(toy_causal))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model in held}) == 1 and load(toy_causal.parent / toy_causal.name) is held[0]
