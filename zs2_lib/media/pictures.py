"""Pictures: from anything that Pillow or numpy holds to RGB of one size, upright, on a background; many in a sheet."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from einops import rearrange
from PIL import Image

PICTURE_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def rgb_pictures(frames: Iterable[Image.Image | np.ndarray]) -> Iterator[Image.Image]:
    """Yields each frame as an RGB image of its own (never the caller's object), all of the first one's size.

    Raises ValueError for unequal sizes, and what `rgb_picture` raises.
    """
    size = None
    for number, frame in enumerate(frames, start=1):
        picture = rgb_picture(frame, number)
        size = size or picture.size
        if picture.size != size:
            raise ValueError(
                f"frame {number} is {by(picture.size)}, but frame 1 is {by(size)}: resize the frames to one size"
            )
        yield picture


def rgb_picture(frame: Image.Image | np.ndarray, number: int, background: str = "white") -> Image.Image:
    """`frame`, a PIL image or a uint8 array (height, width, 3 or 4), in RGB, what is transparent laid on `background`.

    number: of the frame, for the messages.

    Raises ValueError for what does not fit 8 bits, TypeError for what is no picture.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4) or 0 in frame.shape:
            raise ValueError(
                f"frame {number} is an array {frame.shape} of {frame.dtype}, expected (height, width, 3) of uint8, "
                "with values from 0 to 255"
            )
        frame = Image.fromarray(frame)
    if not isinstance(frame, Image.Image):
        raise TypeError(f"frame {number} is a {type(frame).__name__}, expected a PIL image or a uint8 array")
    if 0 in frame.size:
        raise ValueError(f"frame {number} is {by(frame.size)}: it has no pixels")
    if frame.mode.startswith(("I", "F")):
        raise ValueError(f"frame {number} has the mode {frame.mode}, which does not fit 8 bits: scale it to 0..255")
    if frame.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in frame.info:
        frame = frame.convert("RGBA")
        frame = Image.alpha_composite(Image.new("RGBA", frame.size, background), frame)
    picture = frame.convert("RGB")
    picture.info = {}  # a frame's own text, EXIF and colour profile must not leak into the clip
    return picture


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, such as a depth map, in 8 bits; any other image as it is."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() >= 0 and levels.max() <= 0xFFFF:
            return Image.fromarray((levels / 257).round().astype(np.uint8))
    return image


def contact_sheet(frames: Iterable[Image.Image | np.ndarray], columns: int) -> Image.Image:
    """All frames of a clip in one picture on white, left to right and top to bottom, `columns` in a row."""
    if columns < 1:
        raise ValueError(f"a contact sheet needs at least 1 column, got {columns}")
    pictures = [np.asarray(picture) for picture in rgb_pictures(frames)]
    if not pictures:
        raise ValueError("a contact sheet needs at least 1 frame, got 0")
    columns = min(columns, len(pictures))
    empty = [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
    sheet = rearrange(
        pictures + empty,
        "(rows columns) height width rgb -> (rows height) (columns width) rgb",
        columns=columns,
    )
    return Image.fromarray(sheet)


def by(size: tuple[int, int]) -> str:
    """(width, height) as messages say it: 64x48."""
    return f"{size[0]}x{size[1]}"


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """How the picture, of which no pixels have been read, has to be turned to be upright, as its EXIF data say."""
    if image.format == "TIFF":
        return None  # Pillow has turned it
    try:
        # The base class's method, since that of PNG reads the whole picture to look behind it.
        return _UPRIGHT.get(Image.Image.getexif(image).get(_EXIF_ORIENTATION))
    except PICTURE_ERRORS:
        return None  # the EXIF data are damaged, which browsers ignore too


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def turned_size(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    """(width, height) of a picture of that size once it is turned."""
    return size[::-1] if turn in _SIDEWAYS else size
