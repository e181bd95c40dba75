"""The toy corpus and the models that scorers need, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from toy_corpus import Toy, build_toy

settings.register_profile("corpusmill", deadline=None)  # kernels compile on their first call
settings.load_profile("corpusmill")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return build_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_texts(toy: Toy) -> dict[str, list[str]]:
    """Admitted texts by source."""
    found = {}
    for source in toy.documents:
        files = sorted((toy.folder / source).rglob("*.parquet"))
        texts = [t for file in files for t in pq.read_table(file, columns=["text"]).column("text").to_pylist()]
        found[source] = [t for t in texts if t and t.strip()]
    return found


@pytest.fixture(scope="session")
def toy_tokenizer(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte-level BPE tokenizer of 400 tokens."""
    from trainers.fit_tokenizer import fit_tokenizer

    return fit_tokenizer(toy_texts["books"], tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture(scope="session")
def toy_fasttext(toy_texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fastText classifier of prose against menus."""
    from trainers.fit_fasttext import FastTextParameters, fit_fasttext

    out = tmp_path_factory.mktemp("fasttext")
    fit_fasttext(toy_texts["books"], toy_texts["junk"], out, FastTextParameters(bucket=1000, dim=8, epoch=20))
    return out


@pytest.fixture
def recipe_of(toy_tokenizer: Path) -> Callable[..., dict[str, Any]]:
    """A small recipe over the sources given: one scorer, a mixture of all documents."""

    def made(sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
        base = {"name": "test", "sources": sources, "score": {"fineweb": {}}, "tokenizer": str(toy_tokenizer)}
        return {**base, "mix": {"all": {"where": "true"}}, **changes}

    return made
