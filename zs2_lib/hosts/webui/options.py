"""The section "ZS²" of the host's settings, and what is set there, checked.

A value that is not allowed, typed there or sent to the host's API, never stops a job: the default is used, with a note.
"""

from __future__ import annotations

from modules import shared, ui_components

from zs2_lib.settings.kinds import Choices, SettingsError
from zs2_lib.settings.options import OPTIONS

SECTION = ("zs2", "ZS²")
QUALITY = {"mp4": "zs2_mp4_crf", "webm": "zs2_webm_crf", "webp": "zs2_webp_quality"}


def add() -> None:
    """Adds the section to the host's settings."""
    for name, option in OPTIONS.items():
        control = {}  # the host chooses it by the default's type
        if isinstance(option.kind, Choices):
            control = {"component": ui_components.DropdownMulti, "component_args": {"choices": [*option.kind.choices]}}
        info = shared.OptionInfo(option.default, option.label, section=SECTION, **control)
        shared.opts.add_option(name, info.info(option.info))


def value(name: str):
    """What is set, or the default where that is not allowed."""
    try:
        return _checked(name)
    except SettingsError:
        return _default(name)


def notes() -> list[str]:
    """What the user should know about values that are not used."""
    found = []
    for name, option in OPTIONS.items():
        try:
            _checked(name)
        except SettingsError as error:
            used = option.kind.print(_default(name)) or "empty"
            found.append(f"Settings, ZS², {option.label}: {error}. For now it is {used}.")
    return found


def _checked(name: str):
    option = OPTIONS[name]
    return option.kind.check(name, getattr(shared.opts, name, option.default))


def _default(name: str):
    option = OPTIONS[name]
    return option.kind.check(name, option.default)


def quality(format: str) -> int | None:
    """The quality that clips of a format are written with; None where it has none."""
    return value(QUALITY[format]) if format in QUALITY else None


def latents_per_pass() -> int:
    """Latent positions of a pass whose size is chosen automatically."""
    return value("zs2_frames_per_pass") * 64 * 64
