"""What a cleaned Python program must have in common with the one it comes from, and what of an answer is the program.

Nothing here runs a program. What each stage may change:

    rename      names, and nothing else (`transforms.renaming`)
    modularise  anything, as long as functions become no fewer and there are two at least
    plan        comments or a docstring before the first statement, and nothing else

All may add comments, but for `plan`, which adds them at the top; none may import, or call what imports, anew.
"""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
import warnings

from transforms.renaming import renamed

STAGES = ("rename", "modularise", "plan")
LONGEST = 200_000  # characters of a program that is looked at
LARGEST = 14_000  # bits of a whole number: Python writes none of more than 4,300 digits, and `ast.dump` raises
LOADERS = frozenset({"__import__", "compile", "eval", "exec", "globals", "importlib"})
LAYOUT = (tokenize.COMMENT, tokenize.NL)
BREAKS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)  # whose texts are white space
TOLERANCE = 1e-6  # absolute or relative, as judges of programming contests have it
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^`\n]*$", re.MULTILINE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SPACES = re.compile(r"(\s+)")


def parsed(source: str) -> ast.Module | None:
    """The syntax tree, or null where it is no Python program that says anything, or has a number above LARGEST."""
    if len(source) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    numbers = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int))
    return tree if tree.body and all(number.bit_length() <= LARGEST for number in numbers) else None


def code_in(answer: str, cut: bool = False) -> str | None:
    """The program in a model's answer: the longest text between two fences, or a fence and the end, that parses. Fences
    inside of strings do no harm. Without fences, the answer itself where it parses. `cut`: the answer breaks off, so
    that what no fence ends is not whole."""
    answer = answer.rpartition("</think>")[2].replace("\r\n", "\n")
    fences = list(_FENCE.finditer(answer))[:20]
    ends = [fence.start() for fence in fences] + ([] if cut else [len(answer)])
    spans = [(fence.end() + 1, end) for fence in fences for end in ends if end > fence.end()]
    spans = spans or ([] if cut else [(0, len(answer))])
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        code = _dedented(answer[start:end])
        if parsed(code) is not None:
            return code
    return None


def has_fence(answer: str) -> bool:
    return _FENCE.search(answer) is not None


def _dedented(text: str) -> str:
    """Fences in lists are indented, and with them the code. Blank lines around it go."""
    lines = text.strip("\n").rstrip().split("\n")
    indents = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    shared = min(indents, key=len, default="")
    return "\n".join(line.removeprefix(shared) for line in lines) + "\n"


def refusal(stage: str, old: str, new: str) -> str | None:
    """Why `new` is not what `stage` may make of `old`, in few words, or null. Both parse."""
    before, after = parsed(old), parsed(new)
    assert before is not None and after is not None
    try:
        if reach(after) - reach(before):
            return "new imports"
        return {"rename": _rename, "modularise": _modularise, "plan": _plan}[stage](old, new, before, after)
    except (RecursionError, tokenize.TokenError, SyntaxError):  # what the parser took the tokenizer may refuse
        return "cannot be compared"


def reach(tree: ast.Module) -> frozenset[str]:
    """The packages that a program imports, and what it names that can import or run what no one sees."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").partition(".")[0])
        elif isinstance(node, ast.Name) and node.id in LOADERS:
            found.add(node.id)
    return frozenset(found)


def functions(tree: ast.Module) -> int:
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


def top_names(tree: ast.Module) -> set[str]:
    """Functions, classes and variables at the top of a module."""
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    targets = [target for n in tree.body if isinstance(n, ast.Assign) for target in n.targets]
    targets += [n.target for n in tree.body if isinstance(n, ast.AnnAssign)]
    assigned = (node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    return defined | {node.id for node in assigned if isinstance(node.ctx, ast.Store)}


def _rename(old: str, new: str, before: ast.Module, after: ast.Module) -> str | None:
    names = renamed(before, after)
    if names is None:
        return "structure changed"
    return None if names else "nothing changed"


def _modularise(old: str, new: str, before: ast.Module, after: ast.Module) -> str | None:
    if ast.dump(before) == ast.dump(after):
        return "nothing changed"
    return "too few functions" if functions(after) < max(2, functions(before)) else None


def _plan(old: str, new: str, before: ast.Module, after: ast.Module) -> str | None:
    (top, code, comments), (new_top, new_code, new_comments) = _split(old, before), _split(new, after)
    if code != new_code or comments != new_comments:
        return "code changed"
    return None if len(new_top.split()) > len(top.split()) else "no plan"


def _split(source: str, tree: ast.Module) -> tuple[str, list[str], list[str]]:
    """What stands before the first statement (comments, docstring), the tokens from there on, and comments among them.

    What an indent or a line break is made of, line breaks within brackets and blank lines count for nothing.
    """
    tokens, place = list(tokenize.generate_tokens(io.StringIO(source, newline=None).readline)), 0
    documented = ast.get_docstring(tree, clean=False) is not None
    while tokens[place].type in LAYOUT or (documented and tokens[place].type in (tokenize.STRING, tokenize.NEWLINE)):
        documented &= tokens[place].type != tokenize.NEWLINE
        place += 1
    top = " ".join(token.string for token in tokens[:place] if token.string.strip())
    code = [str(t.type) if t.type in BREAKS else t.string for t in tokens[place:] if t.type not in LAYOUT]
    return top, code, [token.string for token in tokens[place:] if token.type == tokenize.COMMENT]


def same_output(found: str, expected: str) -> bool:
    """Line by line, without white space at the ends of lines and blank lines at the end; numbers with a decimal point
    or an exponent may differ by `TOLERANCE`, absolute or relative. All else has to be equal, whole numbers too."""
    ours, theirs = (text.rstrip().split("\n") for text in (found, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(found: str, expected: str) -> bool:
    found, expected = found.rstrip(), expected.rstrip()
    if found == expected:
        return True
    ours, theirs = _SPACES.split(found), _SPACES.split(expected)
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    numbers = _NUMBER.fullmatch(found) and _NUMBER.fullmatch(expected)
    if not numbers or (found.lstrip("+-").isdigit() and expected.lstrip("+-").isdigit()):
        return False
    ours, theirs = float(found), float(expected)
    return math.isfinite(ours) and math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
