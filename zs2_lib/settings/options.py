"""What a WebUI's settings offer for all jobs: a table, whose values a host checks when it uses them."""

from __future__ import annotations

from dataclasses import dataclass

from zs2_lib.media.formats import FORMATS

from .kinds import Kind, SettingsError, WholeNumber, YesNo
from .table import ROWS

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
    """A row of the section; `info` stands in brackets behind the `label`."""

    default: object
    label: str
    info: str
    kind: Kind


def _quality(format: str, label: str, says: str) -> Option:
    default, low, high = FORMATS[format].quality
    return Option(default, label, f"{says}; from {low} to {high}", WholeNumber(low, high))


OPTIONS = {
    "zs2_formats": Option(
        list(ROWS["formats"].default),
        "Output formats that the panel begins with",
        "requires Reload UI",
        ROWS["formats"].kind,
    ),
    "zs2_mp4_crf": _quality("mp4", "CRF of MP4", "less is better and larger"),
    "zs2_webm_crf": _quality("webm", "CRF of WebM", "less is better and larger"),
    "zs2_webp_quality": _quality("webp", "Quality of animated WebP", "more is better and larger"),
    "zs2_folder": Option(
        FOLDER,
        "Folder of the clips",
        "its name in the output folder of each tab; clips in the one before stay there",
        FolderName(),
    ),
    "zs2_filename_pattern": Option(
        "",
        "File name pattern of the clips",
        "as the pattern of images; empty: the same as that",
        Pattern(),
    ),
    "zs2_frames_per_pass": Option(
        8,
        "Automatic pass size",
        "frames of 512×512 that the UNet computes at once where Frames per UNet pass is 0; fewer need less memory",
        WholeNumber(1, 64),
    ),
    "zs2_player": Option(True, "Player in place of the gallery's first picture", "requires Reload UI", YesNo()),
    "zs2_playing_grid": Option(
        True,
        "Playing grid of an X/Y/Z plot",
        "one clip of all cells, beside the grid of first frames",
        YesNo(),
    ),
    "zs2_notes": Option(True, "Notes under the result", "they are in its infotext as well", YesNo()),
    "zs2_preflight_steps": Option(8, "Steps of a preflight", "the most that it takes", WholeNumber(1, 150)),
    "zs2_preflight_size": Option(
        256,
        "Size of a preflight",
        "the longer side in pixels, at the most; with SDXL twice that",
        WholeNumber(64, 2048),
    ),
}
"""By the host's names of them."""
