import numpy as np
import pytest
import torch
from torch.nn import functional

from trainers import attention
from trainers.data import Batch
from trainers.loss import cross_entropy
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, check_packing, head, hidden_states, new_model

LENGTHS = [40, 17, 17, 17, 9, 1, 1]


@pytest.fixture(params=[2, 1], ids=["heads", "grouped-query"])
def model(request, toy, tmp_path):
    config = ModelConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=request.param,
    )
    model = new_model(config, open_mixture(toy / "mixture", tmp_path), row_length=64, seed=0)
    for parameter in model.parameters():  # larger weights: attention that matters
        parameter.data.mul_(4 if parameter.ndim == 2 else 1)
    return model


def packed_batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, 300, (2, sum(LENGTHS)))
    return Batch(tokens[0], tokens[1], np.array(LENGTHS), np.arange(len(LENGTHS)))


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("keep", [0, 512])
@pytest.mark.parametrize("attend", ["_on_cpu", "_elsewhere"])
def test_packed_loss_and_gradients_equal_those_of_documents_alone(model, monkeypatch, attend, keep):
    monkeypatch.setattr(attention, "QUERIES", 16)
    monkeypatch.setattr(attention, "HEADS", 3)
    monkeypatch.setattr(attention, "KEEP", keep)
    monkeypatch.setattr(attention, "_on_cpu", getattr(attention, attend))
    batch = packed_batch()
    total, weight = cross_entropy(hidden_states(model, batch), head(model), torch.from_numpy(batch.targets))
    (total / weight).backward()
    packed = gradients(model)
    model.set_attn_implementation("eager")  # transformers' own attention, one document at a time, plain cross-entropy
    alone = torch.zeros(())
    for inputs, targets in zip(
        torch.from_numpy(batch.inputs).split(LENGTHS), torch.from_numpy(batch.targets).split(LENGTHS), strict=True
    ):
        alone = alone + functional.cross_entropy(model(input_ids=inputs[None]).logits[0], targets, reduction="sum")
    (alone / sum(LENGTHS)).backward()
    assert abs(float((total / weight - alone / sum(LENGTHS)).detach())) < 1e-5
    for name, gradient in gradients(model).items():
        assert torch.allclose(packed[name], gradient, atol=1e-5), name
    assert max(float(g.abs().max()) for g in packed.values()) > 1e-3


def test_changing_one_document_changes_no_other(model):
    batch = packed_batch()
    other = batch.inputs.copy()
    inside = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    other[inside] = (other[inside] + 7) % 300
    with torch.no_grad():
        before = hidden_states(model, batch)
        after = hidden_states(model, Batch(other, batch.targets, batch.lengths, batch.documents))
    changed = (before != after).any(dim=1).numpy()
    assert changed[inside].all()
    changed[inside] = False
    assert not changed.any()


def test_later_tokens_do_not_change_earlier_ones(model):
    batch = packed_batch()
    other = batch.inputs.copy()
    other[30] = (other[30] + 1) % 300
    with torch.no_grad():
        changed = hidden_states(model, batch) != hidden_states(
            model, Batch(other, batch.targets, batch.lengths, batch.documents)
        )
    assert not changed[:30].any() and changed[30].any() and changed[39].any() and not changed[40:].any()


def test_start_up_check_passes_here_and_refuses_a_model_that_mixes_documents(model):
    check_packing(model, packed_batch())
    layer = model.base_model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, output: output + output.mean(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="cannot be trained on packed rows"):
        check_packing(model, packed_batch())


def test_lengths_that_do_not_fit_are_refused(model):
    batch = packed_batch()
    wrong = Batch(batch.inputs[:-1], batch.targets[:-1], batch.lengths, batch.documents)
    with pytest.raises(ValueError):
        hidden_states(model, wrong)
    with pytest.raises(ValueError, match="packed attention takes one row"):
        model.base_model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=False, document_lengths=[3])
