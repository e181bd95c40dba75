"""Source code: language, share of comments, whether it parses, longest line, share of letters and digits.

The language is found at about 50 MB/s (20 MB/s of the first 10,000 characters), the parser makes 4 to 20 MB/s, and
0.15 MB/s where all is wrong, as in a megabyte of quotation marks.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from scorers import Scorer
from scorers._columns import texts

if TYPE_CHECKING:
    from transforms.batch import Batch

FIELDS = [
    pa.field("language", pa.large_string(), metadata={"unit": "null where it is none of those known"}),
    pa.field("comment_share", pa.float64(), metadata={"unit": "bytes in comments / bytes that are no white space"}),
    pa.field("parses", pa.bool_(), metadata={"unit": "no error; this and both shares null where not parsed"}),
    pa.field("errors", pa.float64(), metadata={"unit": "bytes in errors / bytes that are no white space"}),
    pa.field("longest_line", pa.int64(), metadata={"unit": "characters"}),
    pa.field("alphanumeric_share", pa.float64(), metadata={"unit": "letters and ASCII digits / characters"}),
]


class Code(Scorer):
    """A document as source code (see `transforms.code`).

    `path`: column of file names, whose endings say the language; without it, or where a name has no ending, the content
    does. Documents of more than `max_bytes`, or of an unknown language, are not parsed. Macros of C and C++ that hide
    syntax count as errors: grammars do not expand them.
    """

    name: ClassVar[str] = "code"
    package: ClassVar[str | None] = "tree_sitter"
    path: str | None = None
    max_bytes: int = Field(1 << 20, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)

    @model_validator(mode="after")
    def _grammars(self) -> Code:
        from transforms.code import LANGUAGES

        missing = sorted({g.grammar for g in LANGUAGES.values() if importlib.util.find_spec(g.grammar) is None})
        if missing:
            raise ValueError(f"needs the packages {', '.join(missing)}; pip install 'corpusmill[code]'")
        return self

    def fields(self) -> pa.StructType:
        return pa.struct(FIELDS)

    def score(self, batch: Batch) -> pa.StructArray:
        from transforms.code import Parsed, parse, shape

        language = self._language(batch)
        short = pc.less_equal(pc.binary_length(batch.text), self.max_bytes)
        parsed: list[Parsed | None] = [None] * len(batch)
        for i in pc.indices_nonzero(pc.and_(language.is_valid(), short)).to_pylist():  # the parser takes one by one
            parsed[i] = parse(language[i].as_py(), batch.bytes[batch.offsets[i] : batch.offsets[i + 1]].tobytes())
        columns = {
            "comment_share": pa.array([p and p.comments for p in parsed], pa.float64()),
            "parses": pa.array([p and p.parses for p in parsed], pa.bool_()),
            "errors": pa.array([p and p.errors for p in parsed], pa.float64()),
        }
        longest, written = shape(batch.bytes, batch.offsets)
        columns |= {"language": language, "longest_line": pa.array(longest), "alphanumeric_share": pa.array(written)}
        return pa.StructArray.from_arrays([columns[field.name] for field in FIELDS], fields=FIELDS)

    def _language(self, batch: Batch) -> pa.LargeStringArray:
        """By name where there is one with an ending, else by content; null for none of the languages."""
        from transforms.code import by_content, by_name

        if self.path is None:
            return by_content(batch.text)
        named = by_name(texts(batch, self.path))
        nameless = pc.fill_null(pc.equal(named, ""), False)
        found = by_content(batch.text.filter(nameless))
        return pc.replace_with_mask(named, nameless, found)
