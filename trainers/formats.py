"""Formats of training documents: plain text, prompts with completions, conversations. What is learned of each.

Conversations are rendered by the chat template of the tokenizer's folder (`chat_template.jinja`, or `chat_template` in
tokenizer_config.json), else by DEFAULT_TEMPLATE. What assistants say is learned, with the token that ends their turn;
all else is context. Where a turn begins and ends comes from the template itself: from its `{% generation %}` tags, or
from rendering the conversation up to each answer, which has to be the beginning of the whole.

Contents of turns are not trusted: where one spells out a special token, it becomes ordinary tokens.

Cost: about 80 µs per rendering, and two renderings per answer; tokenising is about 0.6 times as fast as that of text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from tokenizers import Tokenizer, processors

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment", "observation")

# Every turn is a line with its role and then its content up to the end token, which no content can write.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.tool_calls %}{{ raise_exception('it knows no tool calls; give the tokenizer a template') }}"
    "{% endif %}"
    "{{ message.role + '\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)

# Noncharacters, which no text should hold; those that do are escaped too.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_ESCAPED = re.compile(f"{_OPEN}([0-9a-f]*){_CLOSE}")
_TAGS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Format(BaseModel):
    """How documents of a mixture become tokens and which of these are learned.

    `text`: all of it. `prompt_completion`: columns `prompt` (null: none) and `text`, the completion; the completion and
    the end token are learned. `messages`: column `messages`, a list of structs with role and content, or the same as
    JSON; what assistants say is learned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["text", "prompt_completion", "messages"] = "text"
    chat: bool = False  # prompt_completion: render both as turns of user and assistant
    turns: Literal["all", "last"] = "all"  # of the assistant, that are learned
    long: Literal["split", "truncate", "drop"] | None = None  # what exceeds a row; None: split text, truncate the rest
    document_weight: str | None = None  # column by whose numbers the loss of a document is multiplied
    weights: Path | None = None  # folder of per-token weights, see trainers/token_weights.py
    equal: bool = False  # every document of a batch counts alike, however many targets it has

    @model_validator(mode="after")
    def _fitting(self) -> Format:
        if self.chat and self.kind != "prompt_completion":
            raise ValueError(f"chat: is for prompt_completion; kind {self.kind!r} is given")
        if self.turns == "last" and not self.conversation:
            raise ValueError(f"turns: is for conversations; kind {self.kind!r} is given, with chat: {self.chat}")
        if self.equal and self.document_weight is not None:
            raise ValueError(f"equal: and document_weight: {self.document_weight!r} exclude each other; give one")
        if self.equal and self.of_long == "split":
            raise ValueError("equal: a document in pieces would count once for each; give long: truncate or drop")
        return self

    @property
    def conversation(self) -> bool:
        """Whether documents are rendered by a chat template."""
        return self.chat or self.kind == "messages"

    @property
    def column(self) -> str | None:
        """What is read besides the text."""
        return {"text": None, "prompt_completion": "prompt", "messages": "messages"}[self.kind]

    @property
    def of_long(self) -> Literal["split", "truncate", "drop"]:
        """What happens to documents longer than a row."""
        return self.long or ("split" if self.kind == "text" else "truncate")

    @property
    def plain(self) -> bool:
        """Whether every token is learned alike."""
        return self.kind == "text" and self.document_weight is None and self.weights is None


@dataclass(frozen=True)
class Chat:
    """A rendered conversation; contents are escaped where they spell out special tokens."""

    text: str
    spans: list[tuple[int, int]]  # of what is learned, in characters; each ends with a special token


class Template:
    """The chat template of a tokenizer's folder."""

    def __init__(self, folder: Path, end: str) -> None:
        """end: the end token, which templates know as `eos_token`.

        Raises ValueError for a template that writes the date: documents would depend on the day they are rendered.
        """
        from transformers import PreTrainedTokenizerFast

        loaded = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.name, self.source = "the default chat template", DEFAULT_TEMPLATE
        if loaded.chat_template:
            self.name, self.source = f"the chat template of {folder}", loaded.get_chat_template()
        self.variables = {**loaded.special_tokens_map, "eos_token": end}
        if "strftime_now" in self.source:
            raise ValueError(f"{self.name} asks for today's date (strftime_now); write a date into it instead")
        added = loaded.backend_tokenizer.get_added_tokens_decoder().values()
        self.escape = Escape([token.content for token in added if token.special])

    def chat(self, messages: list[Message], turns: Literal["all", "last"]) -> Chat:
        """Render a conversation up to its last answer; without any answer it is empty.

        Raises ValueError naming template and turn (from 0) where it cannot be told what the answers are.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return Chat("", [])
        messages = self.escape.messages(messages[: answers[-1] + 1])
        wanted = answers if turns == "all" else answers[-1:]
        if _TAGS.search(self.source):
            text, tagged = self._render(messages, tags=True)
            spans = [self._closed(text, a, b, answers[-1]) for a, b in tagged if b > a]
            if not spans:
                raise ValueError(f"{self.name} has generation tags, but none around turn {answers[-1]}")
            return Chat(text, spans if turns == "all" else spans[-1:])
        whole, _ = self._render(messages)
        return Chat(whole, [self._answer(messages, turn, whole) for turn in wanted])

    @property
    def stop(self) -> str:
        """The special token that ends an answer, at which a model that learned this template stops generating."""
        chat = self.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "last")
        ((start, stop),) = chat.spans
        return [found[0] for found in self.escape.special.finditer(chat.text, start, stop)][-1]

    def _answer(self, messages: list[Message], turn: int, whole: str) -> tuple[int, int]:
        before, _ = self._render(messages[:turn], add_generation_prompt=True)
        until = whole if turn == len(messages) - 1 else self._render(messages[: turn + 1])[0]
        if not (until.startswith(before) and whole.startswith(until)):
            raise ValueError(
                f"{self.name} renders turn {turn} otherwise once others follow (it may leave out earlier reasoning), "
                "or adds a prompt that is no beginning of it; learn `turns: last`, or mark what is generated in the "
                "template with {% generation %} and {% endgeneration %}"
            )
        return self._closed(until, len(before), len(until), turn)

    def _closed(self, text: str, start: int, stop: int, turn: int) -> tuple[int, int]:
        """The span of an answer up to the special token that ends it: the last one in it, or the one that follows."""
        ends = [found.end() for found in self.escape.special.finditer(text, start, stop)]
        if ends and not text[ends[-1] : stop].strip():
            return start, ends[-1]
        follows = self.escape.special.match(text, stop)
        if follows is None:
            raise ValueError(
                f"{self.name} does not end turn {turn} with a special token, so that the model would not learn to "
                "stop; let it write eos_token after each answer"
            )
        return start, follows.end()

    def _render(
        self, messages: list[Message], tags: bool = False, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.source,
                return_assistant_tokens_mask=tags,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except (TemplateError, TypeError) as error:
            asked = "and asks for an answer" if add_generation_prompt else ""
            raise ValueError(f"{self.name} fails on the first {len(messages)} turns {asked}: {error}") from error
        return texts[0], spans[0] if tags else []


class Escape:
    """Hides the special tokens that contents spell out from whoever reads a rendered conversation."""

    def __init__(self, tokens: list[str]) -> None:
        longest = sorted(tokens, key=lambda token: (-len(token), token))
        self.special = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._hidden = re.compile("|".join(map(re.escape, [*longest, _OPEN, _CLOSE])))
        self._begun = {token[:n] for token in tokens for n in range(1, len(token))}
        self._reach = max(map(len, tokens), default=1) - 1

    def messages(self, value: Any) -> Any:
        """The same structure with every string escaped."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {name: self.messages(item) for name, item in value.items()}
        return [self.messages(item) for item in value] if isinstance(value, list) else value

    def text(self, text: str) -> str:
        """Escape special tokens, and at the end of the text what could begin one that the next string completes."""
        text = self._hidden.sub(lambda found: _hex(found[0]), text)
        seen = text.rstrip()
        for n in range(min(self._reach, len(seen)), 0, -1):
            if seen[-n:] in self._begun:
                return seen[:-n] + _hex(seen[-n:]) + text[len(seen) :]
        return text

    @staticmethod
    def undo(text: str) -> str:
        """What was escaped."""
        return _ESCAPED.sub(lambda found: bytes.fromhex(found[1]).decode(), text)


def _hex(text: str) -> str:
    return f"{_OPEN}{text.encode().hex()}{_CLOSE}"


class ChatTokenizer:
    """Tokens of rendered conversations: special tokens of the template become their ids, those of contents do not."""

    def __init__(self, plain: Tokenizer, template: Template) -> None:
        """plain: takes special tokens for text."""
        self.plain, self.escape = plain, template.escape
        self.parsing = Tokenizer.from_str(plain.to_str())
        self.parsing.encode_special_tokens = False
        self.parsing.post_processor = processors.Sequence([])  # some move offsets to after white space

    @cached_property
    def _special_ids(self) -> np.ndarray:
        added = self.parsing.get_added_tokens_decoder()
        return np.array([number for number, token in added.items() if token.special], np.int64)

    def encode(self, chats: list[Chat]) -> list[tuple[np.ndarray, np.ndarray]]:
        """ids (int64 [n]) and whether each is learned (bool [n]), of each conversation.

        A conversation is tokenised as a whole, as transformers does, if that parses the template's special tokens and
        no others and no token reaches into an answer; else in pieces between these places.
        """
        found = self.parsing.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [self._whole(chat, encoding) or self._pieces(chat) for chat, encoding in zip(chats, found, strict=True)]

    def _whole(self, chat: Chat, encoding: Any) -> tuple[np.ndarray, np.ndarray] | None:
        ids = np.array(encoding.ids, np.int64)
        specials = sum(1 for _ in self.escape.special.finditer(chat.text))
        if _OPEN in chat.text or np.isin(ids, self._special_ids).sum() != specials:
            return None
        begin, end = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        learned = np.zeros(len(ids), bool)
        for start, stop in chat.spans:
            if ((begin < start) & (start < end)).any():
                return None
            learned |= (begin >= start) & (begin < stop)
        return ids, learned

    def _pieces(self, chat: Chat) -> tuple[np.ndarray, np.ndarray]:
        special = [found.span() for found in self.escape.special.finditer(chat.text)]
        cuts = {0, len(chat.text), *(start for start, _ in chat.spans), *(cut for span in special for cut in span)}
        tokens = {start for start, _ in special}
        ids: list[int] = []
        learned: list[bool] = []
        for a, b in pairwise(sorted(cuts)):
            piece = chat.text[a:b]
            encoder, text = (self.parsing, piece) if a in tokens else (self.plain, self.escape.undo(piece))
            found = encoder.encode(text, add_special_tokens=False).ids
            ids += found
            learned += [any(start <= a < stop for start, stop in chat.spans)] * len(found)
        return np.array(ids, np.int64), np.array(learned, bool)


def conversation(value: Any) -> list[Message]:
    """A row of the column `messages`: JSON or a list of dicts; fields that are null are left out.

    Raises ValueError for anything else, for roles not in ROLES and for turns without content or anything in its stead.
    """
    if isinstance(value, str | bytes):
        value = _repaired(json.loads(value))  # JSONDecodeError is a ValueError
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError("messages are no list of structs with role and content")
    return [_message(turn, message) for turn, message in enumerate(value)]


def _message(turn: int, message: Message) -> Message:
    given = _without_nulls(message)
    if given.get("role") not in ROLES:
        raise ValueError(f"turn {turn} has the role {given.get('role')!r}; known are {', '.join(ROLES)}")
    if not isinstance(given.setdefault("content", ""), str | list):  # null: templates would write None
        raise ValueError(f"turn {turn} has content of type {type(given['content']).__name__}; expected text or parts")
    return given


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):  # Arrow gives every struct all the fields that any has
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _repaired(value: Any) -> Any:
    """Lone surrogates, which JSON can spell but no tokenizer takes, replaced."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_repaired(name): _repaired(item) for name, item in value.items()}
    return [_repaired(item) for item in value] if isinstance(value, list) else value
