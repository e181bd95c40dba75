"""Generation by any server that speaks OpenAI's protocol, as `vllm serve` does: prompts by `/completions`, messages by
`/chat/completions`, rendered by the server.

At most `concurrency` requests are under way at once, each in a thread: about 400 requests/s in one process. What may
pass is tried again, after a pause that doubles from try to try and is drawn between half and whole; a server that
names a time (Retry-After) is left alone by all threads until then.

The key is read from an environment variable when requests are sent. It goes into the header of requests and nowhere
else: no redirects are followed, and addresses with credentials are refused.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from transforms.generation.engine import Answer, Engine, EngineUnavailable, Finished, Request, Sampling, passes

if TYPE_CHECKING:
    import httpx

HOPELESS = (401, 403, 404)  # whatever is sent next
LARGEST = 64 << 20  # bytes of a response
UNREACHABLE = "no connection"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds


class OpenAI(Engine):
    """A model on a server.

    Attributes:
        base_url: up to and with `/v1`. model: its name there.
        revision: say another one when the server gets another model under the same name: what is cached is then past.
        key_variable: environment variable that holds the key; null sends none.
        timeout: seconds that one try may take. tries: for each request. patience: seconds; a server that asks for more
            (Retry-After) is not waited for.
    """

    package: ClassVar[str] = "httpx"
    engine: Literal["openai"] = Field("openai", exclude=True)
    base_url: str
    model: str = Field(min_length=1)
    revision: str = ""
    key_variable: str | None = Field(None, exclude=True)
    concurrency: int = Field(64, ge=1, le=1024, exclude=True)
    timeout: float = Field(600.0, gt=0, exclude=True)
    tries: int = Field(6, ge=1, exclude=True)
    patience: float = Field(300.0, ge=0, exclude=True)

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("expected an address alone, without user, password or query: the key goes in key_variable")
        return url.rstrip("/")

    @property
    def identity(self) -> str:
        told = json.dumps([self.base_url, self.model, self.revision])
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    @cached_property
    def _client(self) -> Client:
        return Client(self)

    def setup(self) -> None:
        _ = self._client

    def check(self, sampling: Sampling) -> None:
        _read_key(self.key_variable)

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Finished]:
        client, todo, closing = self._client, iter(enumerate(requests)), threading.Event()
        answered = unreachable = 0
        pool = ThreadPoolExecutor(self.concurrency, "openai")
        running: dict[Future[Answer], int] = {}
        try:
            while True:
                for place, request in islice(todo, 2 * self.concurrency - len(running)):
                    running[pool.submit(client.ask, request, sampling, closing)] = place
                if not running:
                    return
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                finished = [(running.pop(future), future.result().checked(sampling)) for future in ready]
                answered += len(finished)
                unreachable += sum((answer.error or "").startswith(UNREACHABLE) for _, answer in finished)
                if unreachable == answered >= min(len(requests), self.concurrency):
                    raise EngineUnavailable(f"{self.base_url}: {finished[0][1].error}; is the server running?")
                yield finished
        finally:
            closing.set()
            pool.shutdown(wait=False, cancel_futures=True)


class Passing(Exception):  # noqa: N818
    """What may be gone at the next try. `told`: seconds that the server asked to wait."""

    def __init__(self, reason: str, told: float = 0.0) -> None:
        super().__init__(reason)
        self.told = told


class Client:
    """Connections to one server, shared by threads."""

    def __init__(self, engine: OpenAI) -> None:
        import httpx

        self.engine = engine
        self._key = _read_key(engine.key_variable)
        limits = httpx.Limits(max_connections=engine.concurrency, max_keepalive_connections=engine.concurrency)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        timeout = httpx.Timeout(engine.timeout, connect=min(engine.timeout, 30.0), pool=None)
        self.http = httpx.Client(headers=headers, limits=limits, timeout=timeout, follow_redirects=False)
        self._open_from = 0.0  # when the server lets itself be asked again

    def ask(self, request: Request, sampling: Sampling, closing: threading.Event) -> Answer:
        """The answer to one request; after the last try, or one that is of no use, one with an error."""
        path, body = asked(self.engine.model, request, sampling)
        reason = ""
        for tried in range(self.engine.tries):
            if closing.wait(max(0.0, self._open_from - time.monotonic())):
                return Answer.failed("given up: the run is ending")
            try:
                status, headers, content = self._post(path, body)
                return self._answer(request, status, headers, content)
            except Passing as passing:
                reason = str(passing)
                self._leave_alone(passing)
                if tried + 1 < self.engine.tries:
                    closing.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried) * random.uniform(0.5, 1.0))
        return Answer.failed(reason)

    def _leave_alone(self, passing: Passing) -> None:
        """Until when the server asked to be, by all threads."""
        if passing.told > self.engine.patience:
            raise EngineUnavailable(
                f"{self.engine.base_url} asks to be left alone for {passing.told:.0f} s, more than patience "
                f"({self.engine.patience:.0f} s): {passing}; what was answered is kept, so run again later"
            ) from passing
        if passing.told:
            self._open_from = max(self._open_from, time.monotonic() + passing.told)

    def _post(self, path: str, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one try, which ends by `timeout` also where bytes drip."""
        import httpx

        deadline, content = time.monotonic() + self.engine.timeout, bytearray()
        try:
            with self.http.stream("POST", self.engine.base_url + path, content=body) as response:
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() > deadline or len(content) > LARGEST:
                        raise Passing("timed out" if len(content) <= LARGEST else "broken response: too large")
                return response.status_code, response.headers, bytes(content)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Passing(f"{UNREACHABLE}: {error}") from error
        except httpx.TimeoutException as error:
            raise Passing("timed out") from error
        except httpx.RequestError as error:
            raise Passing(f"connection broken: {type(error).__name__}") from error

    def _answer(self, request: Request, status: int, headers: httpx.Headers, content: bytes) -> Answer:
        if status == 200:
            return read_answer(content, chat=request.prompt is None)
        said = self._shown(content)
        if status in HOPELESS:
            raise EngineUnavailable(f"{self.engine.base_url} answers {status} for {self.engine.model!r}: {said}")
        reason = f"HTTP {status}: {said}"
        if passes(reason):
            raise Passing(reason, retry_after(headers.get("Retry-After"), time.time()))
        return Answer.failed(reason)

    def _shown(self, content: bytes) -> str:
        """The begin of what a server says, without the key, should it repeat it."""
        said = content[:2000].decode(errors="replace")
        return " ".join((said.replace(self._key, "<key>") if self._key else said).split())[:300]


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"key_variable: the environment variable {variable} holds no key; set it")
    return key


def asked(model: str, request: Request, sampling: Sampling) -> tuple[str, bytes]:
    """Path and body of a request. What only some servers know is sent only where it is asked for."""
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        body |= {"top_p": sampling.top_p, "seed": sampling.request_seed(request.key)}
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.guided:
        body["structured_outputs"] = sampling.guided.model_dump(mode="json", exclude_none=True)
    if request.prompt is not None:
        return "/completions", json.dumps(body | {"prompt": request.prompt}).encode()
    messages = [{"role": role, "content": content} for role, content in request.messages]
    return "/chat/completions", json.dumps(body | {"messages": messages}).encode()


def read_answer(content: bytes, chat: bool) -> Answer:
    """The answer in a response. Raises Passing: it is none."""
    try:
        found = json.loads(content)
        choice, usage = found["choices"][0], found.get("usage") or {}
        text = choice["message"]["content"] if chat else choice["text"]
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        reason = str(choice.get("finish_reason") or "unknown")
        if text is None:  # refused, or nothing but reasoning
            return Answer.failed(f"no content: {reason}", counts[0])
        repaired = text.encode(errors="replace").decode()  # JSON can spell lone surrogates
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Passing(f"broken response: {type(error).__name__}") from error
    return Answer(repaired, reason, *counts)


def retry_after(value: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for, given as such or as a date; 0 for none or none that can be read."""
    if not value:
        return 0.0
    try:
        told = float(value)
    except ValueError:
        try:
            told = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return 0.0
    return max(0.0, told) if told < float("inf") else 0.0
