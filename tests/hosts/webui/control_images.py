"""Control images and the requests for ControlNet units that show them, for the tests of either kind of ControlNet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from host import STILL
from webui import png_base64

SIZE = (STILL["width"], STILL["height"])


def scene(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A shape that moves to the right and changes its colour."""
    image = Image.new("RGB", size, (60 * number, 40, 240 - 60 * number))
    x = size[0] * (0.1 + 0.1 * number)
    box, colour = (x, size[1] * 0.3, x + size[0] * 0.4, size[1] * 0.7), (240 - 60 * number, 60 * number, 40)
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def mask(size: tuple[int, int] = SIZE) -> Image.Image:
    """White in the middle half of each direction."""
    image = Image.new("RGB", size)
    width, height = size
    ImageDraw.Draw(image).rectangle((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill="white")
    return image


def make_folder(host, frames: int) -> Path:
    """A folder of a scene for each frame that requests may name."""
    path = host.data / "control"
    path.mkdir()
    for number in range(frames):
        scene(number).save(path / f"{number}.png")
    return path


def enabled(unit: dict, image: Image.Image | None = None) -> dict:
    """The request's `unit`, enabled, with an image of its own if one is given."""
    unit = {"enabled": True, "save_detected_map": False, **unit}
    return {**unit, "image": png_base64(image)} if image else unit
