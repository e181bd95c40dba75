"""A stand-in for a language model that cleans code: it renames, extracts functions and writes plans by rules, and makes
the mistakes that it is told to.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

from transforms.code_equivalence import code_in

WORDS = ["amount", "total", "first", "second", "result", "current", "index", "limit", "letter", "best", "left", "right"]
BEGINNINGS = {"Rename the": "rename", "Split this": "modularise", "Write a plan": "plan"}


def rename(source: str) -> str:
    """Every name that the program binds gets another one, which says little but is not taken."""
    tree = ast.parse(source)
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    taken = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    free = (f"{word}{k or ''}" for k in itertools.count() for word in WORDS if f"{word}{k or ''}" not in taken)
    return replaced(source, dict(zip(sorted(bound), free, strict=False)))


def replaced(source: str, names: dict[str, str]) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for attribute in ("id", "arg", "name"):
            if isinstance(node, ast.Name | ast.arg | ast.FunctionDef) and hasattr(node, attribute):
                setattr(node, attribute, names.get(getattr(node, attribute), getattr(node, attribute)))
    return ast.unparse(tree)


class Extract(ast.NodeTransformer):
    """Values that are assigned or passed on become functions of the names in them; printing becomes one."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.made = known, list[ast.stmt]()

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        node.value = self._extracted(node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AugAssign:
        node.value = self._extracted(node.value)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if ast.unparse(node).startswith("print("):
            return ast.parse(f"show{ast.unparse(node)[5:]}").body[0]
        if isinstance(node.value, ast.Call):
            node.value.args = [self._extracted(given) for given in node.value.args]
        return node

    def _extracted(self, value: ast.expr) -> ast.expr:
        """A call of a new function that returns the value."""
        inside = list(ast.walk(value))
        used = [n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        bound = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in inside if isinstance(n, ast.arg)}
        free = ", ".join(name for name in dict.fromkeys(used) if name not in bound | self.known)
        if not free or isinstance(value, ast.Name):
            return value
        name = f"step_{len(self.made)}"
        self.made += ast.parse(f"def {name}({free}):\n    return {ast.unparse(value)}").body
        return ast.parse(f"{name}({free})", mode="eval").body


def modularise(source: str) -> str:
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {alias.name for node in imports for alias in node.names} | set(dir(builtins))
    known |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    extract = Extract(known)
    body = [extract.visit(node) for node in tree.body if node not in imports]
    show = ast.parse("def show(*parts):\n    print(*parts)").body
    return ast.unparse(ast.Module([*imports, *extract.made, *show, *body], []))


def plan(source: str) -> str:
    named = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lines = ["# Plan: read the input, compute the answer step by step, write it."]
    return "\n".join([*lines, *(f"# - {name}: one step of the way" for name in named), source])


STAGES: dict[str, Callable[[str], str]] = {"rename": rename, "modularise": modularise, "plan": plan}


# ---- mistakes: what is made of a program, or null where there is no place for it


def off_by_one(source: str) -> str | None:
    """The last whole number that is compared, added or counted to is one too large."""
    tree = ast.parse(source)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int]
    if not found:
        return None
    found[-1].value += 1  # type: ignore[operator]
    return keep_top(source, ast.unparse(tree))


def shadowed_name(source: str) -> str | None:
    """An empty value shadows a function's first parameter; without functions, one variable takes another's name."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.args.args:
            name = node.args.args[0].arg
            node.body.insert(0, ast.parse(f"{name} = type({name})()").body[0])
            return keep_top(source, ast.unparse(tree))
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    first, *others = dict.fromkeys(stored)
    return keep_top(source, replaced(source, {others[0]: first})) if others else None


def dropped_print(source: str) -> str | None:
    lines = source.split("\n")
    at = [k for k, line in enumerate(lines) if line.strip().startswith(("print(", "show("))]
    if not at:
        return None
    indent = lines[at[-1]][: -len(lines[at[-1]].lstrip())]
    return "\n".join([*lines[: at[-1]], f"{indent}pass", *lines[at[-1] + 1 :]])


def new_import(source: str) -> str | None:
    return under_top(source, "import os")


def infinite_loop(source: str) -> str | None:
    return under_top(source, "while True:\n    pass")


def syntax_error(source: str) -> str | None:
    return source.replace("(", "((", 1)


def keep_top(source: str, code: str) -> str:
    """The comments at the top, which no syntax tree has, before other code."""
    return "\n".join([*(line for line in source.split("\n") if line.startswith("#")), code])


def under_top(source: str, added: str) -> str:
    lines = source.split("\n")
    top = [line for line in lines if line.startswith("#")]
    return "\n".join([*top, added, *(line for line in lines if not line.startswith("#"))])


FAULTS: dict[str, Callable[[str], str | None]] = {
    "off by one": off_by_one,
    "shadowed name": shadowed_name,
    "dropped print": dropped_print,
    "new import": new_import,
    "infinite loop": infinite_loop,
    "syntax error": syntax_error,
    "prose only": lambda source: "",
}


@dataclass
class Programmer:
    """Answers prompts of `code_clean`. `mistake` says which one to make, by stage and program; `made` is what it was
    given and wrote: stage, program, mistake or null, and program."""

    mistake: Callable[[str, str], str | None] = lambda stage, source: None
    made: list[tuple[str, str, str | None, str]] = field(default_factory=list)

    def __call__(self, prompt: str) -> tuple[str, str]:
        stage = next(stage for beginning, stage in BEGINNINGS.items() if prompt.startswith(beginning))
        source = code_in(prompt)
        assert source is not None
        code, fault = STAGES[stage](source), self.mistake(stage, source)
        wrong = FAULTS[fault](code) if fault else None
        fault = fault if wrong is not None else None
        self.made.append((stage, source, fault, ends(code if wrong is None else wrong)))
        if fault == "prose only":
            return "I would rather talk about it: the program reads well as it is.", "stop"
        return f"Sure! Here it is:\n\n```python\n{code if wrong is None else wrong}\n```\n\nAsk me for more.", "stop"


def ends(code: str) -> str:
    """As programs end that are taken from answers."""
    return code.strip("\n") + "\n"


class TooLong(BaseException):
    """More lines than a program of these tests runs."""


def output_of(source: str, given: str, most: int = 100_000) -> str | None:
    """What a program writes, run in this process, line by line: for programs of these tests only. Errors end it; null:
    it has not ended after `most` lines."""
    written, lines = io.StringIO(), itertools.count()

    def traced(*_: object) -> object:
        if next(lines) > most:
            raise TooLong
        return traced

    before = sys.gettrace()
    with patch.object(sys, "stdin", io.StringIO(given)), contextlib.redirect_stdout(written):
        try:
            sys.settrace(traced)  # type: ignore[arg-type]
            exec(compile(source, "toy", "exec"), {"__name__": "__main__"})
        except TooLong:
            return None
        except Exception:
            pass
        finally:
            sys.settrace(before)
    return written.getvalue()
