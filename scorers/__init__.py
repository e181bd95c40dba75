"""Scorers: one file each, Arrow batch in, one struct column out. See CONTRIBUTING.md to add one."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any, ClassVar

from transforms.parameters import Parameters, by_name

if TYPE_CHECKING:
    import pyarrow as pa

    from transforms.batch import Batch


class Scorer(Parameters):
    """A scorer's parameters are its fields; ``name`` is the name of its module and of its struct column, ``package``
    what has to be installed besides the core, ``counted`` a field of text: values other than `ok` are in the ledger.

    A scorer gives features and, where its source publishes thresholds, ``passed`` and ``reason`` (null where passed).
    It decides nothing: selection is SQL over its columns.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    counted: ClassVar[str | None] = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads besides text and id; at least one shard must have them, in the others they are null."""
        return ()

    def fields(self) -> pa.StructType:
        """The struct this scorer adds; units stand in the metadata of its fields."""
        raise NotImplementedError

    def setup(self) -> None:
        """Load what is heavy, once per worker process. Called before the first `score`."""

    def score(self, batch: Batch) -> pa.StructArray:
        """One struct per document of the batch, in the batch's order."""
        raise NotImplementedError


def names() -> list[str]:
    """The scorers there are: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> type[Scorer]:
    """The scorer class of module ``scorers.<name>``.

    Raises:
        LookupError: there is none of that name; the message gives the nearest one.
    """
    return by_name(Scorer, name, names(), f"{__name__}.{name}")


def make(name: str, parameters: dict[str, Any] | None = None) -> Scorer:
    """A scorer by name with its parameters checked.

    Raises:
        LookupError: unknown scorer. pydantic.ValidationError: a parameter is unknown or of the wrong type.
    """
    return find(name)(**(parameters or {}))
