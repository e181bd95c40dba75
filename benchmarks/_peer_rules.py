"""Runs datatrove's four rule filters over a file of documents, in datatrove's own environment; see rules.py.

Usage: python _peer_rules.py DOCUMENTS.jsonl RESULT.json
"""

import json
import sys
import time
import zlib
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_words


def decide(rules, text):
    """The reason a filter drops a document, or None. A filter that raises, as on a document without words, drops it."""
    try:
        kept = rules.filter(Document(text=text, id="0"))
    except (ZeroDivisionError, AssertionError) as error:
        return type(error).__name__
    return None if kept is True else kept[1]


def main(source, target):
    """One process; every document goes through the four filters in turn, so datatrove's cache of words serves all."""
    rules = {
        "fineweb": FineWebQualityFilter(),
        "gopher_quality": GopherQualityFilter(),
        "gopher_repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(),
    }
    with Path(source).open() as lines:
        texts = [json.loads(line) for line in lines]
    for one in rules.values():
        decide(one, "The tokenizer is loaded before the clock starts. " * 20)
    reasons = {name: [] for name in rules}
    started = time.process_time()
    for text in texts:
        for name, one in rules.items():
            reasons[name].append(decide(one, text))
    seconds = time.process_time() - started
    words = [zlib.crc32("\n".join(split_into_words(text)).encode()) for text in texts]
    Path(target).write_text(json.dumps({"seconds": seconds, "reasons": reasons, "words": words}))


if __name__ == "__main__":
    main(*sys.argv[1:])
