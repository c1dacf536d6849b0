"""The text that a clip's file carries: generation parameters as `write_clip`, or the WebUI in a still, wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from .decode import opened_video
from .images import is_picture, opened_picture, pictures_in
from .pictures import PICTURE_ERRORS
from .source import MAX_PIXELS, check_file, in_words

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii", bytes(8): "utf-8"}  # as the WebUI takes them


def read_text(path: str | os.PathLike) -> str | None:
    """The generation parameters in a clip of any of `FORMATS`, in another video that carries them as its comment, or in
    a PNG, JPEG or WebP still of the WebUI; of a folder, those in its first picture. None where there are none.

    It is what `write_clip` was given as `text`. What a file is, is told from its content; of a video only the beginning
    and the index are read.

    Raises FileNotFoundError where nothing is there, RuntimeError where PyAV is missing, otherwise ValueError.
    """
    path = Path(path)
    with in_words(path):
        if path.is_dir():
            path = pictures_in(path)[0]
        check_file(path)
        with open(path, "rb") as file:
            head = file.read(12)
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return _from_exif(_exif_of_webp(file, path), path.name)
        return _from_picture(path) if is_picture(head) else _from_video(path)


def _from_video(path: Path) -> str | None:
    with opened_video(path) as (container, _):
        tags = {name.lower(): text for name, text in container.metadata.items()}
    text = tags.get("comment") or tags.get("summary")  # HandBrake gives a comment the latter name in MKV
    # PyAV 19 gives bytes that are no UTF-8 as surrogates, which no file and no page takes
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if text else None


def _from_picture(path: Path) -> str | None:
    with opened_picture(path, MAX_PIXELS) as image:
        text, exif, comment = (image.info.get(name) for name in ("parameters", "exif", "comment"))
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", errors="replace")
    return text or _from_exif(exif, path.name) or comment or None


def _exif_of_webp(file: BinaryIO, path: Path) -> bytes | None:
    """The EXIF data of a WebP, which come last; Pillow would read the whole file.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    end = path.stat().st_size
    while (head := file.read(8)) and file.tell() <= end:
        size = int.from_bytes(head[4:], "little")
        if file.tell() + size > end:
            break
        if head[:4] == b"EXIF":
            return file.read(size)
        file.seek(size + size % 2, os.SEEK_CUR)
    if head:
        raise ValueError(f"{path.name} is damaged or incomplete: copy or download it again")
    return None


def _from_exif(data: bytes | None, name: str) -> str | None:
    """The UserComment of EXIF data."""
    if not data:
        return None
    exif = Image.Exif()
    try:
        exif.load(data)
        comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT) or b""
        if isinstance(comment, str):  # which should be bytes, but Pillow takes a wrong type as the file has it
            return comment
        encoding = _ENCODINGS.get(comment[:8])
        return (comment[8:].decode(encoding) if encoding else comment.decode("utf-8", errors="replace")) or None
    except PICTURE_ERRORS as error:
        raise ValueError(f"the EXIF data of {name} are damaged ({error}): replace the file") from error
