"""A clip's recipe: its settings as a host's infotext carries them, one key for each, and what it says read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .row import Row
from .table import ROWS, Settings

CARRIED = {name: row for name, row in ROWS.items() if name not in ("enabled", "returns", "source", "mask", "control")}
"""The settings that an infotext carries. That it carries them says that ZS² was enabled; files it can't carry."""


def infotext_key(row: Row) -> str:
    """A setting's key in the infotext: "ZS2 frames", "ZS2 noise model"."""
    return "ZS2 " + row.name.replace("_", " ")


def texts(settings: Settings) -> dict[str, str]:
    """What the host writes into its images, by infotext key: the settings that belong to the clip."""
    groups = ("", *(group for group in ("source", "control") if getattr(settings, group)))
    rows = [row for row in CARRIED.values() if row.group in groups and getattr(settings, row.name) is not None]
    return {infotext_key(row): row.kind.print(getattr(settings, row.name)) for row in rows}


def is_of_clip(infotext: Mapping[str, str]) -> bool:
    """Whether the infotext, texts by key, is that of a clip."""
    return infotext_key(ROWS["frames"]) in infotext


def read(infotext: Mapping[str, str], names: Iterable[str] = CARRIED) -> dict[str, object]:
    """The values of those of the settings `names` of which the infotext, texts by key, speaks.

    A clip's infotext without prompts says that there are none. Raises SettingsError for a value that is not allowed.
    """
    values = {}
    for row in (CARRIED[name] for name in names):
        text = infotext.get(infotext_key(row))
        if text is not None:
            values[row.name] = row.kind.read(infotext_key(row), text)
        elif row.default is None and is_of_clip(infotext):
            values[row.name] = None
    return values


def parameters(prompt: str, negative: str, values: Mapping[str, object]) -> str:
    """The whole text that the WebUI writes into an image: the prompts, and `values` by key in the last line."""
    lines = [prompt] + ([f"Negative prompt: {negative}"] if negative else [])
    return "\n".join(lines + [", ".join(f"{key}: {_quoted(value)}" for key, value in values.items())])


def _quoted(value: object) -> str:
    """The text of a value, in quotes where the WebUI would not find its end."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
