"""EleutherAI's lm-evaluation-harness on model folders (the extra `harness`; lm-eval is no dependency otherwise).

Log-likelihoods come from packed rows, as those of trainers/tasks.py do. Where a context ends is for the harness to say
(it tokenises both texts as one), so its numbers compare with published ones. Every context begins with the token that
begins a text (bos_token of the folder, its end token where there is none), since no model of this project ever saw a
document without one; the harness's `hf` model leaves it out unless told `add_bos_token=True`. Generation is
transformers' own, request by request, without padding. Datasets of a hub are fetched by the harness itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trainers import attention
from trainers.likelihood import likelihood
from trainers.tasks import begin_token
from trainers.tokenise import load_tokenizer

NEW_TOKENS = 256  # of a generation, where the task does not say


class HarnessMissingError(ValueError):
    """lm-eval is not installed."""

    exit_code = 2


def run_harness(
    model: PreTrainedModel, folder: Path, tasks: Sequence[str], row_length: int, limit: int | None = None
) -> dict[str, Any]:
    """{"version": …, "results": {task: {metric: value}}} as the harness reports them.

    Args:
        folder: the model's, for its tokenizer. tasks: names that the harness knows, or paths of YAML files.
        limit: items of each task, for trying out.

    Raises:
        HarnessMissingError. ValueError: there is no such task.
    """
    manager = open_tasks(tasks)
    from lm_eval import __version__, simple_evaluate

    found = simple_evaluate(
        model=adapter(model, folder, row_length), tasks=list(tasks), task_manager=manager, limit=limit
    )
    return {"version": __version__, "results": _plain(found["results"]), "samples": found["samples"]}


def open_tasks(tasks: Sequence[str]) -> Any:
    """The harness's `TaskManager`, which knows all of these tasks. Raises what `run_harness` does."""
    require()
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = set(manager.all_tasks)
    for name in tasks:
        if name not in known and not Path(name).is_file():
            given = f"the harness has no task {name!r}, and there is no file of that name"
            raise ValueError(f"{given}; name one of lm-evaluation-harness's tasks, or a YAML file of one")
    return manager


def require() -> None:
    """Raises HarnessMissingError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise HarnessMissingError("the evaluation harness needs lm-eval; pip install 'corpusmill[harness]'")


def adapter(model: PreTrainedModel, folder: Path, row_length: int) -> Any:
    """An `lm_eval.api.model.LM` of a model and its folder's tokenizer, to be handed to `lm_eval.simple_evaluate`."""
    require()
    from lm_eval.api.model import TemplateLM

    tokenizer, end = load_tokenizer(folder)
    begin = begin_token(folder, tokenizer, end)

    class Packed(TemplateLM):
        """Requests of the harness, answered by `likelihood` and `generate`."""

        eot_token_id, prefix_token_id, max_length = end, begin, row_length
        tokenizer_name = str(folder.resolve())

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids = tokenizer.encode(string, add_special_tokens=False).ids
            return list(ids) if add_special_tokens is False else [begin, *ids]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            contexts, continuations = [c for _, c, _ in requests], [c for _, _, c in requests]
            found = likelihood(model, contexts, continuations, row_length)
            return list(zip(found.log_probability.tolist(), found.greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            """Of whole texts. One longer than a row is predicted row by row, as the harness's own models do."""
            texts = [tokenizer.encode(request.args[0], add_special_tokens=False).ids for request in requests]
            found: np.ndarray = likelihood(model, [[begin]] * len(texts), texts, row_length).log_probability
            return found.tolist()

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
            return [generate(model, fast, self.tok_encode(r.args[0]), r.args[1], row_length, end) for r in requests]

    return Packed()


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    context: list[int],
    settings: dict[str, Any],
    row_length: int,
    end: int,
) -> str:
    """What the model writes after a context, up to the first of the `until` strings of the harness's settings.

    A context that leaves no room for `max_gen_toks` in a row loses its beginning. Raises ValueError: nothing is left.
    """
    settings = dict(settings)
    until = settings.pop("until", None) or []
    until = [until] if isinstance(until, str) else list(until)
    new = int(settings.pop("max_gen_toks", NEW_TOKENS))
    if new >= row_length:
        raise ValueError(f"a task asks for {new} new tokens; the model reads {row_length} at once: set max_gen_toks")
    if not settings.get("do_sample"):
        settings = {k: v for k, v in settings.items() if k not in ("temperature", "top_k", "top_p")} | {
            "do_sample": False
        }
    ids = torch.tensor([context[-(row_length - new) :]], device=model.device)
    stops = {"stop_strings": until, "tokenizer": tokenizer} if until else {}
    model.set_attn_implementation("sdpa")
    try:
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            eos_token_id=end,
            pad_token_id=end,
            use_cache=True,
            **stops,
            **settings,
        )
    finally:
        model.set_attn_implementation(attention.NAME)
    text = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return min((text.split(stop)[0] for stop in until if stop), key=len, default=text)


def _plain(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The harness's results without numpy's types: `acc,none` becomes `acc`, with its filter unless that is none."""
    return {
        task: {
            name.removesuffix(",none"): value.item() if isinstance(value, np.generic) else value
            for name, value in metrics.items()
        }
        for task, metrics in results.items()
    }
