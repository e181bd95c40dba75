"""What of a text a model is shown that reads few tokens: its beginning and its end, as in DataMan (Peng et al. 2025,
arXiv 2502.19363). Lengths are in tokens; what is shown are the text's own characters, none cut in two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MARK = "..."
AT_ONCE = 64  # texts tokenised together: of one, the library holds up to 130 bytes for each byte
_ELLIPSIS = re.compile(r'\A["“”](?:…+|\.{3,})["“”]')


def without_leftovers(text: str) -> str:
    """The text without an ellipsis in quotes at its begin, and without images that have no description and end a line:
    `![](address)` and the line break. Linear in the text, where the regular expression for images is not.
    """
    text = _ELLIPSIS.sub("", text)
    if "![](" not in text:
        return text
    parts, kept, cut = text.split(")"), list[str](), False
    for i, part in enumerate(parts):  # an address goes on to the first bracket that closes
        own = part[1:] if cut else part
        at = own.find("![](")
        cut = at >= 0 and len(own) > at + 4 and i + 1 < len(parts) and parts[i + 1].startswith("\n")
        kept.append(own[:at] if cut else own if i + 1 == len(parts) else own + ")")
    return "".join(kept)


def head_and_tail(
    texts: Sequence[str], tokenizer: Tokenizer, most_tokens: int, most_characters: int
) -> tuple[list[str], np.ndarray]:
    """Each text, stripped; of one of more than `most_tokens` tokens the first and the last half of so many, with MARK
    between them. Of one of more than `most_characters`, its first and last half of so many characters are looked at.

    Returns:
        The texts, and bool [texts]: whether something was left out.
    """
    found: list[str] = []
    left_out = np.zeros(len(texts), bool)
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        pieces = [piece for text in some for piece in _ends(text, most_characters)]
        encoded = iter(zip(pieces, tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True))
        for i, text in enumerate(some, first):
            head, tail = next(encoded), next(encoded)
            left_out[i] = len(text) > most_characters or len(head[1].ids) > most_tokens
            shown = [_head(*head, most_tokens // 2), _tail(*tail, most_tokens - most_tokens // 2)]
            found.append((MARK.join(shown) if left_out[i] else text).strip())
    return found, left_out


def _ends(text: str, most: int) -> tuple[str, str]:
    """The first and the last half of the characters; all of them, twice, if there are no more."""
    return (text, text) if len(text) <= most else (text[: most // 2], text[most // 2 - most :])


def _head(text: str, encoding: Encoding, tokens: int) -> str:
    """The text of the first tokens, without a character that goes on in the next."""
    if len(encoding.ids) <= tokens:
        return text
    return text[: min(encoding.offsets[tokens - 1][1], encoding.offsets[tokens][0])]


def _tail(text: str, encoding: Encoding, tokens: int) -> str:
    if len(encoding.ids) <= tokens:
        return text
    return text[max(encoding.offsets[-tokens][0], encoding.offsets[-tokens - 1][1]) :]
