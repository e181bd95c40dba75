"""What may be taken for the same program, the same output, and a program at all."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_programmer import FAULTS, STAGES, output_of
from toy_programs import TOYS

from transforms.code_equivalence import code_in, parsed, reach, refusal, same_output, top_names
from transforms.code_mutants import mutants, mutation_scores
from transforms.code_oracle import Oracle, check_checkers, check_tests, judge, read_oracles
from transforms.renaming import renamed
from transforms.sandbox import Sandbox, SandboxUnavailable

# ---- names

SAME = {
    "n = 1\nprint(n)": "count = 1\nprint(count)",
    "def f(x): return [x for x in x]": "def g(y): return [z for z in y]",
    "def f(x):\n def g():\n  nonlocal x\n  x += 1\n g()": "def f(y):\n def h():\n  nonlocal y\n  y += 1\n h()",
    "def f():\n global x\n x = 1\nf()\nprint(x)": "def g():\n global y\n y = 1\ng()\nprint(y)",
    "import heapq as h\nh.heapify([])": "import heapq\nheapq.heapify([])",
    "from math import sqrt as s\ns(2)": "from math import sqrt\nsqrt(2)",
    "try: pass\nexcept ValueError as e: print(e)": "try: pass\nexcept ValueError as error: print(error)",
    "def f(key): return key\nsorted([], key=f)": "def f(item): return item\nsorted([], key=f)",
    "def f(a, *, b): return a, b\nf(1, b=2)": "def f(x, *, y): return x, y\nf(1, y=2)",
    "class A:\n def get(self): return self.v\n def __init__(self, v): self.v = v\nA(1).get()": (
        "class B:\n def fetch(me): return me.value\n def __init__(me, value): me.value = value\nB(1).fetch()"
    ),
    "class A:\n x = 1\n def f(self): return x\nx = 2": "class A:\n a = 1\n def f(self): return b\nb = 2",
    "if (m := 1) and [k := i for i in (1,)]: print(m, k)": "if (a := 1) and [b := c for c in (1,)]: print(a, b)",
    "match [1]:\n case [a, *b]: print(a, b)\n case {'k': v, **r}: print(v, r)": (
        "match [1]:\n case [x, *y]: print(x, y)\n case {'k': z, **w}: print(z, w)"
    ),
    "f = lambda x, y=1: x + y": "add = lambda first, second=1: first + second",
    "x = 1\nprint(x)": "x = 1  # a comment\n\nprint( x )",
}
OTHER = {
    "def f(x):\n def g():\n  nonlocal x\n  x = 1\n g()": "def f(y):\n def g():\n  nonlocal x\n  x = 1\n g()",
    "n = 1\nm = 2\nprint(n, m)": "c = 1\nc = 2\nprint(c, c)",  # two become one
    "n = 1\nn = 2\nprint(n)": "a = 1\nb = 2\nprint(a)",  # one becomes two
    "def f(x): return x\nx = 1": "def f(y): return x\nx = 1",  # another thing is meant
    "x = 1\nlist('a')": "list = 1\nlist('a')",  # a builtin is covered
    "print(1)": "show(1)",
    "x = []\nx.append(1)": "x = []\nx.push(1)",
    "def f(key): return key\nf(key=1)": "def f(item): return item\nf(key=1)",
    "def f(key): return key\nsorted([], key=f)": "def f(item): return item\nsorted([], item=f)",
    "class A:\n def __init__(self): pass": "class A:\n def start(self): pass",
    "import math": "import cmath as math",
    "import os.path": "import os.path as os",
    "from a import b": "from a import c as b",
    "x = 1": "x = 1.0",
    "x = 'a'": "x = 'b'",
    "x = 1\nx += 1": "x = 1\nx -= 1",
    "a < b": "b < a",
    "def f(a, b): return a - b": "def f(b, c): return c - b",
    "for i in range(3): pass": "for i in range(3): print(i)",
    "def f(a, /): pass": "def f(a): pass",
    "def f(*a): pass": "def f(**a): pass",
    "class A:\n x = 1\n def f(self): return x\nx = 2": "class A:\n x = 1\n def f(self): return b\nb = 2\nx = 3",
}


def test_other_names_for_the_same_things() -> None:
    for old, new in SAME.items():
        assert renamed(ast.parse(old), ast.parse(new)) is not None, (old, new)
        assert renamed(ast.parse(new), ast.parse(old)) is not None, (new, old)


def test_not_the_same_things() -> None:
    for old, new in OTHER.items():
        assert renamed(ast.parse(old), ast.parse(new)) is None, (old, new)


def test_what_changed_is_told() -> None:
    assert renamed(ast.parse("a = b = 1\nprint(a)"), ast.parse("x = b = 1\nprint(x)")) == {"a": "x"}
    assert renamed(ast.parse("a = 1"), ast.parse("a=1 # same")) == {}


NAMES = st.sampled_from("abc")
ATOMS = NAMES | st.sampled_from(["1", "2"])
LINES = st.one_of(
    st.builds("{} = {} + {}".format, NAMES, ATOMS, ATOMS),
    st.builds("{} = [{} for {} in [{}, 2]][0]".format, NAMES, ATOMS, NAMES, ATOMS),
    st.builds("{} = (lambda {}: {} + {})(1)".format, NAMES, NAMES, ATOMS, ATOMS),
    st.builds("print({}, {})".format, ATOMS, ATOMS),
    st.builds("{}({}, 3)".format, NAMES, ATOMS),
    st.builds("def {}({}, {}=5):\n    {} = {}\n    print({}, {})".format, NAMES, *[NAMES] * 3, ATOMS, ATOMS, ATOMS),
    st.builds("def {}({}):\n    global {}\n    {} = {}".format, NAMES, st.just("d"), NAMES, NAMES, ATOMS),
)
PROGRAMS = st.lists(LINES, min_size=1, max_size=5).map("\n".join).filter(lambda text: _compiles(text))


def _compiles(text: str) -> bool:
    try:
        compile(text, "", "exec")
    except SyntaxError:
        return False
    return True


def occurrences(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    fields = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name"}
    return [(node, fields[type(node)]) for node in ast.walk(tree) if type(node) in fields]


@settings(max_examples=300)
@given(program=PROGRAMS, data=st.data())
def test_whatever_is_taken_for_a_renaming_does_the_same(program: str, data: st.DataObject) -> None:
    """Names are replaced here and there; where that is accepted, both programs write the same, as Python runs them."""
    tree = ast.parse(program)
    places = [(node, field) for node, field in occurrences(tree) if getattr(node, field) != "print"]
    start = data.draw(st.permutations("abcdef"))
    for node, field in places:
        setattr(node, field, start["abcdef".index(getattr(node, field))])
    for node, field in data.draw(st.lists(st.sampled_from(places or [(tree, "")]), max_size=2)):
        if field:
            setattr(node, field, data.draw(NAMES))
    other = ast.unparse(tree)
    if _compiles(other) and renamed(ast.parse(program), ast.parse(other)) is not None:
        ours, theirs = (re.sub("<function .*? at 0x[0-9a-f]+>", "it", output_of(p, "") or "") for p in (program, other))
        assert ours == theirs


@settings(max_examples=200)
@given(program=PROGRAMS, to=st.permutations("abcdef"))
def test_every_consistent_renaming_is_one(program: str, to: list[str]) -> None:
    program = f"a = b = c = d = 0\n{program}"  # what is bound nowhere would have to keep its name
    tree, names = ast.parse(program), dict(zip("abcdef", to, strict=True))
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            node.names = [names[name] for name in node.names]
    for node, field in occurrences(tree):
        setattr(node, field, names.get(getattr(node, field), "print"))
    changed = {old: new for old, new in names.items() if old != new and old in "abcd"}
    assert renamed(ast.parse(program), tree) == changed


# ---- stages


def test_faithful_work_is_accepted_and_what_reading_can_tell_is_refused() -> None:
    expected = {
        "rename": dict.fromkeys(["off by one", "shadowed name", "dropped print", "infinite loop"], "structure changed"),
        "modularise": {},
        "plan": dict.fromkeys(["off by one", "shadowed name", "dropped print", "infinite loop"], "code changed"),
    }
    refused = Counter[tuple[str, str]]()
    for toy in TOYS:
        code = toy.source
        for stage, write in STAGES.items():
            better = write(code)
            assert refusal(stage, code, better) is None, (toy.name, stage)
            assert refusal(stage, code, code) == ("no plan" if stage == "plan" else "nothing changed")
            for fault, wrong in FAULTS.items():
                worse = wrong(better)
                if worse is None or parsed(worse) is None:
                    refused[stage, fault] += 1
                    continue
                reason = "new imports" if fault == "new import" else expected[stage].get(fault)
                assert refusal(stage, code, worse) == reason, (toy.name, stage, fault)
                refused[stage, fault] += reason is not None
            code = better
    assert all(refused[stage, fault] == 20 for stage in ("rename", "plan") for fault in FAULTS)
    assert all(refused["modularise", fault] == 20 for fault in ("new import", "syntax error", "prose only"))


PLANS = {
    "# Plan\nx = 1  # one\n": None,
    '"""Plan."""\nx = 1  # one\n': None,
    '# a\n\n"""Plan."""\n# b\n\nx = 1  # one': None,
    "x = 1  # one\n": "no plan",
    "\n\nx   =  1  # one\n": "no plan",
    "# Plan\nx = 1\n": "code changed",
    "# Plan\nx = 1  # two\n": "code changed",
    "# Plan\nx = 1  # one\n# more\n": "code changed",
    "# Plan\nx = 2  # one\n": "code changed",
    '"""Plan."""; x = 1  # one\n': "code changed",
    '"""Plan."""\n"more"\nx = 1  # one\n': "code changed",
    '"""Plan.""".strip()\nx = 1  # one\n': "code changed",
    "# Plan\nimport os\nx = 1  # one\n": "new imports",
}


@pytest.mark.parametrize("new", PLANS)
def test_a_plan_stands_at_the_top_and_changes_nothing(new: str) -> None:
    assert refusal("plan", "x = 1  # one\n", new) == PLANS[new]


def test_a_docstring_that_is_there_may_be_followed_by_nothing_else() -> None:
    old = '"""What it does."""\nif 1:\n  x = (1,\n    2)\n'
    assert refusal("plan", old, '# A plan.\n"""What it does."""\nif 1:\n    x = (1, 2)\n') is None
    assert refusal("plan", old, '"""What it does, by a plan."""\nif 1:\n    x = (1, 2)\n') is None
    assert refusal("plan", old, '"""By plan."""\nif 1:\n    x = (1, 2)\n') == "no plan"
    assert refusal("plan", old, '# A plan.\n"""What it does."""\nif 1:\n    x = (1, 2)\n    x\n') == "code changed"


def test_functions_become_no_fewer_and_two_at_least() -> None:
    three = "def a(): pass\ndef b(): pass\ndef c(): pass\n"
    assert refusal("modularise", "print(1)", "def a(): print(1)\na()") == "too few functions"
    assert refusal("modularise", "print(1)", "def a(): print(1)\ndef b(): a()\nb()") is None
    assert refusal("modularise", three, "def a(): pass\ndef b(): pass\n") == "too few functions"
    assert refusal("modularise", three, three + "a()") is None


def test_imports_by_any_door() -> None:
    old = "import os.path\nfrom math import pi\n"
    for new in ("import os, math", "def f():\n from os import environ", "from math import e as x"):
        assert not reach(ast.parse(new)) - reach(ast.parse(old))
    for new in ("import sys", "from .os import x", "__import__('sys')", "import importlib", "exec('import sys')"):
        assert reach(ast.parse(new)) - reach(ast.parse(old))


@pytest.mark.parametrize(
    "deep", ["(" * 9999, "-" * 99_999 + "1", "a" + ".b" * 60_000, "1" + "+1" * 60_000, "x = " + "[" * 999]
)
def test_programs_nested_beyond_reason_end_nothing(deep: str) -> None:
    tree = parsed(deep)
    assert tree is None or refusal("rename", deep, deep) is not None


@pytest.mark.parametrize("number", ["0x" + "f" * 4000, "0b1" + "0" * 14_000, "-0x" + "f" * 3501])
def test_numbers_that_python_does_not_write_end_nothing(number: str) -> None:
    source = f"def f():\n    return {number}\nprint(f() > 0)\n"
    assert parsed(source) is None and mutants(source, 3) == [] and code_in(f"```\n{source}```") is None


def test_the_largest_numbers_that_are_taken_can_be_written() -> None:
    source = f"x = {hex((1 << 14_000) - 1)}\nprint(x)\n"
    assert len(mutants(source, 9)) == 3
    assert refusal("rename", source, source) == refusal("modularise", source, source) == "nothing changed"


def test_a_plan_may_end_the_lines_in_another_way() -> None:
    source = 's = """one\ntwo"""\nprint(s)\n'
    for old, new in [("\r\n", "\n"), ("\n", "\r\n"), ("\r", "\n")]:
        before, after = source.replace("\n", old), f"# Says it.\n{source}".replace("\n", new)
        assert refusal("plan", before, after) is None
        assert refusal("plan", before, after.replace("two", "2")) == "code changed"


def test_what_others_may_use_of_a_program() -> None:
    source = """
def f(): inner = 1
class A: x = 1
solve = lambda n: n
LIMIT, (low, *rest) = 9, [i for i in range(3)]
size: int = 4
rest[0] = f.set = 2
print(size)
"""
    assert top_names(ast.parse(source)) == {"f", "A", "solve", "LIMIT", "low", "rest", "size"}


# ---- answers

CODE = "def f(x):\n    return x\n\n\nprint(f(1))\n"
ANSWERS = {
    f"```python\n{CODE}```": CODE,
    f"Sure!\n\n```py\n{CODE}\n```\nIt prints 1.": CODE,
    f"~~~~ python\n{CODE}~~~~": CODE,
    f"```\n{CODE}```\nTo run it:\n```bash\npython f.py\n```\nOutput:\n```\n1\n```": CODE,
    f"Unclosed:\n```python\n{CODE}": CODE,
    f"1. Here:\n   ```python\n{''.join(f'   {line}' for line in CODE.splitlines(True))}   ```": CODE,
    f"<think>```python\n{CODE}{CODE}```</think>\n```python\nx = 1\n```": "x = 1\n",
    f"```python\r\n{CODE}```".replace("\n", "\r\n"): CODE,
    CODE: CODE,
    'Look:\n```python\ns = """\n```\ncode\n```\n"""\n```\nDone.': 's = """\n```\ncode\n```\n"""\n',
    "I am sorry, I cannot do that.": None,
    "```python\ndef f(:\n```": None,
    "```\n```": None,
    "```python\n# only a comment\n```": None,
    "": None,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_program_in_an_answer(answer: str) -> None:
    assert code_in(answer) == ANSWERS[answer]


def test_what_a_cut_answer_does_not_close_is_no_program() -> None:
    assert code_in(f"```python\n{CODE}", cut=True) is None and code_in(CODE, cut=True) is None
    assert code_in(f"```python\n{CODE}```\nIt then", cut=True) == CODE


@settings(max_examples=100)
@given(answer=st.text(st.sampled_from("`~ \nx=1#\"'(py<>/"), max_size=60))
def test_what_is_taken_for_a_program_parses(answer: str) -> None:
    found = code_in(answer)
    assert found is None or ast.parse(found).body


# ---- outputs

ALIKE = [("1\n", "1"), ("a  \nb\n\n", "a\nb"), ("0.1", "0.1000000001"), ("1.0", "1"), ("1e6", "1000000.0")]
ALIKE += [("x 1.5 y", "x 1.50 y"), ("1000000.1", "1000000.9"), ("", "\n\n"), ("-0.0", "0.0"), ("nan", "nan")]
UNLIKE = [("1", "2"), ("1", "1 1"), ("a b", "a  b"), ("a\nb", "a b"), ("0.1", "0.2"), ("1000000", "1000001")]
UNLIKE += [("\n1", "1"), ("1_0", "10.0"), ("1e999", "2e999"), ("x1.5", "x1.50"), ("1.0", "one"), ("yes", "Yes")]


def test_outputs_are_the_same_or_not() -> None:
    for ours, theirs in ALIKE:
        assert same_output(ours, theirs) and same_output(theirs, ours), (ours, theirs)
    for ours, theirs in UNLIKE:
        assert not same_output(ours, theirs) and not same_output(theirs, ours), (ours, theirs)


@given(text=st.text(), value=st.floats(-1e9, 1e9), off=st.floats(-1, 1))
def test_only_numbers_with_a_point_have_slack(text: str, value: float, off: float) -> None:
    assert same_output(text, text)
    close = abs(off) <= max(1e-6, 1e-6 * max(abs(value), abs(value + off)))
    near = abs(abs(off) - max(1e-6, 1e-6 * abs(value))) < 1e-9 * max(1, abs(value))  # too close to the bound to tell
    assert near or same_output(f"{value:.17f}", f"{value + off:.17f}") == close


# ---- tests of programs


def box() -> Sandbox:
    try:
        Sandbox().check()
    except SandboxUnavailable:
        return Sandbox(isolation="limits")
    return Sandbox()


def test_tests_are_read_from_their_columns() -> None:
    kind = pa.list_(pa.struct({"input": pa.string(), "output": pa.string()}))
    cases = [
        [{"input": "1", "output": "2"}, {"input": None, "output": ""}],
        [],
        None,
        [{"input": "1", "output": "1"}, {"input": "2"}],
    ]
    assert read_oracles(pa.array(cases, kind)) == [Oracle((("1", "2"), ("", ""))), None, None, None]
    assert read_oracles(pa.array(["assert f()", " ", None])) == [Oracle(assertions="assert f()"), None, None]
    checked = read_oracles(pa.array(cases[:2], kind), pa.array(["check", None]))
    assert checked == [Oracle((("1", "2"), ("", "")), checker="check"), None]
    check_tests("tests", kind)
    check_tests("tests", pa.large_string())
    check_checkers("checker", pa.string())
    for wrong in (pa.int64(), pa.list_(pa.string()), pa.list_(pa.struct({"input": pa.string()}))):
        with pytest.raises(TypeError, match="expected list<struct<input: string, output: string>> or string"):
            check_tests("tests", wrong)
    with pytest.raises(TypeError, match="column 'checker' is int64; expected string"):
        check_checkers("checker", pa.int64())


def test_verdicts() -> None:
    two = Oracle((("1", "2"), ("2", "4")))
    asserting = Oracle(assertions="assert f(2) == 4\nassert g == 1")
    given = [
        ("print(int(input()) * 2)", two, None),
        ("print(int(input()) ** 2 + 1)", two, "tests fail"),
        ("print(2)\nx = 1 / (int(input()) - 2)", two, "crashed"),
        ("g = 1\ndef f(x): return 2 * x\nif __name__ == '__main__': exit()", asserting, None),
        ("g = 1\ndef f(x): return 3 * x", asserting, "tests fail"),
        ("def f(x): return 2 * x", asserting, "crashed"),
        ("g = 1\ndef f(x): return 2 * x\nexit()", asserting, "ended early"),
        ("import os\nos._exit(0)", asserting, "ended early"),
        ("while True: pass", asserting, "timed out"),
    ]
    verdicts = judge(box(), [(source, oracle, 0.5) for source, oracle, _ in given])
    assert [verdict.reason for verdict in verdicts] == [reason for _, _, reason in given]
    assert verdicts[-1].seconds > 0.5 > verdicts[0].seconds > 0


# ---- mutants

DOUBLED = "def f(x):\n    if x > 3:\n        return x * 2\n    return 0\nprint(f(int(input())))\n"


def test_mutants_have_one_mistake_each() -> None:
    plain = ast.unparse(ast.parse(DOUBLED))
    found = mutants(DOUBLED, 100)
    assert len(set(found)) == len(found) and plain not in found and mutants(DOUBLED, 100) == found
    changed = {tuple(line for line in mutant.split("\n") if line not in plain.split("\n")) for mutant in found}
    assert {("    if x >= 3:",), ("    if x > 4:",), ("    if x > 2:",), ("    if not x > 3:",)} <= changed
    assert {("        return x + 2",), ("        return x * 3",), ("        return",), ("    return 1",)} <= changed
    assert ("pass",) in changed, "the print is left out"
    assert all(len(lines) == 1 for lines in changed)
    assert set(mutants(DOUBLED, 5)) < set(found) and len(mutants(DOUBLED, 5)) == 5
    assert mutants(DOUBLED, 5, seed=1) != mutants(DOUBLED, 5)
    assert mutants("not python (", 5) == [] and mutants("'a string'", 5) == []


def test_the_score_is_the_share_that_the_tests_refuse() -> None:
    """What tests notice is also told by running the mutants here."""
    strong, weak = Oracle(tuple((str(k), f"{2 * k * (k > 3)}") for k in range(8))), Oracle((("1", "0"),))
    scores = mutation_scores(box(), [(DOUBLED, strong, 0.1), (DOUBLED, weak, 0.1), ("'a'", weak, 0.1)], 30)
    for oracle, score in zip((strong, weak), scores[:2], strict=True):
        noticed = [
            any((output_of(mutant, given) or "").rstrip() != expected for given, expected in oracle.cases)
            for mutant in mutants(DOUBLED, 30)
        ]
        assert score == sum(noticed) / len(noticed)
    assert scores[0] == 1 and scores[1] is not None and scores[1] < 1 and scores[2] is None
