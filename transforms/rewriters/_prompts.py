"""Prompts of rewriters: YAML files, one for each style, that users may replace by their own.

`prompts/<family>/<style>.yaml` holds `version` (raise it when the words change), `user`, perhaps `system`, and perhaps
`settings`, which the family's rewriter reads. `{text}` and the like are places that the rewriter fills.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "prompts"
_PLACE = re.compile(r"\{([a-z_]+)\}")
_KEYS = {"version": int, "user": str, "system": str, "settings": dict}
_FORM = "version (a whole number), user (text), and perhaps system (text) and settings"


@dataclass(frozen=True)
class Prompt:
    """What a model is asked. `settings` are for the rewriter, not for the model."""

    name: str
    version: int
    user: str
    system: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As it stands in the provenance of what was written: `wrap/medium@1`."""
        return f"{self.name}@{self.version}"

    @property
    def places(self) -> set[str]:
        """Names between braces in either part."""
        return {*_PLACE.findall(self.user), *_PLACE.findall(self.system)}

    def messages(self, **values: str) -> tuple[tuple[str, str], ...]:
        """The conversation with all places filled, at once: braces in values stay what they are.

        Raises KeyError: a place has no value.
        """
        parts = (("system", self.system), ("user", self.user))
        return tuple((role, _PLACE.sub(lambda place: values[place[1]], said)) for role, said in parts if said)


def styles(family: str) -> list[str]:
    """The styles of a family that come with the package."""
    return sorted(file.stem for file in (FOLDER / family).glob("*.yaml"))


def load(family: str, style: str | Path, places: Collection[str] = ("text",)) -> Prompt:
    """The prompt of a style, `wrap/medium`, or, where `style` is a path, that of a user's file, named after it.

    Args:
        places: what the rewriter fills; the prompt has to have a place for each, and no others.

    Raises:
        ValueError: no such style or file, or it is malformed; the message says what was expected.
    """
    file = style if isinstance(style, Path) else FOLDER / family / f"{style}.yaml"
    if not isinstance(style, Path) and style not in styles(family):
        raise ValueError(f"no style {style!r}; there are {', '.join(styles(family))}, or give the file of a prompt")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as a prompt: {error}") from error
    given = found if isinstance(found, dict) else {}
    if wrong := [key for key in given if type(given[key]) is not _KEYS.get(key)]:
        raise ValueError(f"{file}: {wrong[0]!r} is unknown or of a wrong type; expected {_FORM}")
    if "version" not in given or not given.get("user", "").strip():
        raise ValueError(f"{file}: expected {_FORM}")
    texts = {key: given[key].strip() for key in ("user", "system") if key in given}
    name = file.stem if isinstance(style, Path) else f"{family}/{style}"
    prompt = Prompt(name, given["version"], settings=given.get("settings", {}), **texts)
    if prompt.places != set(places):
        expected, has = (", ".join(f"{{{name}}}" for name in sorted(names)) for names in (places, prompt.places))
        raise ValueError(f"{file}: places to fill are {has or 'none'}; expected {expected}")
    return prompt
