"""ProX's programs (Zhou et al. 2024, arXiv 2409.17115): a few calls that say what goes from a document, read as data.

    drop_doc()                     the document goes
    keep_doc() untouch_doc() keep_chunk()                            nothing changes
    remove_lines(first, last)      lines go, both ends included; `all=True`: all lines of the chunk
    normalize(source[, target])    every `source` in the chunk becomes `target`, or goes

A program has one call to a line and is written for one chunk: a run of lines, numbered from 0 over the whole document.
It reaches no line beyond its chunk, and a replacement neither adds nor removes a line, so numbers never shift. What is
no call is ignored; a call that cannot be understood is an error, and documents with several are left as they are.
Nothing is evaluated: calls are tokens, matched one by one, with bounds on all of it (MOST_…), in linear time. Numbers
may have zeros before them, as models copy them from `[007]`, which is why no parser of Python reads them.

Cost: 10 µs per call, and a search through the chunk for each replacement; execution is 300 MB/s per core.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from transforms.batch import Batch, Spans
from transforms.characters import LETTER, SPACE, classes
from transforms.cut import Cuts, cut, union
from transforms.text import decode, flags_at, inner

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CALLS = 256  # of a program
MOST_CHARACTERS = 4096  # of a call
MOST_TARGET = 256  # characters that stand in the place of others
MOST_PLACES = 10_000  # where the replacements of one program apply
NO_CHANGE = ("keep_doc", "untouch_doc", "keep_chunk")
CALLS = (*NO_CHANGE, "drop_doc", "remove_lines", "normalize")
STATUSES = (
    "kept", "refined", "dropped", "dropped_ratio", "dropped_short", "refused_errors", "refused_ratio", "refused_growth",
)  # fmt: skip
KEPT, REFINED, DROPPED, DROPPED_RATIO, DROPPED_SHORT, REFUSED_ERRORS, REFUSED_RATIO, REFUSED_GROWTH = range(8)

_TOKEN = re.compile(
    r"""[ \t]*(?: ([0-9]+) | ([A-Za-z_]+) | ("[^"\\]*(?:\\.[^"\\]*)*" | '[^'\\]*(?:\\.[^'\\]*)*') | (.) )""",
    re.X | re.S,
)
_ESCAPE = re.compile(r"\\(.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_SECOND = ("line_end", "end", "target_str", "target")  # keywords that name the second argument
_SLACK = 1e-9


class Program(NamedTuple):
    """What a program asks for: `remove` are pairs of line numbers, `replace` pairs of source and target."""

    drop: bool
    remove_all: bool
    remove: tuple[tuple[int, int], ...]
    replace: tuple[tuple[str, str], ...]
    errors: int


class Chunks(NamedTuple):
    """Runs of lines that fit a model: int64 [chunks] each; `first` and `last` are numbers of lines of the document."""

    document: np.ndarray
    first: np.ndarray
    last: np.ndarray


class Edits(NamedTuple):
    """What programs do to the documents of a batch."""

    gone: NDArray[np.bool_]  # [lines of Batch.lines]
    puts: Cuts  # replacements, in bytes of each document
    drop: NDArray[np.bool_]  # [documents]
    errors: NDArray[np.int64]  # [documents]


def no_edits(batch: Batch) -> Edits:
    """Those that change nothing."""
    nothing = np.zeros(0, np.int64)
    puts = Cuts(nothing, nothing, np.zeros(len(batch) + 1, np.int64))
    return Edits(np.zeros(len(batch.lines), bool), puts, np.zeros(len(batch), bool), np.zeros(len(batch), np.int64))


class Rules(NamedTuple):
    """When edits are accepted. Ratios are of words left, with ProX's thresholds.

    At `most_errors` a document stays as it is. Where at most 1 - `most_removed` of its words are left, or at most
    `short` words, it goes. It stays as it is where fewer than `least_left` are left, or where it grew by `growth`.
    """

    least_left: float = 0.0
    most_removed: float = 0.95
    most_errors: int = 2
    short: int = 10
    growth: float = 0.1


DEFAULT = Rules()


class Refined(NamedTuple):
    """What is cut from each document, and why: uint8 [documents], places in STATUSES. Dropped ones are cut whole."""

    cuts: Cuts
    status: NDArray[np.uint8]


def parse(program: str) -> Program:
    """Read a program. Never raises, whatever it holds."""
    drop = remove_all = False
    remove: list[tuple[int, int]] = []
    replace: list[tuple[str, str]] = []
    errors = calls = 0
    for line in program.split("\n"):
        text = line.lstrip(" \t")
        if not text.startswith(CALLS) or text.startswith(NO_CHANGE):
            continue
        name = next(name for name in CALLS if text.startswith(name))
        calls += 1
        if calls > MOST_CALLS:
            errors += 1
            break
        arguments = _arguments(text, name) if len(line) <= MOST_CHARACTERS else None
        match name, arguments:
            case "drop_doc", []:
                drop = True
            case "remove_lines", [("all", True)]:
                remove_all = True
            case "remove_lines", [(_, int(a)), (_, int(b))] if a <= b and not isinstance(a, bool):
                remove.append((a, b))
            case "normalize", [(_, str(source))] if _one_line(source, ""):
                replace.append((source, ""))
            case "normalize", [(_, str(source)), (_, str(target))] if _one_line(source, target):
                replace.append((source, target))
            case _:
                errors += 1
    sources = tuple(pair for pair in replace if pair[0] not in ("", " "))
    return Program(drop, remove_all, tuple(remove), sources, errors)


def _one_line(source: str, target: str) -> bool:
    """Whether the replacement is one that can be done: bounded, valid UTF-8, and no line begins or ends by it."""
    try:
        (source + target).encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in source and "\n" not in target and len(target) <= MOST_TARGET


def _arguments(line: str, name: str) -> list[tuple[str, int | str | bool]] | None:
    """Keyword (or "") and value of each argument of a call, None if this is none. First and second may be swapped by
    their keywords; other names do not matter."""
    tokens = _TOKEN.finditer(line, len(name))
    found: list[tuple[str, int | str | bool]] = []
    keyword, expected = "", "("
    for token in tokens:
        number, word, string, mark = token.groups()
        if expected == "(":
            if mark != "(":
                return None
            expected = "value or )"
        elif mark == ")" and expected in ("value or )", ", or )"):
            rest = line[token.end() :].strip(" \t\r;")
            if rest and not rest.startswith("#"):
                return None
            swapped = len(found) == 2 and found[0][0] in _SECOND
            return found[::-1] if swapped else found
        elif expected == "=" and mark == "=":
            expected = "value"
        elif expected == ", or )" and mark == ",":
            expected = "value or )"
        elif expected.startswith("value") and (number or string or word == "True"):
            value = min(int(number[:12]), 10**9) if number else True if word else _unquoted(string)
            found.append((keyword, value))
            keyword, expected = "", ", or )"
        elif expected == "value or )" and word and not keyword:
            keyword, expected = word, "="
        else:
            return None
    return None


def _unquoted(string: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), string[1:-1])


def chunk_lines(tokens: np.ndarray, offsets: np.ndarray, most: int) -> Chunks:
    """Lines packed in order into runs of at most `most` tokens. A longer line is in no chunk, and ends the one before.

    tokens: int [lines], of each; offsets: int64 [documents + 1].
    """
    return Chunks(*_chunk_lines(tokens.astype(np.int64), offsets, most))


def numbered_lines(batch: Batch, document: int, most: int | None = None, after: bool = False) -> list[str]:
    """The lines of a document for a model, as `[007]Text`, or `Text[007]`; of one of more than `most` characters the
    first two thirds and the last third of so many, and between them how many are left out, as in `The beginning …81…
    the end.`"""
    first, last = batch.lines.offsets[document : document + 2]
    spans = zip(batch.lines.start[first:last].tolist(), batch.lines.end[first:last].tolist(), strict=True)
    texts = (batch.bytes[a:b].tobytes().decode() for a, b in spans)
    shown = (_ends(text, most) for text in texts)
    return [f"{text}[{number:03d}]" if after else f"[{number:03d}]{text}" for number, text in enumerate(shown)]


def _ends(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail]} …{len(text) - most}… {text[len(text) - tail :]}"


def numbered(lines: Sequence[str]) -> str:
    """The text of a chunk for a model, of its lines as `numbered_lines` has them."""
    return "\n".join(("[doc]", *lines, "[/doc]"))


def has_call(program: str) -> bool:
    """Whether a line of it begins as a call of the language does; what has none is prose, or nothing."""
    return any(line.lstrip(" \t").startswith(CALLS) for line in program.split("\n"))


def write_programs(batch: Batch, chunks: Chunks, gone: np.ndarray) -> Iterator[str]:
    """The program of each chunk that removes the lines that are gone (bool [lines of Batch.lines]). Numbers are written
    as in front of the lines and without a space, so that they are the same tokens and a model need but copy them."""
    for document, first, last in zip(*(part.tolist() for part in chunks), strict=True):
        base = int(batch.lines.offsets[document])
        edges = np.flatnonzero(np.diff(gone[base + first : base + last + 1].astype(np.int8), prepend=0, append=0))
        runs = (edges + first).reshape(-1, 2).tolist()
        yield "\n".join(f"remove_lines({a:03d},{b - 1:03d})" for a, b in runs) or "keep_chunk()"


def read_programs(batch: Batch, chunks: Chunks, programs: Sequence[str]) -> Edits:
    """What the programs, one to a chunk, do. A call for lines beyond its chunk is an error, and does the rest."""
    lines = batch.lines
    gone, errors = np.zeros(len(lines), bool), np.zeros(len(batch), np.int64)
    drop, places = np.zeros(len(batch), bool), []
    for document, first, last, text in zip(*(part.tolist() for part in chunks), programs, strict=True):
        program = parse(text)
        base = int(lines.offsets[document])
        drop[document] |= program.drop
        errors[document] += program.errors
        for a, b in [(first, last)] * program.remove_all + list(program.remove):
            errors[document] += a < first or b > last
            gone[base + max(a, first) : base + min(b, last) + 1] = True
        if program.replace:
            start, end = int(lines.start[base + first]), int(lines.end[base + last])
            own, failed = _places(batch.bytes[start:end].tobytes(), program.replace)
            errors[document] += failed
            places += [(start + at, start + at + size, target) for at, size, target in own]
    return Edits(gone, _puts(batch, places), drop, errors)


def _places(text: bytes, replace: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, int, str]], int]:
    """(start, length, target), sorted and apart, and errors. Of two that overlap the earlier call's stands."""
    found: list[tuple[int, int, str]] = []
    taken = np.zeros(len(text) + 1, bool)
    for source, target in replace:
        wanted = source.encode()
        at = text.find(wanted)
        while at >= 0:
            if not taken[at : at + len(wanted)].any():
                taken[at : at + len(wanted)] = True
                found.append((at, len(wanted), target))
            if len(found) > MOST_PLACES:
                return [], 1
            at = text.find(wanted, at + len(wanted))
    return sorted(found), 0


def _puts(batch: Batch, places: list[tuple[int, int, str]]) -> Cuts:
    start, end = (np.array([place[k] for place in places], np.int64) for k in (0, 1))
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    document = np.searchsorted(batch.offsets, start, side="right") - 1
    offsets = np.searchsorted(start, batch.offsets).astype(np.int64)
    targets = pa.array([places[k][2] or None for k in order], pa.large_string())
    return Cuts(start - batch.offsets[document], end - batch.offsets[document], offsets, targets)


def execute(batch: Batch, edits: Edits, rules: Rules = DEFAULT) -> Refined:
    """Apply edits under the rules: spans to cut, and the status of every document."""
    lines = cut_lines(batch, edits.gone)
    cuts = union(lines, _left(edits.puts, lines)) if len(edits.puts.start) else lines
    before, size = count_words(batch.bytes, batch.offsets, classes()), np.diff(batch.offsets)
    grown = _added(cuts) > rules.growth * size
    cuts = _of(cuts, ~grown)
    text = Batch(pa.record_batch({"text": cut(batch, cuts)}))
    after = count_words(text.bytes, text.offsets, classes())
    ratio = np.where(before > 0, after / np.maximum(before, 1), 1.0)
    status = np.where(np.diff(cuts.offsets) > 0, REFINED, KEPT)
    for code, holds in (  # what comes later goes before
        (REFUSED_RATIO, ratio < rules.least_left),
        (DROPPED_SHORT, after <= rules.short),
        (DROPPED_RATIO, ratio <= 1 - rules.most_removed + _SLACK),
        (REFUSED_GROWTH, grown),
        (REFUSED_ERRORS, edits.errors >= rules.most_errors),
        (DROPPED, edits.drop),
    ):
        status = np.where(holds, code, status)
    gone = np.isin(status, (DROPPED, DROPPED_RATIO, DROPPED_SHORT))
    whole = Cuts(np.zeros(int(gone.sum()), np.int64), size[gone], np.concatenate([[0], np.cumsum(gone)]))
    return Refined(union(_of(cuts, status == REFINED), whole), status.astype(np.uint8))


def _added(cuts: Cuts) -> np.ndarray:
    """int64 [documents]: bytes that each document gains."""
    put = np.diff(_offsets(cuts.texts()))
    sums = np.concatenate([[0], np.cumsum(put - (cuts.end - cuts.start))])
    return sums[cuts.offsets[1:]] - sums[cuts.offsets[:-1]]


def _offsets(texts: pa.LargeStringArray) -> np.ndarray:
    return Batch(pa.record_batch({"text": texts.fill_null("")})).offsets


def _of(cuts: Cuts, documents: np.ndarray) -> Cuts:
    """Those of some documents (bool [documents]) alone."""
    counts = np.diff(cuts.offsets)
    kept = np.repeat(documents, counts)
    put = None if cuts.put is None else cuts.put.filter(pa.array(kept))
    return Cuts(cuts.start[kept], cuts.end[kept], np.concatenate([[0], np.cumsum(counts * documents)]), put)


def _left(puts: Cuts, lines: Cuts) -> Cuts:
    """Replacements that do not stand in lines that go."""
    kept = _outside(puts.start, puts.offsets, lines.start, lines.end, lines.offsets)
    counts = np.add.reduceat(np.append(kept, 0), puts.offsets[:-1]) * (np.diff(puts.offsets) > 0)
    put = puts.texts().filter(pa.array(kept))
    return Cuts(puts.start[kept], puts.end[kept], np.concatenate([[0], np.cumsum(counts)]), put)


def cut_lines(batch: Batch, gone: np.ndarray) -> Cuts:
    r"""Spans that leave the other lines of `Batch.lines`, joined by "\n". gone: bool [lines]."""
    lines: Spans = batch.lines
    return Cuts(*_cut_lines(gone, lines.start, lines.end, lines.offsets, batch.offsets))


@njit(cache=True, nogil=True)
def _chunk_lines(tokens, offsets, most):  # type: ignore[no-untyped-def]
    out = np.empty((3, len(tokens)), np.int64)
    n = 0
    for d in range(len(offsets) - 1):
        held, first = 0, offsets[d]
        for i in range(offsets[d], offsets[d + 1]):
            if held + tokens[i] > most:
                if i > first:
                    out[0, n], out[1, n], out[2, n] = d, first - offsets[d], i - 1 - offsets[d]
                    n += 1
                held, first = 0, i
            if tokens[i] > most:
                first = i + 1
            else:
                held += tokens[i]
        if first < offsets[d + 1]:
            out[0, n], out[1, n], out[2, n] = d, first - offsets[d], offsets[d + 1] - 1 - offsets[d]
            n += 1
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy()


@njit(cache=True, nogil=True)
def _cut_lines(gone, start, end, offsets, base):  # type: ignore[no-untyped-def]
    """A run of lines goes with the break after it, the last one with the break before."""
    begin, finish = np.empty(len(gone), np.int64), np.empty(len(gone), np.int64)
    bounds = np.zeros(len(offsets), np.int64)
    n = 0
    for d in range(len(offsets) - 1):
        i, stop = offsets[d], offsets[d + 1]
        while i < stop:
            if not gone[i]:
                i += 1
                continue
            first = i
            while i < stop and gone[i]:
                i += 1
            last = i == stop
            a = end[first - 1] if last and first > offsets[d] else start[first]
            b = end[i - 1] if last else start[i]
            if a < b:
                begin[n], finish[n] = a - base[d], b - base[d]
                n += 1
        bounds[d + 1] = n
    return begin[:n].copy(), finish[:n].copy(), bounds


@njit(cache=True, nogil=True)
def _outside(start, offsets, first, last, bounds):  # type: ignore[no-untyped-def]
    out = np.ones(len(start), np.bool_)
    for d in range(len(offsets) - 1):
        k = bounds[d]
        for i in range(offsets[d], offsets[d + 1]):
            while k < bounds[d + 1] and last[k] <= start[i]:
                k += 1
            out[i] = k == bounds[d + 1] or start[i] < first[k]
    return out


@inner
def _unspaced(code):  # type: ignore[no-untyped-def]
    """Scripts without spaces, whose letters count as words: Thai, Lao, Burmese, Khmer, Han and kana."""
    if code < 0x0E00:
        return False
    southern = code <= 0x0EFF or 0x1000 <= code <= 0x109F or 0x1780 <= code <= 0x17FF
    return southern or 0x2E80 <= code <= 0xA4CF or 0xF900 <= code <= 0xFAFF or code >= 0x1AFF0


@njit(cache=True, nogil=True)
def count_words(data: np.ndarray, offsets: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """int64 [documents]: runs between white space; in scripts without spaces, letters."""
    out = np.zeros(len(offsets) - 1, np.int64)
    for d in range(len(out)):
        inside = False
        i = offsets[d]
        while i < offsets[d + 1]:
            flags, size = flags_at(data, i, offsets[d + 1], classes)
            alone = size > 2 and flags & LETTER and _unspaced(decode(data, i, offsets[d + 1])[0])
            out[d] += alone or (not inside and flags & SPACE == 0)
            inside = flags & SPACE == 0 and not alone
            i += size
    return out
