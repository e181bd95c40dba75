"""Views over a run of the real pipeline: they count what the ledger counts, and conditions mean the same."""

import gc
import json
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_run import recipe, text, write

from pipelines.recipe import parse
from pipelines.run import run
from sql.views import QueryError, connect, query


def rows(folder: Path, sql: str) -> list:
    return [tuple(row.values()) for row in query(str(folder), sql).to_pylist()]


def test_counts_are_those_of_the_ledger(toy):
    ledger = {
        step: (came, went)
        for step, came, went in rows(toy, 'SELECT step, sum("in")::INT, sum("out")::INT FROM ledger GROUP BY step')
    }
    assert rows(toy, "SELECT count(*) FROM index") == [(ledger["index"][0],)] == [(115,)]
    assert rows(toy, "SELECT count(*) FROM documents") == [(ledger["index"][1],)] == [(112,)]
    assert rows(toy, "SELECT count(*) FROM documents WHERE selection.keep") == [(ledger["select"][1],)]
    assert rows(toy, "SELECT count(*) FROM documents WHERE fineweb IS NULL OR exact IS NULL OR tokens IS NULL") == [
        (0,)
    ]
    for name in ("curated", "all"):
        assert rows(toy, f"SELECT count(*) FROM mixture WHERE mixture = '{name}'") == [(ledger[f"mix:{name}"][1],)]
        assert rows(toy, f"SELECT sum(documents)::INT FROM mixtures WHERE mixture = '{name}'") == [
            (ledger[f"mix:{name}"][1],)
        ]
    dropped = "SELECT unnest(map_entries(dropped), recursive := true) FROM ledger WHERE step = 'select'"
    reasons = rows(toy, f"SELECT key, sum(value)::INT FROM ({dropped}) GROUP BY key ORDER BY key")
    assert reasons == rows(
        toy, "SELECT selection.reason AS r, count(*)::INT FROM documents WHERE r IS NOT NULL GROUP BY r ORDER BY r"
    )
    assert rows(
        toy, "SELECT status, count(*)::INT FROM index WHERE status <> 'ok' GROUP BY status ORDER BY status"
    ) == [
        ("blank", 1),
        ("empty", 1),
        ("null", 1),
    ]


def test_rows_of_several_splits_meet_their_own_text(toy):
    assert len(list((toy / "index" / "books").glob("0.*.parquet"))) > 1, "the fixture must have several splits"
    found = rows(toy, "SELECT row, id, text, source, shard FROM documents WHERE shard = '0' ORDER BY row")
    assert found == [(k, f"b{k}", text(k), "books", "0") for k in range(60)]
    assert rows(toy, "SELECT DISTINCT url IS NULL, shard FROM documents ORDER BY shard") == [
        (True, "0"),
        (False, "1"),
        (True, "a/1"),
    ]
    assert rows(toy, "SELECT count(*) FROM documents WHERE characters <> length(text) OR bytes <> strlen(text)") == [
        (0,)
    ]


def test_text_is_the_admitted_one(toy):
    assert rows(toy, "SELECT text FROM documents WHERE shard = 'a/1' AND row = 3") == [
        ("broken \ufffd byte, and enough more of it to be kept by the rules.",)
    ]
    assert rows(toy, "SELECT text FROM documents WHERE shard = 'a/1' AND row = 4") == [("with a  in it",)]
    assert rows(toy, "SELECT repaired FROM index WHERE shard = 'a/1' AND row IN (3, 4) ORDER BY row") == [
        ("invalid_utf8",),
        ("nul",),
    ]


def test_conditions_mean_what_they_mean_in_a_recipe(toy, corpus):
    conditions = recipe(corpus).select
    cases = " ".join(f"WHEN NOT coalesce({condition}, false) THEN '{name}'" for name, condition in conditions.items())
    found = rows(
        toy, f"SELECT CASE {cases} END AS tried, selection.reason AS done, count(*)::INT FROM documents GROUP BY ALL"
    )
    assert all(tried == done for tried, done, _ in found)
    assert {tried for tried, _, _ in found} == {None, *conditions}


def test_quantile_is_over_all_documents(toy):
    (everywhere,) = rows(toy, "SELECT DISTINCT quantile(characters, 0.5) FROM documents")
    assert rows(toy, "SELECT DISTINCT quantile(characters, 0.5) FROM documents WHERE characters < 100") == [everywhere]
    assert rows(toy, "SELECT quantile_disc(characters, 0.5) FROM documents") == [everywhere]


def test_draws_before_the_selection_are_those_after_it(toy, tmp_path):
    after = rows(toy, "SELECT id, draw FROM documents ORDER BY id")
    copy = tmp_path / "run"
    shutil.copytree(toy, copy)
    shutil.rmtree(copy / "selection")
    assert rows(copy, "SELECT id, draw FROM documents ORDER BY id") == after
    assert rows(copy, "SELECT count(*) FROM documents WHERE holdout") == [(0,)], "the recipe holds none out"
    query = "SELECT id FROM documents WHERE top_k(fineweb.line_punct_ratio, 9, by := source) ORDER BY id"
    assert rows(copy, query) == rows(toy, query)
    assert len(rows(toy, query)) == 18


def test_text_is_not_read_unless_named(toy):
    connection = connect(str(toy))
    plan = connection.execute("EXPLAIN SELECT avg(fineweb.list_ratio) FROM documents WHERE exact.keep").fetchall()[0][1]
    assert "list_ratio" in plan
    assert "text" not in plan.replace("context", "")
    assert "text" in connection.execute("EXPLAIN SELECT max(text) FROM documents").fetchall()[0][1]


def test_shards_tell_what_was_quarantined(toy):
    ((path, cause),) = rows(toy, "SELECT path, cause FROM shards WHERE cause IS NOT NULL")
    assert path.endswith("web/2.parquet")
    assert "Arrow" in cause


def test_sidecar_of_other_documents_is_not_joined(toy, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(toy, copy)
    file = copy / "scores" / "fineweb" / "web" / "1.parquet"
    file = file if file.exists() else next((copy / "scores" / "fineweb" / "web").glob("1.*.parquet"))
    table = pq.read_table(file)
    strange = pa.array([f"strange {k}" for k in range(len(table))], pa.large_string())
    pq.write_table(table.set_column(1, "id", strange), file)
    assert rows(copy, "SELECT count(*) FROM documents WHERE fineweb IS NULL") == [(len(table),)]
    assert rows(copy, "SELECT count(*) FROM documents") == [(112,)]


def test_only_the_current_recipe_and_shards_appear(tmp_path):
    for name in ("0", "1"):
        write(tmp_path / "books" / f"{name}.parquet", [text(k) for k in range(30)])
    sources = {"books": f"{tmp_path}/books/*.parquet"}
    plain = {"name": "r", "sources": sources, "score": {"fineweb": {}, "gopher_quality": {}}, "dedupe": {"exact": {}}}
    folder = str(tmp_path / "run")
    run(parse(plain), folder, until="dedupe")
    assert "gopher_quality" in query(folder, "FROM documents LIMIT 0").column_names
    (tmp_path / "books" / "1.parquet").unlink()
    run(parse({**plain, "score": {"fineweb": {}}}), folder, until="score")
    found = query(folder, "FROM documents")
    assert found.num_rows == 30
    assert found.column_names[-3:] == ["fineweb", "draw", "holdout"], "what is a duplicate has to be decided again"
    assert {step for (step,) in rows(Path(folder), "SELECT step FROM ledger")} >= {"index", "scores:fineweb"}
    assert rows(Path(folder), "SELECT count(*) FROM ledger WHERE step LIKE '%gopher%'") == [(0,)]


def test_an_edited_recipe_hides_what_it_has_not_made_again(tmp_path):
    for source in ("books", "web"):
        write(tmp_path / source / "0.parquet", [text(k) for k in range(30)])
    folder = str(tmp_path / "run")
    run(recipe(tmp_path), folder, until="mix")
    assert {"fineweb", "exact", "tokens", "selection"} <= set(query(folder, "FROM documents").column_names)
    run(recipe(tmp_path, score={"fineweb": {}, "gopher_quality": {}}), folder, until="score")
    assert "selection" in query(folder, "FROM documents").column_names, "one more scorer changes nothing that is there"
    run(recipe(tmp_path, admission={"nul": "drop"}), folder, until="score")
    found = set(query(folder, "FROM documents").column_names)
    assert "fineweb" in found and not found & {"exact", "tokens", "selection"}


def test_who_is_held_out_is_known_before_the_selection(tmp_path):
    for source in ("books", "web"):
        write(tmp_path / source / "0.parquet", [text(k) for k in range(60)])
    folder = str(tmp_path / "run")
    run(recipe(tmp_path, holdout={"share": 0.3}), folder, until="select")
    held = "SELECT source, row FROM documents WHERE holdout ORDER BY ALL"
    after = rows(Path(folder), held)
    shutil.rmtree(Path(folder) / "selection")
    assert 0 < len(after) < 120 and rows(Path(folder), held) == after


def test_documents_held_out_by_another_recipe_are_no_mixture(toy, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(toy, copy)
    shutil.copytree(copy / "mixtures" / "curated", copy / "mixtures" / "heldout")
    assert rows(copy, "SELECT count(*) FROM mixtures WHERE mixture = 'heldout'") == [(0,)]
    held = (copy / "recipe.yaml").read_text().replace("holdout: null", "holdout: {share: 0.1}")
    (copy / "recipe.yaml").write_text(held)
    assert rows(copy, "SELECT count(*) > 0 FROM mixtures WHERE mixture = 'heldout'") == [(True,)]


def test_what_is_not_there_yet_has_no_view(tmp_path):
    write(tmp_path / "books" / "0.parquet", [text(k) for k in range(20)])
    folder = str(tmp_path / "run")
    run(
        parse({"name": "r", "sources": {"books": f"{tmp_path}/books/*.parquet"}, "score": {"fineweb": {}}}),
        folder,
        until="score",
    )
    assert query(folder, "SELECT fineweb.passed FROM documents").num_rows == 20
    with pytest.raises(QueryError, match="mixture"):
        query(folder, "FROM mixture")
    shutil.rmtree(Path(folder) / "scores")
    assert "fineweb" not in query(folder, "FROM documents").column_names
    shutil.rmtree(tmp_path / "books")
    assert query(folder, "FROM documents").column_names == [
        *("source", "shard", "row", "id", "bytes", "characters", "draw", "holdout")
    ]


def test_mistakes_are_told(toy, tmp_path):
    with pytest.raises(QueryError, match="not a run folder"):
        connect(str(tmp_path))
    with pytest.raises(QueryError, match="line_punct_ratio") as caught:
        query(str(toy), "SELECT fineweb.line_punkt_ratio FROM documents")
    assert caught.value.exit_code == 2
    assert query(str(toy), "CREATE TABLE t AS SELECT 1").num_rows <= 1


def test_nothing_is_left_behind(toy):
    before = {p: p.stat().st_mtime_ns for p in toy.rglob("*")}
    connection = connect(str(toy))
    spill = Path(connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0])
    assert spill.is_dir()
    connection.execute("SELECT count(text) FROM documents").fetchall()
    connection.close()
    del connection
    gc.collect()
    assert not spill.exists()
    assert {p: p.stat().st_mtime_ns for p in toy.rglob("*")} == before


def test_training_as_the_trainer_writes_it(toy, tmp_path):
    """log.jsonl may end within a line, for the trainer may be writing it."""
    copy = tmp_path / "run"
    shutil.copytree(toy, copy)
    written = (
        (copy / "recipe.yaml")
        .read_text()
        .replace("train: null", "train: {mixtures: [curated], seeds: [0, 1], config: {}}")
    )
    (copy / "recipe.yaml").write_text(written)
    for seed in (0, 1, 2):
        folder = copy / "training" / "curated" / f"seed{seed}"
        folder.mkdir(parents=True)
        lines = [
            json.dumps({"step": k, "tokens": 10 * k, "loss": 5 - k / 10, "lr": 1e-3, "grad_norm": 1.0})
            for k in (1, 2, 3)
        ]
        (folder / "log.jsonl").write_text("\n".join(lines) + ('\n{"step": 4, "tok' if seed else "\n"))
    assert rows(
        copy, "SELECT mixture, seed, count(*)::INT, max(tokens)::INT FROM training GROUP BY ALL ORDER BY seed"
    ) == [
        ("curated", 0, 3, 30),
        ("curated", 1, 3, 30),
    ]
    with pytest.raises(duckdb.Error):
        connect(str(copy)).execute("FROM evaluation")
