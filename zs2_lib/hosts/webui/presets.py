"""The presets of this host: those that are shipped, and the user's in its data folder."""

from __future__ import annotations

from pathlib import Path

from modules import paths_internal

from zs2_lib.settings.preset_file import PresetFile
from zs2_lib.settings.presets import SHIPPED
from zs2_lib.settings.speeds import SPEEDS

NAME = "zs2-presets.json"

users = PresetFile(Path(paths_internal.data_path, NAME))
"""The user's."""


def names() -> list[str]:
    """The names of all presets, the shipped ones first."""
    return [*SHIPPED, *users.read()]


def answer() -> dict:
    """What a client is told of presets and speeds."""
    own = users.read()
    return {
        "shipped": {name: preset.mapping() for name, preset in SHIPPED.items()},
        "user": {name: preset.mapping() for name, preset in own.items()},
        "speeds": {name: {"settings": speed.settings, "steps": speed.steps} for name, speed in SPEEDS.items()},
        "notes": list(users.notes),
    }
