"""APNG, and a folder of PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
from PIL import Image, PngImagePlugin

from .animated import ticks

FRAME_NAME = re.compile(r"\d{5,}\.png")
"""What the files of a PNG folder are called."""


def write_apng(pictures: Iterator[Image.Image], file: Path, rate: Fraction, text: str | None, loop: bool) -> None:
    """Pillow itself and not imageio, which first copies all frames into one array."""
    first, *others = pictures
    numbers = range(1 + len(others))
    first.save(
        file,
        "PNG",
        save_all=True,
        append_images=others,
        duration=[ticks(number, rate, 1000) for number in numbers],
        # Pillow merges equal frames, but only if they are blended in the same way. For opaque frames both ways are one.
        blend=[number % 2 for number in numbers],
        loop=0 if loop else 1,
        pnginfo=_png_text(text),
    )


def write_png_folder(
    pictures: Iterator[Image.Image], folder: Path, rate: Fraction, text: str | None, loop: bool
) -> None:
    """`00001.png`, `00002.png`, ...; the frame rate is not recorded."""
    folder.mkdir()
    for number, picture in enumerate(pictures, start=1):
        with open(folder / f"{number:05d}.png", "wb") as file:  # which imageio would leave open on a full disk
            iio.imwrite(file, picture, plugin="pillow", extension=".png", pnginfo=_png_text(text))


def _png_text(text: str | None) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text("parameters", text)
    return info
