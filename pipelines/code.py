"""Digest of the code behind a step, so that an edited step is computed again and a reworded comment is not."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from pipelines import store

OURS = ("transforms", "scorers", "trainers", "pipelines", "sql")


@cache
def code_digest(module: str) -> str:
    """Digest of a module's syntax tree, and of our modules it imports, without comments and docstrings."""
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        tree = ast.parse(_source(name))
        todo += _imports(tree, name)
        seen[name] = store.digest(ast.dump(_without_docstrings(tree)))
    return store.digest(sorted(seen.items()))


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(tree: ast.AST, module: str) -> list[str]:
    """Our modules that a module imports, wherever in its text. `__init__` files hold no arithmetic and are left out."""
    package = module.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.split(".")[0] in OURS and "." in name and _is_module(name)]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
