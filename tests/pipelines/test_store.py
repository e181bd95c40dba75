"""Files of a run folder: whole or not there, whatever kills the writer; found current by their key."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import store
from pipelines.store import Sidecar, committed, write_sidecar

ROOT = Path(store.__file__).parents[1]
TABLE = pa.table({"row": [0, 1], "id": ["a", "b"], "x": [1.5, None]})


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60, **options
    )  # type: ignore[call-overload,no-any-return]


def test_a_sidecar_is_current_by_its_key_alone(tmp_path: Path) -> None:
    path = f"{tmp_path}/scores/x/s/a.parquet"
    assert committed(path, "k") is None
    write_sidecar(path, "k", TABLE, {"rows_in": 2, "detail": {"a": [1, 2**63]}})
    assert committed(path, "k") == {"rows_in": 2, "detail": {"a": [1, 2**63]}, "seconds": 0.0}
    assert committed(path, "other") is None
    assert store.read_table(path, ["id"]).column("id").to_pylist() == ["a", "b"]
    write_sidecar(path, "other", TABLE.slice(1), {})
    assert committed(path, "k") is None and committed(path, "other") == {"seconds": 0.0}
    assert files(tmp_path) == ["scores/x/s/a.parquet"]


@pytest.mark.parametrize("cut", [0, 3, 50, -1, -8])
def test_what_is_not_whole_is_not_read(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    write_sidecar(str(path), "k", TABLE, {})
    path.write_bytes(path.read_bytes()[:cut])
    assert committed(str(path), "k") is None


def test_a_file_of_someone_else_is_not_current(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    assert committed(f"{tmp_path}/a.parquet", "k") is None
    (tmp_path / "folder.parquet").mkdir()
    assert committed(f"{tmp_path}/folder.parquet", "k") is None


def test_commit_leaves_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    store.write_json(f"{tmp_path}/a.json", 1)
    with pytest.raises(ZeroDivisionError), store.commit(f"{tmp_path}/a.json") as sink:
        sink.write(b"half")
        _ = 1 / 0
    assert store.read_json(f"{tmp_path}/a.json") == 1 and files(tmp_path) == ["a.json"]
    assert store.read_json(f"{tmp_path}/none.json") is None


def test_abandon_leaves_nothing_and_may_come_twice(tmp_path: Path) -> None:
    for rows in (0, 1):
        sidecar = Sidecar(f"{tmp_path}/a.parquet", TABLE.schema, "k")
        for _ in range(rows):
            sidecar.write(TABLE.to_batches()[0])
        sidecar.abandon(ValueError("x"))
        sidecar.abandon(KeyboardInterrupt())
        assert files(tmp_path) == []
    sidecar = Sidecar(f"{tmp_path}/a.parquet", TABLE.schema, "k")
    sidecar.close({})
    sidecar.abandon(ValueError("too late"))
    assert files(tmp_path) == ["a.parquet"] and committed(f"{tmp_path}/a.parquet", "k") == {"seconds": 0.0}


def test_failures_of_the_writer_leave_nothing(tmp_path: Path) -> None:
    impossible = pa.schema([("x", pa.month_day_nano_interval())])
    with pytest.raises(pa.ArrowException):
        Sidecar(f"{tmp_path}/a.parquet", impossible, "k")
    sidecar = Sidecar(f"{tmp_path}/a.parquet", TABLE.schema, "k")
    with pytest.raises(TypeError):
        sidecar.close({"not JSON": object()})
    assert files(tmp_path) == []


@pytest.mark.parametrize("moment", ["before", "during", "footer", "rename"])
def test_killed_at_any_moment_nothing_is_read_as_whole(tmp_path: Path, moment: str) -> None:
    killed = python(f"""
        import os, signal, pathlib
        import pyarrow as pa
        from pipelines import store
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        table = pa.table({{"row": range(10_000), "id": [str(i) for i in range(10_000)]}})
        if {moment!r} == "rename":
            pathlib.Path.replace = die  # between the last byte and the new name
        if {moment!r} == "footer":
            store.os.fsync = die
        sidecar = store.Sidecar("{tmp_path}/run/a.parquet", table.schema, "k")
        if {moment!r} == "before": die()
        for batch in table.to_batches(): sidecar.write(batch)
        if {moment!r} == "during": die()
        sidecar.close({{}})
    """)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(files(tmp_path)) == 1 and files(tmp_path)[0].endswith(".tmp")
    assert committed(f"{tmp_path}/run/a.parquet", "k") is None
    assert store.remove_temporaries(f"{tmp_path}/run") == 1 and files(tmp_path) == []
    assert store.remove_temporaries(f"{tmp_path}/nowhere") == 0


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    full = python(
        f"""
        import os, signal
        import pyarrow as pa
        from pipelines import store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        noise = pa.table({{"x": [os.urandom(1000) for _ in range(500)]}})
        def sidecar(): store.write_sidecar("{tmp_path}/a.parquet", "k", noise, {{}})
        def words(): store.write_json("{tmp_path}/a.json", "x" * 300_000)
        for write in (sidecar, words):
            try:
                write()
            except OSError as error:
                print(error)
        store.write_json("{tmp_path}/small.json", 1)
        """,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert full.stdout.count("File too large") == 2, full.stdout + full.stderr
    assert full.returncode == 0 and "Exception ignored" not in full.stderr, full.stderr
    assert files(tmp_path) == ["small.json"]


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    held = store.lock(f"{tmp_path}/run")
    with pytest.raises(store.FolderError, match="another corpusmill process is at work"):
        store.lock(f"{tmp_path}/run")
    held.close()
    store.lock(f"{tmp_path}/run").close()
    assert store.lock("gs://bucket/run") is None
    (tmp_path / "file").write_text("")
    for bad in (f"{tmp_path}/file", f"{tmp_path}/file/run", "/proc/run"):
        with pytest.raises(store.FolderError, match=f"cannot write to the run folder {bad}") as error:
            store.lock(bad)
        assert error.value.exit_code == 2


def test_digests(tmp_path: Path) -> None:
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1}) != store.digest({"a": 1, "b": "2"})
    assert store.digest(["a", "b"]) != store.digest("a", "b") != store.digest("ab")
    assert store.digest("corpusmill", 1, None) == "5048117d0c762ec9a937e6fb11026f8f", (
        "keys of finished runs depend on it"
    )
    for name, content in (("m/model.bin", "x"), ("m/card.json", "y"), ("n/model.bin", "x"), ("n/card2.json", "y")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert store.folder_digest(f"{tmp_path}/m/model.bin") == store.file_digest(f"{tmp_path}/n/model.bin")
    before = store.folder_digest(f"{tmp_path}/m")
    assert before != store.folder_digest(f"{tmp_path}/n"), "names count"
    (tmp_path / "m" / "card.json").write_text("z")
    assert store.folder_digest(f"{tmp_path}/m") != before
    with pytest.raises(FileNotFoundError):
        store.folder_digest(f"{tmp_path}/none")


def test_json_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 2**64 - 1, float("inf"), -0.0, 5e-324]
    store.write_json(f"{tmp_path}/a.json", values)
    assert json.dumps(store.read_json(f"{tmp_path}/a.json")) == json.dumps(values)
    store.remove(f"{tmp_path}/a.json"), store.remove(f"{tmp_path}/a.json")
    assert files(tmp_path) == []


def test_files_of_other_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The road over Beam's file systems; the one it has for local files stands for the others."""
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    path = f"{tmp_path}/a.parquet"
    write_sidecar(path, "k", TABLE, {"n": 1})
    assert committed(path, "k") == {"n": 1, "seconds": 0.0} and store.read_table(path).num_rows == 2
    assert committed(f"{tmp_path}/none.parquet", "k") is None
    with pytest.raises(ZeroDivisionError), store.commit(f"{tmp_path}/b.json"):
        _ = 1 / 0
    assert files(tmp_path) == ["a.parquet"]


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.25), ("b", 9.5)):
        write_sidecar(f"{tmp_path}/{name}.parquet", "k", TABLE, {"rows_in": 2, "seconds": seconds})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
