"""Adapters: small trainable parts inside a model whose own weights stand still, made by peft by name and options.

Packed rows and adapters meet without either knowing of the other: peft puts its layers into the transformers model,
and that model still runs as before (`Adapted.model`). What would not be exact there is refused before training: once
with random adapter weights, packed documents must have the losses that peft's own forward pass gives each alone.

Cost: the check is three forward passes over some twenty tokens; `head_matrix` of an adapted language-model head is one
product of the head with as many rows as the model is wide, per forward pass.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, model_validator
from transformers import PreTrainedModel

from trainers.data import Batch
from trainers.loss import token_losses

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

VIRTUAL = "puts virtual tokens before every document; no weights can hold them, so no model folder could be written"
REFUSED = {
    "adaption_prompt": VIRTUAL,
    "lily": "mixes its experts by the mean over a row, so that packed documents would learn from each other",
    "poly": "wants the number of a task with every document, which mixtures do not have",
    "shadow": "runs a second model beside the first, which packed rows do not reach",
    "xlora": "mixes adapters that are trained already",
}
REFUSED_OPTIONS = {
    "alora_invocation_tokens": "works from a place in each document on, which packed rows do not have",
    "layer_replication": "changes the number of layers, which the base model's config.json would not tell",
    "megatron_core": "is for models of Megatron",
    "use_asa": "keeps what it knows of importance outside of tensors, so that no checkpoint would hold it",
}
FROM_DATA = ("eva", "corda", "lora_ga", "loftq")  # starts that peft draws from data or quantised weights
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA remembers between steps
RANKS = "rank_pattern"


class Adapter(BaseModel):
    """An adapter of peft: the method's name there in lower case (`lora`, `adalora`, `ia3`, …), and its options.

    Options are the fields of peft's config of that method, as peft documents them. Raises ValueError: no such method
    or option (the message names the nearest), one that packed training cannot do exactly, or values that peft refuses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> Adapter:
        self.config()
        return self

    def config(self) -> PeftConfig:
        """peft's config of the adapter."""
        kind = _config_type(self.method)
        own = {field.name for field in dataclasses.fields(kind)} - _config_fields()
        known = {name for name in own if not name.endswith("_config")} - set(REFUSED_OPTIONS)
        for name in self.options:
            if name in own and name in REFUSED_OPTIONS:
                raise ValueError(f"{self.method}: option {name} {REFUSED_OPTIONS[name]}; leave it out")
            if name not in known:
                raise ValueError(f"{self.method}: no option {name!r}{_nearest(name, known)}")
        start = self.options.get("init_lora_weights")
        if isinstance(start, str) and start.startswith((*FROM_DATA, "pissa_niter")):
            raise ValueError(
                f"{self.method}: init_lora_weights {start!r} draws the start from data or at random over the base's "
                "weights, so that the adapter alone does not tell the model; take pissa, olora, gaussian or true"
            )
        try:
            config: PeftConfig = kind(task_type="CAUSAL_LM", **self.options)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.method}: {error}") from error
        if self.method == "adalora" and config.target_r >= config.init_r:
            raise ValueError(f"adalora: target_r {config.target_r} must be below init_r {config.init_r}")
        return config


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter in it."""

    peft: PeftModel
    frozen: frozenset[str]  # tensors of `model` that are those of the base model, and stay so

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model with the adapter's layers inside: what trains, and what the packed forward calls."""
        return self.peft.get_base_model()

    def penalty(self) -> torch.Tensor | None:
        """AdaLoRA's term that keeps its factors orthogonal (arXiv 2303.10512, eq. 4), once per step; None elsewhere.

        The mean over all factors P (lora_Aᵀ and lora_B) of the Frobenius norm of PᵀP - 1, times `orth_reg_weight`.
        """
        config = self._config
        if _name(config) != "adalora" or not config.orth_reg_weight:
            return None
        factors = [
            p if ".lora_A." in name else p.T
            for name, p in self.model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        apart = [torch.linalg.norm(f @ f.T - torch.eye(len(f), device=f.device, dtype=f.dtype)) for f in factors]
        return config.orth_reg_weight * torch.stack(apart).mean()

    def allocate(self, step: int) -> None:
        """After the optimiser's step number `step` (1, 2, …), before gradients are cleared: AdaLoRA moves its ranks."""
        if _name(self._config) == "adalora":
            self.peft.base_model.update_and_allocate(step)

    def extra(self) -> dict[str, torch.Tensor]:
        """Copies of what a checkpoint has to hold besides the trained parameters: the rest of the adapter, by name."""
        tensors = {name: t.detach().clone().contiguous() for name, t in self._rest().items()}
        if _name(self._config) == "adalora":
            allocator = self.peft.base_model.rankallocator
            tensors |= {f"{k}:{n}": t.clone() for k in IMPORTANCE for n, t in getattr(allocator, k).items()}
            tensors |= {f"{RANKS}:{n}": torch.tensor(kept) for n, kept in (self._config.rank_pattern or {}).items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `extra` gave, bit for bit. Raises ValueError: it is of another adapter."""
        rest, given = self._rest(), {name: t for name, t in tensors.items() if ":" not in name}
        odd = sorted(rest.keys() ^ given.keys()) or [n for n, t in rest.items() if t.shape != given[n].shape]
        if odd:
            raise ValueError(
                f"the checkpoint is of another adapter: {odd[0]} is in one of them only, or of other shape"
            )
        for name, tensor in rest.items():
            tensor.copy_(given[name])
        if _name(self._config) == "adalora":
            allocator, parameters = self.peft.base_model.rankallocator, dict(self.model.named_parameters())
            for kind in IMPORTANCE:
                setattr(allocator, kind, {n: t.to(parameters[n].device) for n, t in _of(kind, tensors).items()})
            self._config.rank_pattern = {n: t.tolist() for n, t in _of(RANKS, tensors).items()} or None

    def _rest(self) -> dict[str, torch.Tensor]:
        """Tensors that are not trained and that the base model's folder does not give, as it gives them."""
        return {name: t for name, t in _tensors(self.model).items() if name not in self.frozen and not t.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the adapter alone, as peft loads it: adapter_config.json and adapter_model.safetensors."""
        ranks = getattr(self._config, RANKS, None)
        if (
            _name(self._config) == "adalora"
        ):  # peft would cut the factors to the ranks and lose what they are divided by
            self._config.rank_pattern = None
        self.peft.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        if _name(self._config) == "adalora":
            self._config.rank_pattern = ranks

    def merged(self) -> PreTrainedModel:
        """The base model with the adapter's change in its own weights; the adapter is gone then. ValueError: not so."""
        merged: PreTrainedModel = self.peft.merge_and_unload(safe_merge=True)
        return merged

    @property
    def _config(self) -> Any:
        return self.peft.peft_config["default"]


def adapt(model: PreTrainedModel, adapter: Adapter, seed: int) -> Adapted:
    """Put an adapter into a model, its weights drawn from the seed; everything else is frozen.

    Raises ValueError: peft finds nothing to adapt or refuses the model, or training on packed rows would not be exact.
    """
    from peft import get_peft_model

    before = {id(t): _digest(t) for t in _tensors(model).values()}
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those on tied weights are errors below
            peft = get_peft_model(model, adapter.config())
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{adapter.method} does not fit {model.config.model_type}: {error}") from error
    frozen = {
        name
        for name, t in _tensors(peft.get_base_model()).items()
        if not t.requires_grad and id(t) in before and before[id(t)] == _digest(t)
    }
    adapted = Adapted(peft, frozenset(frozen))
    _check_trainable(adapted, adapter)
    _check_exact(adapted, adapter, seed)
    return adapted


def head_matrix(layer: torch.nn.Module) -> torch.Tensor:
    """[vocabulary, width]: the matrix of a language-model head, with what an adapter adds to it, differentiable.

    An adapted head is linear and has no bias, so its matrix is what it makes of the unit vectors; exact in float32.
    """
    if type(layer) is torch.nn.Linear:
        return layer.weight
    weight = next(p for p in layer.parameters() if p.ndim == 2)
    width = layer.in_features if hasattr(layer, "in_features") else weight.shape[1]
    with torch.autocast(weight.device.type, enabled=False):
        matrix: torch.Tensor = layer(torch.eye(width, dtype=weight.dtype, device=weight.device)).T
    return matrix


def _check_trainable(adapted: Adapted, adapter: Adapter) -> None:
    """ValueError: nothing is trained, tied embeddings would come apart, or no weights could hold what is learned."""
    model = adapted.model
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    plain = [type(layer) in (torch.nn.Embedding, torch.nn.Linear) for layer in ends]
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{adapter.method} with {adapter.options} has nothing to train in {model.config.model_type}")
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and not all(plain) and not all(type(layer).__name__ == "TrainableTokensWrapper" for layer in ends):
        raise ValueError(
            "the model's embeddings and head are one matrix (tie_word_embeddings) and the adapter would change one of "
            "them alone; leave both out of target_modules and modules_to_save, or take trainable_token_indices"
        )
    if adapter.method == "beft":
        bare = [n for n, m in model.named_modules() if hasattr(m, "beft_bias") and m.get_base_layer().bias is None]
        if bare:
            raise ValueError(f"beft trains biases, and {bare[0]} has none that could hold what is learned")


@torch.no_grad()
def _check_exact(adapted: Adapted, adapter: Adapter, seed: int) -> None:
    """Compare packed documents with each alone through peft's forward pass, with random weights in the adapter.

    At its start most adapters change nothing, and whatever they do would look exact. Differences are measured by the
    size of the adapter's effect, since rounding is the only reason there may be for one.
    """
    model = adapted.model
    training, random = model.training, torch.get_rng_state()
    batch = _random_batch(model.get_input_embeddings().weight.shape[0], seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [p.clone() for p in trained]
    model.eval()
    start = _alone(adapted, batch)
    generator = torch.Generator().manual_seed(seed)
    for p in trained:
        p += (0.05 * torch.randn(p.shape, generator=generator)).to(p)
    alone, packed = _alone(adapted, batch), _packed(adapted, batch)
    model.train()
    straight = _head_error(model, generator)
    for p, value in zip(trained, kept, strict=True):
        p.copy_(value)
    model.train(training)
    torch.set_rng_state(random)
    effect = float((alone - start).abs().max())
    difference = max(float((packed - alone).abs().max()), straight)
    if not difference <= 1e-4 + 0.01 * effect:
        raise ValueError(
            f"{adapter.method} with {adapter.options}: packed documents differ from each alone by up to "
            f"{difference:.3g} nats per token, of the adapter's effect of {effect:.3g}: it looks beyond its document, "
            "or changes the head in a way that no matrix can (dropout, bias); it cannot be trained on packed rows"
        )


def _random_batch(vocabulary: int, seed: int) -> Batch:
    generator, lengths = np.random.default_rng(seed), np.array([9, 6, 4])
    tokens = generator.integers(0, vocabulary, (2, int(lengths.sum())))
    return Batch(tokens[0], tokens[1], lengths, np.arange(len(lengths)))


def _alone(adapted: Adapted, batch: Batch) -> torch.Tensor:
    """Losses of the tokens, each document by itself through peft's forward pass."""
    device, split = adapted.model.device, batch.lengths.tolist()
    losses = []
    tokens, wanted = (torch.from_numpy(x).to(device).split(split) for x in (batch.inputs, batch.targets))
    for inputs, targets in zip(tokens, wanted, strict=True):
        out = adapted.peft(input_ids=inputs[None], use_cache=False, document_lengths=[len(inputs)])
        losses.append(torch.nn.functional.cross_entropy(out.logits[0].float(), targets, reduction="none"))
    return torch.cat(losses)


def _packed(adapted: Adapted, batch: Batch) -> torch.Tensor:
    from trainers.model import hidden_states  # which takes head_matrix from here

    matrix = head_matrix(adapted.model.get_output_embeddings())
    return token_losses(hidden_states(adapted.model, batch), matrix, torch.from_numpy(batch.targets).to(matrix.device))


def _head_error(model: PreTrainedModel, generator: torch.Generator) -> float:
    """How far the head in training is from its matrix, over four random hidden states of norm about 1."""
    layer = model.get_output_embeddings()
    matrix = head_matrix(layer)
    hidden = (torch.randn(4, matrix.shape[1], generator=generator) / matrix.shape[1] ** 0.5).to(matrix)
    return float((layer(hidden) - hidden @ matrix.T).abs().max())


def _config_type(method: str) -> type[PeftConfig]:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig

    kinds = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method not in kinds:
        raise ValueError(f"no adapter {method!r}{_nearest(method, kinds)}")
    if issubclass(kinds[method], PromptLearningConfig):
        raise ValueError(f"{method} {VIRTUAL}; take a method that changes layers, as lora")
    if method in REFUSED:
        raise ValueError(f"{method} {REFUSED[method]}; take another, as lora")
    return kinds[method]


def _config_fields() -> set[str]:
    """Fields that all configs of peft share: they say what the config is, not how to adapt."""
    from peft import PeftConfig

    return {field.name for field in dataclasses.fields(PeftConfig)}


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"


def _name(config: Any) -> str:
    return str(config.peft_type.value).lower()


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _of(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.partition(":")[2]: t for name, t in tensors.items() if name.startswith(f"{kind}:")}


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_128_hexdigest(flat.numpy())
