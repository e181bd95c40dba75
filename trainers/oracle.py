"""What one optimiser step on a document does to a model's loss on a reference: the oracle of MATES.

Yu et al. 2024 (arXiv 2406.06046): weights and moments of the optimiser are those of a checkpoint before every step, so
a document's number does not depend on the documents probed before it. Batches are those of the trainer, and so are the
step and its defaults: AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients up to 1.

Cost: a step, the reference's loss and two copies of weights and moments per document. float32 on a CPU; on one thread
the same documents give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers.utils import logging

from trainers import checkpoint
from trainers.config import TrainConfig
from trainers.data import Batch
from trainers.learner import Learner
from trainers.loss import token_losses
from trainers.model import check_packing, head, hidden_states, load_model
from trainers.optimiser import make_optimiser
from trainers.run import backward
from trainers.tokenise import load_tokenizer
from transforms.pieces import groups

PART = 4096  # tokens of the reference at a time


class Oracle:
    """`model` and `optimiser` as they are when it is made: there every probe starts and ends, bit for bit."""

    def __init__(
        self, learner: Learner, optimiser: torch.optim.Optimizer, config: TrainConfig, reference: Batch
    ) -> None:
        self._learner, self.optimiser, self.config = learner, optimiser, config
        self.model = model = learner.model.eval()  # eval: a step draws no dropout
        self.reference = reference.parts(PART)
        self._weights = {p: p.detach().clone() for p in model.parameters()}
        self._moments = {p: {k: t.clone() for k, t in state.items()} for p, state in optimiser.state.items()}

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss of the reference's tokens, nats."""
        total = 0.0
        for part in self.reference:
            targets = torch.from_numpy(part.targets)
            total += float(token_losses(hidden_states(self.model, part), head(self.model), targets).double().sum())
        return total / sum(len(part.targets) for part in self.reference)

    def losses(self, probes: Iterable[Batch]) -> np.ndarray:
        """float64 [probes]: the reference's loss after one step on each. The lower, the more the probe helps."""
        return np.array([self._after(probe) for probe in probes])

    def _after(self, probe: Batch) -> float:
        backward(self._learner, probe, self.config)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        loss = self.loss()
        self._restore()
        return loss

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, weight in self._weights.items():
            parameter.copy_(weight)
            if parameter not in self._moments:
                self.optimiser.state.pop(parameter, None)
                continue
            for name, moment in self._moments[parameter].items():
                self.optimiser.state[parameter][name].copy_(moment)


def make_oracle(folder: Path, checkpoints: Path | None, lr: float, reference: Sequence[np.ndarray]) -> Oracle:
    """The oracle of a model folder, with the weights and moments of the newest checkpoint, or with none yet.

    Args:
        reference: as `beginnings` gives them.

    Raises:
        ValueError: no checkpoint is whole, or packed documents have other losses than each alone.
    """
    logging.disable_progress_bar()
    config = TrainConfig(lr=lr, precision="fp32")
    model = load_model(folder)
    learner = Learner(model)
    optimiser = make_optimiser(learner, config)
    if checkpoints is not None:
        found = checkpoint.newest(checkpoints)
        if found is None:
            raise ValueError(f"no whole checkpoint in {checkpoints}; give the model folder alone, or train anew")
        checkpoint.load(found[0], learner, optimiser)
    batch = packed(reference, load_tokenizer(folder)[1])
    check_packing(model, batch)
    return Oracle(learner, optimiser, config, batch)


def beginnings(folder: Path, texts: pa.LargeStringArray, window: int) -> list[np.ndarray]:
    """int64: the first `window` tokens of each text by the model's tokenizer, its end token among them if it fits.

    texts: none longer than `transforms.pieces.AT_ONCE` characters.
    """
    tokenizer, end = load_tokenizer(folder)
    encoded = (e for _, some in groups(texts) for e in tokenizer.encode_batch_fast(some, add_special_tokens=False))
    return [np.array([*e.ids[:window], end][:window], np.int64) for e in encoded]


def packed(documents: Sequence[np.ndarray], end: int) -> Batch:
    """A batch of documents (int64 tokens each, all to be predicted, the first from the end token before it)."""
    order = sorted(range(len(documents)), key=lambda d: -len(documents[d]))
    targets = [documents[d] for d in order]
    inputs = [np.concatenate([[end], tokens[:-1]]) for tokens in targets]
    lengths = np.array([len(tokens) for tokens in targets], np.int64)
    return Batch(np.concatenate(inputs), np.concatenate(targets), lengths, np.array(order, np.int64))
