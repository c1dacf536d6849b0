"""Write a clip to a file: MP4, WebM, GIF, animated WebP, APNG, or a folder of PNG files.

`write_clip` is the whole of it. In every format

- no frame is lost, also where frames are equal (a clip with motion 0 is a still that lasts);
- the clip lasts `frames / fps` seconds, to within one tick of the format's clock (a WebP or APNG of a single frame is a
  still: readers report no duration);
- the generation parameters travel in the place where the WebUI's PNG Info, or a video player, looks for them;
- the target is either the complete new clip or whatever was there before, never a torso.

Videos (MP4, WebM) and PNG folders are written frame by frame, so a generator of any length costs the memory of one
frame. The animated images (GIF, WebP, APNG) store only the rectangle that changed from the frame before. GIF and APNG
hold all frames in memory: GIF because its palette is made from all of them, APNG because Pillow does. APNG stores a
frame that equals the one before it whole, so a long still is large.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .formats import FORMATS, check_clip, check_quality, clip_path
from .pictures import rgb_pictures
from .png import FRAME_NAME


def write_clip(
    frames: Iterable[Image.Image | np.ndarray],
    path: str | os.PathLike,
    format: str,
    fps: float | Fraction,
    text: str | None = None,
    loop: bool = True,
    quality: int | None = None,
) -> Path:
    """Writes `frames` as one clip and returns where it is.

    frames: PIL images or uint8 arrays (height, width, 3 or 4), all of one size; a generator will do. Transparent
        pixels are laid on white.
    path: the target without a suffix: `clip` becomes `clip.mp4`, `clip.apng`, ..., or for "png" the folder `clip`
        with `00001.png`, `00002.png`, ... Missing folders are made. An existing clip is replaced once the new one is
        complete; a failure or an interrupt leaves it as it was and removes what had been written.
    format: one of `FORMATS`.
    fps: frames per second, see `check_clip`. A PNG folder does not record it.
    text: generation parameters, which `read_text` reads back, kept as
        mp4: the tag `comment`; webm: the tags `comment` and `summary`;
        gif: the comment block (UTF-8); webp: the EXIF UserComment;
        apng, png: the text chunk `parameters`, in a PNG folder in each file.
    loop: whether gif, webp and apng play without end or once. A player decides for the other formats.
    quality: of mp4 and webm (CRF, less is better) and webp (more is better), see `Format.quality`; None: the default.

    Raises ValueError for no frames, unequal sizes, a wrong `format`, `fps` or `quality`; TypeError for a frame that is
    no picture; FileExistsError where replacing the target would delete something else than a clip; RuntimeError if
    PyAV or its encoder is missing (mp4, webm); and whatever `frames` or the disk raises.
    """
    rate, more = check_clip(format, fps), check_quality(format, quality)
    check_replaceable(path, format)
    text = text and text.encode(errors="replace").decode().replace("\0", "\ufffd")  # which no format could carry
    target = clip_path(path, format)

    pictures = rgb_pictures(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("a clip needs at least 1 frame, got 0")
    with all_or_nothing(target) as unfinished:
        FORMATS[format].write(itertools.chain([first], pictures), unfinished, rate, text, loop, **more)
    return target


def clip_bytes(path: str | os.PathLike) -> bytes:
    """A written clip as bytes, for an API response: the file's own, or for a PNG folder an uncompressed ZIP of it."""
    path = Path(path)
    if not path.is_dir():
        return path.read_bytes()
    buffer = io.BytesIO()
    write_zip(path, buffer)
    return buffer.getvalue()


def write_zip(folder: Path, file: BinaryIO) -> None:
    """Writes an uncompressed ZIP of a PNG folder."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for picture in sorted(folder.iterdir()):
            archive.write(picture, picture.name)


def write_sidecar(path: str | os.PathLike, about: Mapping) -> Path:
    """Writes `path`.json beside the files of the clip `path`: what is said `about` it. All of it, or nothing."""
    target = Path(f"{os.fspath(path)}.json")
    with all_or_nothing(target) as unfinished:
        unfinished.write_bytes(json.dumps(about, ensure_ascii=False, indent=2).encode(errors="replace"))
    return target


def check_replaceable(path: str | os.PathLike, format: str) -> None:
    """Raises FileExistsError where `write_clip(..., path, format)` would replace something else than a clip.

    A file may replace a file; a PNG folder may replace a folder that holds nothing but numbered PNG files.
    """
    target, is_folder = clip_path(path, format), FORMATS[format].is_folder
    if not target.exists():
        return
    if not is_folder and target.is_dir():
        raise FileExistsError(f"cannot write the clip {target}: a folder has this name, choose another one")
    if is_folder and not target.is_dir():
        raise FileExistsError(f"cannot write the PNG folder {target}: a file has this name, choose another one")
    if is_folder:
        for entry in target.iterdir():
            if not FRAME_NAME.fullmatch(entry.name):
                raise FileExistsError(
                    f"cannot replace the folder {target}: it also holds {entry.name}, which is no frame of a clip; "
                    "choose another name or empty the folder"
                )


@contextmanager
def all_or_nothing(target: Path) -> Iterator[Path]:
    """Yields a hidden name beside `target`; what is written there becomes `target` on success, else vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield unfinished
        _replace(unfinished, target)
    finally:
        _remove(unfinished)


def _replace(source: Path, target: Path) -> None:
    if not source.is_dir() or not target.exists():
        os.replace(source, target)
        return
    old = source.with_suffix(".old")  # os.replace does not replace a folder that has content
    os.replace(target, old)
    try:
        os.replace(source, target)
    except BaseException:
        os.replace(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
