"""Adapters on a tiny Llama: every method of peft that is not refused trains on packed rows exactly."""

import warnings

import numpy as np
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PromptLearningConfig
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig

from trainers import adapters, attention
from trainers.adapters import REFUSED, Adapted, Adapter, adapt, head_matrix
from trainers.data import Batch
from trainers.loss import cross_entropy, token_losses
from trainers.model import hidden_states

warnings.filterwarnings("ignore", module="peft")
VOCABULARY = 48
LENGTHS = np.array([20, 13, 7, 5])
ALL = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
PROMPTS = sorted(name for name, config in ALL.items() if issubclass(config, PromptLearningConfig))
OPTIONS = {  # what has no default or one too large for the tiny model
    "adalora": {"total_step": 8, "tinit": 1, "tfinal": 3, "deltaT": 1, "init_r": 6, "target_r": 2},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 30},
    "ia3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "miss": {"r": 8},
    "psoft": {"r": 8},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": [1, 2, 3]},
    "vblora": {"vector_length": 16, "num_vectors": 16},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 30},
}
LAYERS = {name: OPTIONS.get(name, {}) for name in ALL if name not in {*PROMPTS, *REFUSED, "beft"}}
CASES = [pytest.param(Adapter(method=name, options=o), id=name) for name, o in sorted(LAYERS.items())] + [
    pytest.param(Adapter(method="lora", options=options), id="lora-" + "-".join(map(str, options)))
    for options in (
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_dropout": 0.1},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "r": 4},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "embed_tokens", "v_proj"]},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    )
]


def tiny(tied: bool = False) -> torch.nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, dtype=torch.float32)


def make_batch() -> Batch:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, (2, LENGTHS.sum()))
    return Batch(tokens[0], tokens[1], LENGTHS, np.arange(len(LENGTHS)))


torch.set_num_threads(1)
BATCH = make_batch()
TARGETS = torch.from_numpy(BATCH.targets)


def packed_losses(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return token_losses(hidden_states(model, BATCH), head_matrix(model.get_output_embeddings()), TARGETS)


def losses_alone(model: torch.nn.Module) -> torch.Tensor:
    """Each document through transformers' own attention and the model's (or peft's) own head."""
    model.eval()
    model.set_attn_implementation("sdpa")
    split = LENGTHS.tolist()
    with torch.no_grad():
        found = [
            torch.nn.functional.cross_entropy(model(input_ids=i[None], use_cache=False).logits[0], t, reduction="none")
            for i, t in zip(torch.from_numpy(BATCH.inputs).split(split), TARGETS.split(split), strict=True)
        ]
    model.set_attn_implementation(attention.NAME)
    return torch.cat(found)


def optimiser_of(adapted: Adapted) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in adapted.model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)


def train(adapted: Adapted, optimiser: torch.optim.Optimizer, steps: range) -> set[str]:
    """Names of the parameters that got a gradient."""
    model, reached = adapted.model, set()
    model.train()
    for step in steps:
        loss, weight = cross_entropy(hidden_states(model, BATCH), head_matrix(model.get_output_embeddings()), TARGETS)
        penalty = adapted.penalty()
        (loss / weight + (0 if penalty is None else penalty)).backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        adapted.allocate(step)
        optimiser.zero_grad()
    return reached


def put_back(into: Adapted, source: Adapted) -> None:
    """As a resumed run does: the trained parameters by name, and what else the adapter holds."""
    into.restore(source.extra())
    trained = {name: p for name, p in source.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in into.model.named_parameters():
            if p.requires_grad:
                p.copy_(trained.pop(name))
    assert not trained


def tensors_of(adapted: Adapted) -> dict[str, torch.Tensor]:
    return {**dict(adapted.model.named_parameters()), **adapted.extra()}


@pytest.mark.parametrize("adapter", CASES)
def test_every_method_trains_is_restored_saved_and_merged(adapter, tmp_path):
    base = tiny()
    names = set(dict(base.named_parameters()))
    adapted = adapt(base, adapter, 1)
    frozen = {name: t.clone() for name, t in adapters._tensors(adapted.model).items() if name in adapted.frozen}
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    first = packed_losses(adapted.model).mean()

    assert train(adapted, optimiser_of(adapted), range(1, 9)) == trained
    found = packed_losses(adapted.model)
    assert found.mean() < first
    after = adapters._tensors(adapted.model)
    assert all(torch.equal(t, after[name]) for name, t in frozen.items())
    assert torch.allclose(found, losses_alone(adapted.peft), atol=1e-5)

    again = adapt(tiny(), adapter, 1)
    put_back(again, adapted)
    assert torch.equal(packed_losses(again.model), found)

    adapted.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    loaded = PeftModel.from_pretrained(tiny(), tmp_path / "adapter").get_base_model()
    assert torch.allclose(packed_losses(loaded), found, atol=1e-5)

    adapted.merged().save_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=attention.NAME)
    assert set(dict(plain.named_parameters())) == names
    assert torch.allclose(losses_alone(plain), found, atol=1e-5)


@pytest.mark.parametrize("method", [*PROMPTS, *sorted(REFUSED)])
def test_methods_that_packed_rows_do_not_allow_are_refused(method):
    with pytest.raises(ValidationError, match=f"{method} .*take a"):
        Adapter(method=method)


def test_mistakes_name_the_nearest():
    with pytest.raises(ValidationError, match="no adapter 'lorra'; did you mean 'lora'"):
        Adapter(method="lorra")
    with pytest.raises(ValidationError, match="lora: no option 'lora_alfa'; did you mean 'lora_alpha'"):
        Adapter(method="lora", options={"lora_alfa": 4})
    with pytest.raises(ValidationError, match="lora: no option 'eva_config'"):
        Adapter(method="lora", options={"eva_config": {}})
    with pytest.raises(ValidationError, match="alora_invocation_tokens works from a place"):
        Adapter(method="lora", options={"alora_invocation_tokens": [1]})
    with pytest.raises(ValidationError, match="init_lora_weights 'eva' draws"):
        Adapter(method="lora", options={"init_lora_weights": "eva"})
    with pytest.raises(ValidationError, match="target_r 8 must be below init_r 8"):
        Adapter(method="adalora", options={"total_step": 10, "init_r": 8})
    with pytest.raises(ValidationError, match="total_step"):
        Adapter(method="adalora")
    with pytest.raises(ValueError, match=r"lora does not fit llama: .*nowhere"):
        adapt(tiny(), Adapter(method="lora", options={"target_modules": ["nowhere"]}), 0)
    with pytest.raises(ValueError, match="beft trains biases"):
        adapt(tiny(), Adapter(method="beft", options={"target_modules": ["v_proj"]}), 0)


def test_an_adapter_that_looks_beyond_its_document_is_found_out(monkeypatch):
    monkeypatch.setattr(adapters, "REFUSED", {})
    with pytest.raises(ValueError, match=r"lily .*it looks beyond its document"):
        adapt(tiny(), Adapter(method="lily"), 0)


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(method="lora", options={"target_modules": ["lm_head"], "lora_dropout": 0.1}),
        Adapter(method="pvera", options={"target_modules": ["lm_head"], "r": 8}),
    ],
    ids=["dropout", "pvera"],
)
def test_heads_that_are_no_matrix_are_refused(adapter):
    with pytest.raises(ValueError, match="in a way that no matrix can"):
        adapt(tiny(), adapter, 0)


def test_tied_embeddings_take_trainable_tokens_only(tmp_path):
    for options in ({"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}):
        with pytest.raises(ValueError, match="tie_word_embeddings"):
            adapt(tiny(tied=True), Adapter(method="lora", options=options), 0)
    adapted = adapt(tiny(tied=True), Adapter(method="lora", options={"trainable_token_indices": [1, 2]}), 0)
    train(adapted, optimiser_of(adapted), range(1, 5))
    found = packed_losses(adapted.model)
    assert torch.allclose(losses_alone(adapted.peft), found, atol=1e-5)
    merged = adapted.merged()
    assert torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight)
    assert torch.allclose(losses_alone(merged), found, atol=1e-5)
    changed = (merged.get_input_embeddings().weight != tiny(tied=True).get_input_embeddings().weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1, 2]


def test_an_adapted_head_learns_as_through_its_logits():
    adapted = adapt(tiny(), Adapter(method="lora", options={"target_modules": ["lm_head", "q_proj"]}), 0)
    train(adapted, optimiser_of(adapted), range(1, 3))
    model = adapted.model
    loss, _ = cross_entropy(hidden_states(model, BATCH), head_matrix(model.get_output_embeddings()), TARGETS)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    logits = model.get_output_embeddings()(hidden_states(model, BATCH))
    torch.nn.functional.cross_entropy(logits, TARGETS, reduction="sum").backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("lm_head" in name for name in ours)
    assert all(torch.allclose(grad, theirs[name], atol=1e-5) for name, grad in ours.items())


def test_adalora_reaches_its_budget_and_resumes_bit_for_bit():
    adapter = Adapter(method="adalora", options={**OPTIONS["adalora"], "total_step": 12})
    straight = adapt(tiny(), adapter, 3)
    train(straight, optimiser_of(straight), range(1, 13))

    first = adapt(tiny(), adapter, 3)
    optimiser = optimiser_of(first)
    train(first, optimiser, range(1, 6))
    second = adapt(tiny(), adapter, 3)
    resumed = optimiser_of(second)
    put_back(second, first)
    resumed.load_state_dict(optimiser.state_dict())
    train(second, resumed, range(6, 13))

    found, wanted = tensors_of(second), tensors_of(straight)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(t, found[name]) for name, t in wanted.items())
    ranks = [int((p != 0).sum()) for name, p in straight.model.named_parameters() if ".lora_E." in name]
    assert sum(ranks) == 2 * len(ranks)  # target_r on average


def test_the_penalty_is_zero_for_orthonormal_factors():
    adapted = adapt(tiny(), Adapter(method="adalora", options={**OPTIONS["adalora"], "orth_reg_weight": 0.5}), 0)
    with torch.no_grad():
        for name, p in adapted.model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                torch.nn.init.orthogonal_(p)
    assert float(adapted.penalty().detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for name, p in adapted.model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                p *= 2**0.5  # PᵀP = 2: the distance is that of the identity, √6
    assert float(adapted.penalty().detach()) == pytest.approx(0.5 * 6**0.5, rel=1e-5)
    assert adapt(tiny(), Adapter(method="lora"), 0).penalty() is None


def test_the_seed_decides_the_start_and_tensors_of_another_adapter_are_refused():
    lora = Adapter(method="lora")
    a, b, c = (tensors_of(adapt(tiny(), lora, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(t, b[name]) for name, t in a.items())
    assert not all(torch.equal(t, c[name]) for name, t in a.items())
    vera = adapt(tiny(), Adapter(method="vera", options={"r": 8}), 1)
    with pytest.raises(ValueError, match="of another adapter"):
        adapt(tiny(), Adapter(method="vera", options={"r": 4}), 1).restore(vera.extra())
    with pytest.raises(ValueError, match="of another adapter"):
        adapt(tiny(), Adapter(method="ia3"), 1).restore(vera.extra())
    assert not adapt(tiny(), lora, 1).extra()
