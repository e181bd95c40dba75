"""How much do a program's tests notice? Mutation analysis (DeMillo, Lipton and Sayward 1978).

Programs that differ from it by one small mistake are run on its tests; the score is the share that the tests refuse. A
mutant that does what the program does cannot be refused, so that 1 may be out of reach; a low score says that a wrong
program may pass.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice

from transforms.code_equivalence import parsed
from transforms.code_oracle import Oracle, judge
from transforms.sandbox import Sandbox

ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
ARITHMETIC |= {ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift}
ARITHMETIC |= {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Break, ast.Continue, ast.Raise, ast.Delete)
SPARED = 1.0  # seconds that a mutant's run may take beside twice what all runs of the program took


def mutants(source: str, count: int, seed: int = 0) -> list[str]:
    """Up to `count` different programs with one mistake each, drawn from all places by a hash of seed and program.

    Mistakes: whole numbers one too large or too small, comparisons and arithmetic exchanged for their neighbours, `and`
    for `or`, conditions negated, statements left out, and nothing returned.
    """
    tree = parsed(source)
    if tree is None:
        return []
    places = [(place, k) for place, node in enumerate(ast.walk(tree)) for k, _ in enumerate(_mistakes(node))]
    digest = hashlib.blake2b(source.encode(errors="replace"), digest_size=16).hexdigest()
    places.sort(key=lambda place: hashlib.blake2b(f"{seed} {digest} {place}".encode(), digest_size=8).digest())
    try:
        found = {ast.unparse(tree): -1}
        for place, k in places:
            if len(found) > count:
                break
            found.setdefault(_with_mistake(tree, place, k), place)
    except RecursionError:
        return []
    return list(found)[1:]


def _with_mistake(tree: ast.Module, place: int, k: int) -> str:
    changed = copy.deepcopy(tree)
    node = next(islice(ast.walk(changed), place, None))
    next(islice(_mistakes(node), k, None))()
    return ast.unparse(ast.fix_missing_locations(changed))


def _mistakes(node: ast.AST) -> Iterator[Callable[[], None]]:
    """What makes one mistake each in a node, or among the statements right below it."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield from (partial(setattr, node, "value", node.value + step) for step in (1, -1))
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield partial(setattr, node, "op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Compare):
        yield from (partial(node.ops.__setitem__, k, COMPARISONS[type(op)]()) for k, op in enumerate(node.ops))
    elif isinstance(node, ast.BoolOp):
        yield partial(setattr, node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.Return) and node.value is not None:
        yield partial(setattr, node, "value", None)
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
    for part in ("body", "orelse", "finalbody"):
        found = getattr(node, part, None)
        statements: list[ast.stmt] = found if isinstance(found, list) else []  # a lambda's is an expression
        for k, statement in enumerate(statements):
            if isinstance(statement, DROPPED) and not isinstance(getattr(statement, "value", None), ast.Constant):
                yield partial(statements.__setitem__, k, ast.Pass())


def mutation_scores(
    sandbox: Sandbox, programs: Sequence[tuple[str, Oracle, float]], count: int, seed: int = 0
) -> list[float | None]:
    """The share of up to `count` mutants of each program that its tests refuse; null where it has none.

    Args:
        programs: (program, tests that it passes, seconds of processor time that they took together).

    Raises SandboxUnavailable: see `Sandbox.check`.
    """
    made = [mutants(source, count, seed) for source, _, _ in programs]
    owners = [program for some, program in zip(made, programs, strict=True) for _ in some]
    each = zip(chain(*made), owners, strict=True)
    asked = ((mutant, oracle, 2 * seconds + SPARED) for mutant, (_, oracle, seconds) in each)
    refused = iter([verdict.reason is not None for verdict in judge(sandbox, asked)])
    return [sum(islice(refused, len(some))) / len(some) if some else None for some in made]
