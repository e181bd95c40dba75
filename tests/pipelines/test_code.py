"""The digest of code changes with code, of a module or of what it imports, and not with words about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import code

ENGINE = '''
"""What it does."""
from __future__ import annotations
import numpy as np
import {package}.kernel
from {package} import constants
LIMIT = 3  # of something

def step(x):
    """Adds."""
    return x + LIMIT

class Step:
    """Holds."""
    def run(self):
        """Runs."""
'''
KERNEL = "def late():\n    from {package}.deep.inner import f\n    return f\n"
RELATIVE = "from . import constants\nfrom .kernel import late\n"


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Digest of `toycode.engine` after some of its files were rewritten."""
    package = tmp_path / "toycode"
    files = {"engine": ENGINE, "kernel": KERNEL, "constants": "A = 1\n", "deep/inner": "f = 1\n", "other": "x = 1\n"}
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(code, "OURS", (*code.OURS, "toycode"))

    def made(module: str = "toycode.engine", **changes: str) -> str:
        for name, content in {**files, **{k.replace("__", "/"): v for k, v in changes.items()}}.items():
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(content.replace("{package}", "toycode"))
        for name in [m for m in sys.modules if m.startswith("toycode")]:
            del sys.modules[name]
        code.code_digest.cache_clear()
        return code.code_digest(module)

    yield made
    code.code_digest.cache_clear()


def test_words_about_code_do_not_count(digest: Callable[..., str]) -> None:
    before = digest()
    reworded = (
        ENGINE.replace("What it does", "Something else").replace('    """Adds."""\n', "").replace("Runs", "Walks")
    )
    assert digest(engine=reworded.replace("# of something", "# note\n\n")) == before
    assert digest(kernel='"""Now described."""\n# and noted\n' + KERNEL) == before


@pytest.mark.parametrize(
    "change",
    [
        {"engine": ENGINE.replace("LIMIT = 3", "LIMIT = 4")},
        {"engine": ENGINE.replace("x + LIMIT", "LIMIT + x")},
        {"constants": "A = 2\n"},
        {"kernel": KERNEL + "B = 1\n"},
        {"deep__inner": "f = 2\n"},
    ],
)
def test_code_counts_wherever_it_is_imported_from(digest: Callable[..., str], change: dict[str, str]) -> None:
    before = digest()
    assert digest(**change) != before
    assert digest() == before


def test_relative_imports_are_followed(digest: Callable[..., str]) -> None:
    before = digest(engine=RELATIVE)
    assert digest(engine=RELATIVE, deep__inner="f = 2\n") != before
    assert digest(engine=RELATIVE, constants="A = 2\n") != before


def test_code_that_is_not_imported_does_not_count(digest: Callable[..., str]) -> None:
    before = digest()
    assert digest(other="x = 2\n") == before
    assert digest("toycode.other") != before


def test_imports_in_a_circle_end(digest: Callable[..., str]) -> None:
    assert digest(constants="from toycode import engine\nA = 1\n") != digest()


def test_a_scorer_depends_on_its_kernels_and_on_no_graph() -> None:
    """What must be computed again after an edit: nothing of `pipelines` may stand between a scorer and its key."""
    seen: set[str] = set()
    todo = ["scorers.fineweb"]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += code._imports(code.ast.parse(code._source(module)), module)
    assert {"scorers.fineweb", "transforms.batch", "transforms.text"} <= seen
    assert not [module for module in seen if module.startswith("pipelines")]


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(ModuleNotFoundError):
        code.code_digest("pipelines.no_such_module")
