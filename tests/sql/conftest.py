"""A run made by the real pipeline on toy shards with planted trouble: null and empty texts, NULs, invalid UTF-8."""

from pathlib import Path

import pytest
from toy_run import recipe, text, write

from pipelines import shards
from pipelines.run import run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("it's a corpus")
    write(
        folder / "books" / "0.parquet",
        [text(k) for k in range(60)],
        id=[f"b{k}" for k in range(60)],
        row=list(range(60)),
    )
    odd = [None, "", "  \n", b"broken \xff byte, and enough more of it to be kept by the rules.", "with a \0 in it"]
    write(folder / "web" / "a" / "1.parquet", odd + [text(k) for k in range(100, 120)])
    write(folder / "web" / "1.parquet", [text(k) for k in range(200, 230)], url=[f"u{k}" for k in range(30)])
    (folder / "web" / "2.parquet").write_bytes(b"PAR1 this is none")
    return folder


@pytest.fixture(scope="session")
def toy(corpus: Path) -> Path:
    """The run folder, finished up to its mixtures. Shards of more than one row group are several splits."""
    folder = corpus / "run [1]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SPLIT_BYTES", 2000)
        sources = {"books": f"{corpus}/books/*.parquet", "web": f"{corpus}/web/**/*.parquet"}
        run(recipe(corpus, sources=sources, quarantine=1.0), str(folder), until="mix")
    return folder
