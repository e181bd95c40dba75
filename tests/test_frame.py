"""The frame: light imports, the text of CONTRIBUTING.md, the command line without heavy packages."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scorers

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "numba", "apache_beam", "duckdb", "fasttext", "tokenizers")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"  # importing any of them raises ImportError


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_packages_import_without_heavy_ones() -> None:
    done = run_python(BLOCK + "import scorers, transforms; print(scorers.names())")
    assert done.returncode == 0, done.stderr
    assert "fineweb" in done.stdout


def test_help_works_without_heavy_packages() -> None:
    done = run_python(BLOCK + "sys.argv = ['corpusmill', '--help']\nfrom pipelines.cli import main; main()")
    assert done.returncode == 0, done.stderr
    for command in ("run", "score", "dedupe", "select", "mix", "train", "sql", "report", "sample-corpus"):
        assert command in done.stdout


def test_contributing_adds_a_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer and the test of CONTRIBUTING.md, as printed, in a folder of their own."""
    code, test = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    (tmp_path / "shouting.py").write_text(code)
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "shouting" in scorers.names()
    namespace: dict[str, object] = {}
    exec(compile(test, "CONTRIBUTING.md", "exec"), namespace)
    namespace["test_capitals_are_counted"]()  # type: ignore[operator]
    sys.modules.pop("scorers.shouting")


def test_every_command_takes_json_and_explains_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "absent.yaml"), "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 2
    assert "no recipe at" in done.stderr and "quickstart" in done.stderr
