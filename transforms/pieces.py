"""Texts cut into pieces for libraries that take lists of str and much memory: about half a MB at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

AT_ONCE = 1 << 18  # characters given to the library
WORD = re.compile(r"(?<=\S) (?=\S)")


def groups(texts: pa.LargeStringArray) -> Iterator[tuple[list[int], list[str]]]:
    """Pieces of documents with the number of their document, in lists of about AT_ONCE characters.

    Documents of more than AT_ONCE characters are cut before a word, at places that depend on the document alone.
    """
    documents: list[int] = []
    pieces: list[str] = []
    size = 0
    for number, text in enumerate(texts.to_pylist()):  # the library takes a list of str
        for piece in _pieces(text):
            documents.append(number)
            pieces.append(piece)
            size += len(piece)
            if size >= AT_ONCE:
                yield documents, pieces
                documents, pieces, size = [], [], 0
    if pieces:
        yield documents, pieces


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > AT_ONCE:
        word = WORD.search(text, start + AT_ONCE, start + 2 * AT_ONCE)
        stop = word.start() if word else start + AT_ONCE
        yield text[start:stop]
        start = stop
    yield text[start:]
