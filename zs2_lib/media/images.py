"""Animated images (GIF, WebP, APNG), single pictures, and folders of pictures as sources.

Pillow itself and not imageio, whose plugin cannot be kept to some kinds of files and changes how the whole process
reads GIFs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .formats import FORMATS
from .layers import layers_of
from .pictures import PICTURE_ERRORS, by, eight_bits, rgb_picture, turned, turned_size, upright_turn
from .source import Clock, Source, check_size, in_words

_PICTURE_FORMATS = ("GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_picture(head: bytes) -> bool:
    """Whether Pillow rather than FFmpeg reads a file that begins with these 12 bytes."""
    return head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")) or (
        head[:4] == b"RIFF" and head[8:] == b"WEBP"
    )


@contextmanager
def opened_picture(path: Path, max_pixels: int, content: BytesIO | None = None) -> Iterator[Image.Image]:
    """The picture in `path`, or of this `content`, its size checked. Pixels are read only when used."""
    try:
        image = Image.open(content or path, formats=_PICTURE_FORMATS)
    except (FileNotFoundError, PermissionError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path.name} has too many pixels: scale it down ({error})") from error
    except (UnidentifiedImageError, *PICTURE_ERRORS) as error:
        raise ValueError(f"{path.name} is damaged, or no picture in spite of its name: remove or replace it") from error
    with image:
        check_size(image.size, path.name, max_pixels)
        if image.format == "TIFF":
            _load(image, path.name)  # since Pillow turns it upright then, and only then tells its size
        yield image


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except PICTURE_ERRORS as error:
        raise ValueError(f"{name} is damaged ({error}): remove or replace it") from error


class Animation(Source):
    """A GIF, APNG or WebP file, which FFmpeg cannot decode if animated. Also a single picture."""

    _KINDS = {"GIF": FORMATS["gif"], "WEBP": FORMATS["webp"], "PNG": FORMATS["apng"]}  # by the names that Pillow tells

    def __init__(self, path: Path, background: str, max_pixels: int) -> None:
        super().__init__(path, background, max_pixels)
        starts, now = [], Fraction(0)
        with self._opened() as (image, broken):
            self._size, self._turn = image.size, upright_turn(image)
            kind = self._KINDS.get(image.format)
            tick = 0.01 if image.format == "GIF" else 0.001
            self._layers = layers_of(path, image.format, image.size, max_pixels)
            broken = broken or (self._layers is not None and self._layers.broken)
            try:
                with closing(self._durations(image)) as durations:
                    for milliseconds in durations:
                        starts.append(float(now))
                        now += milliseconds / 1000 if kind and milliseconds >= kind.least_ms else Fraction(1, 10)
            except PICTURE_ERRORS:
                broken = True
        if not starts:
            raise ValueError(f"{path.name} is damaged, not even its first frame can be read: replace it")
        self.clock = Clock.of(np.array(starts), float(now), tick, broken=broken)
        self.info = self.clock.info(turned_size(self._size, self._turn))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Image.Image, bool]]:
        """The picture, and whether its file ends too early."""
        whole = whole_part_of_webp(self.path)
        with opened_picture(self.path, self.max_pixels, whole) as image:
            yield image, whole is not None

    def _durations(self, image: Image.Image) -> Iterator[Fraction]:
        """How many milliseconds each frame is shown, after decoding it. Raises one of `PICTURE_ERRORS`."""
        if self._layers is not None:
            with closing(self._layers.frames()) as frames:
                for layer, _ in zip(self._layers.layers, frames):
                    yield layer.milliseconds
            return
        for number in range(image.n_frames if image.format == "WEBP" else 1):
            image.seek(number)
            image.load()
            yield Fraction(image.info.get("duration", 0))

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        with in_words(self.path), self._opened() as (image, _), ExitStack() as stack:
            shown = self._seeked(image, numbers) if self._layers is None else self._layered(numbers)
            stack.enter_context(closing(shown))
            for number in numbers:
                try:
                    picture = next(shown)
                except PICTURE_ERRORS as error:
                    raise ValueError(f"frame {number + 1} of {self.path.name} is damaged ({error})") from error
                yield turned(rgb_picture(eight_bits(picture), number + 1, self.background), self._turn)

    def _seeked(self, image: Image.Image, numbers: list[int]) -> Iterator[Image.Image]:
        for number in numbers:
            image.seek(number)
            image.load()
            yield image

    def _layered(self, numbers: list[int]) -> Iterator[Image.Image]:
        with ExitStack() as stack:
            reached = -1
            for number in numbers:
                if reached < 0 or self._layers.beginning(number) > reached:
                    stack.close()
                    frames = stack.enter_context(closing(self._layers.frames(number)))
                    reached = number - 1
                while reached < number:
                    picture = next(frames)
                    reached += 1
                yield picture


def whole_part_of_webp(path: Path) -> BytesIO | None:
    """Of an animated WebP that is cut off, what comes before, as a file that libwebp reads; None for any other file.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    with open(path, "rb") as file:
        head = file.read(12)
        size = 8 + int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or head[8:] != b"WEBP" or size <= path.stat().st_size:
            return None
        data = head + file.read()
    position = 12
    while position + 8 <= len(data):
        after = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        after += after % 2
        if after > len(data):
            break
        position = after
    return BytesIO(b"RIFF" + (position - 8).to_bytes(4, "little") + data[8:position])


class Folder(Source):
    """The pictures of a folder in the order of their names, where numbers count as numbers. Other files are ignored."""

    def __init__(self, path: Path, fps: Fraction, background: str, max_pixels: int) -> None:
        super().__init__(path, background, max_pixels)
        self._files = pictures_in(path)
        size = None
        for file in self._files:
            with in_words(file), opened_picture(file, max_pixels) as image:
                upright = turned_size(image.size, upright_turn(image))
            size = size or upright
            if upright != size:
                raise ValueError(
                    f"{file.name} is {by(upright)}, but {self._files[0].name} is {by(size)}: a folder of "
                    "frames needs one size, resize or remove the others"
                )
        count = len(self._files)
        self.clock = Clock(np.arange(count) / float(fps), float(count / fps), fps)
        self.info = self.clock.info(size)

    def _pictures(self, numbers: list[int]) -> Iterator[Image.Image]:
        for number in numbers:
            file = self._files[number]
            with in_words(file), opened_picture(file, self.max_pixels) as image:
                turn = upright_turn(image)
                _load(image, file.name)
                picture = turned(rgb_picture(eight_bits(image), number + 1, self.background), turn)
            yield picture


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names. Raises ValueError where there are none."""
    files = sorted(
        (file for file in folder.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES and file.name[0] != "."),
        key=_natural_order,
    )
    if not files:
        suffixes = ", ".join(_PICTURE_SUFFIXES)
        raise ValueError(f"the folder {folder} holds no frames: it needs files that end with {suffixes}")
    return files


def _natural_order(file: Path) -> tuple:
    """frame2 comes before frame10, whatever is upper case."""
    parts = re.split(r"(\d+)", file.name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, file.name
