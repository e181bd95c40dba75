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
        seen[name], imported = _parsed(_source(name), name)
        todo += imported
    return store.digest(sorted(seen.items()))


@cache
def _parsed(text: str, module: str) -> tuple[str, list[str]]:
    """Digest of a module's syntax tree without docstrings, and our modules that it imports."""
    tree = _without_docstrings(ast.parse(text))
    return store.digest(ast.dump(tree)), _imports(tree, module)


def _source(module: str) -> str:
    if not _is_module(module):
        raise ModuleNotFoundError(module)
    return _file(module).read_text(encoding="utf-8")


def _file(module: str) -> Path:
    """Where a module would be. `find_spec` of it would run those above it, which may load torch."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(module)
    return Path(spec.submodule_search_locations[0]).joinpath(*rest).with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).is_file()


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


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
