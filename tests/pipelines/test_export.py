"""Export: the selected documents and no others, with all their columns, as shards that other tools read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


def invoke(*arguments: str) -> dict:
    command = [sys.executable, "-m", "pipelines.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_selected_documents_with_their_columns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    long = "one and the same text of more than just a few words"
    texts = [
        [long, "another one, short", "nul\0byte in a text that is long enough"],
        [long + "!", None, " "],
        ["short"],
    ]
    for k, some in enumerate(texts):
        table = pa.table({"text": pa.array(some, pa.string()), "url": [f"u{k}{i}" for i in range(len(some))]})
        pq.write_table(table, tmp_path / "in" / f"{k}.parquet", row_group_size=2)
    recipe = {"name": "x", "sources": {"web": f"{tmp_path}/in/*.parquet"}, "dedupe": {"minhash": {}}}
    recipe["select"] = {"unique": "minhash.keep", "long": "characters > 20"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, out = str(tmp_path / "run"), tmp_path / "out"
    made = invoke("export", str(tmp_path / "recipe.yaml"), "--run", run, "--out", str(out))
    assert (made["export"]["in"], made["export"]["out"]) == (5, 2)
    files = sorted((out / "web").rglob("*.parquet"))
    assert len(files) == 3
    tables = [pq.ParquetFile(path).read() for path in files]
    rows = sorted((r["url"], r["text"]) for t in tables for r in t.to_pylist())
    assert rows == [("u02", "nulbyte in a text that is long enough"), ("u10", long + "!")]
    assert all({"id", "text"} <= set(t.column_names) for t in tables)

    files[0].unlink()
    again = invoke("export", run, "--out", str(out))
    assert (again["export"]["reused"], again["ledger"]["dedupe:minhash"]["reused"]) == (2, 3)
    assert pq.ParquetFile(files[0]).read().equals(tables[0])
