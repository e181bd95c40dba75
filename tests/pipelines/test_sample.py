"""Samples: drawn by (seed, id) to a budget, from documents that qualify and are not held out, in one order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_select import indexed

from pipelines.sample import Sample, SampleError, draw
from pipelines.tables import Tables
from transforms.draws import draws

TEXTS = {f"id {i}": f"text of {i} " * (1 + i % 7) for i in range(300)}


@pytest.fixture
def corpora(tmp_path: Path) -> list[tuple[Any, Tables, Any]]:
    """The same documents in two shards, and in five in another order."""
    made = []
    for pieces in (2, 5):
        folder = tmp_path / str(pieces)
        folder.mkdir()
        items = list(TEXTS.items())[:: 1 if pieces == 2 else -1]
        for k in range(pieces):
            part = items[k::pieces]
            table = pa.table(
                {"body": [t for _, t in part], "id": [i for i, _ in part], "n": [int(i[3:]) for i, _ in part]}
            )
            pq.write_table(table.append_column("text", table["body"]), folder / f"{k}.parquet", row_group_size=13)
        made.append(indexed(f"{folder}/run", folder))
    return made


def test_a_sample_is_the_first_documents_by_draw(corpora: Any) -> None:
    drawn = dict(zip(TEXTS, draws(0, pa.array(list(TEXTS))).tolist(), strict=True))
    first = sorted((d, i) for i, d in drawn.items() if int(i[3:]) >= 100)
    for context, tables, splits in corpora:
        table = draw(context, tables, splits, Sample("s", "n >= 100", total=50), 300)
        assert table.column_names == ["row", "id", "draw", "text"]
        assert list(zip(table["draw"].to_pylist(), table["id"].to_pylist(), strict=True)) == first[:50]
        assert table["text"].to_pylist() == [TEXTS[i] for _, i in first[:50]]
        size = draw(context, tables, splits, Sample("b", weight="bytes", total=5000), 300)
        total = sum(map(len, size["text"].to_pylist()))
        assert total - len(size["text"].to_pylist()[-1]) < 5000 <= total
        assert draw(context, tables, splits, Sample("all", total=10_000), 300).num_rows == 300


def test_documents_of_one_id_come_in_the_order_of_their_texts(tmp_path: Path) -> None:
    texts = [f"{i}" for i in range(20)]
    found = []
    for name, order in (("x", texts), ("y", texts[::-1])):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"id": ["same"] * 20, "text": order}), tmp_path / name / "a.parquet")
        context, tables, splits = indexed(f"{tmp_path}/{name}/run", tmp_path / name)
        found.append(draw(context, tables, splits, Sample("s", total=3), 20)["text"].to_pylist())
    assert found[0] == found[1] == sorted(texts)


def test_no_document_is_said_so(corpora: Any) -> None:
    context, tables, splits = corpora[0]
    with pytest.raises(SampleError, match=r"sample 's': no document satisfies .*n > 999") as error:
        draw(context, tables, splits, Sample("s", "n > 999"), 300)
    assert error.value.exit_code == 2


def test_text_may_have_another_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    context, tables, splits = indexed(f"{tmp_path}/run", tmp_path)
    assert set(draw(context, tables, splits, Sample("s"), 2)["text"].to_pylist()) == {"a", "b"}
