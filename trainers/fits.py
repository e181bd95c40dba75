"""Fits: one file each, `fit_NAME.py`: documents drawn from a corpus in, a folder with a model and its card out."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

import trainers
from transforms.parameters import by_name

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "fit_"


@dataclass(frozen=True)
class Wanted:
    """Documents that a fit is given, in a seeded order: those where the SQL condition `where` holds, none held out.

    `documents` or `megabytes` bound how many are drawn; `without` names an earlier sample none of whose documents may
    come again; `columns` are SQL values that come along, by name.
    """

    where: str = "true"
    documents: int | None = None
    megabytes: float | None = None
    without: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


class Fit(BaseModel):
    """A fit's parameters are its fields; recipes name it by the name of its module without `fit_`.

    `readers` are the scorers that read the model, `package` what has to be installed besides the core.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: ClassVar[str]
    readers: ClassVar[tuple[str, ...]]
    package: ClassVar[str | None] = None

    def samples(self) -> dict[str, Wanted]:
        """The documents it learns from: name of the sample -> what is wanted. SQL is checked before any work."""
        raise NotImplementedError

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        """Write the model into the folder `out`; the same samples and seed give the same bytes.

        Args:
            samples: by name, tables of `id`, `text` and the columns asked for.

        Returns:
            The card, which also stands in `out/card.json`: what a reader of the report wants to know. Where there is
            something to learn it has `parameters`, `documents` by label and `holdout` (see `trainers.holdout`).

        Raises:
            ValueError: the samples do not serve; the message says what was given and what was expected.
        """
        raise NotImplementedError


def names() -> list[str]:
    """The fits there are: the modules of `trainers` called `fit_NAME`."""
    modules = (module.name for module in pkgutil.iter_modules(trainers.__path__))
    return sorted(name.removeprefix(PREFIX) for name in modules if name.startswith(PREFIX))


def find(method: str) -> type[Fit]:
    """The fit of module ``trainers.fit_<method>``.

    Raises:
        LookupError: there is none of that name; the message gives the nearest one.
    """
    return by_name(Fit, method, names(), f"trainers.{PREFIX}{method}")
