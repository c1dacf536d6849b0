"""Reads the clip files that the API returns: their kind by magic bytes, and their frames."""

from __future__ import annotations

import io
import zipfile

import av
import numpy as np
from PIL import Image, ImageSequence


def kind(file: bytes) -> str:
    """mp4, webm, gif, webp (animated), apng, zip, png; else "unknown"."""
    if file[4:8] == b"ftyp":
        return "mp4"
    if file[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if file[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP" and b"ANIM" in file[:64]:
        return "webp"
    if file[:8] == b"\x89PNG\r\n\x1a\n":
        return "apng" if b"acTL" in file.partition(b"IDAT")[0] else "png"
    if file[:4] == b"PK\x03\x04":
        return "zip"
    return "unknown"


def frames(file: bytes) -> np.ndarray:
    """The frames of a clip file, (frames, height, width, rgb) in 0..255."""
    return np.stack(list(_frames(file))).astype(np.int16)


def _frames(file: bytes):
    match kind(file):
        case "mp4" | "webm":
            with av.open(io.BytesIO(file)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        case "zip":
            for member in members(file):
                yield np.asarray(Image.open(io.BytesIO(member)).convert("RGB"))
        case _:
            for frame in ImageSequence.Iterator(Image.open(io.BytesIO(file))):
                yield np.asarray(frame.convert("RGB"))


def members(file: bytes) -> list[bytes]:
    """The files in a ZIP archive, by name."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]


def codec(file: bytes) -> tuple[str, str]:
    """A video's codec and pixel format."""
    with av.open(io.BytesIO(file)) as container:
        context = container.streams.video[0].codec_context
        return context.name, context.pix_fmt


def comment(file: bytes) -> str:
    """The comment tag of a video file."""
    with av.open(io.BytesIO(file)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}.get("comment", "")


def seconds(file: bytes) -> float:
    """How long a clip plays."""
    if kind(file) in ("mp4", "webm"):
        with av.open(io.BytesIO(file)) as container:
            stream = container.streams.video[0]
            return sum(1 for _ in container.decode(stream)) / float(stream.average_rate)
    total = 0
    for frame in ImageSequence.Iterator(Image.open(io.BytesIO(file))):
        frame.load()  # WebP's durations are known then
        total += frame.info["duration"]
    return total / 1000
