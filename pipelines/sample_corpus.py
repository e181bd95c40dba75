"""A real corpus made of the text found on this machine, as Parquet shards with FineWeb's columns.

Six sources: docstrings, code, readme, manuals, licences, changelogs. It is a raw crawl on purpose: near-duplicates,
boilerplate, translated manuals and generated tables stay in, for the recipe to find. The same machine gives the same
bytes: files are drawn in the order of a hash of their relative path until a source has its share of the target, and
no clock, absolute path or modification time enters. 60 MB take about 8 s on one core, most of it in `ast`. The drawn
text is held in memory, about four times the target at most.
"""

from __future__ import annotations

import ast
import contextlib
import email
import gc
import gzip
import itertools
import os
import re
import site
import sysconfig
import time
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARES = {"docstrings": 20, "code": 35, "readme": 10, "manuals": 15, "licences": 10, "changelogs": 10}  # % of bytes
DOCUMENT_BYTES = 200_000  # longer texts are cut at a line end, and counted in Summary.cut
FILE_BYTES = 2_000_000  # read from one file, after decompression
GROUP_BYTES = 2_000_000  # of text in a row group
DOCSTRING_CHARACTERS = 80  # shorter docstrings say little ("Return self.")

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("text", "id", "dump", "url", "date", "file_path", "language")),
        ("language_score", pa.float64()),
        pa.field("token_count", pa.int64(), metadata={"unit": "tokens, taken as UTF-8 bytes // 4"}),
        ("source", pa.string()),
    ],
    metadata={"corpusmill.sample_corpus": "1"},  # the shard is ours to replace
)


@dataclass(frozen=True)
class Roots:
    """Folders to crawl. Those that do not exist are passed over; files found twice under one name count once."""

    stdlib: tuple[Path, ...] = ()
    packages: tuple[Path, ...] = ()
    man: tuple[Path, ...] = ()
    doc: tuple[Path, ...] = ()
    licences: tuple[Path, ...] = ()

    @classmethod
    def here(cls) -> Roots:
        """The folders of the running Python, be it in a virtual environment, and of its system."""
        paths = sysconfig.get_paths()
        packages = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        shares = [Path("/usr/share"), Path("/usr/local/share"), Path(paths["data"], "share")]
        return cls(
            stdlib=(Path(paths["stdlib"]),),
            packages=tuple(Path(folder) for folder in packages if folder.endswith("-packages")),
            man=tuple(share / "man" for share in shares),
            doc=tuple(share / "doc" for share in shares),
            licences=(Path("/usr/share/common-licenses"),),
        )


@dataclass(frozen=True)
class Summary:
    """What `build` wrote: documents and UTF-8 bytes of text per source, shards relative to the folder, files skipped by
    reason (`empty`: nothing was left, as of a module without docstrings; `link`: not followed) and documents cut."""

    documents: dict[str, int]
    bytes: dict[str, int]
    absent: list[str]
    shards: list[str]
    skipped: dict[str, int]
    cut: int
    seconds: float


@dataclass(frozen=True)
class _Document:
    id: str
    text: bytes
    url: str
    file_path: str
    language: str | None  # of translated manuals, whose folder names it; nothing is guessed


def build(out: Path, target_mb: float = 60, shards: int = 12, roots: Roots | None = None) -> Summary:
    """Write about `target_mb` MB (10^6 bytes of text) to `out/<source>/<nnnnn>.parquet` in `shards` files.

    There is at least one shard for each source with documents, and never an empty one. What a source lacks of its
    share goes to the others. Shards of an earlier call are replaced.

    Raises ValueError for a target or a number of shards below or at zero, FileExistsError where `out` holds other
    Parquet files under a source's name, FileNotFoundError where the roots hold no text at all.
    """
    began = time.perf_counter()
    if not target_mb > 0 or shards < 1:
        raise ValueError(f"target_mb and shards must be above 0; given {target_mb} and {shards}")
    old = _replaceable(out)
    tally: Counter[str] = Counter()
    roots = roots or Roots.here()
    drawn = _draw(find(roots, tally), target_mb * 1e6, tally)
    if not drawn:
        raise FileNotFoundError(f"no text found under {roots}; give folders that hold some")
    written: list[Path] = []
    for source, count in _shard_counts(drawn, shards).items():
        documents = sorted(drawn[source], key=lambda d: d.id)  # ids are hashes: equal parts of their order are balanced
        edges = [len(documents) * k // count for k in range(count + 1)]
        for k, (start, end) in enumerate(itertools.pairwise(edges)):
            written.append(out / source / f"{k:05d}.parquet")
            _write(written[-1], source, documents[start:end])
    for path in old - set(written):
        path.unlink()
    return Summary(
        documents={source: len(drawn[source]) for source in drawn},
        bytes={source: sum(len(d.text) for d in drawn[source]) for source in drawn},
        absent=[source for source in SHARES if source not in drawn],
        shards=[path.relative_to(out).as_posix() for path in written],
        cut=tally.pop("cut", 0),
        skipped=dict(sorted(tally.items())),
        seconds=time.perf_counter() - began,
    )


# --- finding files ---------------------------------------------------------------------------------------------------
_MARKUP = re.compile(r"\.(pyi?|json|html?|xml|[ch]|js|css|svg|png|gif|ya?ml|toml|pdf|ps|sh|pl)$")
_LICENCE = re.compile(r"(un)?licen[cs]es?|copying|copyright|notices?|third.?party.?(notices?|licen[cs]es?)")
_CHANGELOG = re.compile(r"changelog|change_log|changes|news|history|release.?notes?")
_DATA = re.compile(r"(.*/)?(tests?|testdata|data|datasets|[^/]*\.(dist|egg)-info)(/.*)?")  # a .txt there is no prose
_MANUAL = re.compile(r"(?:([a-z]{2,3})(?:[_.@][\w.@-]*)?/)?man\d\w*/[^/]+\.\d\w*?(\.gz)?")
# Rewritten by installs and builds, or naming this machine's folders: they would change the corpus between two calls.
_UNSTABLE = re.compile(r"[~.]|__pycache__$|__editable__|_sysconfigdata|.*\.(tmp|bak|pyc|orig|egg-link)$")

_PROJECT = Path(__file__).resolve().parents[1]
_OWN = {_PROJECT, *(_PROJECT / name for name in ("transforms", "scorers", "trainers", "pipelines", "sql", "tests"))}


def find(roots: Roots, tally: Counter[str]) -> dict[str, dict[str, Path]]:
    """The files of every source: source → (path relative to the root's name → path), in no order; links are tallied."""
    found: dict[str, dict[str, Path]] = {source: {} for source in SHARES}
    trees = {"stdlib": roots.stdlib, "site-packages": roots.packages, "man": roots.man, "doc": roots.doc,
             "common-licenses": roots.licences}  # fmt: skip
    for name, folders in trees.items():
        for folder in dict.fromkeys(f.resolve() for f in folders):
            for below, path in _walk(folder, "", tally):
                for source in _sources(name, below):
                    found[source].setdefault(f"{name}/{below}", path)
    return found


def _walk(folder: Path, prefix: str, tally: Counter[str]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # absent, or not ours to read
        return
    for entry in entries:
        below = prefix + entry.name
        if _UNSTABLE.match(entry.name) or entry.name.startswith("corpusmill-"):
            continue
        if entry.is_symlink():
            tally["link"] += 1
        elif entry.is_dir():
            if entry.name not in ("site-packages", "dist-packages") and Path(entry.path) not in _OWN:
                yield from _walk(Path(entry.path), below + "/", tally)
        elif entry.is_file():
            yield below, Path(entry.path)


def _sources(tree: str, below: str) -> tuple[str, ...]:
    """The sources to which a file belongs by its name; most belong to none."""
    if tree == "common-licenses":
        return ("licences",)
    if tree == "man":
        return ("manuals",) if _MANUAL.fullmatch(below) else ()
    folder, _, name = below.lower().removesuffix(".gz").rpartition("/")
    if name.endswith(".py"):
        return () if tree == "doc" else ("docstrings", "code")
    if _MARKUP.search(name):
        return ()
    if _LICENCE.match(name) or ".dist-info/licenses" in folder:
        return ("licences",)
    if _CHANGELOG.match(name) or folder.endswith("/relnotes"):
        return ("changelogs",)
    metadata = name == "metadata" and folder.endswith(".dist-info")
    text = name.endswith(".txt") and name != "cmakelists.txt" and not _DATA.fullmatch(folder)
    prose = name.startswith("readme") or name.endswith((".md", ".rst")) or text
    return ("readme",) if metadata or prose else ()


# --- drawing documents -----------------------------------------------------------------------------------------------
def _draw(found: dict[str, dict[str, Path]], target: float, tally: Counter[str]) -> dict[str, list[_Document]]:
    """Documents of each source up to its share of `target` bytes; shares of exhausted sources go round again."""
    drawn: dict[str, list[_Document]] = {source: [] for source in SHARES}
    flows = {source: _documents(source, found[source], tally) for source in SHARES}
    missing = target
    while flows and missing > 0:
        whole = sum(SHARES[source] for source in flows)
        for source, flow in list(flows.items()):
            goal = missing * SHARES[source] / whole
            while goal > 0:
                document = next(flow, None)
                if document is None:
                    del flows[source]
                    break
                drawn[source].append(document)
                goal -= len(document.text)
        missing = target - sum(len(d.text) for documents in drawn.values() for d in documents)
    return {source: documents for source, documents in drawn.items() if documents}


def _documents(source: str, files: dict[str, Path], tally: Counter[str]) -> Iterator[_Document]:
    def order(file_path: str) -> bytes:  # with the source, lest docstrings and code come from the same files
        return blake2b(f"{source}/{file_path}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

    for file_path in sorted(files, key=order):
        try:
            text = _extract(source, file_path, files[file_path]).encode()
            url = "file:///" + quote(file_path) + ("#docstrings" if source == "docstrings" else "")
        except (UnicodeError, gzip.BadGzipFile, EOFError, zlib.error):
            tally["undecodable"] += 1
        except (SyntaxError, ValueError, RecursionError):
            tally["not Python"] += 1
        except OSError:
            tally["unreadable"] += 1
        else:
            if len(text) > DOCUMENT_BYTES:
                tally["cut"] += 1
                head = text[:DOCUMENT_BYTES]
                text = (head[: head.rfind(b"\n") + 1] or head).decode(errors="ignore").encode()
            if not text.strip():
                tally["empty"] += 1
                continue
            manual = _MANUAL.fullmatch(file_path.removeprefix("man/")) if source == "manuals" else None
            yield _Document(
                f"<{uuid.uuid5(uuid.NAMESPACE_URL, url).urn}>", text, url, file_path, manual[1] if manual else None
            )


def _extract(source: str, file_path: str, path: Path) -> str:
    """Text of one file. Raises UnicodeError where it is not UTF-8 or holds NUL, SyntaxError where `ast` refuses it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read(FILE_BYTES)
    if len(raw) == FILE_BYTES:
        raw = raw[: raw.rfind(b"\n") + 1]  # never within a character
    text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    if "\0" in text:
        raise UnicodeError("binary file")
    if source == "docstrings":
        return docstrings(text)
    if source == "manuals":
        return manual_text(text)
    if file_path.endswith("/METADATA"):
        message = email.message_from_string(text)
        return str(message.get_payload() or message.get("Description", ""))
    return text


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str) -> str:
    """The docstrings of a module that have some length, in order, each below the name of its class or function."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")  # of old escapes in other people's code
        if gc.isenabled():
            stack.callback(gc.enable)
        gc.disable()  # syntax trees hold no cycles; to look for some costs as much again as the parsing
        module = ast.parse(source)
        named = [("", ast.get_docstring(module))]
        named += [(f"{name}\n", ast.get_docstring(node)) for name, node in _definitions(module, "")]
    return "\n\n".join(name + text for name, text in named if text and len(text) >= DOCSTRING_CHARACTERS)


def _definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _Definition):
            yield prefix + node.name + ("" if isinstance(node, ast.ClassDef) else "()"), node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _definitions(node, prefix)


# --- troff to text ---------------------------------------------------------------------------------------------------
_ESCAPE = re.compile(
    r"""\\(?: ".*                                        # comment
    | (?P<string>\*)?(?:\((?P<two>..)|\[(?P<long>[^]]*)\]) | \*.
    | [fFgkmMnVY](?:\(..|\[[^]]*\]|[+-]?.)               # fonts, colours, registers
    | s(?:\[[^]]*\]|\([+-]?..|[+-]?'[^']*'|[+-]?\d)      # sizes
    | [bCDhHlLNopSvwxXZAB]'[^']*'                        # drawing and motion
    | (?P<one>.) | $ )""",
    re.VERBOSE,
)
_ONE = {"-": "-", " ": " ", "~": " ", "0": " ", "e": "\\", "\\": "\\", "t": "\t", ".": ".", "'": "'", "`": "`"}
_GLYPHS = {
    "bu": "•", "em": "—", "en": "–", "hy": "-", "mi": "-", "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'",
    "dq": '"', "ha": "^", "ti": "~", "ga": "`", "co": "©", "rg": "®", "tm": "™", "rs": "\\", "at": "@", "sh": "#",
    "Do": "$", "mu": "×", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "+-": "±", "de": "°", "sc": "§", "ba": "|",
    "lB": "[", "rB": "]", "lC": "{", "rC": "}", "Fo": "«", "Fc": "»", "pl": "+", "eq": "=", "sl": "/",
    "'e": "é", "`e": "è", ":o": "ö", ":u": "ü", ":a": "ä", "'a": "á", "or": "|", "ul": "_", "Eu": "€",
}  # fmt: skip
_STRINGS = {'L"': "“", 'R"': "”", "--": "--", "lq": "“", "rq": "”", "Tm": "™", "R": "®", "Aq": "'", "PI": "pi"}


def _glyph(match: re.Match[str]) -> str:
    name = match["two"] or match["long"]
    if match["string"]:
        return _STRINGS.get(name or "", "")
    if name is None:
        return _ONE.get(match["one"] or "", "")
    if re.fullmatch(r"u[0-9A-F]{4,5}", name):
        return chr(int(name[1:], 16)).encode(errors="ignore").decode()
    return _GLYPHS.get(name, "")


_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S(?:\\ |\S)*)')
_BREAKS = {"PP", "P", "LP", "sp", "Sp", "HP", "Pp", "TP", "TQ", "Bl", "El", "Bd", "Ed", "Lp", "SY", "YS"}
_ALTERNATING = {"BR", "RB", "IR", "RI", "BI", "IB"}  # fonts of arguments that stand together, as in ls(1)
_MAN_TEXT = {"B", "I", "R", "SM", "SB", "CW", "OP", "UR", "MT", "UE", "ME", "Nd", *_ALTERNATING}
_MDOC = {
    "Nm", "Fl", "Ar", "Op", "Xr", "Cm", "Pa", "Sy", "Em", "Dq", "Sq", "Ql", "Li", "Ev", "Va", "Fn", "Fa", "Ft", "Ic",
    "Dv", "Er", "Vt", "Ns", "Pq", "Oo", "Oc", "Lk", "Mt", "An", "Po", "Pc", "Qq", "In", "No", "Bq", "Aq",
}  # fmt: skip
_PAIRS = {"Op": "[]", "Dq": "“”", "Sq": "‘’", "Ql": "‘’", "Pq": "()", "Qq": '""', "Bq": "[]", "Aq": "<>", "In": "<>"}


class _Page:
    """Collects a manual page: filled text becomes one line per paragraph, examples keep their lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.words: list[str] = []
        self.fill, self.tag, self.indent, self.name = True, False, "", ""

    def flush(self, blank: bool = False) -> None:
        if self.words:
            self.lines.append(self.indent + " ".join(" ".join(self.words).split()))
            self.words = []
        if blank and self.lines and self.lines[-1]:
            self.lines.append("")

    def put(self, text: str) -> None:
        text = _ESCAPE.sub(_glyph, text) if "\\" in text else text
        if self.tag and text.strip():
            self.lines.append(text.strip())
            self.tag, self.indent = False, "    "
        elif not self.fill:
            self.lines.append(f"{self.indent}    {text.rstrip()}" if text.strip() else "")
        elif text.strip():
            self.words.append(text)
        else:
            self.flush(blank=True)

    def heading(self, text: str) -> None:
        self.flush(blank=True)
        self.fill, self.tag, self.indent = True, False, ""
        self.put(text)
        self.flush()

    def macro(self, name: str, rest: str) -> None:
        args = [quoted.replace('""', '"') or bare for quoted, bare in _ARGUMENT.findall(rest)]
        if name in ("SH", "SS", "Sh", "Ss"):
            self.heading(" ".join(args))
        elif name in ("TH", "Dt"):
            self.heading(f"{args[0]}({args[1]})" if len(args) > 1 else rest)
        elif name in _MAN_TEXT:
            text = ("" if name in _ALTERNATING else " ").join(args)
            if text or name == "Nd":
                self.put(f"- {text}" if name == "Nd" else f"[{text}]" if name == "OP" else text)
        elif name in ("IP", "It"):
            self.flush(blank=name == "IP")
            tag = _ESCAPE.sub(_glyph, args[0] if name == "IP" else self.inline(args)) if args else ""
            bullet = len(tag) == 1 and not tag.isalnum()  # stands on the line of its text
            self.tag, self.indent = bool(tag) and not bullet, "    "
            if tag:
                self.put(tag)
        elif name in ("RS", "RE"):
            self.flush(blank=name == "RE")
            self.indent = "    " if name == "RS" else ""
        elif name in _BREAKS:
            self.flush(blank=True)
            self.tag = name in ("TP", "TQ")
            self.indent = "" if name in ("PP", "P", "LP", "HP", "Pp", "TP", "TQ", "El") else self.indent
            self.fill = name != "Bd" or not {"-literal", "-unfilled"} & set(args)
        elif name in ("br", "nf", "fi", "EX", "EE", "Vb", "Ve"):
            self.flush()
            self.fill = self.fill if name == "br" else name in ("fi", "EE", "Ve")
        elif name in _MDOC:
            self.put(self.inline([name, *args]))

    def inline(self, args: list[str]) -> str:
        """Text of an mdoc line, whose macros may follow one another: `Op Fl a Ar file` is `[-a file]`."""
        if not args:
            return ""
        name, rest, point = args[0], args[1:], ""
        if name not in _MDOC:
            return f"{name} {self.inline(rest)}".rstrip()
        while rest and rest[-1] in {".", ",", ";", ":", ")", "]"}:
            point = rest.pop() + point
        if name == "Nm":
            self.name = self.name or (rest[0] if rest else "")
            text = self.inline(rest or [self.name])
        elif name == "Xr" and len(rest) > 1:
            text = " ".join([f"{rest[0]}({rest[1]})", *rest[2:]])
        else:
            pair = _PAIRS.get(name, "-" if name == "Fl" else "")
            text = pair[:1] + self.inline(rest) + pair[1:]
        return text + point


def manual_text(troff: str) -> str:
    """Readable text of a manual page in man(7) or mdoc(7): macros go, their text stays.

    No renderer: tables lose their frame, equations and user-made macros are dropped, `.so` pages come out empty.
    """
    page = _Page()
    skip_to, depth, layout = "", 0, False
    for line in troff.replace("\\\n", "").split("\n"):
        if skip_to or depth:
            depth += line.count("\\{") - line.count("\\}") if depth else 0
            skip_to = "" if skip_to and line.startswith(skip_to) else skip_to
            continue
        line = re.sub(r"^[.'][ \t]*(if|ie)[ \t]+n[ \t]+(?=[.'])", "", line)  # `n`: what is meant for a terminal
        if line[:1] not in (".", "'"):
            if not (layout or line in ("T{", "T}")):
                page.put(line.replace("\t", "  "))
            layout = layout and not line.rstrip().endswith(".")  # a table's layout ends in a full stop
            continue
        name, _, rest = line[1:].strip().partition(" ")
        if name in ("de", "de1", "ig", "am", "EQ"):
            skip_to = ".EN" if name == "EQ" else "." + (rest.split()[1] if len(rest.split()) > 1 else ".")
        elif name.startswith(("if", "ie", "el")):
            depth = max(0, line.count("\\{") - line.count("\\}"))
        elif name in ("TS", "TE"):
            page.flush(blank=True)
            page.fill, layout = name == "TE", name == "TS"
        elif not name.startswith('\\"'):
            page.macro(name, re.sub(r'[ \t]*\\".*', "", rest).strip())
    page.flush()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(page.lines)).strip("\n") + "\n"


# --- writing shards --------------------------------------------------------------------------------------------------
def _replaceable(out: Path) -> set[Path]:
    """Shards of an earlier call. Raises FileExistsError at the first Parquet file that is not one."""
    old = {path for source in SHARES for path in (out / source).glob("*.parquet")}
    for path in sorted(old):
        with contextlib.suppress(pa.ArrowInvalid):
            if SCHEMA.metadata.items() <= (pq.read_schema(path).metadata or {}).items():
                continue
        raise FileExistsError(f"{path} is no shard of a sample corpus; give another folder, or move it away")
    return old


def _shard_counts(drawn: dict[str, list[_Document]], shards: int) -> dict[str, int]:
    """One shard for each source, and the rest to whichever has most bytes a shard; no more than documents."""
    size = {source: sum(len(d.text) for d in documents) for source, documents in drawn.items()}
    counts = dict.fromkeys(drawn, 1)
    for _ in range(min(shards, sum(map(len, drawn.values()))) - len(drawn)):
        room = [source for source in drawn if counts[source] < len(drawn[source])]
        counts[max(room, key=lambda source: size[source] / counts[source])] += 1
    return counts


def _write(path: Path, source: str, documents: list[_Document]) -> None:
    nbytes = np.array([len(d.text) for d in documents])
    nothing = [None] * len(documents)
    columns = {
        "text": pa.array([d.text for d in documents], pa.binary()).cast(pa.string()),
        **{name: [getattr(d, name) for d in documents] for name in ("id", "url", "file_path", "language")},
        "dump": ["machine"] * len(documents),
        "date": nothing,  # files do not say; a modification time would be that of the install
        "language_score": nothing,
        "token_count": nbytes // 4,
        "source": [source] * len(documents),
    }
    table = pa.table(columns, schema=SCHEMA)
    starts = np.unique((nbytes.cumsum() - nbytes) // GROUP_BYTES, return_index=True)[1].tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for start, end in itertools.pairwise([*starts, len(documents)]):
            writer.write_table(table.slice(start, end - start), row_group_size=len(documents))
    temporary.replace(path)
