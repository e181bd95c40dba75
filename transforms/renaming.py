"""Is one Python program another one with other names? Both are read, neither is run.

Programs are compared up to alpha-equivalence: the same syntax tree but for names, and names that stand for the same
things. A name stands for what its scope binds, by the rules of Python's reference (section 4.2, naming and binding).
Attributes, methods, keyword arguments and parameters passed by keyword belong to no scope: they are members, one name
for all that have it, and those that the program does not define itself, as `append`, keep their names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MEMBER, FREE = -1, -2  # in place of a scope's number: a member; bound nowhere in the program, as `print`
Thing = tuple[int, str]  # what a name stands for: the number of the scope that binds it, and the name


@dataclass
class Scope:
    """`kind`: module, class, function or comprehension. `elsewhere`: names that are declared global or nonlocal."""

    number: int
    kind: str
    parent: Scope | None
    bound: set[str] = field(default_factory=set)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def binder(self, name: str) -> Scope | None:
        """The scope that binds a name that is used in this one."""
        scope: Scope | None = self
        while scope is not None:
            if scope is self or scope.kind != "class":  # functions do not see names of the class around them
                if scope.elsewhere.get(name) == "global":
                    return scope.module.binder(name)
                if name in scope.bound and name not in scope.elsewhere:
                    return scope
            scope = scope.parent
        return None

    @property
    def module(self) -> Scope:
        return self if self.parent is None else self.parent.module


@dataclass(frozen=True)
class Use:
    """A name as it occurs. `scope`: null for members. `parameter`: whether it may be passed by keyword. `called`: of a
    keyword argument, what is called with it, where that has a name."""

    name: str
    scope: Scope | None
    parameter: bool = False
    keyword: bool = False
    called: Use | None = None


class Flat:
    """A program end to end: `shape`, all but its names, and `uses`, its names in the same order."""

    def __init__(self, tree: ast.Module) -> None:
        self.shape: list[str] = []
        self.uses: list[Use] = []
        self.own: set[str] = set()  # members that it defines
        self._scopes = 0
        self._visit(tree, self._scope("module", None))
        self.keywords = {use.name for use in self.uses if use.keyword and self.thing(use)[0] == MEMBER}

    def thing(self, use: Use) -> Thing:
        """What a name stands for."""
        if use.called is not None:
            number, name = self.thing(use.called)
            if number == FREE or (number == MEMBER and name not in self.own):
                return FREE, use.name  # an argument of print, or of a list's sort
        if use.scope is None:
            return MEMBER, use.name
        binder = use.scope.binder(use.name)
        if binder is None:
            return FREE, use.name
        return MEMBER if binder.kind == "class" else binder.number, use.name

    def _scope(self, kind: str, parent: Scope | None) -> Scope:
        self._scopes += 1
        return Scope(self._scopes - 1, kind, parent)

    def _visit(self, node: Any, scope: Scope) -> None:
        if isinstance(node, list):
            self.shape.append(f"{len(node)} of")
            for item in node:
                self._visit(item, scope)
        elif isinstance(node, ast.AST):
            self.shape.append(type(node).__name__)
            VISITS.get(type(node), Flat._fields)(self, node, scope)
        else:
            self.shape.append(f"{type(node).__name__} {node!r}")

    def _fields(self, node: ast.AST, scope: Scope, without: Iterable[str] = ()) -> None:
        for name, value in ast.iter_fields(node):
            if name not in without and name != "type_comment":
                self._visit(value, scope)

    # ---- names

    def _bind(self, name: str | None, scope: Scope, parameter: bool = False) -> None:
        self.shape.append("no name" if name is None else "name")
        if name is None:
            return
        self.uses.append(Use(name, scope, parameter))
        scope.bound.add(name)
        if scope.elsewhere.get(name) == "global":
            scope.module.bound.add(name)
        if scope.kind == "class" or parameter:
            self.own.add(name)

    def _name(self, node: ast.Name, scope: Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self.uses.append(Use(node.id, scope))
        else:
            self._bind(node.id, scope)
        self._visit(node.ctx, scope)

    def _walrus(self, node: ast.NamedExpr, scope: Scope) -> None:
        outer = scope
        while outer.kind == "comprehension" and outer.parent is not None:
            outer = outer.parent
        self._bind(node.target.id, outer)
        self._visit(node.value, scope)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> None:
        self.uses.append(Use(node.attr, None))
        if not isinstance(node.ctx, ast.Load):
            self.own.add(node.attr)
        self._fields(node, scope, ("attr",))

    def _call(self, node: ast.Call, scope: Scope) -> None:
        at = len(self.uses)
        self._visit(node.func, scope)
        called = self.uses[at] if isinstance(node.func, ast.Name | ast.Attribute) else None
        self._visit(node.args, scope)
        self.shape.append(f"{len(node.keywords)} keywords")
        for keyword in node.keywords:
            self._keyword(keyword, scope, called)

    def _keyword(self, node: ast.keyword, scope: Scope, called: Use | None = None) -> None:
        self.shape.append("**" if node.arg is None else "keyword")
        if node.arg is not None:
            self.uses.append(Use(node.arg, None, keyword=True, called=called))
        self._visit(node.value, scope)

    def _class_pattern(self, node: ast.MatchClass, scope: Scope) -> None:
        self.uses += [Use(name, None) for name in node.kwd_attrs]
        self._fields(node, scope, ("kwd_attrs",))

    def _declaration(self, node: ast.Global | ast.Nonlocal, scope: Scope) -> None:
        for name in node.names:
            if scope.parent is not None:
                scope.elsewhere[name] = "global" if isinstance(node, ast.Global) else "nonlocal"
            self._bind(name, scope)

    def _import(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        if isinstance(node, ast.ImportFrom):
            self.shape.append(f"from {node.level} {node.module}")
        for alias in node.names:
            first, dot, _ = alias.name.partition(".")
            whole = dot if isinstance(node, ast.Import) and alias.asname is None else ""  # a.b binds a
            self.shape.append(f"import {alias.name}{whole}")
            if alias.name != "*":
                self._bind(alias.asname or first, scope)

    def _handler(self, node: Any, scope: Scope) -> None:
        """Of an exception, or a pattern, which may bind a name."""
        what = "rest" if isinstance(node, ast.MatchMapping) else "name"
        self._bind(getattr(node, what), scope)
        self._fields(node, scope, (what,))

    # ---- scopes

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope) -> None:
        if not isinstance(node, ast.Lambda):
            self._bind(node.name, scope)
            self._visit([node.decorator_list, node.returns], scope)
        given, inner = node.args, self._scope("function", scope)
        self._visit([given.defaults, given.kw_defaults], scope)
        for arguments, by_keyword in ((given.posonlyargs, False), (given.args, True), (given.kwonlyargs, True)):
            self.shape.append(f"{len(arguments)} arguments")
            for argument in arguments:
                self._argument(argument, inner, scope, by_keyword)
        for rest in (given.vararg, given.kwarg):
            self._argument(rest, inner, scope, False)
        self._fields(node, inner, ("name", "decorator_list", "returns", "args"))

    def _argument(self, node: ast.arg | None, inner: Scope, outer: Scope, by_keyword: bool) -> None:
        self._bind(node.arg if node else None, inner, by_keyword)
        self._visit(node.annotation if node else None, outer)

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        self._bind(node.name, scope)
        self._visit([node.decorator_list, node.bases, node.keywords], scope)
        self._fields(node, self._scope("class", scope), ("name", "decorator_list", "bases", "keywords"))

    def _comprehension(self, node: Any, scope: Scope) -> None:
        first, *others = node.generators
        self._visit(first.iter, scope)  # the one part that the scope around it evaluates
        inner = self._scope("comprehension", scope)
        self._fields(first, inner, ("iter",))
        self._visit(others, inner)
        self._fields(node, inner, ("generators",))


VISITS: dict[type, Any] = {
    ast.Name: Flat._name,
    ast.NamedExpr: Flat._walrus,
    ast.Attribute: Flat._attribute,
    ast.Call: Flat._call,
    ast.keyword: Flat._keyword,
    ast.ClassDef: Flat._class,
    ast.MatchClass: Flat._class_pattern,
    **dict.fromkeys((ast.Global, ast.Nonlocal), Flat._declaration),
    **dict.fromkeys((ast.Import, ast.ImportFrom), Flat._import),
    **dict.fromkeys((ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping), Flat._handler),
    **dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda), Flat._function),
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp), Flat._comprehension),
}


def renamed(old: ast.Module, new: ast.Module) -> dict[str, str] | None:
    """Names that changed, and what to, where `new` is `old` with other names; else null. Empty: no name changed.

    A name that stood for several things and became several is told once. Comments and layout are in no syntax tree.

    Raises RecursionError: a program is nested too deeply.
    """
    before, after = Flat(old), Flat(new)
    if before.shape != after.shape or len(before.uses) != len(after.uses):
        return None
    there: dict[Thing, Thing] = {}
    back: dict[Thing, Thing] = {}
    for use, its in zip(before.uses, after.uses, strict=True):
        pairs = [(before.thing(use), after.thing(its))]
        if use.parameter and use.name in before.keywords:
            pairs.append(((MEMBER, use.name), (MEMBER, its.name)))
        for was, now in pairs:
            if there.setdefault(was, now) != now or back.setdefault(now, was) != was:
                return None
            if was[1] != now[1] and not _may_change(was, before.own):
                return None
    return {was[1]: now[1] for was, now in there.items() if was[1] != now[1]}


def _may_change(thing: Thing, own: set[str]) -> bool:
    scope, name = thing
    special = name.startswith("__") and name.endswith("__")
    return not special and scope != FREE and (scope != MEMBER or name in own)
