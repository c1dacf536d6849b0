"""The section "ZS²" of the host's settings: what it offers, and what is set there, checked.

A value that is not allowed, typed there or sent to the host's API, never stops a job: the default is used, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modules import shared, ui_components

from zs2_lib.media.formats import FORMATS
from zs2_lib.settings.kinds import Kind, SettingsError, WholeNumber, YesNo
from zs2_lib.settings.table import ROWS

SECTION = ("zs2", "ZS²")
FOLDER = "zs2-videos"
"""The folder of the clips, unless another is set."""


class FolderName(Kind):
    """The name of one folder, which is no path."""

    def check(self, key: str, value) -> str:
        name = value.strip() if isinstance(value, str) else ""
        if not name or name.startswith(".") or any(mark in name for mark in '/\\:*?"<>|\0') or len(name.encode()) > 200:
            raise SettingsError(
                f"{key}: {value!r} is not allowed; give the name of one folder: no path, no dot before it, at most 200 "
                "bytes"
            )
        return name


class Pattern(Kind):
    """A pattern of the host for a file's name, which may lie in folders; empty for none."""

    def check(self, key: str, value) -> str:
        if not isinstance(value, str) or "\0" in value or ".." in value.replace("\\", "/").split("/"):
            raise SettingsError(
                f'{key}: {value!r} is not allowed; give a pattern such as "[seed]-[steps]", without ".."'
            )
        return value.strip()


@dataclass(frozen=True)
class Option:
    default: object
    label: str
    info: str
    kind: Kind
    component: type | None = None
    """The host's control; None: by the default's type."""
    arguments: Mapping = field(default_factory=dict)


def _quality(format: str, name: str, says: str) -> Option:
    default, low, high = FORMATS[format].quality
    return Option(default, name, f"{says}; from {low} to {high}", WholeNumber(low, high))


OPTIONS = {
    "zs2_formats": Option(
        list(ROWS["formats"].default),
        "Output formats that the panel begins with",
        "requires Reload UI",
        ROWS["formats"].kind,
        ui_components.DropdownMulti,
        {"choices": list(FORMATS)},
    ),
    "zs2_mp4_crf": _quality("mp4", "CRF of MP4", "less is better and larger"),
    "zs2_webm_crf": _quality("webm", "CRF of WebM", "less is better and larger"),
    "zs2_webp_quality": _quality("webp", "Quality of animated WebP", "more is better and larger"),
    "zs2_folder": Option(
        FOLDER,
        "Folder of the clips",
        "a name in the output folder of each tab; clips in the last one stay",
        FolderName(),
    ),
    "zs2_filename_pattern": Option(
        "", "File name pattern of the clips", "as the pattern of images; empty: the same as that", Pattern()
    ),
    "zs2_frames_per_pass": Option(
        8,
        "Automatic pass size",
        "frames of 512×512 that the UNet computes at once where Frames per UNet pass is 0; fewer need less memory",
        WholeNumber(1, 64),
    ),
    "zs2_player": Option(True, "Player in place of the gallery's first picture", "requires Reload UI", YesNo()),
    "zs2_playing_grid": Option(
        True, "Playing grid of an X/Y/Z plot", "one clip of all cells, beside the grid of first frames", YesNo()
    ),
    "zs2_notes": Option(True, "Notes under the result", "they are in its infotext as well", YesNo()),
    "zs2_preflight_steps": Option(8, "Steps of a preflight", "the most that it takes", WholeNumber(1, 150)),
    "zs2_preflight_size": Option(
        256, "Size of a preflight", "the longer side in pixels, at the most", WholeNumber(64, 2048)
    ),
}
"""By the host's names of them."""


def add() -> None:
    """Adds the section to the host's settings."""
    for name, option in OPTIONS.items():
        info = shared.OptionInfo(
            option.default, option.label, option.component, dict(option.arguments) or None, section=SECTION
        )
        shared.opts.add_option(name, info.info(option.info))


def value(name: str):
    """What is set, or the default where that is not allowed."""
    try:
        return _checked(name)
    except SettingsError:
        option = OPTIONS[name]
        return option.kind.check(name, option.default)


def notes() -> list[str]:
    """What the user should know about values that are not used."""
    found = []
    for name, option in OPTIONS.items():
        try:
            _checked(name)
        except SettingsError as error:
            default = option.kind.print(option.kind.check(name, option.default))
            found.append(f"Settings, {option.label}: {error}. Now it is {default or 'empty'}.")
    return found


def _checked(name: str):
    option = OPTIONS[name]
    return option.kind.check(name, getattr(shared.opts, name, option.default))


def quality(format: str) -> int | None:
    """The quality that clips of a format are written with; None where it has none."""
    name = {"mp4": "zs2_mp4_crf", "webm": "zs2_webm_crf", "webp": "zs2_webp_quality"}.get(format)
    return name and value(name)


def latents_per_pass() -> int:
    """Latent positions of a pass whose size is chosen automatically."""
    return value("zs2_frames_per_pass") * 64 * 64
