"""What a refiner that writes programs learns from and is measured by: which lines of pages go, and what is replaced.

ProX (arXiv 2409.17115) had programs written by a large model, read them by the grammar and left out those that remove
too much. Here they may also come from a column, or from the light refiner where labels of lines are sparse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from trainers.fit_refiner import CrossFitted, line_set
from transforms.batch import Batch
from transforms.characters import classes
from transforms.cut import cut
from transforms.program_prompts import SEED, ProgramPrompts
from transforms.program_writer import ChunkWriter, Judged, Written
from transforms.programs import Chunks, Edits, count_words, cut_lines, has_call, parse, read_programs, write_programs

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEEP = "0.95"  # share of what must stay that does, where the light refiner decides


@dataclass(frozen=True)
class Replacement:
    """In lines `first` to `last` of a page `source` becomes `target`."""

    first: int
    last: int
    source: str
    target: str

    @property
    def call(self) -> str:
        """As a program says it."""
        arguments = (json.dumps(text, ensure_ascii=False) for text in (self.source, self.target))
        return f"normalize({', '.join(arguments)})"


@dataclass(frozen=True)
class Labels:
    """`known`: pages that can be learned from and measured on; `left_out`: how many of the others there are, by reason.
    `goes` says what was given of a line: 1, 0, or NaN where a model decided."""

    gone: NDArray[np.bool_]  # [lines of Batch.lines]
    goes: NDArray[np.float64]  # [lines of Batch.lines]
    known: NDArray[np.bool_]  # [pages]
    replace: dict[int, list[Replacement]] = field(default_factory=dict)  # by page
    left_out: dict[str, int] = field(default_factory=dict)


class Teacher(ChunkWriter):
    """A large model that writes programs to learn from: `{engine: {engine: vllm, model: FOLDER}}`. `prompts`: unless
    given, `transforms.program_prompts.SEED`. Pages are left out, and counted, where a request failed, an answer was cut
    off, a call cannot be done, or more than `most_removed` of the words would go."""

    prompts: Path | ProgramPrompts | None = SEED
    most_removed: float = Field(default=0.9, gt=0, le=1)


def by_light_refiner(batch: Batch, found: CrossFitted) -> Labels:
    """What was given of lines, and decisions of the light refiner on the others of each page."""
    from transforms.refiner import every_line

    given = np.isfinite(found.goes)
    gone = every_line(batch, found.lines, np.where(given, found.goes == 1, found.scores > found.thresholds[KEEP]))
    goes = np.full(len(gone), np.nan)
    goes[found.lines.number] = found.goes
    return Labels(gone, goes, np.ones(len(batch), bool))


def by_programs(batch: Batch, programs: pa.ChunkedArray) -> Labels:
    """Programs with the numbers of the page's lines. Pages without one, or with one that cannot be done, are left
    out."""
    texts = [text or "" for text in programs.to_pylist()]
    pages = np.arange(len(batch))
    chunks = Chunks(pages, np.zeros(len(batch), np.int64), np.diff(batch.lines.offsets) - 1)
    return _labels(batch, chunks, texts, read_programs(batch, chunks, texts), {}, 1.0)


def by_teacher(batch: Batch, teacher: Teacher) -> Labels:
    """Programs that a large model writes. Raises EngineUnavailable: no request can be answered."""
    written = teacher.write(batch)
    failures = dict(written.failures[::-1])  # the first of each page
    return _labels(batch, written.chunks, written.programs, written.edits, failures, teacher.most_removed)


def _labels(
    batch: Batch, chunks: Chunks, programs: Sequence[str], edits: Edits, failures: dict[int, str], most_removed: float
) -> Labels:
    """What programs of chunks do to the pages where that can be done."""
    rest = Batch(pa.record_batch({"text": cut(batch, cut_lines(batch, edits.gone))}))
    before, after = (count_words(b.bytes, b.offsets, classes()) for b in (batch, rest))
    removed = 1 - after / np.maximum(before, 1)
    silent = {d for d, text in zip(chunks.document.tolist(), programs, strict=True) if not has_call(text)}
    why = [
        failures.get(d)
        or ("no program" if d in silent else None)
        or ("a call that cannot be done" if edits.errors[d] else None)
        or ("the whole page dropped" if edits.drop[d] else None)
        or ("too much removed" if removed[d] > most_removed else None)
        for d in range(len(batch))
    ]
    known = np.array([reason is None for reason in why], bool)
    replace: dict[int, list[Replacement]] = {}
    for document, first, last, text in zip(*(part.tolist() for part in chunks), programs, strict=True):
        pairs = parse(text).replace
        replace.setdefault(document, []).extend(Replacement(first, last, *pair) for pair in pairs)
    goes = np.where(np.repeat(known, np.diff(batch.lines.offsets)), edits.gone, np.nan)
    return Labels(edits.gone, goes, known, replace, dict(Counter(reason for reason in why if reason)))


def chunk_programs(batch: Batch, chunks: Chunks, labels: Labels) -> Iterator[str]:
    """The program of each chunk: a comment that says of every line whether it goes (`#007+008-`), then the calls.

    Who wrote the comment has the ranges before its eyes: small models that write calls alone name wrong ones. Readers
    of programs ignore it.
    """
    plain = write_programs(batch, chunks, labels.gone)
    for document, first, last, program in zip(*(part.tolist() for part in chunks), plain, strict=True):
        base = int(batch.lines.offsets[document])
        gone = labels.gone[base + first : base + last + 1].tolist()
        said = "".join(f"{number:03d}{'-' if goes else '+'}" for number, goes in enumerate(gone, first))
        calls = [*_replacements(batch, labels, document, first, last)]
        kept = calls and program == "keep_chunk()"
        yield "\n".join((f"#{said}", *([] if kept else [program]), *calls))


def _replacements(batch: Batch, labels: Labels, document: int, first: int, last: int) -> Iterator[str]:
    """Calls for what is replaced in lines of a chunk that stay."""
    base, lines = int(batch.lines.offsets[document]), batch.lines
    for one in labels.replace.get(document, ()):
        reach = range(base + max(first, one.first), base + min(last, one.last) + 1)
        texts = (batch.bytes[lines.start[i] : lines.end[i]].tobytes() for i in reach if not labels.gone[i])
        if parse(one.call).replace == ((one.source, one.target),) and any(one.source.encode() in t for t in texts):
            yield one.call


def measure_lines(batch: Batch, labels: Labels, pages: np.ndarray, written: Written) -> dict[str, Any]:
    """How programs that were written for some pages (bool [pages]) agree with labels: of the lines that go, precision,
    recall and F1 = 2 TP / (2 TP + FP + FN).

    Returns:
        `all`: of every line. `given`: of those whose label no model decided. `malformed`: share of the programs that
        hold a call that cannot be done, or none at all. `failures`: requests that came to nothing, by reason.
    """
    of_page = np.repeat(pages, np.diff(batch.lines.offsets))
    truth = {"all": labels.gone.astype(np.float64), "given": labels.goes}
    malformed = sum(
        _malformed(*one) for one in zip(written.chunks.first, written.chunks.last, written.programs, strict=True)
    )
    told = {name: line_set(np.where(of_page, goes, np.nan), written.edits.gone) for name, goes in truth.items()}
    return {
        "pages": int(pages.sum()),
        **told,
        "programs": len(written.programs),
        "malformed": malformed / max(1, len(written.programs)),
        "failures": dict(Counter(reason for _, reason in written.failures)),
    }


def _malformed(first: int, last: int, text: str) -> bool:
    program = parse(text)
    beyond = any(a < first or b > last for a, b in program.remove)
    return program.errors > 0 or beyond or not has_call(text)


def measure_documents(goes: np.ndarray, judged: Judged) -> dict[str, Any]:
    """The same of pages that go (bool [pages])."""
    both, sums = int((goes & judged.drop).sum()), int(goes.sum()) + int(judged.drop.sum())
    return {
        "pages": len(goes),
        "precision": both / max(1, int(judged.drop.sum())),
        "recall": both / max(1, int(goes.sum())),
        "f1": 2 * both / max(1, sums),
        "failures": dict(Counter(reason for _, reason in judged.failures)),
    }
