"""The moving average equals its closed form; merged folders equal the formulas, tensor by tensor."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, toy_text
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from trainers import merge as merging
from trainers.average import Averaging, MovingAverage
from trainers.merge import Merge, average, merge

torch.set_num_threads(1)
VOCABULARY = 300


class Pair(torch.nn.Module):
    """A matrix that is trained and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.booleans())
def test_the_average_equals_its_closed_form(tokens, by_tokens):
    averaging = Averaging(half_life=1000) if by_tokens else Averaging(decay=0.9)
    module, generator = Pair(), torch.Generator().manual_seed(1)
    moving, seen = MovingAverage(module, averaging), []
    for count in tokens:
        module.a.data += torch.randn(3, 4, generator=generator)
        moving.update(count)
        seen.append(module.a.detach().double().numpy().copy())
    kept = np.array([0.5 ** (count / 1000) if by_tokens else 0.9 for count in tokens])
    weights = np.array([(1 - kept[i]) * kept[i + 1 :].prod() for i in range(len(kept))])
    expected = np.tensordot(weights / weights.sum(), np.array(seen), axes=1)
    before = module.a.detach().clone()
    with moving.in_place():
        assert np.allclose(module.a.detach().numpy(), expected, atol=1e-5)
        assert torch.equal(module.frozen, torch.ones(2))
    assert torch.equal(module.a, before)


def test_two_steps_of_half_the_tokens_weigh_like_one_and_a_half_life_halves():
    averaging = Averaging(half_life=100)
    assert averaging.kept(50) ** 2 == pytest.approx(averaging.kept(100)) == 0.5
    module = Pair()
    moving = MovingAverage(module, averaging)
    module.a.data.fill_(1.0)
    moving.update(10**6)  # as if from ever
    module.a.data.fill_(0.0)
    moving.update(100)
    with moving.in_place():
        assert torch.allclose(module.a, torch.full((3, 4), 0.5), atol=1e-6)


def test_the_first_step_is_its_own_average_and_a_resumed_average_goes_on_with_the_same_bits():
    def walk(moving: MovingAverage, module: Pair, steps: range) -> None:
        for step in steps:
            module.a.data += step
            moving.update(7)

    module = Pair()
    moving = MovingAverage(module, Averaging(decay=0.99))
    with pytest.raises(ValueError, match="no step"), moving.in_place():
        pass
    walk(moving, module, range(1))
    with moving.in_place():
        assert torch.equal(module.a, Pair().a)
    walk(moving, module, range(1, 5))
    other = Pair()
    other.a.data.copy_(module.a.data)
    resumed = MovingAverage(other, Averaging(decay=0.99))
    resumed.restore({name: tensor.clone() for name, tensor in moving.extra().items()})
    walk(moving, module, range(5, 9))
    walk(resumed, other, range(5, 9))
    assert resumed.weight == moving.weight
    assert torch.equal(resumed.extra()["average:a"], moving.extra()["average:a"])
    with pytest.raises(ValueError, match="of other parameters"):
        resumed.restore({"average:b": torch.ones(1), "average:": torch.tensor(1.0)})


def test_an_average_of_noisy_steps_is_nearer_to_the_optimum_than_the_last_step():
    module, generator = Pair(), torch.Generator().manual_seed(2)
    optimiser = torch.optim.SGD([module.a], lr=0.3)
    moving = MovingAverage(module, Averaging(decay=0.98))
    for _ in range(300):
        noisy = module.a - torch.randn(3, 4, generator=generator)  # gradient of a quadratic around 0, and noise
        optimiser.zero_grad()
        (0.5 * noisy**2).sum().backward()
        optimiser.step()
        moving.update(1)
    last = float(module.a.detach().norm())
    with moving.in_place():
        assert float(module.a.detach().norm()) < 0.6 * last


@pytest.mark.parametrize("given", [{}, {"half_life": 5, "decay": 0.5}, {"decay": 1.0}, {"half_life": 0}])
def test_the_average_is_by_tokens_or_by_steps(given):
    with pytest.raises(ValueError, match=r"exactly one|less than 1|greater than 0"):
        Averaging(**given)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return make_tokenizer(folder, toy_text(np.random.default_rng(0), 50), VOCABULARY)


def save(
    folder: Path, tokenizer: Path, seed: int, shard: str = "10GB", dtype: torch.dtype = torch.float32, width: int = 32
) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> list[Path]:
    """Three models of one architecture; the second in several files."""
    root = tmp_path_factory.mktemp("models")
    made = [save(root / str(k), tokenizer, k, shard) for k, shard in enumerate(("10GB", "50KB", "10GB"))]
    assert len(list(made[1].glob("*.safetensors"))) > 2
    return made


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_one_model_is_its_own_average_and_equal_models_average_to_themselves(folders, tmp_path):
    for number, models in enumerate(([folders[1]], [folders[1]] * 3)):
        merge(average(models), tmp_path / str(number))
        found, wanted = tensors(tmp_path / str(number)), tensors(folders[1])
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], t) for name, t in wanted.items())
        names = {file.name for file in folders[1].glob("model*")}
        assert {file.name for file in (tmp_path / str(number)).glob("model*")} == names


def test_weighted_average_and_what_is_told_of_it(folders, tmp_path):
    told = merge(average(folders, [2, 1, 1]), tmp_path / "soup")
    a, b, c = map(tensors, folders)
    found = tensors(tmp_path / "soup")
    assert all(torch.allclose(t, 0.5 * a[n] + 0.25 * b[n] + 0.25 * c[n], atol=1e-6) for n, t in found.items())
    assert [model["factor"] for model in told["models"]] == [0.25, 0.25]
    assert told == json.loads((tmp_path / "soup" / "merge.json").read_text())
    assert set(told["models"][0]["files"]) == {file.name for file in folders[1].glob("*.safetensors")}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert torch.equal(model.lm_head.weight, found["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "soup")("the cat")["input_ids"]


def test_the_task_vector_of_the_base_is_nothing(folders, tmp_path):
    merge(Merge(folders[0], ((folders[0], 0.7),)), tmp_path / "same")
    base, found = tensors(folders[0]), tensors(tmp_path / "same")
    assert all(torch.equal(found[name], t) for name, t in base.items())


def test_adding_and_then_subtracting_restores(folders, tmp_path):
    base, model = folders[0], folders[1]
    merge(Merge(base, ((model, 0.8), (folders[2], -0.5))), tmp_path / "there")
    a, b, c = map(tensors, folders)
    there = tensors(tmp_path / "there")
    assert all(torch.allclose(t, a[n] + 0.8 * (b[n] - a[n]) - 0.5 * (c[n] - a[n]), atol=1e-6) for n, t in there.items())
    once = merge(Merge(base, ((model, 0.8),)), tmp_path / "once")
    assert once["method"] == "task arithmetic"
    # theta = base + 0.8 v, so that base = theta - 4 (model - theta) and one factor of -4 undoes it
    merge(Merge(tmp_path / "once", ((model, -4.0),)), tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert all(torch.allclose(t, a[name], atol=1e-5) for name, t in back.items())


def test_types_are_kept_and_sums_are_in_float32(tokenizer, tmp_path):
    a = save(tmp_path / "a", tokenizer, 0, dtype=torch.bfloat16)
    b = save(tmp_path / "b", tokenizer, 1)
    merge(Merge(a, ((b, 0.5),)), tmp_path / "out")
    x, y, found = tensors(a), tensors(b), tensors(tmp_path / "out")
    assert all(t.dtype == torch.bfloat16 for t in found.values())
    assert all(torch.equal(t, (x[n].float() + 0.5 * (y[n] - x[n].float())).bfloat16()) for n, t in found.items())


def ties_by_hand(base: np.ndarray, models: list[np.ndarray], factors: list[float], density: float) -> np.ndarray:
    """Of whole models as one vector: a slow, obvious reference."""
    kept = []
    for model in models:
        vector = model - base
        limit = np.sort(np.abs(vector))[::-1][round(density * len(vector)) - 1]
        kept.append(np.where(np.abs(vector) >= limit, vector, 0))
    out = base.copy()
    for i in range(len(base)):
        changes = [f * v[i] for f, v in zip(factors, kept, strict=True)]
        same = [c for c in changes if c * sum(changes) > 0]
        out[i] += sum(same) / len(same) if same else 0
    return out


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_equals_a_slow_reference_over_the_whole_model(folders, tmp_path, density):
    merge(Merge(folders[0], ((folders[1], 0.7), (folders[2], 0.4)), density=density), tmp_path / "ties")
    read = [tensors(folder) for folder in (*folders, tmp_path / "ties")]
    base, b, c, found = (np.concatenate([model[n].numpy().ravel() for n in sorted(read[0])]) for model in read)
    assert np.allclose(found, ties_by_hand(base, [b, c], [0.7, 0.4], density), atol=1e-6)


def test_dare_drops_a_share_and_keeps_the_mean(folders, tmp_path):
    def changes(seed: int, name: str) -> np.ndarray:
        merge(Merge(folders[0], ((folders[1], 1.0),), drop=0.75, seed=seed), tmp_path / name)
        found = tensors(tmp_path / name)
        return np.concatenate([(found[n] - base[n]).numpy().ravel() for n in sorted(base)])

    base, other = tensors(folders[0]), tensors(folders[1])
    vector = np.concatenate([(other[n] - base[n]).numpy().ravel() for n in sorted(base)])
    found = changes(0, "a")
    dropped = (found == 0)[vector != 0]
    assert dropped.mean() == pytest.approx(0.75, abs=0.01)
    assert np.allclose(found[found != 0], 4 * vector[found != 0], atol=1e-6)
    assert np.array_equal(found, changes(0, "again")) and not np.array_equal(found, changes(1, "other"))


def damaged(folder: Path, into: Path, file: str, change) -> Path:
    shutil.copytree(folder, into)
    (into / file).write_text(json.dumps(change(json.loads((into / file).read_text()))))
    return into


def test_what_does_not_fit_is_refused_with_the_first_difference(folders, tokenizer, tmp_path):
    wide = save(tmp_path / "wide", tokenizer, 0, width=64)
    with pytest.raises(ValueError, match=r"config\.json: head_dim: 16 in .*, 32 in .*wide"):
        merge(average([folders[0], wide]), tmp_path / "out")
    theta = damaged(folders[0], tmp_path / "theta", "config.json", lambda c: {**c, "rms_norm_eps": 0.5})
    with pytest.raises(ValueError, match="rms_norm_eps"):
        merge(average([folders[0], theta]), tmp_path / "out")
    words = damaged(
        folders[0], tmp_path / "words", "tokenizer.json", lambda t: {**t, "model": {**t["model"], "merges": []}}
    )
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        merge(average([folders[0], words]), tmp_path / "out")
    lacking = shutil.copytree(folders[0], tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lacking / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*absent in .*lacking"):
        merge(average([folders[0], lacking]), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    with pytest.raises(FileExistsError, match="choose another folder"):
        merge(average([folders[0]]), lacking)
    cut = damaged(folders[0], tmp_path / "cut", "tokenizer.json", lambda t: {**t, "truncation": None, "padding": None})
    merge(average([folders[0], cut]), tmp_path / "fits")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: average([]), "0 models"),
        (lambda: average([Path("a")], [1, 2]), "one weight per model"),
        (lambda: average([Path("a"), Path("b")], [1, -1]), "finite numbers from 0"),
        (lambda: Merge(Path("a"), ((Path("b"), float("nan")),)), "finite number"),
        (lambda: Merge(Path("a"), ((Path("b"), 1.0),), density=0.0), "density"),
        (lambda: Merge(Path("a"), ((Path("b"), 1.0),), drop=1.0), "drop"),
        (lambda: Merge(Path("a"), ((Path("b"), 1.0),), drop=0.5, density=0.5), "exclude each other"),
    ],
)
def test_mistakes_are_told_before_any_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200), st.floats(0.01, 1)
)
def test_the_limit_is_the_magnitude_of_that_rank(values, density):
    tensor = torch.tensor(values, dtype=torch.float32)
    halves = {"a": tensor[::2], "b": tensor[1::2]}
    rank = max(1, round(density * len(values)))
    assert merging._limit(["a", "b"], halves.__getitem__, density) == np.sort(tensor.abs().numpy())[::-1][rank - 1]


def skill(folder: Path, low: int) -> float:
    """Loss in nats of the values that go with pairs of four tokens from `low` on."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return float(value_loss(model, pairs(low)))


def pairs(low: int) -> torch.Tensor:
    keys = torch.cartesian_prod(torch.arange(4), torch.arange(4)) + low
    return torch.cat([keys, torch.randint(100, 120, (16, 1), generator=torch.Generator().manual_seed(low))], dim=1)


def value_loss(model: torch.nn.Module, task: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(input_ids=task[:, :2]).logits[:, -1], task[:, 2])


def learn(folder: Path, low: int, into: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(100):
        value_loss(model, pairs(low)).backward()
        optimiser.step()
        optimiser.zero_grad()
    shutil.copytree(folder, into)
    model.save_pretrained(into)
    return into


@pytest.mark.parametrize("seed", [0, 1])
def test_task_vectors_add_skills(tokenizer, tmp_path, seed):
    base = save(tmp_path / "base", tokenizer, seed)
    domain = learn(base, 0, tmp_path / "domain")
    instruction = learn(base, 40, tmp_path / "instruction")
    merge(Merge(base, ((domain, 1.0), (instruction, 1.0))), tmp_path / "both")
    names = ("base", "domain", "instruction", "both")
    first, second = ({name: skill(tmp_path / name, low) for name in names} for low in (0, 40))
    assert first["domain"] < 0.2 and second["instruction"] < 0.2
    assert first["both"] < 2.4 < 5 < min(first["base"], first["instruction"])  # one of 20 values by chance: 3.0
    assert second["both"] < 2.4 < 5 < min(second["base"], second["domain"])
