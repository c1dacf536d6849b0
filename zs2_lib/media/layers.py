"""GIF and APNG as their standards put them together: layers, each laid over or in place of what is there.

Here and not by Pillow or imageio, that is Pillow: it blends with a mask, which pales what is half transparent (up to
version 13), forgets what an APNG's frame has to be undone to, and fills what a GIF leaves open with a palette's colour.
Pillow decodes each layer, handed to it as a picture of its own.
https://www.w3.org/Graphics/GIF/spec-gif89a.txt https://www.w3.org/TR/png-3/#apng-frame-based-animation
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .pictures import eight_bits
from .source import check_size

_KEEP, _CLEAR, _RESTORE = range(3)  # what becomes of a layer before the next one comes


@dataclass(frozen=True)
class Layer:
    """box: where it lies on the canvas, (left, top, right, bottom); a GIF's may reach beyond.
    milliseconds: how long it is shown.
    dispose: `_KEEP`, `_CLEAR` or `_RESTORE`.
    over: what is transparent lets through what is below; otherwise it takes its place.
    picture: reads it (RGBA) from the open file.
    """

    box: tuple[int, int, int, int]
    milliseconds: Fraction
    dispose: int
    over: bool
    picture: Callable[[BinaryIO], Image.Image]


@dataclass
class Layers:
    """The layers of an animation on a canvas of `size`.

    broken: more are announced than there are.
    """

    path: Path
    size: tuple[int, int]
    layers: list[Layer] = field(default_factory=list)
    broken: bool = False

    def frames(self, first: int = 0) -> Iterator[Image.Image]:
        """The canvas (RGBA, to be left as it is) after each layer from the number `first` on.

        Raises one of `PICTURE_ERRORS` at a layer that is damaged.
        """
        begin = self.beginning(first)
        canvas = Image.new("RGBA", self.size)
        with open(self.path, "rb") as file:
            for number, layer in enumerate(self.layers[begin:], begin):
                before = canvas.copy() if layer.dispose == _RESTORE else None
                self._lay(canvas, layer, layer.picture(file))
                if number >= first:
                    yield canvas
                if before is not None:
                    canvas = before
                elif layer.dispose == _CLEAR:
                    canvas.paste((0, 0, 0, 0), layer.box)

    def beginning(self, number: int) -> int:
        """The number of the last layer, up to this one, that leaves nothing of what was there before."""
        for begin in range(number, 0, -1):
            layer = self.layers[begin]
            left, top, right, bottom = layer.box
            covers = left == top == 0 and right >= self.size[0] and bottom >= self.size[1]
            if covers and not layer.over and layer.dispose != _RESTORE:
                return begin
        return 0

    def _lay(self, canvas: Image.Image, layer: Layer, picture: Image.Image) -> None:
        left, top, right, bottom = layer.box
        width, height = min(right, self.size[0]) - left, min(bottom, self.size[1]) - top
        if width < 1 or height < 1:
            return
        if picture.size != (width, height):
            picture = picture.crop((0, 0, width, height))
        if layer.over:
            canvas.alpha_composite(picture, (left, top))
        else:
            canvas.paste(picture, (left, top))


def layers_of(path: Path, format: str, size: tuple[int, int], max_pixels: int) -> Layers | None:
    """The layers of a GIF or an APNG (Pillow's names of formats); None for any other picture.

    Layers that are incomplete are left out, except that the last one may still turn out to be.
    """
    read = {"GIF": _read_gif, "PNG": _read_apng}.get(format)
    if read is None:
        return None
    found = Layers(path, size)
    with open(path, "rb") as file:
        try:
            animated = read(file, found, max_pixels)
        except (EOFError, struct.error):  # it ends too early
            animated = found.broken = True
    return found if animated else None


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


# --- GIF -------------------------------------------------------------------------------------------------------


def _read_gif(file: BinaryIO, found: Layers, max_pixels: int) -> bool:
    """Adds the layers of the GIF to `found`."""
    head = _exactly(file, 13)
    head += _exactly(file, _palette_bytes(head[10]))
    control = None  # of the next layer: flags, how long it is shown, transparent colour
    while (kind := file.read(1)) not in (b"", b";"):
        if kind == b"!":
            label, data = _exactly(file, 1), _blocks(file, cut := [])
            if cut:
                raise EOFError
            if label == b"\xf9" and len(data) >= 6:
                control = data[1:5]
        elif kind == b",":
            place = _exactly(file, 9)
            left, top, width, height = struct.unpack("<4H", place[:8])
            check_size((width, height), found.path.name, max_pixels)
            start = file.tell()
            file.seek(_palette_bytes(place[8]), io.SEEK_CUR)
            _exactly(file, 1)  # how many bits its smallest codes have
            blocks = file.tell()
            data = _blocks(file, cut := [])
            flags, hundredths, clear = struct.unpack("<BHB", control or bytes(4))
            before = b"GIF89a" + struct.pack("<2H", width, height) + head[10:]
            before += b"!\xf9\4" + struct.pack("<BHB", flags & 1, 0, clear) + b"\0"
            before += b"," + struct.pack("<4H", 0, 0, width, height) + place[8:]
            span = start, (blocks if cut else file.tell()) - start
            found.layers.append(
                Layer(
                    (left, top, left + width, top + height),
                    Fraction(10 * hundredths),
                    {2: _CLEAR, 3: _RESTORE}.get(flags >> 2 & 7, _KEEP),
                    bool(flags & 1),
                    partial(_gif_picture, before, span, data if cut else b""),
                )
            )
            if cut:
                raise EOFError
            control = None
    found.broken = not kind and control is not None  # it ends before a layer; only the end mark may lack
    return True


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks(file: BinaryIO, cut: list) -> bytes:
    """The blocks of data that follow, with their lengths and their end. A file that ends within leaves one in `cut`,
    and what is there is given such an end.
    """
    data = []
    while True:
        length = file.read(1)
        block = file.read(length[0]) if length else b""
        if not length or len(block) < length[0]:
            cut.append(True)
            return b"".join([*data, bytes([len(block)]) + block if block else b"", b"\0"])
        data.append(length + block)
        if not block:
            return b"".join(data)


def _gif_picture(before: bytes, span: tuple[int, int], after: bytes, file: BinaryIO) -> Image.Image:
    file.seek(span[0])
    with Image.open(io.BytesIO(before + _exactly(file, span[1]) + after + b";"), formats=("GIF",)) as image:
        return image.convert("RGBA")


# --- APNG ------------------------------------------------------------------------------------------------------

_SIGNATURE = 8  # bytes
_GREY, _RGB, _PALETTE = 0, 2, 3  # types of colour that have no alpha channel


def _read_apng(file: BinaryIO, found: Layers, max_pixels: int) -> bool:
    """Adds the layers of the APNG to `found`. Returns whether it is one, and no simple PNG."""
    file.seek(_SIGNATURE)
    header = palette = transparent = b""
    announced, spans = 0, None
    while True:
        length, name = struct.unpack(">I4s", _exactly(file, 8))
        start = file.tell()
        data = _exactly(file, length)
        if struct.unpack(">I", _exactly(file, 4))[0] != zlib.crc32(name + data):
            break
        if name == b"IHDR":
            header = data
        elif name == b"PLTE":
            palette = _chunk(name, data)
        elif name == b"tRNS":
            transparent = data
        elif name == b"acTL":
            announced = struct.unpack(">I", data[:4])[0]
        elif name == b"fcTL" and len(found.layers) < announced:
            spans = []
            layer = _apng_layer(data, found.size, (header, palette, transparent), spans)
            if layer is None:
                break
            found.layers.append(layer)
        elif name == b"IDAT" and not announced:
            return False
        elif name in (b"IDAT", b"fdAT") and spans is not None:
            skip = 4 if name == b"fdAT" else 0  # its place in the file's order
            spans.append((start + skip, length - skip))
        elif name in (b"fcTL", b"IEND"):
            break
    found.broken = len(found.layers) < announced
    return True


def _apng_layer(control: bytes, size: tuple[int, int], shared: tuple[bytes, bytes, bytes], spans: list) -> Layer | None:
    """What an "fcTL" chunk describes, or None if it cannot be. spans: where the picture's data will be found."""
    if len(control) < 26:
        return None
    width, height, left, top, delay, per, dispose, blend = struct.unpack(">4I2H2B", control[4:26])
    if not (0 < width <= size[0] - left and 0 < height <= size[1] - top and dispose <= 2 and blend <= 1):
        return None
    header, palette, transparent = shared
    opaque = header[9] in (_GREY, _RGB, _PALETTE) and not transparent
    header = struct.pack(">2I", width, height) + header[8:]
    return Layer(
        (left, top, left + width, top + height),
        Fraction(1000 * delay, per or 100),
        dispose,
        blend == 1 and not opaque,
        partial(_apng_picture, (header, palette, transparent), spans),
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _apng_picture(shared: tuple[bytes, bytes, bytes], spans: list[tuple[int, int]], file: BinaryIO) -> Image.Image:
    header, palette, transparent = shared
    bits, colour_type = header[8:10]
    png = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), palette]
    if transparent and colour_type == _PALETTE:
        png.append(_chunk(b"tRNS", transparent))
    for start, length in spans:
        file.seek(start)
        png.append(_chunk(b"IDAT", _exactly(file, length)))
    with Image.open(io.BytesIO(b"".join([*png, _chunk(b"IEND", b"")])), formats=("PNG",)) as image:
        if transparent and colour_type in (_GREY, _RGB):
            return _without_colour(image, struct.unpack(f">{len(transparent) // 2}H", transparent), bits)
        return eight_bits(image).convert("RGBA")


def _without_colour(image: Image.Image, colour: tuple[int, ...], bits: int) -> Image.Image:
    """`image`, of so many bits a channel in the file, with all of this colour transparent, which Pillow compares with
    what it has scaled to 8 bits. Of 16 bits of RGB it keeps the upper 8.
    """
    levels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if bits < 8:
        colour = tuple(255 * level // (2**bits - 1) for level in colour)
    elif bits == 16 and levels.ndim == 3:
        colour = tuple(level >> 8 for level in colour)
    clear = (levels.reshape(*levels.shape[:2], -1) == colour).all(axis=2)
    picture = eight_bits(image).convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return picture
