"""Presets: settings that make one look, each under a name; those that are shipped, and what any may be."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from .kinds import Number, SettingsError, WholeNumber, nearest
from .table import ROWS, Settings

LONGEST_NAME, LONGEST_ABOUT = 60, 500
"""Characters."""
OF_ONE_CLIP = ("source", "mask", "control", "source_start", "source_end", "retakes", "extended", "kept_clip")
"""Settings that belong to one clip, and are part of no preset."""
KEPT = {row.key: row for name, row in ROWS.items() if name not in (*OF_ONE_CLIP, "enabled", "returns", "preflight")}
"""The rows of the settings that a preset may hold, by their keys."""
LOOK = ("motion", "inertia", "momentum", "loop", "noise_model", "alpha", "candidates", "solver")
"""The settings that every shipped preset holds, so that nothing of one is left behind by the next."""
OF_THE_HOST = {"steps": WholeNumber(1, 1000), "denoising_strength": Number(0, 1)}


def as_json(value) -> bytes:
    """The text of a file. Raises ValueError for what JSON, or UTF-8, does not have."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Preset:
    """Checked settings by their keys, as JSON has them, and what it sets of the host, None where that stays."""

    settings: dict = field(default_factory=dict)
    steps: int | None = None
    denoising_strength: float | None = None
    about: str = ""
    """A line that says what it is for."""

    @classmethod
    def from_mapping(cls, values: Mapping) -> Preset:
        """A preset as the file has it. Raises SettingsError that says what is not allowed."""
        if not isinstance(values, dict) or not isinstance(values.get("settings"), dict):
            raise SettingsError('a preset is an object with "settings", such as {"settings": {"motion": 0.1}}')
        allowed = ("settings", *OF_THE_HOST, "about")
        for key in values:
            if key not in allowed:
                raise SettingsError(f"{key!r} is not part of a preset, {', '.join(allowed)} are{nearest(key, allowed)}")
        of_host = {
            key: kind.check(key, values[key]) for key, kind in OF_THE_HOST.items() if values.get(key) is not None
        }
        about = values.get("about", "")
        if not isinstance(about, str) or len(about) > LONGEST_ABOUT:
            raise SettingsError(
                f"about: {str(about)[:80]!r} is not allowed; give a text of up to {LONGEST_ABOUT} letters"
            )
        preset = cls(_checked(values["settings"]), **of_host, about=about)
        try:
            as_json(preset.mapping())
        except ValueError:
            raise SettingsError("a text is not allowed that holds a half of a character; write it anew") from None
        return preset

    @property
    def by_name(self) -> dict:
        """The settings by their names."""
        return {KEPT[key].name: value for key, value in self.settings.items()}

    def mapping(self) -> dict:
        """The preset as the file has it."""
        more = {key: getattr(self, key) for key in (*OF_THE_HOST, "about") if getattr(self, key) not in (None, "")}
        return {"settings": self.settings, **more}


def _checked(settings: Mapping) -> dict:
    for key in settings:
        if key in (ROWS[name].key for name in OF_ONE_CLIP):
            raise SettingsError(f"{key!r} belongs to one clip; leave it out of a preset")
        if key not in KEPT:
            raise SettingsError(f"{key!r} is not a setting that a preset may hold{nearest(key, KEPT)}")
    checked = Settings.from_mapping(settings)
    return {key: row.kind.plain(getattr(checked, row.name)) for key, row in KEPT.items() if key in settings}


def _shipped(about: str, denoising_strength: float | None = None, **look) -> Preset:
    settings = {**{ROWS[name].key: ROWS[name].kind.plain(ROWS[name].default) for name in LOOK}, **look}
    return Preset.from_mapping({"settings": settings, "denoising_strength": denoising_strength, "about": about})


SHIPPED = {
    "subtle": _shipped("Nearly a still: it breathes.", motion=0.01, momentum=0.98),
    "lively": _shipped("Something happens in every frame.", motion=0.2, momentum=0.9),
    "cinemagraph": _shipped("A calm loop without a seam.", motion=0.05, loop="seamless"),
    "morph": _shipped("Travels smoothly from one picture to others.", motion=0.1, inertia=0.9, momentum=0.5),
    "edit: keep": _shipped("A source video keeps its shapes.", 0.4, motion=0, momentum=0.9),
    "edit: restyle": _shipped("A source video becomes something else.", 0.7, motion=0.02, momentum=0.75),
}
"""By name; "edit" is for img2img with a source video."""


def checked_name(name: str) -> str:
    """A name that a preset of the user may have. Raises SettingsError for another."""
    beginning = f"name: {str(name)[:80]!r} is not allowed"
    if not isinstance(name, str) or not name.strip() or len(name.strip()) > LONGEST_NAME:
        raise SettingsError(f"{beginning}; give 1 to {LONGEST_NAME} letters")
    name = name.strip()
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise SettingsError(f"{beginning}; leave out line breaks and control characters")
    if name.casefold() in map(str.casefold, SHIPPED):
        raise SettingsError(f"{beginning}: a preset of this name is shipped; choose another name")
    return name
