"""Scorers: one file each, Arrow batch in, one struct column out. See CONTRIBUTING.md to add one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pyarrow as pa

    from transforms.batch import Batch

Kind = TypeVar("Kind")


class Scorer(BaseModel):
    """A scorer's parameters are its fields; ``name`` is the name of its module and of its struct column, ``package``
    what has to be installed besides the core.

    A scorer gives features and, where its source publishes thresholds, ``passed`` and ``reason`` (null where passed).
    It decides nothing: selection is SQL over its columns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    package: ClassVar[str | None] = None

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

    def __getstate__(self) -> dict[Any, Any]:
        """What was loaded (each `cached_property`) stays behind: every worker process loads its own."""
        state, own = super().__getstate__(), type(self)
        held = {k: v for k, v in state["__dict__"].items() if not isinstance(getattr(own, k, None), cached_property)}
        return {**state, "__dict__": held}


def names() -> list[str]:
    """The scorers there are: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> type[Scorer]:
    """The scorer class of module ``scorers.<name>``.

    Raises:
        LookupError: there is none of that name; the message gives the nearest one.
    """
    return by_name(Scorer, name, names(), f"{__name__}.{name}")


def by_name(base: type[Kind], name: str, known: list[str], module: str) -> type[Kind]:
    """The one subclass of `base` that `module` defines; `name`, by which the user asked for it, is one of `known`.

    Raises:
        LookupError: it is none of them; the message gives the nearest one. Or the module defines no such class.
    """
    what = base.__name__.lower()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
        raise LookupError(f"no {what} named {name!r}{hint}")
    found = importlib.import_module(module)
    for _, member in inspect.getmembers(found, inspect.isclass):
        if issubclass(member, base) and member.__module__ == module:
            return member
    raise LookupError(f"{module.replace('.', '/')}.py defines no subclass of {base.__name__}")


def make(name: str, parameters: dict[str, Any] | None = None) -> Scorer:
    """A scorer by name with its parameters checked.

    Raises:
        LookupError: unknown scorer. pydantic.ValidationError: a parameter is unknown or of the wrong type.
    """
    return find(name)(**(parameters or {}))
