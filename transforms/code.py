"""Source code: its language by name or content, and what a parser says of it: comments and errors.

Languages are those of LANGUAGES. By content: marks of each language, counted by RE2 in the first HEAD characters, about
10 MB/s of these. Grammars are tree-sitter's, compiled wheels that bundle their tables: nothing is run and nothing is
fetched, nesting costs no stack. About 5 MB/s; runs of errors take up to 5 µs per byte.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from transforms.characters import ALPHABETIC, classes
from transforms.characters import DIGIT as ASCII_DIGIT
from transforms.text import flags_at

HEAD = 10_000  # characters
OPEN = 10_000  # tags
LEAST = 3.0  # marks, weighed, without which a text is no code


class Language(NamedTuple):
    """A grammar's package and function, ends of file names, and marks (RE2) with a weight."""

    grammar: str
    function: str
    endings: str
    marks: tuple[tuple[float, str], ...]


LANGUAGES = {
    "c": Language("tree_sitter_c", "language", "c h", (
        (2, r'^#\s*(?:include\s*[<"][\w./-]+\.h[>"]|ifn?def \w+|define \w+)'),
        (1, r"^(?:static |extern |const |unsigned |struct |void |int |char )[\w *]+[(;={]|\bsizeof\b|\w->\w|\bNULL\b"),
    )),
    "cpp": Language("tree_sitter_cpp", "language", "cc cpp cxx hh hpp hxx", (
        (2, r'^#\s*(?:include\s*[<"][\w./+-]+[>"]|ifn?def \w+|define \w+)'),
        (1, r"^(?:static |const |unsigned |struct |void |int |char )[\w *]+[(;={]|\bsizeof\b|\w->\w|\bNULL\b"),
        (1, r"\w::\w"),
        (3, r"\bstd::|^\s*(?:template\s*<|namespace\b|public:|private:|protected:|class \w+)|\bnullptr\b"),
    )),
    "csharp": Language("tree_sitter_c_sharp", "language", "cs", (
        (4, r"^using [A-Z][\w.]*;|^namespace [A-Z][\w.]*|\bget;|\bset;"),
        (1, r"^\s*(?:public|private|protected|internal)\b|\bvar \w+ = new\b|\bstring\b.*[;{]"),
    )),
    "css": Language("tree_sitter_css", "language", "css", (
        (1, r"^\s*-?[a-z]+(?:-[a-z]+)*\s*:\s*[^;{}()]+;\s*$"),
        (2, r"^\s*(?:[.#][\w-]+|[a-z]+\d?(?:[.:#][\w-]+)+|\*|@media|@font-face|@import)[^;={}()]*[{,]\s*$|"
            r"\{[a-z-]+:[^;{}]+;"),
    )),
    "go": Language("tree_sitter_go", "language", "go", (
        (3, r"^package \w+\s*$|^func (?:\(\w+ \*?\w+\) )?\w+\(|^import \($|\berr != nil\b|"
            r"^type \w+ (?:struct|interface) \{"),
        (2, r"\w := |\bfmt\.[A-Z]|\bdefer \w|\bgo func\b"),
    )),
    "html": Language("tree_sitter_html", "language", "html htm xhtml", (
        (5, r"(?i)<!doctype html|<html\b|<body\b|<head\b"),
        (1, r"(?i)</?(?:div|p|a|span|script|table|td|tr|li|ul|title|style|meta|link|img|br|h[1-6]|code|pre|"
            r"form|input)\b[^<>]*>"),
    )),
    "java": Language("tree_sitter_java", "language", "java", (
        (4, r"^import (?:static )?[a-z]\w*(?:\.\w+)+(?:\.\*)?;|^package [a-z][\w.]*;|@Override\b|\bSystem\.out\b"),
        (1, r"^\s*(?:public|private|protected|final)\b|\bthrows \w+|\bnew [A-Z]\w*(?:<.*>)?\(|\bString\b"),
    )),
    "javascript": Language("tree_sitter_javascript", "language", "js mjs cjs jsx", (
        (2, r"\brequire\(['\"]|\bmodule\.exports\b|\bconsole\.\w+\(|[\w)\]'\"] ?[!=]== ?[\w('\"]|"
            r"\bdocument\.\w+|\bwindow\.\w+|\bundefined\b|['\"]use strict"),
        (2, r"^\s*(?:export |async )*(?:const|let|var) [\w{\[]|\bfunction\s*\w*\s*\(|=>\s*[{(\w]|"
            r"\bprototype\.|\btypeof "),
    )),
    "json": Language("tree_sitter_json", "language", "json", (
        (200, r'\A\s*(?:\{\s*"(?:[^"\\]|\\.)*"\s*:|'
              r'\[\s*(?:\{\s*["}]|"(?:[^"\\]|\\.)*"\s*[,\]]|-?\d+(?:\.\d+)?\s*,|\[\s*(?:-?\d+[\d.]*\s*[,\]]|["{])))'),
    )),
    "php": Language("tree_sitter_php", "language_php", "php phtml", (
        (200, r"<\?php\b"),
        (1, r"\$this->|^\s*(?:public |private |protected )?(?:static )?function \w+\(|\$\w+\s*=|\becho\b"),
    )),
    "python": Language("tree_sitter_python", "language", "py pyi pyw", (
        (3, r"^\s*(?:async )?(?:def \w+\(|class \w+(?:\(.*\))?:)|^from [\w.]+ import\b|^if __name__ ==|\A#!.*python"),
        (2, r"^import \w[\w.]*(?: as \w+)?\s*$|^\s*(?:elif .*:|except.*:|else:|try:|with .*:|@\w[\w.]*)\s*$|"
            r"\bself\.|(?:=|\bis|\breturn) None\b"),
    )),
    "ruby": Language("tree_sitter_ruby", "language", "rb rake gemspec", (
        (3, r"^require(?:_relative)? ['\"]|\bdo \|[\w, ]+\||\battr_(?:reader|accessor|writer)\b|\.each\b|"
            r"^\s*module [A-Z]|\A#!.*ruby"),
        (2, r"^\s*end\s*$|^\s*def \w+[?!]?(?:\(.*\))?\s*$|^\s*puts ['\"\w]|\belsif\b|"
            r"^\s*unless [\w@!]+.*[^.,]$|@\w+ = "),
    )),
    "rust": Language("tree_sitter_rust", "language", "rs", (
        (8, r"^\s*(?:pub(?:\(\w+\))? )?(?:fn \w+|impl\b|mod \w+|trait \w+)|\blet mut\b|"
            r"^use (?:std|crate|super)\b|#!?\[\w+|&mut |&self\b"),
        (1, r"-> \w+|::<|\bmatch \w+|\bSome\(|\bOk\(|\bunwrap\(\)"),
    )),
    "shell": Language("tree_sitter_bash", "language", "sh bash zsh ksh", (
        (10, r"\A#!\s*\S*(?:/|env )(?:ba|da|k|z)?sh\b"),
        (2, r"^\s*(?:fi|done|esac|then|do)\s*(?:;|$)|^\s*(?:if|while|elif) \[|;\s*(?:then|do)\s*$|\|\| exit|"
            r"\$\{\w+[:}]|^\s*local \w+"),
        (1, r"^\s*(?:export |echo |set -|exit \d|cd |mkdir |rm -)|\$\(|\"\$\w+\"|^\w+=\S*$"),
    )),
    "typescript": Language("tree_sitter_typescript", "language_typescript", "ts mts cts", (
        (2, r"[\w)\]'\"] ?[!=]== ?[\w('\"]|^\s*(?:export |async )*(?:const|let) [\w{\[]|=>\s*[{(\w]|"
            r"^import .* from ['\"]"),
        (3, r"^\s*(?:export )?(?:declare )?(?:interface|type|enum|abstract class) \w+|"
            r"\w\??: (?:string|number|boolean|void|any|unknown)\b"),
    )),
}  # fmt: skip
NAMES = tuple(LANGUAGES)
_COMMENTS = ("comment", "html_comment", "js_comment", "line_comment", "block_comment")  # kinds of nodes
_ENDINGS = {ending: name for name, language in LANGUAGES.items() for ending in language.endings.split()}


class Parsed(NamedTuple):
    """float64 shares of the bytes that are no white space; bool."""

    comments: float
    errors: float
    parses: bool


def by_name(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """The language that a file name's ending says; null where it says none of them, "" where there is no ending."""
    ending = pc.utf8_lower(
        pc.struct_field(pc.extract_regex(names, r"(?P<stem>[^/\\])\.(?P<ending>[A-Za-z0-9]+)\s*$"), "ending")
    )
    known = pa.array(list(_ENDINGS), pa.large_string())
    found = pa.array(list(_ENDINGS.values()), pa.large_string()).take(pc.index_in(ending, known))
    return pc.if_else(pc.equal(pc.fill_null(ending, ""), ""), "", found)


def by_content(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The language with the most marks in the first HEAD characters; null where there are few."""
    head = pc.utf8_slice_codeunits(texts, 0, HEAD)
    scores = np.zeros((len(LANGUAGES), len(texts)))
    for k, language in enumerate(LANGUAGES.values()):
        for weight, mark in language.marks:
            scores[k] += weight * pc.count_substring_regex(head, f"(?m){mark}").to_numpy()
    lines = pc.count_substring(head, "\n").to_numpy() + 1
    best = scores.argmax(axis=0)
    sure = scores.max(axis=0, initial=0) >= np.maximum(LEAST, 0.05 * lines)
    return pa.array(NAMES, pa.large_string()).take(pa.array(best, mask=~sure))


@functools.cache
def _parser(name: str) -> Any:
    import tree_sitter

    language = LANGUAGES[name]
    return tree_sitter.Parser(
        tree_sitter.Language(getattr(importlib.import_module(language.grammar), language.function)())
    )


def parse(name: str, source: bytes) -> Parsed | None:
    """Parse a text as a language of LANGUAGES. Errors are what the grammar cannot place, or misses.

    None for HTML with more than OPEN tags that are not closed: its grammar takes the square of their number.
    """
    if name == "html" and source.count(b"<") - 2 * source.count(b"</") > OPEN:
        return None
    root = _parser(name).parse(source).root_node
    ink = np.zeros(len(source) + 1, np.int64)
    np.cumsum(_IS_INK[np.frombuffer(source, np.uint8)], out=ink[1:])
    comments, errors = (_covered(spans, ink) for spans in _walk(root))
    whole = max(1, int(ink[-1]))
    return Parsed(comments / whole, errors / whole, not root.has_error)


def _walk(root: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Bytes of the comments and of the errors of a tree, in order. A query would take the square of the depth."""
    comments, errors = [], []
    cursor = root.walk()
    while True:
        node = cursor.node
        if node.is_error:
            errors.append((node.start_byte, node.end_byte))
        is_comment = node.type in _COMMENTS
        if is_comment:
            comments.append((node.start_byte, node.end_byte))
        if is_comment or not cursor.goto_first_child():
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return comments, errors


def _covered(spans: list[tuple[int, int]], ink: np.ndarray) -> int:
    """Bytes of ink in any of the spans, which may lie in one another and are in order of their start."""
    places = np.array(spans, np.int64).reshape(-1, 2)
    end = np.maximum.accumulate(places[:, 1])
    start = np.maximum(places[:, 0], np.concatenate([[0], end[:-1]]))
    return int((ink[end] - ink[np.minimum(start, end)]).sum())


def shape(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of documents end to end: characters of the longest line (int64), share of letters and digits (float64)."""
    longest, written, characters = _shape(data, offsets, classes())
    return longest, written / np.maximum(characters, 1)


@njit(cache=True, nogil=True)
def _shape(data: np.ndarray, offsets: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    longest, written, characters = np.zeros((3, offsets.size - 1), np.int64)
    for d in range(offsets.size - 1):
        i, line = offsets[d], 0
        while i < offsets[d + 1]:
            flags, length = flags_at(data, i, offsets[d + 1], classes)
            line = 0 if data[i] == 10 else line + 1
            longest[d] = max(longest[d], line)
            written[d] += flags & (ALPHABETIC | ASCII_DIGIT) != 0
            characters[d] += 1
            i += length
    return longest, written, characters


_IS_INK = np.ones(256, bool)
_IS_INK[[9, 10, 11, 12, 13, 32]] = False
