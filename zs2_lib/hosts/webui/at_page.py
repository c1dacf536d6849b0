"""What the page's player asks of a clip that is there: what it is, its frames as pictures, a video of it."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from functools import lru_cache
from pathlib import Path

from PIL import PngImagePlugin

from zs2_lib.media.formats import FORMATS
from zs2_lib.media.overview import overview
from zs2_lib.media.read import open_source
from zs2_lib.media.source import Source
from zs2_lib.media.text import read_text
from zs2_lib.media.write import write_clip
from zs2_lib.settings import recipe
from zs2_lib.settings.finished import STOPPED, FinishedClip
from zs2_lib.settings.table import ROWS

from . import library
from .limits import max_source_pixels

_making = threading.Lock()
"""Held while a video is made, so that those who ask for the same one wait for it, and machines do one at a time."""
KEPT = 32
"""Clips of which an overview is kept."""


def about(name: str) -> dict:
    """What the clip of that name is. Raises UnknownClip, ValueError."""
    path = library.find(name)
    changed = path.stat().st_mtime_ns  # of a folder too, whose files are written once
    return {"name": name, "path": str(path), **_about(path, changed)}


@lru_cache(KEPT)
def _about(path: Path, changed: int) -> dict:
    source = _opened(path)
    clip = FinishedClip(source, read_text(path))
    seen = overview(source)
    (width, height), (columns, strip_height) = source.info.size, (len(seen.frames), seen.strip.height)
    file = io.BytesIO()
    seen.strip.save(file, "JPEG", quality=80)
    image = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    strip = {"image": image, "frames": seen.frames, "width": seen.strip.width // columns, "height": strip_height}
    return {
        "frames": source.info.frames,
        "fps": float(clip.rate),
        "width": width,
        "height": height,
        "stopped": STOPPED in clip.values,
        "infotext": clip.text,
        "settings": settings_in(clip.values),
        "every": seen.every,
        "change": seen.change,
        "drift": seen.drift,
        "filmstrip": strip,
    }


def settings_in(values: dict[str, str]) -> dict | None:
    """The settings of ZS² in an infotext's `values` by their keys in API requests; None if it is of no clip.

    Raises SettingsError for values that are not allowed.
    """
    if not recipe.is_of_clip(values):
        return None
    return {ROWS[name].key: ROWS[name].kind.plain(value) for name, value in recipe.read(values).items()}


def png_of(path: Path, frame: int) -> bytes:
    """A frame of a clip, counted from 0, as a PNG that carries the clip's text. Raises ValueError."""
    source = _opened(path)
    if not 0 <= frame < source.info.frames:
        raise ValueError(f"frame: {frame} is not there; {path.name} has the frames 0 to {source.info.frames - 1}")
    _, picture = next(source.read(source.picks()[frame : frame + 1]))
    info = PngImagePlugin.PngInfo()
    if text := read_text(path):
        info.add_text("parameters", text)
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def video_of(path: Path) -> Path:
    """The clip as a file that a <video> plays: itself, or an MP4 that is made of it among the previews.

    Raises ValueError and OSError.
    """
    if path.is_file() and FORMATS[path.suffix[1:]].encoding:
        return path
    about = path.stat()
    key = hashlib.sha256(f"{path} {about.st_mtime_ns} {about.st_size}".encode()).hexdigest()[:16]
    made = library.previews_folder() / f"{key}.mp4"
    with _making:
        if not made.exists():
            clip = FinishedClip(_opened(path), read_text(path))
            pictures = (picture for _, picture in clip.source.frames())
            write_clip(pictures, made.with_suffix(""), "mp4", clip.rate, clip.text)
    return made


def _opened(path: Path) -> Source:
    return open_source(path, max_pixels=max_source_pixels())
