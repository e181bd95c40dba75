"""Teaching a small language model a task: conversations in, a model folder out that every generation engine runs.

A fit that makes a rater, a writer or a refiner makes its conversations and hands them to `teach`; the bundled trainer
does the rest (docs/trainer.md, docs/sft.md). Learned is the last answer of each conversation. A new model of the
default size, with 4,096 tokens, has 0.9 M parameters and learns about 20,000 tokens/s on one core.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, field_validator, model_validator

from trainers.fit_tokenizer import fit_tokenizer
from transforms.draws import hashes
from transforms.model_folder import CAUSAL, check_model_folder, check_window
from transforms.parameters import Parameters

if TYPE_CHECKING:
    from trainers.config import TrainConfig

Conversation = Sequence[tuple[str, str]]

ROW_LENGTH = 1024  # tokens of the longest conversation, where `train` does not say; with a new model, of its window
HEAD = 32  # a head's width: vLLM's attention on CPUs takes no narrower ones
OURS = ("start", "format", "seed")  # fields of TrainConfig that are decided here
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")


class Lesson(Parameters):
    """How a small language model is taught.

    `start`: model folder to go on from; null: a new model, with a tokenizer of `vocabulary` tokens trained on the
    conversations. `epochs`: passes over them, unless `train.tokens` says how many tokens are learned from. `reading`: a
    new model first reads all turns as plain text, for so many times the length of the lesson, and so has met words and
    numbers before it is taught what to make of them. `train`: fields of trainers.config.TrainConfig. One thread and
    float32 unless they say otherwise, so that equal conversations give equal bytes whatever the machine; `row_length`
    is 1,024, or what `start` reads at once if that is less.
    """

    start: Path | None = None
    vocabulary: int = Field(4096, ge=257)
    epochs: float = Field(3.0, gt=0, allow_inf_nan=False)
    reading: float = Field(0.0, ge=0, allow_inf_nan=False)
    train: dict[str, Any] = Field({}, description="of trainers.config.TrainConfig")

    @field_validator("start")
    @classmethod
    def _whole(cls, path: Path | None) -> Path | None:
        return path if path is None else check_model_folder(path, CAUSAL).path

    @model_validator(mode="after")
    def _trainable(self) -> Lesson:
        if given := sorted(self.train.keys() & set(OURS)):
            raise ValueError(f"train.{given[0]}: is decided by the lesson; leave it out (`start` is beside `train`)")
        if self.start is not None and self.reading:
            raise ValueError(f"reading: {self.reading} is for new models; `start` has read before")
        if self.start is not None and "model" in self.train:
            raise ValueError("train.model: `start` has a size of its own; give one of both")
        if self.train:  # importing torch takes seconds
            try:
                config = self.config(0)
            except ValidationError as error:
                lines = (f"train.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise ValueError("; ".join(lines)) from error
            width = config.model.hidden_size // config.model.num_attention_heads
            if self.start is None and width % HEAD:
                raise ValueError(
                    f"train.model: heads are {width} wide (hidden_size / num_attention_heads); vLLM on CPUs takes "
                    f"multiples of {HEAD}"
                )
        if self.start is not None:
            check_window(check_model_folder(self.start, CAUSAL), self.row_length)
        return self

    def config(self, seed: int) -> TrainConfig:
        """What the trainer is asked for."""
        from trainers.config import Format, TrainConfig

        settled = {"threads": 1, "precision": "fp32", "tensorboard": False, "row_length": self.row_length}
        learned = Format(kind="messages", turns="last", long="drop")  # a cut answer teaches not to stop
        return TrainConfig(**{**settled, **self.train}, start=self.start, format=learned, seed=seed)

    def first(self, seed: int) -> TrainConfig:
        """The same for `reading`."""
        from trainers.formats import Format

        config = self.config(seed)
        tokens = None if config.tokens is None else max(1, round(config.tokens * self.reading))
        return config.model_copy(update={"format": Format(kind="text"), "tokens": tokens})

    @property
    def row_length(self) -> int:
        """Tokens of the longest conversation that is learned from."""
        reads = check_model_folder(self.start, CAUSAL).config if self.start else {}
        most = reads.get("max_position_embeddings") or ROW_LENGTH
        return int(self.train.get("row_length", min(ROW_LENGTH, most)))


def teach(
    lesson: Lesson, conversations: Sequence[Conversation], out: Path, seed: int, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Teach a model to give the last answer of each conversation, and write its folder, with a chat template, to `out`.

    Args:
        conversations: (role, content) of each turn; the last turn of each is the assistant's.
        tokenizer: folder of that of a new model, for who had to count tokens before; else it is trained here.

    Returns:
        For a card: conversations, how many of them were longer than a row and left out, steps, tokens, passes,
        parameters, and the loss (mean of the last tenth of the steps, nats per token). Equal work gives equal bytes,
        here and in `out`.

    Raises:
        ValueError: there are no conversations, one ends with no answer, or none fits a row; `start` cannot be trained.
        FloatingPointError: the loss is no longer a number.
    """
    import torch

    _check(conversations)
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]), TemporaryDirectory() as scratch:
            mixture = _mixture(lesson, conversations, Path(scratch), tokenizer)
            taught = _train(lesson, mixture, Path(scratch), seed)
            shutil.copytree(Path(scratch) / "run" / "model", out, dirs_exist_ok=True)
    finally:
        torch.set_num_threads(threads)
    if lesson.start is not None:
        _keep_tokenizer(lesson.start, out)
    return {"conversations": len(conversations), **taught}


def _check(conversations: Sequence[Conversation]) -> None:
    if not conversations:
        raise ValueError("there is nothing to teach: no conversation is given")
    for place, turns in enumerate(conversations):
        if not turns or turns[-1][0] != "assistant":
            raise ValueError(
                f"conversation {place} does not end with a turn of the assistant's, which is what is learned"
            )


def _train(lesson: Lesson, mixture: Path, scratch: Path, seed: int) -> dict[str, Any]:
    """Read, where the lesson says so, and learn, in `scratch/run`; what a card tells of it."""
    from trainers.train import train

    config, run = lesson.config(seed), scratch / "run"
    if lesson.reading:
        read = scratch / "read"
        train(lesson.first(seed), _read_for(mixture, lesson.epochs * lesson.reading), read)
        config = config.model_copy(update={"start": read / "model"})
    result = train(config, mixture, run)
    data = json.loads((run / "data.json").read_text())
    return {
        "left_out": data["documents_dropped"],
        "steps": result.steps,
        "tokens": result.tokens,
        "passes": result.tokens / data["tokens"] * lesson.epochs,
        "parameters": result.parameters,
        "loss": result.loss,
    }


def _mixture(lesson: Lesson, conversations: Sequence[Conversation], folder: Path, given: Path | None) -> Path:
    """A mixture folder of the conversations, as the trainer reads it; its tokenizer is that of `start`, the one that is
    given, or new."""
    from trainers.mixture import file_digest

    texts = ["\n\n".join(content for _, content in turns) for turns in conversations]
    tokenizer = lesson.start or given or fit_tokenizer(texts, folder / "tokenizer", lesson.vocabulary)
    ids = pa.array(map(str, range(len(texts))), pa.large_string())
    turns = [[{"role": role, "content": content} for role, content in turns] for turns in conversations]
    table = pa.table(
        {
            "id": ids,
            "text": pa.array(texts, pa.large_string()),
            "messages": pa.array(turns, pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
            "shard": pa.repeat("conversations", len(texts)),
            "row": pa.array(range(len(texts)), pa.int64()),
            "draw": hashes(ids),
        }
    )
    path = folder / "mixture" / "conversations.parquet"
    path.parent.mkdir()
    pq.write_table(table, path)
    file = {"path": path.name, "documents": len(texts), "digest": file_digest(path)}
    source = {"documents": len(texts), "epochs": lesson.epochs, "files": [file]}
    own = {"path": str(tokenizer.absolute()), "digest": file_digest(tokenizer / "tokenizer.json")}
    manifest = {"digest": file["digest"], "tokenizer": own, "sources": {"conversations": source}}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    return path.parent


def _read_for(mixture: Path, epochs: float) -> Path:
    """The mixture once more, for so many passes."""
    other = mixture.parent / "reading"
    shutil.copytree(mixture, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["sources"]["conversations"]["epochs"] = epochs
    (other / "manifest.json").write_text(json.dumps(manifest))
    return other


def _keep_tokenizer(start: Path, out: Path) -> None:
    """Files of the tokenizer that was there, where they hold a chat template: it may use special tokens, such as
    `bos_token`, that the trainer's own files call otherwise."""
    from transformers import PreTrainedTokenizerFast

    if PreTrainedTokenizerFast.from_pretrained(start, local_files_only=True).chat_template:
        for file in (file for pattern in TOKENIZER for file in start.glob(pattern)):
            shutil.copyfile(file, out / file.name)
