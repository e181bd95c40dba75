"""Half fine-tuning (arXiv 2404.18466): in each round of training half of the matrices learn, the others stand still.

Category by category, as the paper found best: of every layer's query, key, value and output projections two; of up,
down and gate two in half of the layers and one in the others; half of the norms; embeddings and head always. A round
is a stage of fine-tuning, not a step; the next round draws anew. The choice is a function of (seed, round, names), so
no checkpoint has to hold it. Frozen matrices need no gradients and no moments of the optimiser.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EMBEDDINGS = ("embed_tokens", "lm_head")
LAYER = re.compile(r"(.*\blayers\.\d+)\..*")


class HalfFineTuning(BaseModel):
    """The half of a model that learns in a round."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    round: int = Field(default=0, ge=0)  # stage of fine-tuning

    def chosen(self, names: Iterable[str]) -> frozenset[str]:
        """Of a model's parameters, by their names, those that learn.

        A matrix and its bias go together. An odd number of norms or layers is halved by a coin. Raises ValueError: a
        parameter that is neither a norm nor one of the projections of a Llama, since halves are defined for those.
        """
        owner = {name: name.rpartition(".")[0] for name in names}
        found = _categories(set(owner.values()))
        chosen = found.always | self._first(found.norms, self._half(len(found.norms), "norms"))
        for matrices in found.attention.values():
            chosen |= self._first(matrices, 2)
        two = self._first(found.mlp, self._half(len(found.mlp), "mlp"))
        for layer, matrices in found.mlp.items():
            chosen |= self._first(matrices, 2 if layer in two else 1)
        return frozenset(name for name, module in owner.items() if module in chosen)

    def freeze(self, model: PreTrainedModel) -> None:
        """Let only the chosen half of a model's parameters learn. Raises ValueError as `chosen` does."""
        chosen = self.chosen([name for name, _ in model.named_parameters()])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)

    def _first(self, names: Iterable[str], count: int) -> set[str]:
        """`count` of the names, at random."""
        return set(sorted(names, key=lambda name: (self._draw(name), name))[:count])

    def _half(self, count: int, what: str) -> int:
        return (count + self._draw(what) % 2) // 2

    def _draw(self, name: str) -> int:
        return xxhash.xxh3_64_intdigest(f"{self.seed} {self.round} {name}".encode())


class _Categories(NamedTuple):
    """Modules of a model, by their names."""

    always: set[str]
    norms: set[str]
    attention: dict[str, set[str]]  # of each layer
    mlp: dict[str, set[str]]


def _categories(modules: set[str]) -> _Categories:
    found = _Categories(set(), set(), defaultdict(set), defaultdict(set))
    for module in modules:
        last, layer = module.rpartition(".")[2], LAYER.fullmatch(module)
        if last in EMBEDDINGS:
            found.always.add(module)
        elif "norm" in last:
            found.norms.add(module)
        elif layer and last in ATTENTION + MLP:
            (found.attention if last in ATTENTION else found.mlp)[layer[1]].add(module)
        else:
            raise ValueError(_unknown(module))
    for kind, full in ((found.attention, ATTENTION), (found.mlp, MLP)):
        for layer_name in sorted(found.attention.keys() | found.mlp.keys()) or ["layers.0"]:
            if len(kind.get(layer_name, ())) != len(full):
                raise ValueError(_unknown(layer_name))
    return found


def _unknown(name: str) -> str:
    return (
        f"half fine-tuning knows layers of {', '.join(ATTENTION)} and {', '.join(MLP)}, norms and embeddings; "
        f"{name} of this model is none of them or lacks some. Train all of it, or an adapter"
    )
