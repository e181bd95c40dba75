"""Evaluation tasks from Parquet files: cloze and multiple choice, by the log-probabilities of given continuations.

    python -m trainers.tasks JOB.json

evaluates a model folder on the tasks of a job and writes out/tasks.json and, item by item for paired comparisons,
out/tasks/NAME.parquet.

What the model reads: the token that begins a text (bos_token of the model's folder, its end token where it names none),
the context's tokens, the continuation's tokens. The boundary: white space at the context's end goes to the
continuation, then both are tokenised separately, so no token of the continuation holds text of the context. Where the
evaluation harness tokenises both as one, it gives the same tokens unless one of them would reach over the boundary.

Measures, with the harness's names: `accuracy` (acc): the most likely choice is the answer, or all of a cloze's tokens
are greedy. `accuracy_per_character` (acc_norm) and `accuracy_per_byte` (acc_bytes): log-probabilities are divided by
the length of the choice, without the delimiter, as in lm_eval/api/task.py of lm-evaluation-harness 0.4.
`accuracy_unconditional` (acc_mutual_info): the log-probability of the choice after no context is taken off (Holtzman et
al. 2021, arXiv 2104.08315). Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from trainers.likelihood import Likelihood

RESAMPLES = 1000
TEXT, TEXTS, NUMBER = "text", "list of texts", "whole number"


@dataclass(frozen=True)
class Pairs:
    """Contexts and what follows them; of `continuations`, log-probabilities are wanted."""

    contexts: list[str]
    continuations: list[str]


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path

    @model_validator(mode="after")
    def _readable(self) -> _Task:
        """What is wrong with the file is found before any work."""
        self.items()
        return self

    def items(self) -> pa.Table:
        """The columns of the task. Raises ValueError: they are not there, or hold what cannot be an item."""
        raise NotImplementedError


class Cloze(_Task):
    """Columns `context` and `continuation`: is every token of the continuation the most likely one?"""

    kind: Literal["cloze"] = "cloze"

    def items(self) -> pa.Table:
        table = _read(self.path, {"context": TEXT, "continuation": TEXT})
        _refuse(self.path, "an empty continuation", pc.equal(pc.utf8_length(table["continuation"]), 0))
        return table

    def pairs(self) -> Pairs:
        table = self.items()
        return Pairs(table["context"].to_pylist(), table["continuation"].to_pylist())

    def table(self, found: Likelihood) -> pa.Table:
        """One row for each item: item, accuracy (0 or 1), log_probability (nats)."""
        columns = {"item": np.arange(len(found.greedy)), "accuracy": found.greedy.astype(np.int8)}
        return pa.table(columns | {"log_probability": found.log_probability})

    def summary(self, table: pa.Table) -> dict[str, Any]:
        logs = table["log_probability"].to_numpy()
        mean = {"log_probability": float(logs.mean()), "log_probability_interval": _bootstrap(logs)}
        return {"kind": self.kind, "items": len(table), **_share("accuracy", table), **mean}


class MultipleChoice(_Task):
    """Columns `question` (or `prompt`), `choices` and `answer`, the place of the right one, from 0.

    delimiter: what stands between question and choice. unconditional: also compare how much likelier the question makes
    each choice, at the cost of as many forward passes again.
    """

    kind: Literal["multiple_choice"] = "multiple_choice"
    delimiter: str = " "
    unconditional: bool = False

    def items(self) -> pa.Table:
        table = _read(self.path, {"question": TEXT, "choices": TEXTS, "answer": NUMBER}, {"question": "prompt"})
        count = pc.list_value_length(table["choices"])
        _refuse(self.path, "fewer than two choices", pc.less(count, 2))
        choices = pc.list_flatten(table["choices"])
        empty = pc.fill_null(pc.equal(pc.utf8_length(choices), 0), True)
        owner = pc.list_parent_indices(table["choices"]).filter(empty)
        rows = pa.array(np.arange(len(table)))
        _refuse(self.path, "an empty choice", pc.is_in(rows, pa.array(owner.to_numpy(), pa.int64())))
        wrong = pc.or_(pc.less(table["answer"], 0), pc.greater_equal(table["answer"], count))
        _refuse(self.path, "an answer that is no place in its choices (they count from 0)", wrong)
        return table

    def pairs(self) -> Pairs:
        table = self.items()
        contexts = table["question"].take(pc.list_parent_indices(table["choices"])).to_pylist()
        choices = [self.delimiter + choice for choice in pc.list_flatten(table["choices"]).to_pylist()]
        again = len(choices) if self.unconditional else 0
        return Pairs(contexts + [""] * again, choices + choices[:again])

    def table(self, found: Likelihood) -> pa.Table:
        """One row for each item: item, choices (their number), answer, each accuracy (0 or 1), log_probabilities."""
        items = self.items()
        counts, answer = pc.list_value_length(items["choices"]).to_numpy(), items["answer"].to_numpy()
        texts = pc.list_flatten(items["choices"])
        first = np.cumsum(counts) - counts
        logs = found.log_probability[: len(texts)]
        values = {"accuracy": logs, "accuracy_per_character": logs / pc.utf8_length(texts).to_numpy()}
        values["accuracy_per_byte"] = logs / pc.binary_length(texts).to_numpy()
        if self.unconditional:
            values["accuracy_unconditional"] = logs - found.log_probability[len(texts) :]
        right = {name: (_best(v, first) == answer).astype(np.int8) for name, v in values.items()}
        lists = pa.ListArray.from_arrays(np.append(first, len(logs)).astype(np.int32), logs)
        columns = {"item": np.arange(len(items)), "choices": counts, "answer": answer}
        return pa.table(columns | right | {"log_probabilities": lists})

    def summary(self, table: pa.Table) -> dict[str, Any]:
        shares = [_share(name, table) for name in table.column_names if name.startswith("accuracy")]
        chance = float(np.mean(1 / table["choices"].to_numpy()))
        found = {"kind": self.kind, "items": len(table), "chance": chance}
        return found | {key: value for share in shares for key, value in share.items()}


Task = Annotated[Cloze | MultipleChoice, Field(discriminator="kind")]


class Tasks(BaseModel):
    """The tasks of a recipe or a command, by name. Creating it checks their files."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tasks: dict[str, Task]

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name, given in value.items() if isinstance(value, dict) else ():
            if isinstance(given, dict) and "kind" not in given:
                raise ValueError(f"{name}: `kind` must be given, cloze or multiple_choice")
            if not re.fullmatch(r"[^/.\x00-\x1f][^/\x00-\x1f]*", str(name)):
                raise ValueError(f"{name!r} cannot name a file; use no '/' and no '.' at its start")
        return value


class TaskJob(Tasks):
    """The argument of this module as a file. config: the trainer's, for row_length, precision, device and threads."""

    model: Path
    out: Path
    key: str  # by which a rerun knows that nothing has changed
    config: dict[str, Any]


def of_file(path: Path) -> Cloze | MultipleChoice:
    """The task in a file: multiple choice if it has a column `choices`. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"no file at {path}; give a Parquet file of items")
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    return MultipleChoice(path=path) if "choices" in names else Cloze(path=path)


def run_tasks(
    model: PreTrainedModel,
    tokenizer: Path,
    tasks: Mapping[str, Cloze | MultipleChoice],
    row_length: int,
    *,
    bf16: bool = False,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(what each task's `summary` says, its table item by item), by the tasks' names.

    Accuracies have 95 % Wilson intervals, mean log-probabilities bootstrap ones over items. `contexts_cut` counts pairs
    that were longer than a row and lost their context's beginning.

    Args:
        tokenizer: the model's folder. row_length: tokens the model reads at once. bf16: multiply in bf16.
    """
    from trainers.likelihood import likelihood
    from trainers.tokenise import load_tokenizer

    loaded, end = load_tokenizer(tokenizer)
    begin = begin_token(tokenizer, loaded, end)
    results, tables = {}, {}
    for name, task in tasks.items():
        contexts, continuations = encode(loaded, begin, task.pairs())
        found = likelihood(model, contexts, continuations, row_length, bf16)
        tables[name] = task.table(found)
        results[name] = task.summary(tables[name]) | {"contexts_cut": int(found.cut.sum())}
    return results, tables


def encode(tokenizer: Tokenizer, begin: int, pairs: Pairs) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of contexts, each with the begin token before it, and of continuations (see the module)."""
    contexts = [text.rstrip() for text in pairs.contexts]
    spaces = [text[len(cut) :] for text, cut in zip(pairs.contexts, contexts, strict=True)]
    continuations = [space + text for space, text in zip(spaces, pairs.continuations, strict=True)]
    before, after = (
        [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        for texts in (contexts, continuations)
    )
    return [[begin, *ids] for ids in before], after


def begin_token(folder: Path, tokenizer: Tokenizer, end: int) -> int:
    """Id of `bos_token` in the folder's tokenizer_config.json; of the end token where that names none."""
    file = folder / "tokenizer_config.json"
    named = json.loads(file.read_text()).get("bos_token") if file.is_file() else None
    name = named.get("content") if isinstance(named, dict) else named
    token = tokenizer.token_to_id(str(name)) if name else None
    return end if token is None else int(token)


def wilson(successes: int, items: int) -> list[float]:
    """95 % interval of a share (Wilson 1927): [low, high]."""
    z = 1.959964
    share = successes / items
    middle = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _share(name: str, table: pa.Table) -> dict[str, Any]:
    right = int(pc.sum(table[name]).as_py())
    return {name: right / len(table), f"{name}_interval": wilson(right, len(table))}


def _bootstrap(values: np.ndarray) -> list[float]:
    generator, n = np.random.default_rng(0), len(values)
    means = [np.bincount(generator.integers(n, size=n), minlength=n) @ values / n for _ in range(RESAMPLES)]
    return np.quantile(means, [0.025, 0.975]).tolist()


def _best(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """int [items]: place of the largest value (the first of equal ones) in each item's run, which starts at `first`."""
    counts = np.diff(np.append(first, len(values)))
    largest = np.repeat(np.maximum.reduceat(values, first), counts)
    within = np.arange(len(values)) - np.repeat(first, counts)
    return np.minimum.reduceat(np.where(values == largest, within, len(values)), first)


def _read(path: Path, wanted: dict[str, str], others: Mapping[str, str] | None = None) -> pa.Table:
    """The wanted columns under their names; `others` are second names that a column may have. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"no file at {path}; give a Parquet file with the columns {', '.join(wanted)}")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            given = {name: _column(path, name, names, (others or {}).get(name)) for name in wanted}
            table = file.read(columns=list(given.values())).select(list(given.values())).rename_columns(list(given))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    if not len(table):
        raise ValueError(f"{path} holds no items")
    kinds = {TEXT: pa.large_string(), TEXTS: pa.list_(pa.large_string()), NUMBER: pa.int64()}
    columns = {}
    for name, kind in wanted.items():
        try:
            if kind == NUMBER and not pa.types.is_integer(table.schema.field(name).type):
                raise pa.ArrowTypeError
            columns[name] = table[name].cast(kinds[kind])
        except pa.ArrowException:
            found = table.schema.field(name).type
            raise ValueError(f"{path}: column {given[name]!r} is {found}, expected {kind}") from None
        _refuse(path, f"no {name}", pc.is_null(columns[name]))
    return pa.table(columns).combine_chunks()


def _column(path: Path, name: str, names: list[str], other: str | None) -> str:
    for known in (name, other):
        if known in names:
            return str(known)
    near = difflib.get_close_matches(name, names, 1)
    meant = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"
    raise ValueError(f"{path} has no column {name!r}{f' (or {other!r})' if other else ''}; {meant}")


def _refuse(path: Path, what: str, rows: Any) -> None:
    """Raises ValueError naming the first row where `rows` (bool) is true."""
    bad = np.flatnonzero(np.asarray(pc.fill_null(rows, True)))
    if len(bad):
        raise ValueError(f"{path}: row {bad[0]} has {what}{f', and {len(bad) - 1} more' if len(bad) > 1 else ''}")


def measure(job: TaskJob) -> dict[str, Any]:
    """Load the model, run the tasks, write out/tasks/NAME.parquet and then out/tasks.json; returns the latter."""
    import torch

    from trainers.config import TrainConfig
    from trainers.model import load_model

    config = TrainConfig(**job.config)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = load_model(job.model).to(config.device)
    results, tables = run_tasks(model, job.model, job.tasks, config.row_length, bf16=config.bf16)
    (job.out / "tasks").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, job.out / "tasks" / f"{name}.parquet")
    work = job.out / ".tasks.json"
    work.write_text(json.dumps({"key": job.key, "tasks": results}, indent=1))
    work.replace(job.out / "tasks.json")
    return results


def main(arguments: list[str]) -> int:
    """Evaluate the job in the file that is named. 2: the job is at fault."""
    try:
        (path,) = arguments
        print(json.dumps(measure(TaskJob.model_validate_json(Path(path).read_text()))))
    except (ValueError, ValidationError, OSError) as error:
        print(f"trainers.tasks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
