import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from tests.trainers.conftest import make_tokenizer
from trainers import loss
from trainers.data import Batch
from trainers.loss import Other, objective_sums
from trainers.mixture import open_mixture
from trainers.model import ModelConfig, head, new_model, save_model
from trainers.objectives import (
    ASFT,
    DFT,
    CrossEntropy,
    Distill,
    Objective,
    OneTokenRollout,
    frozen_model,
    other_states,
    token_keys,
)

TOKENS, VOCABULARY = 29, 17


def distill(**fields) -> Distill:
    """Without a folder: what is tested has its frozen model given."""
    return Distill.model_construct(**({"teacher": None} | fields))


@pytest.fixture
def tensors(monkeypatch):
    """hidden, output, targets, weights and another model's states, in float64."""
    monkeypatch.setattr(loss, "CHUNK", 8)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.rand(TOKENS, generator=generator, dtype=torch.float64)
    weights[[2, 11]] = 0
    hidden, output = normal(TOKENS, 6).requires_grad_(), normal(VOCABULARY, 6).requires_grad_()
    return hidden, output, targets, weights, Other(normal(TOKENS, 4), normal(VOCABULARY, 4))


def log_probabilities(hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(hidden @ output.T, -1)


def at(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return log_p[torch.arange(len(targets)), targets]


# Losses per token as the papers write them, for autograd; and q, which the gradient holds fixed.


def plain_cross_entropy(log_p, targets, base):
    return -at(log_p, targets)


def plain_dft(log_p, targets, base):
    return -at(log_p, targets).exp().detach() * at(log_p, targets)


def plain_asft(log_p, targets, base):
    return plain_dft(log_p, targets, base) + 0.3 * (base.exp() * (base - log_p)).sum(1)


def plain_rollout(log_p, targets, base):
    policy = torch.softmax(log_p / 2, 1).detach()
    right, all_ = at(policy, targets) * at(log_p, targets), (policy * log_p).sum(1)
    return -(right - 0.2 * (all_ - right))


def plain_distill(log_p, targets, base):
    teacher = torch.softmax(base / 1.5, 1)
    return 0.4 * -at(log_p, targets) + 0.6 * -(teacher * log_p).sum(1)


FORMULAS = {
    "cross_entropy": (CrossEntropy(), plain_cross_entropy),
    "dft": (DFT(), plain_dft),
    "asft": (ASFT(weight=0.3), plain_asft),
    "one_token_rollout": (OneTokenRollout(beta=-0.2, temperature=2.0), plain_rollout),
    "distill": (distill(share=0.6, until=0.5, temperature=1.5), plain_distill),
}


def fixed_target(kind: str, p: torch.Tensor, targets: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    hot = torch.nn.functional.one_hot(targets, VOCABULARY)
    if kind == "one_token_rollout":
        policy = p.sqrt() / p.sqrt().sum(1, keepdim=True)
        return policy * torch.where(hot == 1, 1.0, -0.2)
    if kind == "distill":
        teacher = base ** (1 / 1.5)
        return 0.4 * hot + 0.6 * teacher / teacher.sum(1, keepdim=True)
    return {"cross_entropy": hot * 1.0, "dft": hot * p, "asft": hot * p + 0.3 * base}[kind]


@pytest.mark.parametrize("chunk", [1, 8, 512])
@pytest.mark.parametrize("kind", FORMULAS)
def test_loss_and_gradients_are_those_of_the_formula(tensors, monkeypatch, kind, chunk):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    hidden, output, targets, weights, other = tensors
    objective, formula = FORMULAS[kind]
    found, nats = objective_sums(hidden, output, targets, weights, objective, other, 0.3)
    log_p, base = log_probabilities(hidden, output), log_probabilities(*other)
    expected = (formula(log_p, targets, base) * weights).sum()
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(nats, (-at(log_p, targets) * weights).sum(), atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, output)) for x in (found, expected)), strict=True):
        assert torch.allclose(a, b, atol=1e-12) and float(b.abs().max()) > 1e-2


@pytest.mark.parametrize("kind", FORMULAS)
def test_gradients_equal_finite_differences_with_the_target_held_fixed(tensors, kind):
    hidden, output, targets, weights, other = tensors
    total, _ = objective_sums(hidden, output, targets, weights, FORMULAS[kind][0], other, 0.3)
    found = torch.autograd.grad(total, (hidden, output))
    with torch.no_grad():
        q = fixed_target(kind, log_probabilities(hidden, output).exp(), targets, log_probabilities(*other).exp())
        for tensor, gradient in zip((hidden, output), found, strict=True):
            numeric, flat = torch.zeros(tensor.numel(), dtype=torch.float64), tensor.view(-1)
            for i in range(len(flat)):
                ends = []
                for step in (1e-6, -1e-6):
                    flat[i] += step
                    ends.append(-((q * log_probabilities(hidden, output)).sum(1) * weights).sum())
                    flat[i] -= step
                numeric[i] = (ends[0] - ends[1]) / 2e-6
            assert torch.allclose(gradient.flatten(), numeric, atol=1e-7)


@pytest.mark.parametrize("kind", FORMULAS)
def test_bf16_products_stay_near_float32(tensors, kind):
    hidden, output, targets, weights, other = (
        x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in tensors
    )
    other = Other(*(x.float() for x in other))
    exact, _ = objective_sums(hidden, output, targets, weights, FORMULAS[kind][0], other, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = objective_sums(hidden, output, targets, weights, FORMULAS[kind][0], other, 0.3)
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.03)


def gradients(tensors, objective, **given) -> tuple[torch.Tensor, ...]:
    hidden, output, targets, weights, other = tensors
    total, _ = objective_sums(hidden, output, targets, weights, objective, **({"other": other} | given))
    return torch.autograd.grad(total, (hidden, output))


def test_gradient_of_dft_is_that_of_minus_p(tensors):
    hidden, output, targets, weights, _ = tensors
    p = (at(log_probabilities(hidden, output), targets).exp() * weights).sum()
    for a, b in zip(gradients(tensors, DFT()), torch.autograd.grad(-p, (hidden, output)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_dft_is_cross_entropy_times_its_own_exponential(tensors):
    hidden, output, targets, weights, _ = tensors
    total, _ = objective_sums(hidden, output, targets, weights, DFT())
    ce = -at(log_probabilities(hidden, output), targets)
    assert torch.allclose(total, (ce * torch.exp(-ce) * weights).sum(), atol=1e-12)


def test_asft_without_its_anchor_is_dft(tensors):
    free = ASFT(weight=0)
    assert not free.reads_other(0) and ASFT().reads_other(0)
    for a, b in zip(gradients(tensors, free, other=None), gradients(tensors, DFT()), strict=True):
        assert torch.equal(a, b)


def test_asft_begins_as_dft_since_the_divergence_from_the_base_is_zero(tensors):
    hidden, output, targets, weights, _ = tensors
    same = Other(hidden.detach(), output.detach())
    anchored, _ = objective_sums(hidden, output, targets, weights, ASFT(weight=5), same)
    dft, _ = objective_sums(hidden, output, targets, weights, DFT())
    assert torch.allclose(anchored, dft, atol=1e-12)
    for a, b in zip(gradients(tensors, ASFT(weight=5), other=same), gradients(tensors, DFT()), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("beta", [-0.4, 0.0, 0.5])
def test_rollouts_at_temperature_one_are_a_multiple_of_dft(tensors, beta):
    rollout, dft = gradients(tensors, OneTokenRollout(beta=beta)), gradients(tensors, DFT())
    for a, b in zip(rollout, dft, strict=True):
        assert torch.allclose(a, (1 - beta) * b, atol=1e-12)


def test_beta_tells_whether_wrong_tokens_are_pushed_up_or_down(tensors):
    targets = tensors[2]
    logits = tensors[0].detach() @ tensors[1].detach().T

    def part_of_wrong_tokens(beta: float) -> torch.Tensor:
        """Gradient by the logits beyond that of beta = 0, and beyond the mean over the softened policy."""
        one = torch.eye(VOCABULARY, dtype=torch.float64)
        total = []
        for b in (beta, 0.0):
            x = logits.clone().requires_grad_()
            value, _ = objective_sums(x, one, targets, None, OneTokenRollout(beta=b, temperature=0.5))
            total.append(torch.autograd.grad(value, x)[0])
        return total[0] - total[1]

    reward, punish = part_of_wrong_tokens(0.3), part_of_wrong_tokens(-0.3)
    assert torch.allclose(reward, -punish, atol=1e-12)
    wrong = torch.softmax(logits / 0.5, 1).scatter(1, targets[:, None], 0)
    likeliest = wrong.argmax(1, keepdim=True)
    crowded = wrong.gather(1, likeliest)[:, 0] > 0.5  # there sharpening must act on the likeliest wrong token
    assert crowded.any() and (reward.gather(1, likeliest)[crowded] < 0).all()


def test_mean_of_the_draws_converges_to_the_closed_form(tensors):
    keys = np.arange(TOKENS, dtype=np.uint64)
    closed = gradients(tensors, OneTokenRollout(beta=-0.3, temperature=1.5))
    errors = []
    for samples in (64, 16_384):
        drawn = OneTokenRollout(beta=-0.3, temperature=1.5, mode="sampled", samples=samples)
        found = gradients(tensors, drawn, keys=keys)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, closed, strict=True)))
    assert errors[0] > 0.01 and errors[1] < errors[0] / 8  # 16 times smaller in expectation


def test_mean_over_steps_converges_too_and_steps_draw_anew(tensors):
    keys = np.arange(TOKENS, dtype=np.uint64)
    drawn = OneTokenRollout(mode="sampled", samples=8)
    found = [gradients(tensors, drawn, keys=keys, progress=i / 1000)[0] for i in range(600)]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[7], gradients(tensors, drawn, keys=keys, progress=0.007)[0])
    closed = gradients(tensors, OneTokenRollout())[0]
    first, mean = (float((x - closed).norm()) for x in (found[0], torch.stack(found).mean(0)))
    assert mean < first / 12  # 24 times smaller in expectation


def test_draws_do_not_depend_on_chunks_parts_or_neighbours(tensors, monkeypatch):
    hidden, output, targets, _, _ = tensors
    drawn, keys = OneTokenRollout(mode="sampled", samples=5), np.arange(TOKENS, dtype=np.uint64) * 7
    whole = torch.autograd.grad(objective_sums(hidden, output, targets, None, drawn, keys=keys)[0], hidden)[0]
    monkeypatch.setattr(loss, "CHUNK", 3)
    parts = torch.zeros_like(whole)
    for part in (slice(0, 10), slice(10, TOKENS)):
        total, _ = objective_sums(hidden[part], output, targets[part], None, drawn, keys=keys[part])
        parts += torch.autograd.grad(total, hidden)[0]
    assert torch.allclose(whole, parts, atol=1e-12)
    other = objective_sums(hidden, output, targets, None, drawn.model_copy(update={"seed": 1}), keys=keys)[0]
    assert not torch.allclose(whole, torch.autograd.grad(other, hidden)[0])
    assert drawn.reads_keys and not OneTokenRollout().reads_keys and not DFT().reads_keys
    with pytest.raises(ValueError, match="token_keys"):
        objective_sums(hidden, output, targets, None, drawn)


def test_token_keys_name_a_token_whatever_lies_beside_it():
    tokens = np.random.default_rng(0).integers(0, 9, (2, 40))
    batch = Batch(tokens[0], tokens[1], np.array([20, 12, 8]), np.arange(3))
    keys = token_keys(batch)
    assert len(set(keys.tolist())) == 40
    turned = np.concatenate([np.arange(32, 40), np.arange(20)])
    assert np.array_equal(token_keys(batch.pieces(np.array([2, 0]))), keys[turned])
    assert np.array_equal(np.concatenate([token_keys(part) for part in batch.parts(20)]), keys)


def test_distillation_with_no_share_is_cross_entropy_to_the_bit(tensors):
    for progress, objective in (
        (0.0, distill(share=0.0)),
        (0.5, distill(share=0.7, until=0.5)),
        (0.1, distill(until=0.0)),
    ):
        assert not objective.reads_other(progress)
        found = gradients(tensors, objective, other=None, progress=progress)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients(tensors, CrossEntropy()), strict=True))


def test_distillation_alone_is_the_divergence_from_the_teacher_and_its_entropy(tensors):
    hidden, output, targets, weights, other = tensors
    total, _ = objective_sums(hidden, output, targets, weights, distill(share=1.0), other)
    log_p, log_q = log_probabilities(hidden, output), log_probabilities(*other)
    divergence, entropy = (log_q.exp() * (log_q - log_p)).sum(1), -(log_q.exp() * log_q).sum(1)
    assert torch.allclose(total, ((divergence + entropy) * weights).sum(), atol=1e-12)
    with pytest.raises(ValueError, match="other_states"):
        objective_sums(hidden, output, targets, weights, distill(share=1.0))


def test_shares_of_the_two_stages():
    step, linear = distill(share=0.8, until=0.4), distill(share=0.8, until=0.4, transition="linear")
    assert [step.share_at(x) for x in (0, 0.2, 0.39, 0.4, 1)] == [0.8, 0.8, 0.8, 0, 0]
    assert [linear.share_at(x) for x in (0, 0.2, 0.3, 0.4, 1)] == pytest.approx([0.8, 0.4, 0.2, 0, 0])
    assert distill(share=1.0, until=1.0).reads_other(0.99)


# Behaviour: a table of hidden states, one per context, and an output matrix; both are learned.


def learn(parameters, output, optimiser, draw, steps, objective, frozen=None) -> None:
    """`draw(step)` gives contexts and targets; `parameters` maps contexts to hidden states; frozen does so to Other."""
    for step in range(steps):
        contexts, targets = draw(step)
        other = frozen(contexts) if frozen and objective.reads_other(step / steps) else None
        total, _ = objective_sums(parameters(contexts), output, targets, None, objective, other, step / steps)
        optimiser.zero_grad()
        (total / len(targets)).backward()
        optimiser.step()


class NoisyLabelsAndFacts:
    """60 contexts whose label is right in 80 % of the data and random otherwise, and 12 with a fact that contradicts
    what the base model believes, in 10 % of the data and always right."""

    contexts, facts, labels = 60, 12, 24

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        both = self.contexts + self.facts
        self.right = draw.integers(0, self.labels, both)
        self.before = (self.right + draw.integers(1, self.labels, both)) % self.labels
        generator = torch.Generator().manual_seed(0)
        self.base = [0.3 * torch.randn(n, 32, generator=generator) for n in (both, self.labels)]
        self.base = self.tuned(CrossEntropy(), self.early, 300)

    def early(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the base model learned from: weaker labels, and other facts."""
        draw = np.random.default_rng(10_000 + step)
        x = draw.integers(0, self.contexts + self.facts, 256)
        weak = np.where(draw.random(256) < 0.4, self.right[x], draw.integers(0, self.labels, 256))
        return torch.from_numpy(x), torch.from_numpy(np.where(x >= self.contexts, self.before[x], weak))

    def late(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = np.random.default_rng(step)
        fact = draw.random(256) < 0.1
        x = np.where(
            fact, draw.integers(self.contexts, self.contexts + self.facts, 256), draw.integers(0, self.contexts, 256)
        )
        noise = ~fact & (draw.random(256) < 0.2)
        return torch.from_numpy(x), torch.from_numpy(np.where(noise, draw.integers(0, self.labels, 256), self.right[x]))

    def tuned(self, objective, draw, steps) -> list[torch.Tensor]:
        table, output = (x.clone().requires_grad_() for x in self.base)
        optimiser = torch.optim.SGD([table, output], lr=6.0)
        frozen = [x.clone() for x in self.base]
        learn(lambda x: table[x], output, optimiser, draw, steps, objective, lambda x: Other(frozen[0][x], frozen[1]))
        return [table.detach(), output.detach()]

    def measured(self, objective) -> tuple[float, float]:
        """Mean probability of the right label in noisy contexts, and of the new facts."""
        table, output = self.tuned(objective, self.late, 200)
        p = torch.softmax(table @ output.T, 1)[torch.arange(len(table)), torch.from_numpy(self.right)]
        return float(p[: self.contexts].mean()), float(p[self.contexts :].mean())


def test_dft_resists_noisy_labels_and_fails_to_learn_what_the_model_finds_unlikely():
    toy = NoisyLabelsAndFacts()
    found = {kind: toy.measured(FORMULAS[kind][0]) for kind in ("cross_entropy", "dft", "one_token_rollout")}
    found["asft"] = toy.measured(ASFT())
    assert 0.75 < found["cross_entropy"][0] < 0.85  # it learns the noise: 80 % and a bit
    assert found["dft"][0] > 0.98 and found["one_token_rollout"][0] > 0.98
    assert 0.9 < found["asft"][0] < found["dft"][0]  # held back by the base
    assert found["cross_entropy"][1] > 0.95
    assert found["dft"][1] < 0.05 and found["asft"][1] < 0.05


class WeakTeacher:
    """Words after pairs of words. After two thirds of the words the last one decides, so a teacher that sees only that
    one is right; after the others both decide, and it is wrong."""

    words, hard = 24, 8

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        odds = np.repeat(draw.dirichlet(np.full(self.words, 0.5), self.words)[None], self.words, axis=0)
        odds[:, -self.hard :] = draw.dirichlet(np.full(self.words, 0.1), (self.words, self.hard))
        self.odds = torch.from_numpy(odds).float()
        self.teacher = self.odds.mean(0).log()

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        pairs = torch.randint(0, self.words**2, (256,), generator=generator)
        return pairs, torch.multinomial(self.odds.view(-1, self.words)[pairs], 1, generator=generator)[:, 0]

    def loss(self, objective, steps: int) -> float:
        """Divergence of the student from the truth in nats per word, which is its loss less what none can beat."""
        generator = torch.Generator().manual_seed(0)
        pairs = torch.zeros(self.words**2, 32, requires_grad=True)
        last, output = (0.3 * torch.randn(2, self.words, 32, generator=generator)).unbind()
        last, output = last.requires_grad_(), output.requires_grad_()
        optimiser = torch.optim.Adam([pairs, last, output], lr=0.03)

        def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
            return self.draw(step)

        one = torch.eye(self.words)
        learn(
            lambda x: pairs[x] + last[x % self.words], output, optimiser, draw, steps, objective,
            lambda x: Other(self.teacher[x % self.words], one),
        )  # fmt: skip
        log_p = log_probabilities((pairs.view(self.words, self.words, -1) + last).detach(), output.detach())
        return float((self.odds * (self.odds.clamp_min(1e-30).log() - log_p)).sum(-1).mean())


def test_a_weak_teacher_helps_early_and_harms_if_it_stays():
    toy = WeakTeacher()
    to_the_end, two_stages = distill(share=0.5, until=1.0), distill(share=0.9, until=0.5, transition="linear")
    kinds = {"data": CrossEntropy(), "end": to_the_end, "two": two_stages}
    small, large = ({name: toy.loss(kind, steps) for name, kind in kinds.items()} for steps in (50, 400))
    assert small["two"] < small["end"] < small["data"] - 0.02
    assert large["two"] < 0.6 * large["end"]
    assert large["two"] < 1.1 * large["data"]  # by then data alone has caught up


# Configuration and the frozen model.


def test_kinds_are_told_apart_and_wrong_fields_refused():
    read = TypeAdapter(Objective)
    assert read.validate_python({"kind": "dft"}) == DFT()
    rollout = OneTokenRollout(beta=-0.2, mode="sampled")
    assert read.validate_json(rollout.model_dump_json()) == rollout
    for wrong in (
        {"kind": "ppo"},
        {"kind": "dft", "weight": 1},
        {"kind": "asft", "weight": -1},
        {"kind": "one_token_rollout", "beta": 1},
        {"kind": "one_token_rollout", "temperature": 0},
        {"kind": "distill"},
    ):
        with pytest.raises(ValidationError):
            read.validate_python(wrong)


@pytest.mark.parametrize("wrong", ["missing", "empty"])
def test_a_folder_that_is_no_model_is_refused_when_named(tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValidationError, match=r"no model folder|config\.json"):
        Distill(teacher=tmp_path / wrong)
    with pytest.raises(ValidationError, match=r"no model folder|config\.json"):
        ASFT(base=tmp_path / wrong)


SMALL = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def corpus(toy, tmp_path):
    return open_mixture(toy / "mixture", tmp_path)


@pytest.fixture
def teacher(corpus, tmp_path):
    """Folder of a model for the mixture, with contexts of 64 tokens."""
    save_model(new_model(SMALL, corpus, 64, seed=5), corpus.tokenizer, tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_frozen_model_speaks_about_the_batch_and_learns_nothing(corpus, teacher):
    model = new_model(ModelConfig(), corpus, 64, seed=0)
    objective = Distill(teacher=teacher)
    frozen = frozen_model(objective, model, corpus.tokenizer, 64)
    tokens = np.random.default_rng(0).integers(0, corpus.vocabulary, (2, 30))
    batch = Batch(tokens[0], tokens[1], np.array([20, 10]), np.arange(2))
    other = other_states(frozen, batch)
    assert other.hidden.shape == (30, 16) and other.output.shape == (corpus.vocabulary, 16)
    assert not other.hidden.requires_grad and not any(p.requires_grad for p in frozen.parameters())
    alone = (
        frozen.set_attn_implementation("eager") or frozen(input_ids=torch.from_numpy(tokens[0][None, :20])).logits[0]
    )
    assert torch.allclose(other.hidden[:20] @ other.output.T, alone, atol=1e-5)


def test_asft_is_held_near_the_model_it_starts_from_unless_told_otherwise(corpus, teacher):
    model = new_model(SMALL, corpus, 64, seed=0)
    base = frozen_model(ASFT(), model, corpus.tokenizer, 64)
    assert torch.equal(head(base), head(model)) and not head(base).requires_grad and head(model).requires_grad
    with torch.no_grad():
        head(model).add_(1)
    assert not torch.equal(head(base), head(model))
    named = frozen_model(ASFT(base=teacher), model, corpus.tokenizer, 64)
    assert torch.equal(head(named), head(new_model(SMALL, corpus, 64, seed=5)))
    for objective in (CrossEntropy(), DFT(), OneTokenRollout(), ASFT(weight=0)):
        assert frozen_model(objective, model, corpus.tokenizer, 64) is None


def test_frozen_models_that_do_not_fit_are_refused(corpus, teacher, tmp_path):
    model = new_model(SMALL, corpus, 64, seed=0)
    with pytest.raises(ValueError, match="reads 64 tokens at once, row_length is 65"):
        frozen_model(Distill(teacher=teacher), model, corpus.tokenizer, 65)
    model.resize_token_embeddings(corpus.vocabulary + 3)
    with pytest.raises(
        ValueError, match=f"predicts {corpus.vocabulary} tokens, the trained model {corpus.vocabulary + 3}"
    ):
        frozen_model(Distill(teacher=teacher), model, corpus.tokenizer, 64)


def test_a_teacher_whose_ids_mean_other_tokens_is_refused(corpus, teacher, tmp_path):
    model = new_model(SMALL, corpus, 64, seed=0)
    texts = [" ".join(f"{a}{b}qx" for a in "vwyz" for b in "aeiou")] * 3
    other = make_tokenizer(tmp_path / "other", texts, vocabulary=corpus.vocabulary)
    assert Tokenizer.from_file(str(other / "tokenizer.json")).get_vocab_size() <= corpus.vocabulary
    (teacher / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="has other ids than the mixture's tokenizer"):
        frozen_model(Distill(teacher=teacher), model, corpus.tokenizer, 64)
