"""A classifier or regression model of transformers that gives every chunk of tokens the same bits in any company.

The floats of a padded batch depend on its shape, so a chunk's shape depends on the chunk alone. On a CPU chunks of more
than half of TOKENS tokens are run one at a time, unpadded; shorter ones in tensors of a fixed number of rows whose
width follows from the chunk's length, filled up with repeats where rows are left. In a tensor of one shape a row has
the same bits wherever it stands and whatever stands beside it: that is tried out on each shape before its first use,
and a model or processor that fails is run on one chunk at a time. Forward passes take one thread; workers are
processes.

Rows of several documents with block-diagonal masks were not chosen: few architectures take restarting positions, and a
document's place in the row would change its bits. One core, tokens/s, tensors of 256 tokens against one chunk at a
time, chunks of 16, 24, 64, 128 tokens: 7,550, 7,770, 7,080, 5,490 against 4,300, 4,880, 6,440, 4,280 (3 layers of 384).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np

from transforms.chunks import Chunker, Chunks
from transforms.model_folder import (
    CLASSIFIER,
    ENCODER,
    ModelFolder,
    check_model_folder,
    files_state,
    load_model,
    read_card,
)

TOKENS = {"cpu": 256}  # of a tensor of several rows
TOKENS_ELSEWHERE = 1 << 14
TOLERANCE = 1e-5  # between a chunk alone and among others, where logits are below 1; else relative to them
# Architectures whose positions begin behind the id of the padding, so that the table holds that many more.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet")

_lock = threading.Lock()
_loaded: WeakValueDictionary[tuple[Any, ...], SequenceClassifier] = WeakValueDictionary()


@dataclass(frozen=True)
class ClassifierFolder:
    """What is known of a classifier before it is loaded."""

    folder: ModelFolder
    labels: tuple[str, ...]  # of its outputs
    kind: Literal["value", "classes", "labels"]  # regression; one of the classes; labels independent of each other
    window: int  # tokens, special ones included
    pad: int | None
    positive: str | None  # the label that card.json beside it names

    def output(self, label: str | int | None) -> int:
        """The place of a label (name, number or None for the one of the card, or the only one).

        Raises:
            ValueError: it has no such label, or several and none was named.
        """
        listed = ", ".join(self.labels[:20])
        wanted = self.positive if label is None else label
        if wanted is None and len(self.labels) == 1:
            return 0
        if wanted is None:
            raise ValueError(f"{self.folder.path} has the labels {listed}; say in `label` which one is wanted")
        if str(wanted) in self.labels:  # names before numbers: of labels 1 to 5, 1 is the first
            return self.labels.index(str(wanted))
        if str(wanted).isdecimal() and int(wanted) < len(self.labels):
            return int(wanted)
        raise ValueError(f"{self.folder.path} has no label {wanted!r}; its labels are {listed}")


def check_classifier(path: Path) -> ClassifierFolder:
    """Check a folder with config.json, safetensors and tokenizer.json, without torch and without reading weights.

    Raises:
        ValueError: no such folder, something missing or truncated, pickled weights, code of its own, another
            architecture, no head, a tokenizer with more tokens than the embedding, or no known window.
    """
    folder = check_model_folder(path, CLASSIFIER)
    config = folder.config
    named = config.get("id2label")
    labels = [str(named[k]) for k in sorted(named, key=int)] if isinstance(named, dict) else []
    labels = labels or [f"LABEL_{k}" for k in range(int(config.get("num_labels", 2)))]
    if not any(len(s) == 2 and s[0] == len(labels) and "embed" not in name for name, s in folder.shapes.items()):
        raise ValueError(
            f"{path} has no head: none of its matrices has {len(labels)} rows, one for each label; "
            "give a folder that a classifier was saved in, or fit one with the method `classifier`"
        )
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        kind: Literal["value", "classes", "labels"] = "labels"
    else:
        kind = "value" if len(labels) == 1 or problem == "regression" else "classes"
    pad = config.get("pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < folder.vocabulary else None
    found = ClassifierFolder(folder, tuple(labels), kind, window_of(folder, pad), pad, _positive(path))
    Chunker(path, found.window)
    return found


def check_encoder(path: Path, window: int | None = None) -> ClassifierFolder:
    """Check the folder of an encoder on which one value is regressed (`transforms.mean_pooled`).

    Args:
        window: tokens that it shall read at once, None for as many as it can.

    Raises:
        ValueError: no such folder, no encoder, or a window that it cannot read.
    """
    folder = check_model_folder(path, ENCODER)
    pad = folder.config.get("pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < folder.vocabulary else None
    most = window_of(folder, pad)
    if window is not None and not 1 <= window <= most:
        raise ValueError(f"a window of {window} tokens; {path} reads {most}")
    found = ClassifierFolder(folder, ("value",), "value", window or most, pad, None)
    Chunker(path, found.window)
    return found


def window_of(folder: ModelFolder, pad: int | None) -> int:
    """Tokens that a model reads at once, special ones included. Raises ValueError: nothing tells."""
    limits = [folder.config.get(k) for k in ("max_position_embeddings", "n_positions", "n_ctx")]
    if folder.config.get("model_type") in OFFSET_POSITIONS:
        limits = [k - (pad or 0) - 1 for k in limits if isinstance(k, int)]
    settings = folder.path / "tokenizer_config.json"
    if settings.is_file():
        limits.append(json.loads(settings.read_text()).get("model_max_length"))
    known = [int(k) for k in limits if isinstance(k, int | float) and 0 < k < 1 << 24]
    if not known:
        raise ValueError(
            f"{folder.path}: neither max_position_embeddings in config.json nor model_max_length in "
            "tokenizer_config.json tells how many tokens it reads; write one of them there"
        )
    return min(known)


def _positive(path: Path) -> str | None:
    found = read_card(path).get("positive")
    return found if isinstance(found, str) else None


class SequenceClassifier:
    """A loaded model with its tokenizer. Threads may share it; make it with `load`."""

    def __init__(self, checked: ClassifierFolder, model: Any) -> None:
        self.checked, self.model = checked, model
        self.chunker = Chunker(checked.folder.path, checked.window)
        self.budget = TOKENS.get(model.device.type, TOKENS_ELSEWHERE)
        self.padding = [0, 0]  # tokens computed, tokens asked for; a measure, not exact under threads
        self._exact: dict[tuple[int, int], bool] = {}

    def scores(self, chunks: Chunks, output: int) -> np.ndarray:
        """float64 [chunks]: raw value of a regression, probability of the output otherwise; NaN where it gives none."""
        logits = self.logits(chunks).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.checked.kind == "value":
                return logits[:, output]
            if self.checked.kind == "labels":
                return 1 / (1 + np.exp(-logits[:, output]))
            return 1 / np.exp(logits - logits[:, output, None]).sum(axis=1)

    def logits(self, chunks: Chunks) -> np.ndarray:
        """float32 [chunks, labels], each chunk's as if it were alone, within 1e-5, and the same bits in any company."""
        import torch

        rows, width = shapes(np.diff(chunks.offsets), self.budget)
        if self.checked.pad is None:
            rows, width = np.ones_like(rows), np.diff(chunks.offsets)
        out = np.empty((len(chunks), len(self.checked.labels)), np.float32)
        with one_thread(), torch.inference_mode():
            for shape in np.unique(np.stack([rows, width], axis=1), axis=0):
                members = np.flatnonzero((rows == shape[0]) & (width == shape[1]))
                together = int(shape[0]) if shape[0] > 1 and self._keeps_bits(int(shape[0]), int(shape[1])) else 1
                for at in range(0, len(members), together):
                    part = members[at : at + together]
                    ids = [chunks.ids[chunks.offsets[c] : chunks.offsets[c + 1]] for c in part]
                    out[part] = self._forward(ids, together, int(shape[1]))[: len(part)]
        return out

    def _forward(self, ids: list[np.ndarray], rows: int, width: int) -> np.ndarray:
        """float32 [rows, labels] of one tensor; rows beyond those given repeat the last."""
        import torch

        if rows == 1:
            given = {"input_ids": torch.from_numpy(ids[0].astype(np.int64))[None]}
        else:
            assert self.checked.pad is not None
            table = np.full((rows, width), self.checked.pad, np.int64)
            mask = np.zeros((rows, width), np.int64)
            for row in range(rows):
                chunk = ids[min(row, len(ids) - 1)]
                table[row, : len(chunk)], mask[row, : len(chunk)] = chunk, 1
            given = {"input_ids": torch.from_numpy(table), "attention_mask": torch.from_numpy(mask)}
        self.padding[0] += given["input_ids"].numel()
        self.padding[1] += sum(map(len, ids))
        found: np.ndarray = self.model(**{k: v.to(self.model.device) for k, v in given.items()}).logits.cpu().numpy()
        return found

    def _keeps_bits(self, rows: int, width: int) -> bool:
        """Whether rows of this shape have the same bits in any place and company, and are right: tried out once."""
        if (rows, width) not in self._exact:
            padding = list(self.padding)
            self._exact[rows, width] = self._try(rows, width)
            self.padding = padding
        return self._exact[rows, width]

    def _try(self, rows: int, width: int) -> bool:
        draw = np.random.default_rng(0)
        vocabulary = np.setdiff1d(np.arange(self.checked.folder.vocabulary), list(self.chunker.special()))
        around = len(self.chunker.prefix) + len(self.chunker.suffix)

        def chunk(length: int) -> np.ndarray:
            inner = draw.choice(vocabulary, max(1, length - around)).astype(np.int32)
            return np.concatenate([self.chunker.prefix, inner, self.chunker.suffix])[: width - 1]

        first, second = ([chunk(width - 1 - (k + a) % 7) for k in range(rows)] for a in (0, 3))
        try:
            base = self._forward(first, rows, width)
            turned = self._forward(first[1:] + first[:1], rows, width)
            mixed = self._forward(first[: rows // 2] + second[rows // 2 :], rows, width)
        except (RuntimeError, ValueError):  # an architecture that takes no batches
            return False
        alone = np.concatenate([self._forward([ids], 1, width) for ids in first[:2]])
        same = np.array_equal(np.roll(base, -1, 0), turned) and np.array_equal(base[: rows // 2], mixed[: rows // 2])
        return same and bool((np.abs(alone - base[:2]) <= TOLERANCE * np.maximum(1, np.abs(alone))).all())


def shapes(lengths: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and width of the tensor that a chunk of each length (int64, tokens) is run in; one row has no padding.

    Widths are multiples of 4, beyond 64 tokens of a sixteenth of the power of two. Each row of several has at least one
    token of padding, since transformers takes another path where no row has any.
    """
    power = np.maximum(0, np.ceil(np.log2((lengths + 1) / 64))).astype(np.int64)
    step = 4 << power
    width = -(-(lengths + 1) // step) * step
    rows = np.maximum(1, budget // width)
    return rows, np.where(rows == 1, lengths, width)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch takes one thread for each operator: how sums are split among threads would change their bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load(checked: ClassifierFolder, device: str = "cpu") -> SequenceClassifier:
    """The model in a folder: one in this process, shared by all who hold it. Safetensors only, no remote code.

    Raises:
        ValueError: tensors are missing or misshapen, or the weights cannot be read.
    """
    files = files_state(checked.folder.path)
    with _lock:
        found = _loaded.get((device, *files))
        if found is None:
            found = _loaded[(device, *files)] = _load(checked, device)
        return found


def _load(checked: ClassifierFolder, device: str) -> SequenceClassifier:
    model, _ = load_model("AutoModelForSequenceClassification", checked.folder.path)
    return SequenceClassifier(checked, model.eval().requires_grad_(False).to(device))
