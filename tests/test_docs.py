"""The list of scorers and fits in the documentation is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import scorers
from trainers import fits

PAGE = (Path(__file__).parents[1] / "docs" / "scorers.md").read_text()


@pytest.mark.parametrize("name", sorted({*scorers.names(), *fits.names()}))
def test_every_scorer_and_fit_is_described(name: str) -> None:
    assert f"`{name}`" in PAGE
