"""Open a mixture folder: check its shards, tokenise them once, keep the tokens on disk for every run that follows.

`open_mixture` writes one flat token file and one Arrow table of documents into a cache folder named by the digests of
tokenizer and shards, so that runs with other seeds, and a killed run's second life, map the same files into memory.
Each document becomes its tokens and one end token; the file opens with an end token too. So the targets of a piece
[a, b) are `tokens[a:b]`, its inputs are `tokens[a - 1:b - 1]`, and every token of a text is predicted, the first one
from the end token before it: the loss of a document is minus the log-probability of all of it. Formats of supervised
fine-tuning (`trainers.formats`) weigh targets; conversations have `lead`: their first token is input alone.

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
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from trainers import token_weights
from trainers.formats import Format, Template
from trainers.phases import Documents, Phase, phases
from trainers.tokenise import end_token, load_tokenizer, token_type, tokenise, weight_type
from transforms.draws import mix64
from transforms.epochs import effective

log = logging.getLogger(__name__)

_FORMAT = "2"  # of the cache
_PLACE = {"source": pa.string(), "shard": pa.string(), "row": pa.int64(), "draw": pa.uint64(), "phases": pa.uint64()}


@dataclass(frozen=True)
class Corpus:
    """A tokenised mixture. Arrays over documents follow the order of the manifest's files and their rows."""

    tokens: np.ndarray  # uint16 or uint32 [1 + tokens], mapped from disk; tokens[0] is an end token
    end: np.ndarray  # int64 [documents], place after the document's last token; it starts where the one before ends
    key: np.ndarray  # uint64 [documents], hash of draw, source, shard and row: the document's name for orders and draws
    targets: np.ndarray  # int64 [documents], tokens with a weight above 0; documents without any are not taken
    source: np.ndarray  # int32 [documents], place in `sources`
    sources: list[str]
    phases: list[Phase]  # what one pass takes, in this order
    documents: pa.Table  # id, source, shard, row, draw, tokens (without the end token), bytes
    tokenizer: Path  # folder
    end_token: int
    vocabulary: int  # number of token ids
    digest: str  # of the tokens and their order: what a resumed run must find again
    weights: np.ndarray | None = None  # uint8 or float32 [1 + tokens], loss weight of each as a target; None: ones
    lead: int = 0  # tokens at the start of each document that are no targets: 1 for conversations
    long: Literal["split", "truncate", "drop"] = "split"  # documents longer than a row

    @property
    def conversations(self) -> bool:
        """Whether the documents were rendered by a chat template."""
        return self.lead == 1

    def __len__(self) -> int:
        return len(self.end)

    @property
    def start(self) -> np.ndarray:
        """int64 [documents], place of the first target."""
        return np.concatenate([[1], self.end[:-1]]) + self.lead

    @property
    def length(self) -> np.ndarray:
        """int64 [documents], targets of whatever weight; for text its tokens with the end token."""
        return np.diff(self.end, prepend=1) - self.lead

    @property
    def copies(self) -> np.ndarray:
        """int64 [documents], how often one pass takes each."""
        return np.sum([phase.copies for phase in self.phases], axis=0)

    def report(self) -> dict[str, dict[str, Any]]:
        """Per source: documents, tokens on disk (with end tokens), targets among them (of weight above 0), bytes;
        tokens and epochs of one pass, and how many new tokens those are worth (`transforms.epochs`), by how often each
        document is read.
        """
        bytes_, copies, length = self.documents["bytes"].to_numpy(), self.copies, self.length
        taken = copies * length
        for phase in self.phases:
            taken[phase.cut] -= length[phase.cut] - phase.kept
        report: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.sources):
            own = self.source == number
            tokens, pass_tokens = int(length[own].sum()), int(taken[own].sum())
            read, unique = (np.bincount(copies[own], values[own]) for values in (taken, length))
            worth = sum(effective(r, u) for r, u in zip(read.tolist(), unique.tolist(), strict=True))
            report[name] = {"documents": int(own.sum()), "tokens": tokens, "bytes": int(bytes_[own].sum())}
            report[name] |= {"targets": int(self.targets[own].sum())}
            report[name] |= {"pass_targets": int((copies * self.targets)[own].sum())}
            report[name] |= {"pass_tokens": pass_tokens, "epochs": pass_tokens / tokens, "effective_tokens": worth}
        return report

    def names(self, documents: np.ndarray) -> list[str]:
        """`source/shard row N (id)` of each of the documents (int [n])."""
        rows = self.documents.take(pa.array(documents)).to_pylist()
        return [f"{r['source']}/{r['shard']} row {r['row']} ({r['id']})" for r in rows]


def open_mixture(folder: Path, cache: Path, format: Format | None = None) -> Corpus:
    """Check and open the mixture in `folder` (docs/design.md, manifest), tokenising it into `cache` if not done yet.

    format: what documents become and what is learned of them; None: plain text, all of it.

    Raises ValueError naming the file with expected and found digest if a shard or the tokenizer changed or vanished,
    for a mixture or a source without documents or without anything to learn, and for what does not fit the format.
    """
    format = format or Format()
    manifest = read_manifest(folder)
    tokenizer = folder / manifest["tokenizer"]["path"]
    _check(tokenizer / "tokenizer.json", manifest["tokenizer"]["digest"])
    files = [file for source in manifest["sources"].values() for file in source["files"]]
    for file in files:
        _check(folder / file["path"], file["digest"])
    names = [[name, *(f["digest"] for f in source["files"])] for name, source in manifest["sources"].items()]
    digest = _digest(
        _FORMAT, manifest["tokenizer"]["digest"], end_token(tokenizer), names, _decisive(format, tokenizer)
    )
    target = cache / f"tokens-{digest}"
    if not target.is_dir():
        _publish(lambda work: tokenise(folder, manifest, tokenizer, work, format), target)
    return _load(target, folder, manifest, digest, format)


def _decisive(format: Format, tokenizer: Path) -> list[Any]:
    """What of a format decides tokens and weights: the template's text and the content of the weights count too."""
    template = Template(tokenizer, end_token(tokenizer)) if format.conversation else None
    weights = [file_digest(path) for path in token_weights.files(format.weights)] if format.weights else None
    fields = format.model_dump(mode="json", exclude={"long", "weights", "equal"})
    return [fields, template and [template.source, template.variables], weights]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a mixture folder. ValueError if there is none or nothing to train on in it or in a source."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no mixture: it has no manifest.json; make one with `corpusmill mix`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not {"digest", "tokenizer", "sources"} <= manifest.keys():
            raise ValueError("it lacks digest, tokenizer or sources")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no whole manifest ({error}); make it anew with `corpusmill mix`") from error
    if not manifest["sources"]:
        raise ValueError(f"{path} names no source; a mixture needs at least one")
    for name, source in manifest["sources"].items():
        if not source["files"] or source["documents"] == 0:
            raise ValueError(f"{path}: source {name!r} is empty; remove it from the mixture or relax its selection")
        if source["epochs"] <= 0:
            raise ValueError(f"{path}: source {name!r} has {source['epochs']} epochs, expected more than 0")
    for number, phase in enumerate(manifest.get("phases", ())):
        if unknown := phase["sources"].keys() - manifest["sources"].keys():
            raise ValueError(f"{path}: phase {number} names {', '.join(sorted(unknown))}, which is under no source")
    return manifest


def file_digest(path: Path) -> str:
    """128-bit xxh3 digest of a file's bytes, hexadecimal."""
    state = xxhash.xxh3_128()
    with path.open("rb") as source:
        while block := source.read(1 << 22):
            state.update(block)
    return state.hexdigest()


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


def _load(cache: Path, folder: Path, manifest: dict[str, Any], digest: str, format: Format) -> Corpus:
    documents = pa.ipc.open_file(pa.memory_map(str(cache / "documents.arrow"))).read_all()
    sources = list(manifest["sources"])
    source = pc.index_in(documents["source"], pa.array(sources)).to_numpy().astype(np.int32)
    tokens = documents["tokens"].to_numpy()
    key = _keys(documents)
    targets = tokens + 1 if format.plain else np.load(cache / "targets.npy")
    useful = np.flatnonzero(targets)
    for number, name in enumerate(sources):
        if not (source == number).any():
            raise ValueError(f"{cache}: source {name!r} holds no documents, though the manifest says so; make it anew")
        if not (source[useful] == number).any():
            raise ValueError(f"{folder}: no document of source {name!r} has anything to learn as {format.kind}")
    qualifies = _qualifies(folder, manifest, key)
    chosen = Documents(tokens[useful] + 1, documents["draw"].to_numpy()[useful], key[useful], source[useful], sources)
    asked = manifest if format.plain else _rescaled(manifest, chosen)
    taken = phases(asked, chosen, None if qualifies is None else qualifies[useful])
    lead = int(format.conversation)
    tokenizer = folder / manifest["tokenizer"]["path"]
    loaded, end_token = load_tokenizer(tokenizer)
    vocabulary = loaded.get_vocab_size()
    return Corpus(
        tokens=np.memmap(cache / "tokens.bin", token_type(vocabulary), mode="r"),
        end=1 + np.cumsum(tokens + 1 + lead),
        key=key,
        targets=targets,
        source=source,
        sources=sources,
        phases=[phase.among(useful, len(tokens)) for phase in taken],
        documents=documents,
        tokenizer=tokenizer,
        end_token=end_token,
        vocabulary=vocabulary,
        digest=_digest(digest, _order(manifest)),
        weights=None if format.plain else np.memmap(cache / "weights.bin", weight_type(format), mode="r"),
        lead=lead,
        long=format.of_long,
    )


def _rescaled(manifest: dict[str, Any], documents: Documents) -> dict[str, Any]:
    """The manifest, which counts tokens of texts, with phases in tokens of the documents as they are formatted."""
    if "phases" not in manifest:
        return manifest
    tokens = np.bincount(documents.source, documents.length)
    ratio = {name: tokens[i] / manifest["sources"][name]["tokens"] for i, name in enumerate(documents.names)}
    scaled = [
        {name: {"asked": round(part["asked"] * ratio[name])} for name, part in phase["sources"].items()}
        for phase in manifest["phases"]
    ]
    return manifest | {"phases": [{"sources": sources} for sources in scaled]}


def _order(manifest: dict[str, Any]) -> list[Any]:
    """What of a manifest decides which tokens are read, besides the shards."""
    if "phases" in manifest:
        return [[[name, part["asked"]] for name, part in phase["sources"].items()] for phase in manifest["phases"]]
    return [(source["epochs"], source.get("phase", 0)) for source in manifest["sources"].values()]


def _qualifies(folder: Path, manifest: dict[str, Any], key: np.ndarray) -> np.ndarray | None:
    """uint64 [documents], bit k is set where phase k may take the document; None where all may take all."""
    if len({phase.get("where") for phase in manifest.get("phases", ())}) < 2:
        return None
    files = [folder / file["path"] for source in manifest["sources"].values() for file in source["files"]]
    parts = [pq.read_table(file, columns=list(_PLACE), partitioning=None).select(list(_PLACE)) for file in files]
    table = pa.concat_tables([part.cast(pa.schema(_PLACE)) for part in parts])
    found = _keys(table)
    order = np.argsort(found)
    return table["phases"].to_numpy()[order[np.searchsorted(found, key, sorter=order)]]


def _keys(documents: pa.Table) -> np.ndarray:
    """uint64 [documents]: equal for equal draw, source, shard and row, whatever file the document lies in."""
    place = pc.binary_join_element_wise(documents["source"], documents["shard"], "\0").combine_chunks()
    named = place.dictionary_encode()
    hashes = [xxhash.xxh3_64_intdigest(name.encode()) for name in named.dictionary.to_pylist()]
    shard = np.array(hashes, np.uint64)[named.indices.to_numpy()]
    return mix64(mix64(shard ^ mix64(documents["row"].to_numpy())) ^ documents["draw"].to_numpy())
