"""A mixture folder made from toy text, as docs/design.md describes it: the contract between `mix` and the trainer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
WORDS = [
    "the",
    "a",
    "one",
    "red",
    "blue",
    "old",
    "new",
    "cat",
    "dog",
    "tree",
    "stone",
    "river",
    "sees",
    "takes",
    "finds",
    "wants",
    "keeps",
    "and",
    "then",
    "near",
    "under",
]


def toy_text(generator: np.random.Generator, documents: int, mean: float = 30) -> list[str]:
    """Documents of a few words each; lengths are log-normal, so some are long."""
    sizes = np.maximum(1, generator.lognormal(np.log(mean), 0.8, documents)).astype(int)
    return [" ".join(generator.choice(WORDS, size)) + "." for size in sizes]


def make_tokenizer(folder: Path, texts: list[str], vocabulary: int = 300, special: tuple[str, ...] = ()) -> Path:
    """Byte-level BPE trained on the texts, with the end token and other special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_mixture(
    folder: Path,
    sources: dict[str, list[str]],
    tokenizer: Path,
    epochs: dict[str, float] | None = None,
    phases: dict[str, int] | None = None,
    files: int = 1,
    columns: dict[str, dict[str, list]] | None = None,
) -> Path:
    """Mixture folder with the sources' texts, each in `files` files; `columns`: more of a source's shards."""
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    entries = {}
    for name, texts in sources.items():
        rows = np.arange(len(texts))
        tokens = np.array([len(e.ids) for e in encode.encode_batch(texts)], np.int64)
        table = pa.table(
            {
                "id": [f"{name}-{row}" for row in rows],
                "text": texts,
                "source": [name] * len(texts),
                "shard": ["00000"] * len(texts),
                "row": rows,
                "tokens": tokens,
                "draw": np.array([xxhash.xxh3_64_intdigest(f"{name}-{row}".encode()) for row in rows], np.uint64),
                **(columns or {}).get(name, {}),
            }
        )
        listed = []
        for number, part in enumerate(np.array_split(rows, files)):
            path = folder / name / f"{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.take(pa.array(part)), path)
            digest = xxhash.xxh3_128_hexdigest(path.read_bytes())
            listed.append(
                {
                    "path": f"{name}/{path.name}",
                    "documents": len(part),
                    "tokens": int(tokens[part].sum()),
                    "digest": digest,
                }
            )
        times = (epochs or {}).get(name, 1.0)
        entries[name] = {
            "weight": 1 / len(sources),
            "documents": len(texts),
            "tokens": int(tokens.sum()),
            "asked": round(times * int(tokens.sum())),
            "epochs": times,
            "phase": (phases or {}).get(name, 0),
            "files": listed,
        }
    digest = xxhash.xxh3_128_hexdigest((tokenizer / "tokenizer.json").read_bytes())
    relative = Path("..") / tokenizer.relative_to(folder.parent)
    manifest = {
        "name": folder.name,
        "seed": 0,
        "digest": xxhash.xxh3_128_hexdigest(json.dumps(entries).encode()),
        "recipe": "",
        "tokenizer": {"path": str(relative), "digest": digest},
        "sources": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `mixture` (sources small and large) and `heldout`."""
    root = tmp_path_factory.mktemp("toy")
    generator = np.random.default_rng(0)
    texts = {"small": toy_text(generator, 60), "large": toy_text(generator, 200, 50)}
    tokenizer = make_tokenizer(root / "tokenizer", [t for source in texts.values() for t in source])
    make_mixture(root / "mixture", texts, tokenizer, epochs={"small": 2.5})
    make_mixture(root / "heldout", {"small": toy_text(generator, 30), "large": toy_text(generator, 20)}, tokenizer)
    return root
