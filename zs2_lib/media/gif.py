"""GIF: one palette and a fixed pattern of dithering for all frames of a clip.

By hand and not through imageio, that is Pillow, which makes a palette for each frame and drops equal ones: of a clip of
the small checkpoint it changed 19 % of the pixels at rest from frame to frame (here none), in 1.7 times the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import GifImagePlugin, Image

from .animated import changed_box, ticks

_PALETTE_SAMPLES = 65536
_MAX_DITHER = 32  # levels of 255
# Pillow looks up the nearest palette colour in steps of 4 levels, each taken at its lower end: centre them.
_LOOKUP_BIAS = 1.5


def write_gif(pictures: Iterator[Image.Image], file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    """One palette for all frames and ordered dithering: equal pixels stay equal, so nothing flickers or crawls.

    Pillow compresses each frame; the file around the frames is put together here, because Pillow's own writer merges
    equal frames into one. https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    """
    pictures = list(pictures)
    width, height = pictures[0].size
    colours = _shared_palette(pictures)
    table = np.pad(colours, ((0, 256 - len(colours)), (0, 0)), mode="edge").tobytes()  # repeats the last colour
    palette = Image.new("P", (1, 1))
    palette.putpalette(table)
    offsets = _dither_offsets(width, height, colours) + _LOOKUP_BIAS

    with open(file, "wb") as out:
        out.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0))  # 0xF7: 256 colours of 8 bits follow
        out.write(table)
        if loop:
            out.write(b"\x21\xff\x0bNETSCAPE2.0" + _gif_blocks(b"\x01\x00\x00"))
        if text:
            out.write(b"\x21\xfe" + _gif_blocks(text.encode("utf-8")))
        previous = None
        for number, picture in enumerate(pictures):
            pixels = np.clip(np.rint(np.asarray(picture) + offsets), 0, 255).astype(np.uint8)
            indexed = Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)
            box = changed_box(indexed, previous)
            milliseconds = 10 * ticks(number, rate, 100)
            out.write(b"".join(GifImagePlugin.getdata(indexed.crop(box), offset=box[:2], duration=milliseconds)))
            previous = indexed
        out.write(b"\x3b")


def _gif_blocks(data: bytes) -> bytes:
    """`data` in GIF's sub-blocks of at most 255 bytes, with the empty block that ends them."""
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _shared_palette(pictures: list[Image.Image]) -> np.ndarray:
    """Up to 256 colours (colours, 3) that serve all frames, from a sample of their pixels: median cut, then k-means."""
    random = np.random.default_rng(0)
    share = max(1, _PALETTE_SAMPLES // len(pictures))
    samples = []
    for picture in pictures:
        pixels = rearrange(np.asarray(picture), "height width rgb -> (height width) rgb")
        samples.append(pixels if len(pixels) <= share else pixels[random.integers(len(pixels), size=share)])
    sample = Image.fromarray(np.concatenate(samples)[None])
    indexed = sample.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    used = indexed.getextrema()[1] + 1
    return np.array(indexed.getpalette()[: 3 * used], dtype=np.uint8).reshape(-1, 3)


def _dither_offsets(width: int, height: int, colours: np.ndarray) -> np.ndarray:
    """What to add to a frame before its nearest colours are looked up: an 8x8 Bayer pattern. (height, width, 3)

    Each channel has it mirrored in another way, so that hues are dithered too. It spans the typical distance between
    neighbours in the palette, and is nothing where the palette has room to spare: there it holds every colour.
    """
    if len(colours) < 256:
        return np.zeros((height, width, 3))
    distances = np.linalg.norm(colours[:, None].astype(float) - colours, axis=2)  # (256, 256)
    np.fill_diagonal(distances, np.inf)
    span = min(np.median(distances.min(axis=1)) / 3**0.5, _MAX_DITHER)
    bayer = np.zeros((1, 1))
    for _ in range(3):
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    pattern = span * ((bayer + 0.5) / 64 - 0.5)
    pattern = np.stack([pattern, pattern[:, ::-1], pattern[::-1]], axis=2)  # (8, 8, 3)
    return np.tile(pattern, (-(-height // 8), -(-width // 8), 1))[:height, :width]
