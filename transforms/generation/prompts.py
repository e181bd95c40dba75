"""Requests to token ids, by a model folder's tokenizer and chat template, for engines that run here.

Contents of messages are not trusted: a special token that one spells out becomes ordinary tokens, so that no document
ends its own turn or begins another. Such places are hidden behind noncharacters while the template is rendered; what
comes of it is tokenised in pieces, those places by a tokenizer that knows no special tokens. Conversations without
any, nearly all, are tokenised whole, as transformers does it.

Cost: about 80 µs for each conversation rendered; tokenising runs on all cores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer, processors

from transforms.generation.engine import Request
from transforms.model_folder import ModelFolder

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no text should hold them; where one does they are hidden too
_HIDDEN = re.compile(f"{_OPEN}([0-9a-f]*){_CLOSE}")
_SURROGATES = re.compile("[\ud800-\udfff]")  # no tokenizer takes them
# Goes before templates that write today's date: prompts shall not change with the day.
_DAY = "{%- macro strftime_now(format) -%}{{ {'%d %b %Y': '26 Jul 2024'}.get(format, '2024-07-26') }}{%- endmacro -%}"


class Prompts:
    """Tokenises requests for one model. Threads may share it."""

    def __init__(self, folder: ModelFolder) -> None:
        from transformers import PreTrainedTokenizerFast

        self.folder = folder
        file = str(folder.path / "tokenizer.json")
        self._parsing, self._plain = Tokenizer.from_file(file), Tokenizer.from_file(file)
        self._plain.encode_special_tokens = True
        for tokenizer in (self._parsing, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.post_processor = processors.Sequence([])  # the first token is put there by `tokens`
        self.template = PreTrainedTokenizerFast.from_pretrained(folder.path, local_files_only=True)
        special = [t.content for t in self._parsing.get_added_tokens_decoder().values() if t.special]
        longest = sorted(special, key=lambda token: (-len(token), token))
        self._risky = re.compile("|".join(map(re.escape, [*longest, _OPEN, _CLOSE])))

    def tokens(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of each request's prompt.

        Raises ValueError: a request has messages and the folder has no chat template, or that fails on them.
        """
        texts = [self._rendered(r) if r.prompt is None else _SURROGATES.sub("\ufffd", r.prompt) for r in requests]
        hidden = [r.prompt is None and _OPEN in text for r, text in zip(requests, texts, strict=True)]
        whole = self._parsing.encode_batch(["" if h else text for h, text in zip(hidden, texts, strict=True)])
        found = [self._pieces(t) if h else w.ids for h, t, w in zip(hidden, texts, whole, strict=True)]
        return [ids if r.prompt is None else self._begun(ids) for r, ids in zip(requests, found, strict=True)]

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns ids into text."""
        return self._parsing

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a text in which nothing is special."""
        ids: list[int] = self._plain.encode(text).ids
        return ids

    def _begun(self, ids: list[int]) -> list[int]:
        """With the model's first token before them; chat templates write it themselves."""
        begin = self.folder.begin
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def _rendered(self, request: Request) -> str:
        """The conversation up to where the answer begins, risky places hidden."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if not self.template.chat_template:
            raise ValueError(
                f"{self.folder.path} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), so messages cannot be rendered: give a model that was tuned on conversations "
                "with its template, or prompts"
            )
        messages = [{"role": role, "content": self._hide(content)} for role, content in request.messages]
        source = self.template.get_chat_template()
        source = _DAY + source if "strftime_now" in source else source
        variables = {**self.template.special_tokens_map, "add_generation_prompt": True}
        try:
            return str(render_jinja_template([messages], chat_template=source, **variables)[0][0])
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {self.folder.path} fails on {request.key!r}: {error}") from error

    def _hide(self, content: str) -> str:
        content = _SURROGATES.sub("\ufffd", content)
        return self._risky.sub(lambda found: f"{_OPEN}{found[0].encode().hex()}{_CLOSE}", content)

    def _pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        for k, piece in enumerate(_HIDDEN.split(text)):  # turns of what is rendered and what was hidden
            found = self._plain.encode(bytes.fromhex(piece).decode()) if k % 2 else self._parsing.encode(piece)
            ids += found.ids
        return ids
