"""Animated WebP. imageio compresses each frame; the file around them is put together here: libwebp drops equal ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
from PIL import Image

from .animated import changed_box, ticks


def write_webp(
    pictures: Iterator[Image.Image], file: Path, rate: Fraction, text: str | None, loop: bool, quality: int
) -> None:
    """Each frame stores the rectangle that changed. https://developers.google.com/speed/webp/docs/riff_container"""
    with open(file, "wb") as out:
        out.write(b"RIFF\0\0\0\0WEBP")
        previous = None
        for number, picture in enumerate(pictures):
            if number == 0:
                flags = 0x02 | (0x08 if text else 0)  # animation, EXIF
                out.write(_riff(b"VP8X", struct.pack("<I", flags) + _uint24(picture.width - 1, picture.height - 1)))
                out.write(_riff(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0 if loop else 1)))  # white ground, plays
            left, top, right, bottom = changed_box(picture, previous, grid=2)
            part = picture.crop((left, top, right, bottom))
            compressed = iio.imwrite("<bytes>", part, plugin="pillow", extension=".webp", quality=quality, method=4)
            place = _uint24(left // 2, top // 2, right - left - 1, bottom - top - 1, ticks(number, rate, 1000))
            # 0x02: put the frame's pixels in place of the ones there. The compressed file's own header is 12 bytes.
            out.write(_riff(b"ANMF", place + b"\x02" + compressed[12:]))
            previous = picture
        if text:
            out.write(_riff(b"EXIF", _exif(text)))
        size = out.tell()
        out.seek(4)
        out.write(struct.pack("<I", size - 8))


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _uint24(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(3, "little") for number in numbers)


def _exif(text: str) -> bytes:
    """EXIF data that holds `text` as its UserComment, as the WebUI writes and reads it.

    By hand, since Pillow stores the comment as the type BYTE, where the standard and piexif want UNDEFINED.
    """
    exif_ifd, user_comment, long, undefined = 0x8769, 0x9286, 4, 7
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    return (
        struct.pack(">2sHI", b"MM", 42, 8)  # big-endian TIFF, its directory is at 8
        + struct.pack(">HHHIII", 1, exif_ifd, long, 1, 26, 0)  # 1 entry: the EXIF directory is at 26; no next one
        + struct.pack(">HHHIII", 1, user_comment, undefined, len(comment), 44, 0)  # 1 entry: the comment is at 44
        + comment
    )
