"""Half fine-tuning: exact halves by category, frozen means frozen, and less is forgotten."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from trainers.half import ATTENTION, MLP, HalfFineTuning

torch.set_num_threads(1)
SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40
}  # fmt: skip


def make(kind: type, layers: int = 4, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SIZE, num_hidden_layers=layers, **settings))


def names_of(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def chosen_by_layer(half: HalfFineTuning, model: torch.nn.Module, category: tuple[str, ...]) -> Counter:
    chosen = half.chosen(names_of(model))
    return Counter(
        name.split(".")[2] for name in chosen if name.endswith(".weight") and name.split(".")[-2] in category
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_exact_halves_by_category(kind, seed):
    model = make(kind)
    half = HalfFineTuning(seed=seed)
    chosen = half.chosen(names_of(model))
    assert chosen_by_layer(half, model, ATTENTION) == dict.fromkeys("0123", 2)
    assert sorted(chosen_by_layer(half, model, MLP).values()) == [1, 1, 2, 2]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    mlp = [name for name in sizes if name.split(".")[-2] in MLP]
    assert 2 * sum(sizes[n] for n in mlp if n in chosen) == sum(sizes[n] for n in mlp)
    norms = [name for name in sizes if "norm" in name]
    assert abs(2 * len(chosen.intersection(norms)) - len(norms)) == len(norms) % 2
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= chosen
    for name in sizes:  # a bias learns with its matrix
        if name.endswith(".bias"):
            assert (name in chosen) == (name.removesuffix("bias") + "weight" in chosen)


def test_each_round_and_seed_draws_anew_and_every_matrix_gets_its_turn():
    model = make(LlamaConfig)
    names = names_of(model)
    rounds = [HalfFineTuning(seed=1, round=k).chosen(names) for k in range(40)]
    assert rounds[3] == HalfFineTuning(seed=1, round=3).chosen(reversed(names))
    assert len(set(rounds)) == 40 and HalfFineTuning(seed=2).chosen(names) not in rounds
    counts = Counter(name for chosen in rounds for name in chosen)
    always = {name for name, times in counts.items() if times == 40}
    assert always == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(8 <= counts[name] <= 32 for name in set(names) - always)  # half of 40; 3.8 standard deviations


def test_odd_numbers_are_halved_to_within_one():
    model = make(LlamaConfig, layers=3)
    found = {tuple(sorted(chosen_by_layer(HalfFineTuning(round=k), model, MLP).values())) for k in range(20)}
    assert found == {(1, 1, 2), (1, 2, 2)}


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match=r"q_proj.*transformer.* of this model"):
        HalfFineTuning().freeze(AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2)))
    with pytest.raises(ValueError, match=r"model\.layers\.0 of this model"):
        HalfFineTuning().chosen(["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(ValueError, match=r"layers\.0 of this model"):
        HalfFineTuning().chosen(["model.embed_tokens.weight"])


def train(model: torch.nn.Module, batches: list[torch.Tensor], lr: float = 3e-3) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.1)
    for tokens in batches:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return optimiser


@pytest.mark.parametrize("tied", [False, True])
def test_the_frozen_half_keeps_its_bits_and_has_no_moments(tied):
    model = make(LlamaConfig, tie_word_embeddings=tied)
    half = HalfFineTuning(seed=3)
    half.freeze(model)
    chosen = half.chosen(names_of(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    optimiser = train(model, [torch.randint(0, 40, (4, 12), generator=generator) for _ in range(5)])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == chosen
    assert len(optimiser.state) == len(chosen)


def pairs(seed: int, low: int) -> torch.Tensor:
    """[64, 3]: every pair of eight tokens from `low` on, and the value to remember for it."""
    keys = torch.cartesian_prod(torch.arange(8), torch.arange(8)) + low
    values = torch.randint(16, 40, (64, 1), generator=torch.Generator().manual_seed(seed))
    return torch.cat([keys, values], dim=1)


def value_loss(model: torch.nn.Module, task: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=task[:, :2]).logits[:, -1]
    return torch.nn.functional.cross_entropy(logits, task[:, 2])


def learn(model: torch.nn.Module, task: torch.Tensor, steps: int, lr: float) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        value_loss(model, task[torch.randint(0, len(task), (16,), generator=generator)]).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("seed", [0, 1])
def test_half_fine_tuning_forgets_less_of_an_earlier_task(seed):
    first, second = pairs(seed, 0), pairs(seed + 100, 8)
    model = make(LlamaConfig, layers=2)
    learn(model, first, 300, 3e-3)
    known, start = float(value_loss(model, first).detach()), {k: v.clone() for k, v in model.state_dict().items()}
    losses = []
    for half in (None, HalfFineTuning(seed=seed)):
        model.load_state_dict(start)
        if half:
            half.freeze(model)
        learn(model, second, 100, 2e-3)
        losses.append((float(value_loss(model, first).detach()), float(value_loss(model, second).detach())))
    (full_first, full_second), (half_first, half_second) = losses
    assert known < 0.1
    assert max(full_second, half_second) < 1  # of 3.2 nats for values not known
    assert half_first - known < 0.6 * (full_first - known)
