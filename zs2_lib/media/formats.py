"""The formats of clips, one row for each: what sets a format apart. How its bytes are made is its writer's business.

A new format is one row in `FORMATS` and one writer.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from .encode import Encoding, write_video
from .gif import write_gif
from .png import write_apng, write_png_folder
from .webp import write_webp

MIN_FPS, MAX_FPS = 0.1, 240


@dataclass(frozen=True)
class Format:
    """name: what users call it; also the suffix of its files.
    write: takes the pictures (RGB, of one size, at least one), the file or folder to make, the frame rate, the
        generation parameters or None, and whether an animated image plays without end.
    media_type: what HTTP calls its files.
    is_folder: the clip is a folder of files.
    plays_in_gallery: an <img> of the host's gallery plays it.
    least_ms: what a frame has to last at least; browsers show an image that asks for less for 100 ms instead.
    encoding: how FFmpeg encodes pictures and sound, for the formats that it writes.
    quality: (default, lowest, highest) of what `write` takes as `quality`, where that can be chosen: the CRF of a
        video, of which less is better; of WebP, of which more is.
    """

    name: str
    write: Callable[..., None]
    media_type: str
    is_folder: bool = False
    plays_in_gallery: bool = False
    least_ms: int | None = None
    encoding: Encoding | None = None
    quality: tuple[int, int, int] | None = None

    @property
    def suffix(self) -> str:
        """What is appended to the clip's path: nothing to a folder's."""
        return "" if self.is_folder else f".{self.name}"

    @property
    def max_fps(self) -> int:
        return 1000 // self.least_ms if self.least_ms else MAX_FPS

    @property
    def sound(self) -> bool:
        """Whether it holds sound."""
        return self.encoding is not None

    @property
    def needs_av(self) -> bool:
        """Whether writing it takes PyAV."""
        return self.encoding is not None


# Constant quality, close to transparent: a mean error of 1.8 levels of 255 on a clip of the small checkpoint. The
# defaults of imageio make 2.6, and 7.4 where a player takes the untagged colours for BT.709, in half the bytes.
_MP4 = Encoding(
    container="mp4",
    encoder="libx264",
    options={"preset": "medium"},
    container_options={"movflags": "+faststart"},
    sound_encoder="aac",
    sound_copied=("aac", "mp3", "opus", "flac"),
    text_tags=("comment",),
)
_WEBM = Encoding(
    container="webm",
    encoder="libvpx-vp9",
    options={"b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"},
    container_options={"fflags": "+bitexact"},  # else each file has numbers of its own, drawn by chance
    sound_encoder="libopus",
    sound_copied=("opus", "vorbis"),
    text_tags=("comment", "summary"),  # of a WebM HandBrake keeps only the latter
)

FORMATS = {
    row.name: row
    for row in (
        Format("mp4", partial(write_video, _MP4), "video/mp4", encoding=_MP4, quality=(17, 1, 51)),
        Format("gif", write_gif, "image/gif", plays_in_gallery=True, least_ms=20),
        Format("webp", write_webp, "image/webp", plays_in_gallery=True, least_ms=11, quality=(90, 0, 100)),
        Format("apng", write_apng, "image/apng", plays_in_gallery=True, least_ms=11),
        Format("webm", partial(write_video, _WEBM), "video/webm", encoding=_WEBM, quality=(20, 0, 63)),
        Format("png", write_png_folder, "image/png", is_folder=True),
    )
}


def check_clip(format: str, fps: float | Fraction) -> Fraction:
    """Returns the frame rate that a clip will have, or raises ValueError if `write_clip` would refuse these two.

    The rate is `fps` as `exact_rate` gives it, from `MIN_FPS` to the format's `max_fps`.
    """
    if format not in FORMATS:
        nearest = difflib.get_close_matches(str(format).lower(), FORMATS, n=1, cutoff=0.5)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
        raise ValueError(f"unknown clip format {format!r}: choose one of {', '.join(FORMATS)}{hint}")
    limit = FORMATS[format].max_fps
    if not MIN_FPS <= float(fps) <= limit:  # also catches NaN
        remedy = " (browsers play it slower, not faster, beyond that: use mp4)" if limit < fps <= MAX_FPS else ""
        raise ValueError(f"fps is {fps}, but {format} takes {MIN_FPS} to {limit} frames per second{remedy}")
    return exact_rate(fps)


def check_quality(format: str, quality: int | None) -> dict[str, int]:
    """What a format's `write` takes of a quality, None for the default. Raises ValueError for one that it has not."""
    row = FORMATS[format]
    if row.quality is None:
        if quality is not None:
            raise ValueError(f"quality is {quality}, but {format} has none to choose: leave it out")
        return {}
    default, low, high = row.quality
    quality = default if quality is None else quality
    if not low <= quality <= high:
        raise ValueError(f"quality is {quality}, but {format} takes {low} to {high} (default {default})")
    return {"quality": quality}


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as a fraction with a denominator up to 1001: 29.97 is 2997/100."""
    return Fraction(float(fps)).limit_denominator(1001)


def clip_path(path: str | os.PathLike, format: str) -> Path:
    """The file (or for "png" the folder) that `write_clip(..., path, format)` writes.

    The suffix is appended, so dots in the name stay: `motion_0.05` becomes `motion_0.05.mp4`.
    """
    path = Path(path)
    row = FORMATS[format]
    return path if row.is_folder else path.with_name(path.name + row.suffix)


def split_clip_name(name: str | os.PathLike) -> tuple[Path, str]:
    """Turns a file name as a user types it into `path` and `format` for `write_clip`.

    `out/clip.mp4` gives (`out/clip`, "mp4"); `frames.png` gives (`frames`, "png"), a PNG sequence in that folder.
    Raises ValueError for a suffix that is not in `FORMATS`.
    """
    path = Path(name)
    format = path.suffix[1:].lower()
    if format not in FORMATS:
        problem = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
        suffixes = ", ".join(f".{format}" for format in FORMATS)
        raise ValueError(f"cannot tell the clip format of {str(name)!r} ({problem}): end it with one of {suffixes}")
    return path.with_suffix(""), format
