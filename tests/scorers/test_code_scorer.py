"""Source code: samples of every language by name and content, planted comments and errors, hostile input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers import make
from transforms.batch import Batch
from transforms.code import LANGUAGES, by_name, parse, shape

# ruff: noqa: E501
SAMPLES = {
    "c": "#include <stdio.h>\n/* says it */\nstatic int twice(int n) {\n  return 2 * n;\n}\nint main(void) {\n  return twice(1);\n}\n",
    "cpp": "#include <vector>\n// says it\nnamespace a {\nclass B {\npublic:\n  std::vector<int> c;\n};\n}\n",
    "csharp": "using System;\n// says it\nnamespace A {\n  public class B {\n    public int C { get; set; }\n  }\n}\n",
    "css": "/* says it */\n.menu a:hover {\n  color: red;\n  margin: 0;\n}\nbody {\n  padding: 0;\n}\n",
    "go": 'package main\n\n// says it\nimport "fmt"\n\nfunc main() {\n\tx := 1\n\tfmt.Println(x)\n}\n',
    "html": "<!DOCTYPE html>\n<html><head><title>a</title></head>\n<!-- says it -->\n<body><p>b</p></body></html>\n",
    "java": "package a.b;\n\nimport java.util.List;\n\n// says it\npublic class C {\n  private final int d = 1;\n}\n",
    "javascript": "'use strict';\n// says it\nconst a = require('b');\nfunction c(d) { return d === a; }\nmodule.exports = c;\n",
    "json": '{\n  "a": [1, 2, {"b": null}],\n  "c": "d"\n}\n',
    "php": "<?php\n// says it\nclass A {\n  public function b($c) { return $this->d($c); }\n}\n",
    "python": "import os\n\n# says it\ndef twice(n):\n    return 2 * n\n\n\nclass A:\n    def b(self):\n        return self.c\n",
    "ruby": "require 'json'\n\n# says it\nmodule A\n  attr_reader :b\n  def c\n    [1].each do |d|\n      puts d\n    end\n  end\nend\n",
    "rust": "use std::fmt;\n\n// says it\npub fn twice(n: i32) -> i32 {\n    let mut m = n;\n    m *= 2;\n    m\n}\n",
    "shell": '#!/bin/bash\n# says it\nif [ -f "$A" ]; then\n  echo "$A"\nfi\n',
    "typescript": "// says it\nexport interface A {\n  b: string;\n  c?: number;\n}\nexport const d = (e: A): string => e.b;\n",
}
COMMENTS = {
    "c": "/* says it */",
    "css": "/* says it */",
    "html": "<!-- says it -->",
    "python": "# says it",
    "ruby": "# says it",
}
COMMENTS |= {"shell": "#!/bin/bash# says it", "json": ""}
PROSE = "The river carries the weight of stones. It has been so for as long as anyone here remembers.\n" * 20


def score(texts: list[str], names: list[str | None] | None = None, **parameters: Any) -> list[dict[str, Any]]:
    columns: dict[str, Any] = {"text": pa.array(texts, pa.large_string())}
    if names is not None:
        columns["file"] = pa.array(names, pa.string())
        parameters["path"] = "file"
    return make("code", parameters).score(Batch(pa.record_batch(columns))).to_pylist()


def ink(text: str) -> int:
    return len("".join(text.split()).encode())


def test_each_language_is_known_by_its_content_and_parses() -> None:
    assert list(SAMPLES) == list(LANGUAGES)
    for (name, text), row in zip(SAMPLES.items(), score(list(SAMPLES.values())), strict=True):
        assert (row["language"], row["parses"], row["errors"]) == (name, True, 0.0), name
        assert row["comment_share"] == pytest.approx(ink(COMMENTS.get(name, "// says it")) / ink(text)), name


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_is_broken_does_not_parse(name: str) -> None:
    broken = {
        "html": "<p></b></",
        "css": "a { color: } }} {",
        "json": '{"a": [1, }',
        "shell": "if then fi ((",
        "php": "<?php class { (((",
    }
    row = parse(name, broken.get(name, "class ((( { ] int def fn = = ;").encode())
    assert row and not row.parses and 0 <= row.errors <= 1


def test_names_speak_before_content() -> None:
    names = ["a/b.py", "C.TS", "x.unknown", "Makefile", None, "b.h", "archive.tar.rs", "dir.py/README", ".py"]
    found = [row["language"] for row in score([SAMPLES["go"]] * len(names), names)]
    assert found == ["python", "typescript", None, "go", "go", "c", "rust", "go", "go"]
    endings = [ending for language in LANGUAGES.values() for ending in language.endings.split()]
    assert len(endings) == len(set(endings)), "an ending says one language"
    assert by_name(pa.array([], pa.large_string())).to_pylist() == []


def test_prose_is_no_code() -> None:
    row = score([PROSE, "# A title\n\n- a list\n- of `things`\n", "", "x"])
    assert [r["language"] for r in row] == [None] * 4
    assert all(r[name] is None for r in row for name in ("comment_share", "parses", "errors"))


def test_documents_too_large_are_not_parsed() -> None:
    row = score([SAMPLES["go"]], max_bytes=20)[0]
    assert row["language"] == "go" and row["parses"] is None and row["comment_share"] is None


def test_html_that_closes_nothing_is_not_parsed() -> None:
    row = score(["<html><body>" + "<a>" * 300_000])[0]
    assert row["language"] == "html" and row["parses"] is None


@pytest.mark.parametrize(
    "text",
    [
        "[1] Smith, J. A study of rivers.\n[2] Jones, K. Another one.\n",
        "[2024] The year in books.\n",
        "[[Category:Rivers]]\nA river is long.\n",
        "He puts it down, and she puts it back, unless it rains.\nNobody comes unless asked.\n",
        "None of them came. None were asked.\n",
    ],
)
def test_prose_with_words_of_code_is_no_code(text: str) -> None:
    assert score([text])[0]["language"] is None


def test_comments_in_comments_count_once() -> None:
    source = "/// one\nfn a() {} /* two /* three */ */\n"
    assert parse("rust", source.encode()).comments == pytest.approx(ink("/// one/* two /* three */ */") / ink(source))
    assert parse("python", b"x = '# no comment'\n").comments == 0


@given(st.lists(st.text(st.characters(codec="utf-8", max_codepoint=0x1FFFF), max_size=40), max_size=5))
def test_shape_equals_a_slow_reference(texts: list[str]) -> None:
    batch = Batch(pa.record_batch({"text": pa.array(texts, pa.large_string())}))
    longest, share = shape(batch.bytes, batch.offsets)
    assert longest.tolist() == [max(map(len, text.split("\n"))) for text in texts]
    written = [sum(c.isalpha() or c in "0123456789" for c in text) / max(1, len(text)) for text in texts]
    assert np.allclose(share, written)


@pytest.mark.parametrize("name", LANGUAGES)
def test_deep_nesting_and_long_runs_do_no_harm(name: str) -> None:
    """100,000 brackets would overflow a parser that recurses; a megabyte of one character takes linear time."""
    for text in ("[" * 100_000 + "]" * 100_000, "{" * 100_000, "(" * 100_000, "<a>" * 9_000):
        assert 0 <= parse(name, text.encode()).errors <= 1  # type: ignore[union-attr]
    for character in ("a", " ", "\n", "#", "/", "-"):
        row = parse(name, (character * 1_000_000).encode())
        assert 0 <= row.comments <= 1 and 0 <= row.errors <= 1
