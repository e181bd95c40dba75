"""A server that speaks OpenAI's protocol over real sockets, and misbehaves where it is told to.

It answers a prompt with its words in reverse order. `script` maps a prompt to what is done instead, one action for
each time the prompt comes in; when they are used up it answers. `reply`, given a prompt, makes the text of an answer
and its finish reason instead.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Status:
    """Refuse with an HTTP status."""

    code: int
    retry_after: str | None = None
    said: str = "not now"


@dataclass(frozen=True)
class Body:
    """Answer 200 with these bytes. `length`: what Content-Length says, `drip`: seconds between bytes."""

    content: bytes
    length: int | None = None
    drip: float = 0.0


HANG = "hang"  # take the request and say nothing
CUT = Body(b'{"choices": [', length=1000)  # break off in the middle


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    when: float
    path: str
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]


class ToyServer(ThreadingHTTPServer):
    """Use it in a `with`; `url` is its base address, `seen` what came in."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        script: dict[str, list[Any]] | None = None,
        seconds: float = 0.0,
        reply: Callable[[str], tuple[str, str]] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.script, self.seconds = {prompt: list(actions) for prompt, actions in (script or {}).items()}, seconds
        self.seen: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.closing, self.lock = threading.Event(), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def times(self, prompt: str) -> list[float]:
        """When this prompt came in."""
        return [seen.when for seen in self.seen if seen.prompt == prompt]

    def __enter__(self) -> ToyServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that went away are no error here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: ToyServer

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path == "/v1/chat/completions"
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        server = self.server
        with server.lock:
            server.seen.append(Seen(time.monotonic(), self.path, prompt, body, dict(self.headers)))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            actions = server.script.get(prompt)
            action = actions.pop(0) if actions else answer(prompt, chat, body, server.reply)
        time.sleep(server.seconds)
        with server.lock:
            server.at_once -= 1
        self.act(action)

    def act(self, action: Any) -> None:
        if action == HANG:
            self.server.closing.wait()
            self.close_connection = True
        elif isinstance(action, Status):
            content = json.dumps({"error": {"message": action.said}}).encode()
            self.send_response(action.code)
            if action.retry_after is not None:
                self.send_header("Retry-After", action.retry_after)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(action.content) if action.length is None else action.length))
            self.end_headers()
            for k in range(len(action.content) if action.drip else 0):
                self.wfile.write(action.content[k : k + 1])
                self.wfile.flush()
                if self.server.closing.wait(action.drip):
                    break
            else:
                self.wfile.write(b"" if action.drip else action.content)
            self.close_connection = action.length is not None


def answer(
    prompt: str, chat: bool, body: dict[str, Any], reply: Callable[[str], tuple[str, str]] | None = None
) -> Body:
    """A whole answer: what `reply` says, or the words in reverse order, up to `max_tokens`."""
    words = prompt.split()[::-1]
    kept = words[: body["max_tokens"]]
    text, reason = " ".join(kept), "stop" if len(kept) == len(words) else "length"
    if reply:
        text, reason = reply(prompt)
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    made = body["max_tokens"] if reason == "length" else len(text.split())
    usage = {"prompt_tokens": len(words), "completion_tokens": made}
    return Body(json.dumps({"choices": [choice | {"finish_reason": reason}], "usage": usage}).encode())
