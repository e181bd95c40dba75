"""The lists of scorers, fits and rewriters in the documentation are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import scorers
from trainers import fits
from transforms import rewriters

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", sorted({*scorers.names(), *fits.names()}))
def test_every_scorer_and_fit_is_described(name: str) -> None:
    assert f"`{name}`" in (DOCS / "scorers.md").read_text()


@pytest.mark.parametrize("name", rewriters.names())
def test_every_rewriter_is_described(name: str) -> None:
    assert f"`{name}`" in (DOCS / "rewriting.md").read_text()
