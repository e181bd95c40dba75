"""Generation by vLLM in this process: for large models and corpora, on GPUs or on a CPU.

One engine in each worker process, shared by its threads. The model runs in a process of its own; whichever thread
waits for answers hands on those of the others too, so that the batch which vLLM keeps filling holds the requests of
all. Give it thousands at once: those that wait go in as others end.

Each worker process takes GPUs that no other has (`tensor_parallel` of them), so that as many worker processes as there
are such groups use them all.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from transforms.generation.children import watch
from transforms.generation.devices import claim, visible
from transforms.generation.engine import Answer, Engine, Finished, Request, Sampling, folder_identity, unfit
from transforms.model_folder import CAUSAL, check_model_folder

CHUNK = 512  # requests tokenised at a time
STEP = 4096  # tokens that a step reads at most on a CPU, or the longest prompt
AHEAD = 4096  # requests that vLLM holds at most for each caller; it runs a few hundred of them at once

_lock = threading.Lock()
_engines: dict[VLLM, Shared] = {}  # of this process


class VLLM(Engine):
    """A model folder.

    Attributes:
        window: the most tokens of prompt and output; null: what the model was made for.
        tensor_parallel: GPUs that share the model. memory: share of their memory that is used.
        dtype: of weights and arithmetic; auto: as the folder says.
    """

    package: ClassVar[str] = "vllm"
    engine: Literal["vllm"] = Field("vllm", exclude=True)
    model: Path
    window: int | None = Field(None, ge=2)
    tensor_parallel: int = Field(1, ge=1, exclude=True)
    memory: float = Field(0.9, gt=0, le=1, exclude=True)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"

    @field_validator("model")
    @classmethod
    def _whole(cls, path: Path) -> Path:
        return check_model_folder(path, CAUSAL).path

    @property
    def identity(self) -> str:
        return folder_identity(self.model)

    @property
    def tokenizer(self) -> Path | None:
        return self.model

    @property
    def _shared(self) -> Shared:
        with _lock:
            if self not in _engines:
                _engines[self] = Shared(self)
            return _engines[self]

    def setup(self) -> None:
        _ = self._shared

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        caller = Caller(self._shared, requests, sampling)
        try:
            caller.feed()
            while caller.open:
                yield [(place, answer.checked(sampling)) for place, answer in caller.wait()]
                caller.feed()
        finally:
            caller.drop()


class Shared:
    """vLLM's engine, and to whom its answers go. One of the threads that wait for answers steps it at a time."""

    def __init__(self, engine: VLLM) -> None:
        gpus = visible()
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim(engine.tensor_parallel, gpus))
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # forks of threaded processes hang
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for results
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        watcher = watch()
        from vllm import LLM

        from transforms.generation.decoding import window
        from transforms.generation.prompts import Prompts

        folder = check_model_folder(engine.model, CAUSAL)
        self.prompts = Prompts(folder)
        self.llm = LLM(
            str(engine.model),
            max_model_len=engine.window,
            tensor_parallel_size=engine.tensor_parallel,
            dtype=engine.dtype,
            generation_config="vllm",  # the folder's would set penalties and cuts nobody asked for
            **({"gpu_memory_utilization": engine.memory} if gpus else whole_prompts(engine.window or window(folder))),
        )
        self.core = self.llm.llm_engine
        # Before multiprocessing waits for vLLM's processes, which nobody else may have told to end by then.
        atexit.register(self.core.engine_core.shutdown)
        assert watcher.stdin
        watcher.stdin.write(b"all\n")
        watcher.stdin.flush()
        self.watcher = watcher  # which ends with this process
        self.window = int(self.core.model_config.max_model_len)
        self.names = count()
        self.stepping = threading.Lock()
        self.incoming: SimpleQueue[tuple[str, Caller, int, list[int], Any]] = SimpleQueue()
        self.dropped: SimpleQueue[list[str]] = SimpleQueue()
        self.owners: dict[str, tuple[Caller, int]] = {}

    def step(self) -> None:
        """Take in what is new, let the model run until something comes of it, hand out what is finished."""
        while not self.incoming.empty():
            self._admit(*self.incoming.get())
        while not self.dropped.empty():
            self.core.abort_request([name for name in self.dropped.get() if self.owners.pop(name, None)])
        if not self.core.has_unfinished_requests():
            return
        for output in self.core.step():
            if output.finished and output.request_id in self.owners:
                caller, place = self.owners.pop(output.request_id)
                made = output.outputs[0]
                answer = Answer(made.text, made.finish_reason, len(output.prompt_token_ids), len(made.token_ids))
                caller.inbox.put((place, answer))

    def _admit(self, name: str, caller: Caller, place: int, ids: list[int], parameters: Any) -> None:
        if caller.dropped:
            return
        try:
            self.core.add_request(name, {"type": "token", "prompt_token_ids": ids}, parameters)
        except Exception as error:  # of the sampling, as lengths are known to fit; vLLM's own kinds are no ValueErrors
            caller.inbox.put((place, ValueError(f"vLLM refuses the sampling: {error}")))
        else:
            self.owners[name] = (caller, place)


def whole_prompts(window: int) -> dict[str, Any]:
    """Settings of vLLM for CPUs by which every prompt is read in one step. One that is read in several fails in 0.32
    if its request has a seed, and takes the engine down with it: generators of a CPU cannot be set back.
    """
    if window >= 1 << 31:  # not known; vLLM may know better
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(window, STEP)}


class Caller:
    """One call of `stream`: what of it waits, runs and is finished."""

    def __init__(self, shared: Shared, requests: Sequence[Request], sampling: Sampling) -> None:
        self.shared, self.requests, self.sampling = shared, requests, sampling
        self.inbox: SimpleQueue[tuple[int, Answer | ValueError]] = SimpleQueue()
        self.sent = 0  # requests, tokenised and handed on
        self.open = 0  # of these, not yet answered
        self.running: dict[int, str] = {}
        self.dropped = False

    def feed(self) -> None:
        """Hand on requests, as long as the engine has few of this call."""
        while self.sent < len(self.requests) and self.open + CHUNK <= AHEAD:
            some = self.requests[self.sent : self.sent + CHUNK]
            for place, (request, ids) in enumerate(zip(some, self.shared.prompts.tokens(some), strict=True), self.sent):
                self._send(place, request, ids)
            self.sent += len(some)
            self.open += len(some)

    def _send(self, place: int, request: Request, ids: list[int]) -> None:
        if not 0 < len(ids) < self.shared.window:
            self.inbox.put((place, unfit(len(ids), self.shared.window)))
            return
        name = self.running[place] = str(next(self.shared.names))
        self.shared.incoming.put((name, self, place, ids, parameters(self.sampling, request)))

    def wait(self) -> Finished:
        """What is finished; at least one."""
        finished: Finished = []
        while True:
            try:
                place, answer = self.inbox.get(block=False) if finished else self._next()
            except Empty:
                return finished
            if isinstance(answer, ValueError):
                raise answer
            self.running.pop(place, None)
            self.open -= 1
            finished.append((place, answer))

    def _next(self) -> tuple[int, Answer | ValueError]:
        while True:
            try:
                return self.inbox.get(block=False)
            except Empty:
                pass
            if self.shared.stepping.acquire(blocking=False):
                try:
                    self.shared.step()
                finally:
                    self.shared.stepping.release()
            else:
                with suppress(Empty):
                    return self.inbox.get(timeout=0.02)

    def drop(self) -> None:
        """Let the engine forget what is left, if the caller left early."""
        self.dropped = True
        if self.running:
            self.shared.dropped.put(list(self.running.values()))


def parameters(sampling: Sampling, request: Request) -> Any:
    """vLLM's own form of the sampling of one request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    guided = sampling.guided.model_dump(mode="json", exclude_none=True) if sampling.guided else None
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.request_seed(request.key) if sampling.temperature else None,
        stop=list(sampling.stop),
        structured_outputs=StructuredOutputsParams(**guided) if guided else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
