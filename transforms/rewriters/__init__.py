"""Rewriters: one file each; documents in, new documents with their provenance out. The originals stay as they are.

A rewriter says of every piece it made, or tried to make, whether it will do. Which documents it sees, where the new
ones go and in what proportion they are trained on is for the pipeline (docs/rewriting.md).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from transforms.parameters import Parameters, by_name

if TYPE_CHECKING:
    import pyarrow as pa

    from transforms.batch import Batch

OK, REJECTED, FAILED = "ok", "rejected", "failed"


@dataclass(frozen=True)
class Piece:
    """What came of one part of a document.

    Attributes:
        document: place in the batch. chunk: number of the part within the document, from 0.
        text: what was written; null where nothing was.
        status: `ok`; `rejected`: written, and an acceptance check refuses it; `failed`: nothing usable was written.
        reason: of a piece that is not ok, few words that counts go by, as `too short` or `timed out`.
        prompt: name and version of what was asked, as `wrap/medium@1`; empty where no model was asked.
        finish_reason, prompt_tokens, output_tokens: of the answer. seed: of its draw; null where nothing was drawn.
        extra: values of the rewriter's own `fields`.
    """

    document: int
    chunk: int
    text: str | None
    status: str
    reason: str | None = None
    prompt: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Rewriter(Parameters):
    """A rewriter's parameters are its fields. Each is a module of this package, and found by the module's name.

    `where`: SQL over a document's columns; those that are rewritten. Unless given: those that every dedupe method keeps
    and that are not held out. `join`: pieces of a document become one new document, in order, a blank line between
    them, where all of them are ok; else each piece is one. `package`: what must be installed besides the core.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    where: str | None = None
    join: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the shards that it reads besides text and id."""
        return ()

    def check_column(self, name: str, kind: pa.DataType) -> None:
        """Raises TypeError: a column that it needs is of a type that it cannot read; the message says what it can."""

    def fields(self) -> Sequence[pa.Field]:
        """Columns that its documents have besides their text, under names of its own."""
        return ()

    def setup(self) -> None:
        """Load what is heavy, once per worker process. Called before the first `rewrite`."""

    def rewrite(self, batch: Batch) -> list[Piece]:
        """The pieces of each document, in order of document and chunk. A document may have none.

        Raises EngineUnavailable: no request can be answered; what was answered before is kept.
        """
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """`model`: which one wrote, `revision`: digest of it, `sampling`: how, as JSON; empty where none did."""
        return {"model": "", "revision": "", "sampling": ""}


def names() -> list[str]:
    """The rewriters there are: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> type[Rewriter]:
    """The rewriter class of module ``transforms.rewriters.<name>``.

    Raises:
        LookupError: there is none of that name; the message gives the nearest one.
    """
    return by_name(Rewriter, name, names(), f"{__name__}.{name}")
