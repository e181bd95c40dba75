"""Open a mixture folder: check its shards, tokenise them once, keep the tokens on disk for every run that follows.

`open_mixture` writes one flat token file and one Arrow table of documents into a cache folder named by the digests of
tokenizer and shards, so that runs with other seeds, and a killed run's second life, map the same files into memory.
Each document becomes its tokens and one end token; the file opens with an end token too. So the targets of a piece
[a, b) are `tokens[a:b]`, its inputs are `tokens[a - 1:b - 1]`, and every token of a text is predicted, the first one
from the end token before it: the loss of a document is minus the log-probability of all of it.

Cost: tokenising runs at about 2 MB/s per core, once; after that opening costs a digest of the shards (about 5 GB/s)
and 24 bytes of memory per document, whatever the length of the texts.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from trainers.tokenise import end_token, load_tokenizer, token_type, tokenise
from transforms.draws import mix64

log = logging.getLogger(__name__)

_FORMAT = "1"  # of the cache


@dataclass(frozen=True)
class Corpus:
    """A tokenised mixture. Arrays over documents follow the order of the manifest's files and their rows."""

    tokens: np.ndarray  # uint16 or uint32 [1 + tokens], mapped from disk; tokens[0] is an end token
    end: np.ndarray  # int64 [documents], place after the document's end token; it starts where the one before ends
    key: np.ndarray  # uint64 [documents], hash of draw, source, shard and row: the document's name for orders and draws
    copies: np.ndarray  # int64 [documents], how often one pass takes it
    source: np.ndarray  # int32 [documents], place in `sources`
    phase: np.ndarray  # int32 [sources]
    sources: list[str]
    documents: pa.Table  # id, source, shard, row, draw, tokens (without the end token), bytes
    tokenizer: Path  # folder
    end_token: int
    vocabulary: int  # number of token ids
    digest: str  # of the tokens and their order: what a resumed run must find again
    weights: np.ndarray | None = None  # float32 [1 + tokens], loss weight of each token as a target; None: ones

    def __len__(self) -> int:
        return len(self.end)

    @property
    def start(self) -> np.ndarray:
        """int64 [documents], place of the first token."""
        return np.concatenate([[1], self.end[:-1]])

    @property
    def length(self) -> np.ndarray:
        """int64 [documents], tokens with the end token."""
        return np.diff(self.end, prepend=1)

    def report(self) -> dict[str, dict[str, Any]]:
        """Per source: documents, tokens on disk (with end tokens), bytes, tokens and epochs of one pass."""
        bytes_ = self.documents["bytes"].to_numpy()
        report: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.sources):
            own = self.source == number
            tokens, taken = int(self.length[own].sum()), int((self.length * self.copies)[own].sum())
            report[name] = {"documents": int(own.sum()), "tokens": tokens, "bytes": int(bytes_[own].sum())}
            report[name] |= {"pass_tokens": taken, "epochs": taken / tokens, "phase": int(self.phase[number])}
        return report

    def names(self, documents: np.ndarray) -> list[str]:
        """`source/shard row N (id)` of each of the documents (int [n])."""
        rows = self.documents.take(pa.array(documents)).to_pylist()
        return [f"{r['source']}/{r['shard']} row {r['row']} ({r['id']})" for r in rows]


def open_mixture(folder: Path, cache: Path) -> Corpus:
    """Check and open the mixture in `folder` (docs/design.md, manifest), tokenising it into `cache` if not done yet.

    Raises ValueError naming the file with expected and found digest if a shard or the tokenizer changed or vanished,
    and for a mixture or a source without documents.
    """
    manifest = read_manifest(folder)
    tokenizer = folder / manifest["tokenizer"]["path"]
    _check(tokenizer / "tokenizer.json", manifest["tokenizer"]["digest"])
    files = [file for source in manifest["sources"].values() for file in source["files"]]
    for file in files:
        _check(folder / file["path"], file["digest"])
    names = [[name, *(f["digest"] for f in source["files"])] for name, source in manifest["sources"].items()]
    digest = _digest(_FORMAT, manifest["tokenizer"]["digest"], end_token(tokenizer), names)
    target = cache / f"tokens-{digest}"
    if not target.is_dir():
        _publish(lambda work: tokenise(folder, manifest, tokenizer, work), target)
    return _load(target, manifest, tokenizer, digest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a mixture folder. ValueError if there is none or nothing to train on in it or in a source."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no mixture: it has no manifest.json; make one with `corpusmill mix`")
    manifest = json.loads(path.read_text())
    if not manifest["sources"]:
        raise ValueError(f"{path} names no source; a mixture needs at least one")
    for name, source in manifest["sources"].items():
        if not source["files"] or source["documents"] == 0:
            raise ValueError(f"{path}: source {name!r} is empty; remove it from the mixture or relax its selection")
        if source["epochs"] <= 0:
            raise ValueError(f"{path}: source {name!r} has {source['epochs']} epochs, expected more than 0")
    return manifest


def file_digest(path: Path) -> str:
    """128-bit xxh3 digest of a file's bytes, hexadecimal."""
    state = xxhash.xxh3_128()
    with path.open("rb") as source:
        while block := source.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def take(tokens: np.ndarray, draw: np.ndarray, epochs: float) -> np.ndarray:
    """int64 [documents]: how often one pass takes each document of a source that it repeats `epochs` times.

    Everyone is taken floor(epochs) times. The rest of the tokens comes from the documents in order of `draw`
    (uint64 [documents]), each once more, until their `tokens` (int [documents]) reach the fraction.
    """
    whole = int(np.floor(epochs))
    copies = np.full(len(tokens), whole, np.int64)
    order = np.argsort(draw, kind="stable")
    before = np.cumsum(tokens[order]) - tokens[order]
    copies[order[before < np.rint((epochs - whole) * tokens.sum())]] += 1
    return copies


def _check(path: Path, expected: str) -> None:
    found = file_digest(path) if path.is_file() else "no file"
    if found != expected:
        raise ValueError(
            f"{path}: the manifest expects digest {expected}, found {found}; "
            "make the mixture anew with `corpusmill mix`"
        )


def _digest(*parts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _publish(write: Any, target: Path) -> None:
    """Let `write` fill a folder that appears whole or not at all; who comes second throws theirs away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(work)
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _load(cache: Path, manifest: dict[str, Any], tokenizer: Path, digest: str) -> Corpus:
    documents = pa.ipc.open_file(pa.memory_map(str(cache / "documents.arrow"))).read_all()
    sources = list(manifest["sources"])
    source = pc.index_in(documents["source"], pa.array(sources)).to_numpy().astype(np.int32)
    tokens, draw = documents["tokens"].to_numpy(), documents["draw"].to_numpy()
    key = _keys(documents)
    copies = np.zeros(len(documents), np.int64)
    for number, name in enumerate(sources):
        own = np.flatnonzero(source == number)
        if len(own) == 0:
            raise ValueError(f"{cache}: source {name!r} holds no documents, though the manifest says so; make it anew")
        own = own[np.argsort(key[own])]  # equal draws (equal ids) are settled by the key, not by the order of files
        copies[own] = take(tokens[own], draw[own], float(manifest["sources"][name]["epochs"]))
    loaded, end_token = load_tokenizer(tokenizer)
    vocabulary = loaded.get_vocab_size()
    phase = np.array([s.get("phase", 0) for s in manifest["sources"].values()], np.int32)
    identity = _digest(digest, [(s["epochs"], s.get("phase", 0)) for s in manifest["sources"].values()])
    return Corpus(
        tokens=np.memmap(cache / "tokens.bin", token_type(vocabulary), mode="r"),
        end=1 + np.cumsum(tokens + 1),
        key=key,
        copies=copies,
        source=source,
        phase=phase,
        sources=sources,
        documents=documents,
        tokenizer=tokenizer,
        end_token=end_token,
        vocabulary=vocabulary,
        digest=identity,
    )


def _keys(documents: pa.Table) -> np.ndarray:
    """uint64 [documents]: equal for equal draw, source, shard and row, whatever file the document lies in."""
    place = pc.binary_join_element_wise(documents["source"], documents["shard"], "\0").combine_chunks()
    named = place.dictionary_encode()
    hashes = [xxhash.xxh3_64_intdigest(name.encode()) for name in named.dictionary.to_pylist()]
    shard = np.array(hashes, np.uint64)[named.indices.to_numpy()]
    return mix64(mix64(shard ^ mix64(documents["row"].to_numpy())) ^ documents["draw"].to_numpy())
