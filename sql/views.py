"""A run folder as DuckDB views: documents, index, shards, ledger, mixture, mixtures, phases, training, heldout,
evaluation, losses.

Views are defined in the `.sql` files beside this module; here the paths of the run are put in. Only files of the
current recipe and shards are read. Joins stream: the text is never a side that is held in memory, and columns that a
query does not name are not read. What a run has not made yet has no view or no column.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sql.folder import Folder, QueryError, literal
from sql.operators import GUMBEL, group_key
from sql.repair import repaired
from transforms.conversations import is_conversation
from transforms.draws import below, draws, seeded

log = logging.getLogger("corpusmill")
MEMORY = "1GB"
BILLION = 1_000_000_000  # shares are exact to nine digits
OWN = (
    "source",
    "shard",
    "row",
    "id",
    "bytes",
    "characters",
    "draw",
    "holdout",
)  # as in a recipe, these hide a shard's own

SHARDS = pa.schema(
    {
        "number": pa.int64(),
        "source": pa.string(),
        "shard": pa.string(),
        "path": pa.string(),
        "bytes": pa.int64(),
        "rows": pa.int64(),
    }
    | {"row_groups": pa.int64(), "digest": pa.string(), "cause": pa.string()}
)
MIXTURES = pa.schema(
    {
        "mixture": pa.string(),
        "source": pa.string(),
        "weight": pa.float64(),
        "documents": pa.int64(),
        "tokens": pa.int64(),
    }
    | {
        "available": pa.int64(),
        "asked": pa.int64(),
        "realised": pa.int64(),  # what a pass of the trainer gives; null before it has begun
        "epochs": pa.float64(),
        "effective_tokens": pa.int64(),
        "marginal": pa.float64(),
        "mixture_digest": pa.string(),
    }
)
PHASES = pa.schema(
    {"mixture": pa.string(), "phase": pa.int64(), "source": pa.string(), "condition": pa.string()}
    | {"weight": pa.float64()}
    | dict.fromkeys(("available", "asked", "realised"), pa.int64())
    | {"epochs": pa.float64(), "effective_tokens": pa.int64()}
)
MEASURES = [f"{unit}{end}" for unit in ("nats_per_token", "bits_per_byte") for end in ("", "_low", "_high")]
EVALUATION = pa.schema(
    {
        "mixture": pa.string(),
        "seed": pa.int64(),
        "source": pa.string(),
        "documents": pa.int64(),
        "tokens": pa.int64(),
        "bytes": pa.int64(),
    }
    | dict.fromkeys(MEASURES, pa.float64())
)


def connect(run: str) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the views of a run; what does not fit 1 GB spills to a temporary folder.

    Raises:
        QueryError: there is no run in this folder, or its files cannot be read.
    """
    folder = Folder.open(run)
    spill = tempfile.mkdtemp(prefix="corpusmill-sql-")
    connection = duckdb.connect(
        config={"memory_limit": MEMORY, "temp_directory": spill, "autoinstall_known_extensions": False}
    )
    weakref.finalize(connection, shutil.rmtree, spill, ignore_errors=True)
    try:
        _views(connection, folder, Path(spill))
    except duckdb.Error as error:
        raise QueryError(f"{run}: {error}") from error
    return connection


def query(run: str, sql: str) -> pa.Table:
    """The result of one query on the views of a run.

    Raises:
        QueryError: as `connect`; or DuckDB refuses the query.
    """
    connection = connect(run)
    try:
        result = connection.sql(sql)
        return pa.table({}) if result is None else result.to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(str(error)) from error
    finally:
        connection.close()


def _views(connection: duckdb.DuckDBPyConnection, folder: Folder, spill: Path) -> None:
    _tables(connection, folder)
    if folder.splits:
        _execute(connection, "index", **folder.files("index"))
        _documents(connection, folder, spill)
    if folder.ledgers:
        _execute(connection, "ledger", files=literal(folder.ledgers))
    mixtures = [
        (name, [f"{folder.path}/mixtures/{name}/{f}" for f in files]) for name, files in _mixture_files(folder).items()
    ]
    parts = [
        _filled("mixture", mixture=literal(n), files=literal(f), union=literal(folder.union)) for n, f in mixtures if f
    ]
    _create_union(connection, "mixture", parts)
    files = {"training": "log.jsonl", "heldout": "heldout.jsonl", "losses": "evaluation.parquet"}
    for view, file in files.items():
        found = [(mixture, seed, path / file) for mixture, seed, path in folder.trainings()]
        held = [f for f in found if f[2].is_file() and f[2].stat().st_size]
        parts = [_filled(view, mixture=literal(m), seed=literal(s), file=literal(str(f))) for m, s, f in held]
        _create_union(connection, view, parts)


def _tables(connection: duckdb.DuckDBPyConnection, folder: Folder) -> None:
    """What is small and lies in JSON becomes tables: shards, mixtures, evaluation."""
    _create_table(connection, "shards", SHARDS, [_shard(n, s) for n, s in enumerate(folder.shards)])
    _mixtures(connection, folder)
    found = [(m, s, path / "evaluation.json") for m, s, path in folder.trainings()]
    rows = [
        row
        for mixture, seed, file in found
        if file.is_file()
        for row in _evaluations(mixture, seed, json.loads(file.read_text()))
    ]
    if rows:
        _create_table(connection, "evaluation", EVALUATION, rows)


def _mixtures(connection: duckdb.DuckDBPyConnection, folder: Folder) -> None:
    """The manifests as tables: mixtures by source, and phases by source, with what trainers were found to read."""
    whole, parts = [], []
    for name, manifest in folder.manifests().items():
        found = _realised(folder, name, manifest)
        for source, part in manifest["sources"].items():
            told = [phase[source] for phase in found if source in phase]
            known = {k: v for k, v in part.items() if k in MIXTURES.names}
            row = {"mixture": name, "source": source, "mixture_digest": manifest["digest"], **known}
            whole.append({**row, "realised": sum(told) if told else None})
        for k, phase in enumerate(manifest.get("phases", ())):
            for source, part in phase["sources"].items():
                row = {"mixture": name, "phase": k, "source": source, "condition": phase["where"], **part}
                parts.append({**row, "realised": found[k].get(source) if found else None})
    for table, schema, rows in (("mixtures", MIXTURES, whole), ("phases", PHASES, parts)):
        if rows:
            _create_table(connection, table, schema, rows)


def _realised(folder: Folder, mixture: str, manifest: Mapping[str, Any]) -> list[dict[str, int]]:
    """Tokens by source in each phase of a pass, of a trainer that was given this mixture; [] where none was."""
    asked = [{s: part["asked"] for s, part in phase["sources"].items()} for phase in manifest.get("phases", ())]
    for name, _, path in folder.trainings():
        if name == mixture and (path / "data.json").is_file():
            told = json.loads((path / "data.json").read_text()).get("phases", ())
            if [{s: part["asked"] for s, part in phase["sources"].items()} for phase in told] == asked:
                return [{s: part["tokens"] for s, part in phase["sources"].items()} for phase in told]
    return []


def _shard(number: int, shard: Mapping[str, Any]) -> dict[str, Any]:
    rows = [group[0] for group in shard["groups"]]
    return {
        "number": number,
        "shard": shard["name"],
        "bytes": shard["size"],
        "rows": sum(rows),
        "row_groups": len(rows),
    } | {k: shard[k] for k in ("source", "path", "digest", "cause")}


def _evaluations(mixture: str, seed: int, evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of one evaluation: every source, and all together with source NULL."""
    for source, entry in [(None, evaluation["overall"]), *evaluation["sources"].items()]:
        row = {
            "mixture": mixture,
            "seed": seed,
            "source": source,
            **{k: v for k, v in entry.items() if k in EVALUATION.names},
        }
        for unit in ("nats_per_token", "bits_per_byte"):
            row[f"{unit}_low"], row[f"{unit}_high"] = entry.get(f"{unit}_interval", (None, None))
        yield row


def _documents(connection: duckdb.DuckDBPyConnection, folder: Folder, spill: Path) -> None:
    columns = [f"i.{name}" for name in OWN[:6]]
    joins = []
    sidecars = [(column, folder.files(path)) for path, column in folder.sidecars if folder.has(path)]
    hidden = {*OWN, *(column for column, _ in sidecars)}
    raw = _readable(folder, spill)
    if raw:
        joins.append(
            _filled(
                "raw",
                numbers=f"({literal(list(raw))}::BIGINT[])",
                files=literal(list(raw.values())),
                union=literal(folder.union),
            )
        )
        names = dict.fromkeys(n for s in folder.shards if not s["cause"] for n, _ in s["columns"])
        columns += [_text(folder) if n == folder.text else f"raw.{_name(n)}" for n in names if n not in hidden]
    for k, (column, files) in enumerate(sidecars):
        joins.append(_filled("sidecar", column=_name(column), alias=f"sidecar{k}", **files))
        columns.append(f"sidecar{k}.{_name(column)}")
        if column == "selection":
            columns += [f"sidecar{k}.selection.{name} AS {name}" for name in ("draw", "holdout")]
    made = [column for column, _ in sidecars]
    if "selection" not in made:  # before it is there, conditions can be tried already
        columns += ["draw_of(i.id) AS draw", *_holdout(folder, made)]
    _functions(connection, folder)
    _execute(connection, "documents", columns=",\n    ".join(columns), joins="".join(joins))
    _operators(connection)


def _holdout(folder: Folder, made: list[str]) -> list[str]:
    """The column that tells who is held out, once the clusters that decide it are there."""
    clusters = (folder.recipe.get("holdout") or {}).get("clusters", "exact")
    if not folder.recipe.get("holdout"):
        return ["false AS holdout"]
    return [f"held_out(sidecar{made.index(clusters)}.{_name(clusters)}.cluster) AS holdout"] if clusters in made else []


def _functions(connection: duckdb.DuckDBPyConnection, folder: Folder) -> None:
    """`draw_of` an id and whether a cluster is `held_out`, by the arithmetic of a run."""
    seed, share = folder.recipe.get("seed", 0), (folder.recipe.get("holdout") or {}).get("share", 0.0)

    def draw_of(ids: pa.ChunkedArray) -> pa.Array:
        return pa.array(draws(seed, ids.combine_chunks()))

    def held_out(clusters: pa.ChunkedArray) -> pa.Array:
        return pa.array(below(seeded(seed, clusters.combine_chunks().to_numpy(zero_copy_only=False)), share))

    connection.create_function("draw_of", draw_of, ["VARCHAR"], "UBIGINT", type="arrow")
    connection.create_function("held_out", held_out, ["UBIGINT"], "BOOLEAN", type="arrow")


def _operators(connection: duckdb.DuckDBPyConnection) -> None:
    """quantile, top_k and gumbel_top_k as macros over `documents`, with the order and the arithmetic of a run."""
    group = group_key('"by"')
    value = "CAST(value AS DOUBLE)"
    noisy = f"(CASE WHEN temperature = 0 THEN {value} ELSE {value} / CAST(temperature AS DOUBLE) + {GUMBEL} END)"
    share = f"_before * {BILLION} < CAST(round(share * {BILLION}) AS HUGEINT) * _total"
    enough = f"CASE WHEN k IS NULL THEN {share} ELSE _before < CAST(ceil(CAST(k AS DOUBLE) * 65536) AS HUGEINT) END"
    top, noisy = f"(0.0 - {value})", f"(0.0 - {noisy})"
    _execute(
        connection,
        "operators",
        group=group,
        top=top,
        noisy=noisy,
        quantile_cuts=_filled("cuts", value=f"({value} + 0.0)", group=group, short=f"_before = 0 OR {share}"),
        top_cuts=_filled("cuts", value=top, group=group, short=enough),
        noisy_cuts=_filled("cuts", value=noisy, group=group, short=enough),
    )


def _text(folder: Folder) -> str:
    """The text as admitted: what is said in conversations (whose types stand in hexadecimal), binary columns decoded,
    NULs removed (invalid UTF-8 is repaired by `_readable`).
    """
    kinds = {kind for s in folder.shards if not s["cause"] for n, kind in s["columns"] if n == folder.text}
    column = f"raw.{_name(folder.text)}"
    if kinds and all(_of_conversations(kind) for kind in kinds):
        text = f"array_to_string([turn.content FOR turn IN {column}], chr(10) || chr(10))"
    else:
        text = f"decode({column}, 'replace')" if any("binary" in kind for kind in kinds) else column
    return f"CASE WHEN i.repaired LIKE '%nul' THEN replace({text}, chr(0), '') ELSE {text} END AS {_name(folder.text)}"


def _of_conversations(kind: str) -> bool:
    """Whether a type of shards.json, where nested ones are serialized schemas, is one of conversations."""
    try:
        return is_conversation(pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(kind))).field(0).type)
    except ValueError:  # a name
        return False


def _readable(folder: Folder, spill: Path) -> dict[int, str]:
    """Shard number -> path that DuckDB can read: a repaired copy where text is not UTF-8, which it refuses."""
    wanted = {s.number: folder.shards[s.number]["path"] for s in folder.splits}
    missing = [path for path in wanted.values() if "://" in path or not Path(path).is_file()]
    if missing:
        log.warning(
            "%s is not here: documents have no text and no columns of their shards. Start where the run was started.",
            missing[0],
        )
        return {}
    ledger = pq.read_table(
        folder.path / "ledger" / "index.parquet", columns=["source", "shard", "repaired"]
    ).to_pylist()
    broken = {(r["source"], r["shard"]) for r in ledger if any("invalid_utf8" in reason for reason, _ in r["repaired"])}
    return {
        n: repaired(p, folder.text, spill / f"{n}.parquet") if _place(folder.shards[n]) in broken else p
        for n, p in wanted.items()
    }


def _place(shard: Mapping[str, Any]) -> tuple[str, str]:
    return shard["source"], shard["name"]


def _mixture_files(folder: Folder) -> dict[str, list[str]]:
    return {
        n: [f["path"] for part in m["sources"].values() for f in part["files"]] for n, m in folder.manifests().items()
    }


def _create_table(
    connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]
) -> None:
    connection.register("rows_of_table", pa.Table.from_pylist(list(rows), schema))
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM rows_of_table")
    connection.unregister("rows_of_table")


def _create_union(connection: duckdb.DuckDBPyConnection, name: str, parts: Sequence[str]) -> None:
    if parts:
        connection.execute(f"CREATE VIEW {name} AS\n" + "UNION ALL BY NAME\n".join(parts))


def _execute(connection: duckdb.DuckDBPyConnection, template: str, **values: str) -> None:
    connection.execute(_filled(template, **values))


def _filled(template: str, **values: str) -> str:
    """The SQL file of this name with values put in; values are literals or quoted names, never bare text of a run."""
    return Template(resources.files(__package__).joinpath(f"{template}.sql").read_text()).substitute(values)


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
