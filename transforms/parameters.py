"""What scorers, rewriters, engines and methods are: parameters, checked when made, and found by their module's name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

Kind = TypeVar("Kind")


class Parameters(BaseModel):
    """Parameters are fields; unknown names are refused. What is heavy is a `cached_property` of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __getstate__(self) -> dict[Any, Any]:
        """What was loaded stays behind: every worker process loads its own."""
        state, own = super().__getstate__(), type(self)
        held = {k: v for k, v in state["__dict__"].items() if not isinstance(getattr(own, k, None), cached_property)}
        return {**state, "__dict__": held}


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
