"""What every generation engine takes and gives: requests and sampling in, answers out. Costs nothing; loads nothing.

An engine is a file of this package with one subclass of `Engine`. Its parameters are fields; those that say how it
runs, not what it answers, are left out of dumps (`exclude`), and so out of the keys of what was made with it. What is
heavy is loaded by `setup`, once per worker process, and shared by its threads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from transforms.model_folder import files_state
from transforms.parameters import Parameters

ROLES = ("system", "developer", "user", "assistant", "tool")
PASSING = re.compile(
    r"timed out|no connection|connection broken|broken response|HTTP (408|409|425|429|[5-9]\d\d)"
)  # reasons of failures


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue, or a conversation to answer, under a name.

    `prompt` is trusted: special tokens that it spells out are special tokens, and the model's first token is put before
    it unless it is there already. `messages`, (role, content) each, are rendered by the model's own chat template;
    their contents are not trusted. `key` names the request (document, chunk, number of the draw, …): with `seed` it
    decides what is drawn, so equal prompts with different keys are different draws.
    """

    key: str
    prompt: str | None = None
    messages: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise ValueError(f"request {self.key!r}: give either a prompt or messages")
        if unknown := {role for role, _ in self.messages} - set(ROLES):
            raise ValueError(f"request {self.key!r}: role {min(unknown)!r}; there are {', '.join(ROLES)}")


class Guided(BaseModel):
    """What the output must look like: one of some texts, a regular expression, or a grammar (GBNF or Lark)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    choice: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(None, min_length=1)
    regex: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Guided:
        if len(given := [name for name, value in self if value is not None]) != 1:
            raise ValueError(f"guided: give one of choice, regex and grammar; given are {', '.join(given) or 'none'}")
        return self


class Sampling(BaseModel):
    """How outputs are drawn. Temperature 0 takes the most probable token and draws nothing.

    Attributes:
        max_tokens: bound on the output, in tokens.
        top_p: share of probability that is kept, most probable tokens first. top_k: tokens kept; 0: all.
        seed: draws depend on it and on the keys of requests alone.
        stop: texts at which the output ends; they are not part of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int = 0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    guided: Guided | None = None

    def request_seed(self, key: str) -> int:
        """Seed of one request's draws, in [0, 2³¹): servers in C take no more."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}\0{key}".encode(), digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. Where `error` is not null, `text` is empty and nothing was cached.

    `finish_reason`: `stop` (the model ended it, or a stop text), `length` (max_tokens), what else a server says, or
    `error`. `error` begins with one of few reasons and may go on after a colon.
    """

    text: str
    finish_reason: str
    prompt_tokens: int  # 0 where a server does not tell
    output_tokens: int
    error: str | None = None

    def checked(self, sampling: Sampling) -> Answer:
        """Itself; failed where one of some texts was asked for and it is none, cut by `max_tokens` or let through."""
        choice = sampling.guided.choice if sampling.guided else None
        if self.error is not None or choice is None or self.text in choice:
            return self
        return Answer.failed(f"not one of the choices: {self.text[:80]!r}", self.prompt_tokens)

    @classmethod
    def failed(cls, error: str, prompt_tokens: int = 0) -> Answer:
        return cls("", "error", prompt_tokens, 0, error)


def failures(answers: Iterable[Answer]) -> Counter[str]:
    """How many answers failed, by reason."""
    return Counter(answer.error.partition(":")[0] for answer in answers if answer.error is not None)


def passes(error: str) -> bool:
    """Whether what failed so may be answered at another try, or by the next run."""
    return PASSING.fullmatch(error.partition(":")[0]) is not None


Finished = list[tuple[int, Answer]]  # answers that were ready at one time, each with the place of its request


class Engine(Parameters):
    """A model that answers. `engine` is the name of its module, `package` what has to be installed besides the core."""

    package: ClassVar[str]
    engine: str = Field("", exclude=True)

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the model's tokenizer, where it is at hand."""
        return None

    @property
    def identity(self) -> str:
        """Digest of the model, by which the cache tells answers of different models apart; not of the engine."""
        raise NotImplementedError

    def setup(self) -> None:
        """Load what is heavy, or find out that it cannot be; `stream` does it where it was not done."""

    def check(self, sampling: Sampling) -> None:
        """Raises ValueError: this engine cannot sample so."""

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        """Answers as they become ready, each request's once, in any order. Threads may call it at the same time.

        Raises:
            ValueError: the engine cannot sample so, or a request cannot be rendered for want of a chat template.
            EngineUnavailable: no request can be answered: a wrong key, an unknown model, no server.
        """
        raise NotImplementedError

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """The answers, in the order of the requests. Raises what `stream` raises."""
        return in_order(len(requests), self.stream(requests, sampling))


@cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    for name, _, size in files:
        state.update(f"{Path(name).name}\0{size}\0".encode())
        with Path(name).open("rb") as source:
            while block := source.read(1 << 22):
                state.update(block)
    return str(state.hexdigest())


def folder_identity(folder: Path) -> str:
    """Digest of the files of a model folder, as fast as the disk reads; known in this process until a file changes."""
    return _digest(tuple(f for f in files_state(folder) if Path(f[0]).is_file()))


class EngineUnavailable(RuntimeError):  # noqa: N818
    """No request can be answered; the message says why and what to do."""


def unfit(tokens: int, window: int) -> Answer:
    """The answer to a prompt that no model call can be made for."""
    if not tokens:
        return Answer.failed("empty prompt")
    return Answer.failed(f"prompt too long: {tokens} tokens leave nothing of the window of {window}", tokens)


def in_order(count: int, stream: Iterable[Finished]) -> list[Answer]:
    """The answers of a stream by place. Raises RuntimeError: not every request was answered exactly once."""
    answers: dict[int, Answer] = {}
    for finished in stream:
        for place, answer in finished:
            if place in answers:
                raise RuntimeError(f"the engine answered request {place} twice")
            answers[place] = answer
    if len(answers) != count:
        raise RuntimeError(f"the engine answered {len(answers)} of {count} requests")
    return [answers[place] for place in range(count)]


def request_key(identity: str, request: Request, sampling: Sampling) -> bytes:
    """16 bytes by which the answer is cached: digest of the model, what it is asked, and how answers are drawn.

    The request's `key` counts only where something is drawn: at temperature 0 equal prompts have equal answers.
    """
    asked: tuple[Literal["prompt", "messages"], Any]
    asked = ("messages", request.messages) if request.prompt is None else ("prompt", request.prompt)
    drawn = sampling.temperature > 0
    how = sampling.model_dump(mode="json", exclude={"seed"} if drawn else {"seed", "top_p", "top_k"})
    # The seed of 31 bits would do for the engine, but not to tell 10⁷ requests apart.
    seed = [sampling.seed, request.key] if drawn else None
    payload = json.dumps([identity, asked, how, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(payload.encode(), digest_size=16).digest()
